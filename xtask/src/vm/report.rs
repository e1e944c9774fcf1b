//! What the tests in a guest came to.

use std::{fmt::Write as _, fs, time::Duration};

use anyhow::{Context as _, Result};
use guard_vm::Output;

use super::suite::Part;
use crate::process::root;

/// Where the matrix is told, and between which lines.
const DOCS: &str = "docs/kernels.md";
const BEGIN: &str = "<!-- matrix -->\n";
const END: &str = "<!-- end -->";

/// What a guest came to.
pub(crate) struct Row {
    series: String,
    pub(crate) release: String,
    variant: &'static str,
    wanted: Vec<String>,
    pub(crate) files: Vec<Outcome>,
    /// It did not get to its end.
    pub(crate) error: Option<String>,
    pub(crate) took: Duration,
}

/// What a file of tests came to.
pub(crate) struct Outcome {
    file: String,
    passed: usize,
    failed: Vec<String>,
    ended_well: bool,
    pub(crate) said: String,
    /// On the host.
    took: Duration,
}

impl Row {
    pub(crate) fn of(part: &Part<'_>) -> Self {
        Self {
            series: part.kernel.series.clone(),
            release: part.kernel.release.clone(),
            variant: part.variant.name(),
            wanted: part.files.iter().map(|&file| file.to_owned()).collect(),
            files: vec![],
            error: None,
            took: Duration::ZERO,
        }
    }

    pub(crate) fn passed(&self) -> usize {
        self.files.iter().map(|file| file.passed).sum()
    }

    fn failed(&self) -> usize {
        self.files.iter().map(|file| file.failed.len()).sum()
    }

    fn is_good(&self) -> bool {
        self.error.is_none() && self.files.len() == self.wanted.len() && self.files.iter().all(|file| file.ended_well)
    }
}

impl Outcome {
    /// For the docs.
    fn told(&self) -> String {
        let Self { file, passed, failed, took, .. } = self;
        let failed = if failed.is_empty() { String::new() } else { format!(" (failed: {})", failed.join(", ")) };
        format!("`{file}` {passed}{failed}, {:.0}", took.as_secs_f64())
    }

    /// Reads what libtest prints: `test NAME ... ok`, with what the test itself says in between if that is not caught.
    pub(crate) fn read(file: &str, output: Output, took: Duration) -> Self {
        let Output { status, text } = output;
        let total = text.lines().rev().find_map(|line| line.strip_prefix("test result: "));
        let number = |word: &str| -> Option<usize> {
            let (before, _) = total?.split_once(word)?;
            before.split_whitespace().last()?.parse().ok()
        };
        // The last list of that name has the names only.
        let list = text.rsplit_once("\nfailures:\n").map_or("", |(_, list)| list);
        let names = list.lines().map_while(|line| line.strip_prefix("    "));
        let mut failed: Vec<String> = names.map(str::to_owned).collect();
        if failed.is_empty() && number(" failed") != Some(0) {
            failed.push(if total.is_some() { "unnamed".into() } else { "it did not end".into() });
        }
        let ended_well = status == 0 && failed.is_empty();
        Self { file: file.into(), passed: number(" passed").unwrap_or(0), failed, ended_well, said: text, took }
    }
}

/// A line as soon as a guest is done.
pub(crate) fn line(row: &Row) -> String {
    let mut line = format!("vm: {} {}", row.release, row.variant);
    for Outcome { file, passed, failed, took, .. } in &row.files {
        let _infallible =
            write!(line, "\n      {file}: {passed} passed, {} failed, {:.0} s", failed.len(), took.as_secs_f64());
    }
    line
}

