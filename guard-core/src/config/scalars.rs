//! The configuration's values, each with an error that says what is expected.

use std::{collections::BTreeMap, num::NonZeroU64, time::Duration};

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use guard_common::MAX_CIDRS;
use http::{Uri, uri::Scheme};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::Meters;
use crate::{
    policy::{Count, Globs, Mode},
    units::{Percent, Rate, Size, duration},
};

/// How many meters a node may have at most: the kernel's per-CPU counters of this many take 8 MiB for each CPU.
const MOST_METERS: u32 = 65_535;

/// The least interval between samples.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

/// The least that may pass at once: a super-packet, which the kernel sees whole, would not fit into a smaller bucket.
pub(super) const LEAST_BURST: u64 = 64 * 1024;

/// The most bytes of a pattern, and the most braces that it opens: its compiler gives up, or panics, on far more.
const LONGEST_PATTERN: usize = 4096;
const MOST_BRACES: usize = 100;

/// A section of which every key is commented out is null in YAML.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(yaml: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(yaml)?.unwrap_or_default())
}

/// For a key that may be left out, but not left empty: what then holds would be a guess.
pub(crate) fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(yaml: D) -> Result<Option<T>, D::Error> {
    T::deserialize(yaml).map(Some)
}

/// A value that is read as text and parsed, so that the error can say what is expected.
pub(super) fn scalar<'de, D: Deserializer<'de>, T>(
    yaml: D,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let text = text(yaml, expected)?;
    parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not {expected}")))
}

fn text<'de, D: Deserializer<'de>>(yaml: D, expected: &str) -> Result<String, D::Error> {
    String::deserialize(yaml).map_err(|_| D::Error::custom(format!("expected {expected}")))
}

/// For a key that must be there: serde says so by itself only if the type has no part in it.
pub(crate) fn required<'de, D: Deserializer<'de>, T: Deserialize<'de>>(yaml: D) -> Result<T, D::Error> {
    T::deserialize(yaml)
}

/// Yes or no.
pub(crate) fn truth<'de, D: Deserializer<'de>>(yaml: D) -> Result<bool, D::Error> {
    bool::deserialize(yaml).map_err(|_| D::Error::custom("expected true or false"))
}

/// Labels with their values.
pub(crate) fn labels<'de, D: Deserializer<'de>>(yaml: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Value(String);
    impl<'de> Deserialize<'de> for Value {
        fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
            text(yaml, "the label's value, \"\" if that is empty").map(Self)
        }
    }
    let labels = BTreeMap::<String, Value>::deserialize(yaml)?;
    Ok(labels.into_iter().map(|(key, Value(value))| (key, value)).collect())
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        text(yaml, "a size like 500MiB, 20GB or 1Gi")?.parse().map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        text(yaml, "a rate like 50MiB/s, 50MB/s or 400Mbit/s")?.parse().map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let modes = [Self::Observe, Self::Contain, Self::Evict];
        let parse = |text: &str| modes.into_iter().find(|mode| mode.to_string() == text);
        scalar(yaml, "observe, contain or evict", parse)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let parse = |text: &str| [Self::External, Self::All].into_iter().find(|count| count.to_string() == text);
        scalar(yaml, "external or all", parse)
    }
}

impl<'de> Deserialize<'de> for Globs {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        globs(yaml, "an empty list matches nothing: leave the key out to match everything")
    }
}

/// Patterns, at least one. `empty`: what is said if there is none.
pub(super) fn globs<'de, D: Deserializer<'de>>(yaml: D, empty: &str) -> Result<Globs, D::Error> {
    struct Pattern(Glob);
    impl<'de> Deserialize<'de> for Pattern {
        fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
            let expected = "a pattern like batch-*, load-[0-9] or {one,two}";
            let text = text(yaml, expected)?;
            compilable(&text).map_err(D::Error::custom)?;
            let glob = Glob::new(&text).ok().filter(|_| !text.is_empty());
            glob.map(Self).ok_or_else(|| D::Error::custom(format!("{text:?} is not {expected}")))
        }
    }
    let patterns = Vec::<Pattern>::deserialize(yaml)?;
    if patterns.is_empty() {
        return Err(D::Error::custom(empty));
    }
    Ok(Globs::new(patterns.into_iter().map(|Pattern(glob)| glob)))
}

fn compilable(pattern: &str) -> Result<(), String> {
    if pattern.len() <= LONGEST_PATTERN && pattern.matches('{').count() <= MOST_BRACES {
        return Ok(());
    }
    let start: String = pattern.chars().take(20).collect();
    Err(format!(
        "the pattern that begins {start:?} has more than {LONGEST_PATTERN} bytes or {MOST_BRACES} braces: \
         write several shorter ones"
    ))
}

/// A duration of at least so many seconds.
pub(crate) fn at_least<'de, const SECONDS: u64, D: Deserializer<'de>>(yaml: D) -> Result<Duration, D::Error> {
    let parsed = duration(&text(yaml, "a duration like 500ms, 30s, 10m, 1h or 1d")?).map_err(D::Error::custom)?;
    if parsed < Duration::from_secs(SECONDS) {
        let least = humantime::format_duration(Duration::from_secs(SECONDS));
        return Err(D::Error::custom(format!("it must be at least {least}")));
    }
    Ok(parsed)
}

/// A whole number of at least `MIN`.
pub(crate) fn whole<'de, const MIN: u64, D: Deserializer<'de>>(yaml: D) -> Result<NonZeroU64, D::Error> {
    scalar(yaml, &format!("a whole number of at least {MIN}"), |text: &str| {
        text.parse().ok().filter(|number: &NonZeroU64| number.get() >= MIN)
    })
}

