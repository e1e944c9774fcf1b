//! What came of a soak.

use std::{collections::BTreeMap, fmt, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use guard_soak::{invariants::Compared, leaks::Held, violation::Soak};

/// Between these lines of the docs.
const BEGIN: &str = "<!-- result -->\n";
const END: &str = "<!-- end -->";

pub(crate) struct Report {
    pub(crate) soak: Soak,
    pub(crate) took: Duration,
    pub(crate) done: BTreeMap<&'static str, u32>,
    pub(crate) evictions: usize,
    pub(crate) compared: Compared,
    /// At each checkpoint.
    pub(crate) held: Vec<Held>,
    pub(crate) restless: u32,
    pub(crate) violations: usize,
}

impl Report {
    /// Why nothing follows from it.
    pub(crate) fn proves_nothing(&self) -> Option<String> {
        let Compared { checkpoints, scrapes, pods, bytes, watched, over_budget, warm, .. } = self.compared;
        let breaches = self.done.get("breach").copied().unwrap_or_default();
        if checkpoints == 0 || self.restless > 0 {
            return Some(format!("it came to rest {checkpoints} times, and {} times it did not", self.restless));
        }
        if pods == 0 || bytes == 0 {
            return Some(format!("{pods} comparisons of pods, {bytes} bytes to the world"));
        }
        if scrapes == 0 || watched == 0 {
            return Some(format!("{scrapes} scrapes in mid traffic, {watched} looks at pods that are watched"));
        }
        if warm == 0 {
            return Some("no agent lived long enough to be looked at for leaks".into());
        }
        if breaches > 3 && self.evictions == 0 {
            return Some(format!("{breaches} breaches, and nothing was evicted"));
        }
        (breaches > 20 && over_budget == 0).then(|| format!("{breaches} breaches, and no budget was ever spent"))
    }

    /// Puts it into the docs.
    pub(crate) fn document(&self, path: &Path) -> Result<()> {
        let docs = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let missing = || format!("{} has no lines {BEGIN:?} and {END:?}", path.display());
        let (before, rest) = docs.split_once(BEGIN).with_context(missing)?;
        let (_, after) = rest.split_once(END).with_context(missing)?;
        fs::write(path, format!("{before}{BEGIN}{self}{END}{after}"))?;
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Compared { checkpoints, scrapes, pods, bytes, unmetered, watched, over_budget, lives, warm } =
            self.compared;
        let steps: Vec<String> = self.done.iter().map(|(word, count)| format!("{word} {count}")).collect();
        writeln!(f, "| | |\n| --- | --- |")?;
        writeln!(f, "| minutes, seed | {:.0}, {} |", self.took.as_secs_f64() / 60.0, self.soak.seed)?;
        writeln!(f, "| steps | {} |", steps.join(", "))?;
        writeln!(f, "| evictions, by the audit log | {} |", self.evictions)?;
        writeln!(f, "| not evicted, for a budget was spent | {over_budget} |")?;
        writeln!(f, "| agents, one after the other | {lives} |")?;
        writeln!(f, "| checkpoints at rest; not come to rest | {checkpoints}; {} |", self.restless)?;
        writeln!(f, "| scrapes in mid traffic | {scrapes} |")?;
        writeln!(f, "| pods compared with their wires | {pods} |")?;
        writeln!(f, "| bytes to the world, compared | {bytes} |")?;
        writeln!(f, "| of those without a socket (last ACKs, resets) | {unmetered} |")?;
        writeln!(f, "| looks at pods that are watched for a bypass | {watched} |")?;
        writeln!(f, "| looks at a warm agent | {warm} |")?;
        if let (Some(first), Some(last)) = (self.held.first(), self.held.last()) {
            let most = self.held.iter().map(|held| held.rss).max().unwrap_or_default();
            writeln!(f, "| RSS at start, at most, at end (KiB) | {}, {most}, {} |", first.rss, last.rss)?;
            for (what, figure) in FIGURES {
                writeln!(f, "| {what} at start, at end | {}, {} |", figure(first), figure(last))?;
            }
        }
        writeln!(f, "| violations | {} |", self.violations)
    }
}

/// A figure of those.
type Figure = fn(&Held) -> u64;

const FIGURES: [(&str, Figure); 7] = [
    ("heap and stacks (KiB)", |held| held.anon),
    ("open files, without programs and links", |held| held.fds),
    ("kernel programs", |held| held.programs),
    ("links", |held| held.links),
    ("pins", |held| held.pins),
    ("slots", |held| held.slots),
    ("containers", |held| held.containers),
];