/// Prints what failed, and the table; returns how many guests were not as they should be.
pub(crate) fn show<'a>(rows: impl Iterator<Item = &'a Row> + Clone) -> usize {
    for row in rows.clone() {
        for outcome in row.files.iter().filter(|outcome| !outcome.ended_well) {
            println!("\n==== {} {}: {}\n{}", row.release, row.variant, outcome.file, outcome.said);
        }
        if let Some(error) = &row.error {
            println!("\n==== {} {}: {error}", row.release, row.variant);
        }
    }
    println!("\n{:<8} {:<28} {:<20} {:>6} {:>6} {:>7}", "KERNEL", "RELEASE", "WITH", "PASSED", "FAILED", "TIME");
    let mut bad = 0;
    for row in rows {
        let time = format!("{:.0} s", row.took.as_secs_f64());
        let (passed, failed) = (row.passed(), row.failed());
        print!("{:<8} {:<28} {:<20} {passed:>6} {failed:>6} {time:>7}", row.series, row.release, row.variant);
        let names: Vec<&str> = row.files.iter().flat_map(|file| file.failed.iter().map(String::as_str)).collect();
        let missing = row.wanted.len() - row.files.len();
        println!(
            "{}{}",
            if names.is_empty() { String::new() } else { format!("  {}", names.join(", ")) },
            match missing {
                0 => String::new(),
                _ => format!("  not run: {}", row.wanted[row.files.len()..].join(", ")),
            }
        );
        bad += usize::from(!row.is_good());
    }
    println!(
        "Not in guests: the benchmark and the demo, whose figures mean nothing in emulation; the tests with an API server; \
         without `--userland`, those that ask the kernel for nothing that others do not ask for."
    );
    bad
}

/// Puts the table into the docs.
pub(crate) fn document(rows: &[Row]) -> Result<()> {
    let path = root().join(DOCS);
    let docs = fs::read_to_string(&path).with_context(|| format!("read {DOCS}"))?;
    let missing = || format!("{DOCS} has no lines {BEGIN:?} and {END:?}");
    let (before, rest) = docs.split_once(BEGIN).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", table(rows)))?;
    println!("vm: the table is in {DOCS}");
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let mut table = String::from("| kernel | release | with | files of tests: passed, seconds | minutes |\n");
    table.push_str("| --- | --- | --- | --- | --- |\n");
    for row in rows {
        let files: Vec<String> = row.files.iter().map(Outcome::told).collect();
        let error = row.error.as_ref().map_or("", |_| "; it did not get to its end");
        let minutes = row.took.as_secs_f64() / 60.0;
        let (series, release, variant) = (&row.series, &row.release, row.variant);
        let _infallible =
            writeln!(table, "| {series} | {release} | {variant} | {}{error} | {minutes:.1} |", files.join("; "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: i32, text: &str) -> Outcome {
        Outcome::read("file", Output { status, text: text.into() }, Duration::ZERO)
    }

    #[test]
    fn failures_are_told_from_what_merely_said_something() {
        let text = "running 3 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... ok\n\nsuccesses:\n\n---- a stdout ----\n\
                    verifier 6.1 egress 7\n\n\nsuccesses:\n    a\n    c\n\nfailures:\n\n---- b stdout ----\nError: no\n\n\n\
                    failures:\n    b\n\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; finished in 1s\n";
        let outcome = read(101, text);
        assert_eq!((outcome.passed, outcome.failed, outcome.ended_well), (2, vec!["b".to_owned()], false));
    }

    #[test]
    fn the_docs_say_what_passed_and_what_did_not() {
        let good = read(0, "test result: ok. 2 passed; 0 failed; 0 ignored; finished in 1s\n");
        let bad =
            read(101, "\nfailures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; finished in 1s\n");
        assert_eq!((good.told(), bad.told()), ("`file` 2, 0".into(), "`file` 1 (failed: b), 0".into()));
    }

    #[test]
    fn a_file_that_breaks_off_has_failed() {
        let outcome = read(137, "running 2 tests\ntest a ... ok\ntest b ... ");
        assert!(!outcome.ended_well && outcome.failed == ["it did not end"], "{:?}", outcome.failed);
        let well = read(0, "test result: ok. 2 passed; 0 failed; 0 ignored; finished in 1s\n");
        assert!(well.ended_well && well.passed == 2);
    }
}