/// A whole number of any size that there are pods.
pub(super) fn number<'de, D: Deserializer<'de>>(yaml: D) -> Result<u32, D::Error> {
    scalar(yaml, "a whole number", |text: &str| text.parse().ok())
}

/// A part of a whole.
pub(crate) fn percent<'de, D: Deserializer<'de>>(yaml: D) -> Result<Percent, D::Error> {
    text(yaml, "a part from 1% to 100%, like 25%")?.parse().map_err(D::Error::custom)
}

/// What a factor is, for errors.
pub(crate) const FACTOR: &str = "a number above 1, like 100";

/// How many times the normal is too much.
pub(crate) fn parse_factor(text: &str) -> Option<f64> {
    text.parse().ok().filter(|factor: &f64| factor.is_finite() && *factor > 1.0)
}

/// As [`parse_factor`].
pub(crate) fn factor<'de, D: Deserializer<'de>>(yaml: D) -> Result<f64, D::Error> {
    scalar(yaml, FACTOR, parse_factor)
}

/// The name of a policy.
pub(super) fn name<'de, D: Deserializer<'de>>(yaml: D) -> Result<String, D::Error> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let parse = |text: &str| ((1..=63).contains(&text.len()) && text.bytes().all(good)).then(|| text.to_owned());
    scalar(yaml, "a name of 1 to 63 letters, digits, \"-\", \"_\" and \".\"", parse)
}

/// The size of a bucket.
pub(super) fn burst<'de, D: Deserializer<'de>>(yaml: D) -> Result<Option<Size>, D::Error> {
    large_enough(Size::deserialize(yaml)?).map(Some).map_err(D::Error::custom)
}

/// A size that a bucket may have.
pub(crate) fn large_enough(burst: Size) -> Result<Size, &'static str> {
    let least = "it must be at least 64KiB, the size of the largest packet that the kernel hands over at once";
    if burst.bytes() < LEAST_BURST { Err(least) } else { Ok(burst) }
}

/// Where alerts go. What is refused is not shown: it may hold a secret.
pub(super) fn webhook<'de, D: Deserializer<'de>>(yaml: D) -> Result<Option<Uri>, D::Error> {
    let parse = |text: &str| {
        let uri: Uri = text.parse().ok()?;
        let http = [Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&uri.scheme());
        // User and password would not be sent.
        let plain = uri.authority().is_some_and(|to| !to.host().is_empty() && !to.as_str().contains('@'));
        (http && plain).then_some(uri)
    };
    let expected = "an http or https URL without user and password, like http://alertmanager:9093/api/v2/alerts";
    let uri = parse(&text(yaml, expected)?);
    uri.map(Some).ok_or_else(|| D::Error::custom(format!("expected {expected}")))
}

#[derive(Clone, Copy)]
struct Cidr(IpNet);

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let parse = |text: &str| text.parse::<IpNet>().ok().filter(|cidr| cidr.addr() == cidr.network());
        scalar(yaml, "a CIDR without host bits, like 10.0.0.0/8 or fc00::/7", parse).map(Self)
    }
}

pub(super) fn cidrs<'de, D: Deserializer<'de>>(yaml: D) -> Result<Vec<IpNet>, D::Error> {
    let all: Vec<IpNet> = Vec::<Cidr>::deserialize(yaml)?.into_iter().map(|Cidr(cidr)| cidr).collect();
    // What is inside another, or there twice, needs no comparison of its own.
    let all = IpNet::aggregate(&all);
    let v4 = all.iter().filter(|cidr| matches!(cidr, IpNet::V4(_))).count();
    for (count, version) in [(v4, "IPv4"), (all.len() - v4, "IPv6")] {
        if count > MAX_CIDRS {
            return Err(D::Error::custom(format!(
                "{count} {version} CIDRs that cannot be merged, and the kernel compares with at most {MAX_CIDRS}: \
                 replace some by a wider one"
            )));
        }
    }
    Ok(all)
}

/// [`Meters`], with the patterns and what they compile to in one key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MetersText {
    #[serde(deserialize_with = "extra")]
    extra: (GlobSet, Vec<String>),
    #[serde(deserialize_with = "meters_max")]
    max: u32,
}

impl Default for MetersText {
    fn default() -> Self {
        let Meters { extra, patterns, max } = Meters::default();
        Self { extra: (extra, patterns), max }
    }
}

impl From<MetersText> for Meters {
    fn from(MetersText { extra: (extra, patterns), max }: MetersText) -> Self {
        Self { extra, patterns, max }
    }
}

/// Compiles the patterns of `meters.extra`. `*` stays within a path's part, `**` crosses them.
pub fn extra_globs(patterns: &[String]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(GlobBuilder::new(pattern.trim_matches('/')).literal_separator(true).build()?);
    }
    set.build()
}

fn extra<'de, D: Deserializer<'de>>(yaml: D) -> Result<(GlobSet, Vec<String>), D::Error> {
    let patterns = Vec::<String>::deserialize(yaml)?;
    patterns.iter().try_for_each(|pattern| compilable(pattern)).map_err(D::Error::custom)?;
    let set = extra_globs(&patterns).map_err(|error| D::Error::custom(format!("not a pattern: {error}")))?;
    Ok((set, patterns))
}

fn meters_max<'de, D: Deserializer<'de>>(yaml: D) -> Result<u32, D::Error> {
    let parse = |text: &str| text.parse().ok().filter(|max| (1..=MOST_METERS).contains(max));
    scalar(yaml, &format!("a whole number from 1 to {MOST_METERS}"), parse)
}

pub(super) fn interval<'de, D: Deserializer<'de>>(yaml: D) -> Result<Duration, D::Error> {
    let parse = |text: &str| duration(text).ok().filter(|interval| *interval >= LEAST_INTERVAL);
    scalar(yaml, "a duration of at least 10ms, like 500ms or 1s", parse)
}
