//! The configuration file.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use globset::GlobSet;
use guard_common::MAX_CIDRS;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::node::tree::extra_globs;

/// What is inside the cluster if the file does not say: private, shared (RFC 6598), link-local and unique local
/// addresses.
const CLUSTER: [&str; 7] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10"];

/// How many meters a node may have at most: the kernel's per-CPU counters of this many take 8 MiB for each CPU.
const MOST_METERS: u32 = 65_535;

/// The least interval between samples.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there but cannot be read.
    #[error("cannot read the config file {0}: {1}")]
    Read(PathBuf, io::Error),
    /// A file that was asked for is not there.
    #[error("there is no config file {0}: make it, or leave out --config")]
    NotFound(PathBuf),
    /// What is in it is wrong.
    #[error("{0}")]
    Invalid(String),
}

/// The configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[derive(Default)]
pub struct Config {
    /// What is where.
    #[serde(deserialize_with = "or_default")]
    pub destinations: Destinations,
    /// What is metered.
    #[serde(deserialize_with = "or_default")]
    pub meters: Meters,
    /// How it is read.
    #[serde(deserialize_with = "or_default")]
    pub sample: Sample,
}

/// Which addresses are which destination class.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Destinations {
    /// The CIDRs of the class cluster.
    #[serde(deserialize_with = "cidrs")]
    pub cluster: Vec<IpNet>,
}

/// Which cgroups are metered.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Meters {
    /// Cgroups outside Kubernetes, relative to the cgroup root.
    #[serde(deserialize_with = "globs")]
    pub extra: GlobSet,
    /// How many, at most.
    #[serde(deserialize_with = "meters_max")]
    pub max: u32,
}

/// How the counters are read.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sample {
    /// The time between two samples.
    #[serde(deserialize_with = "interval")]
    pub interval: Duration,
}

impl Default for Destinations {
    fn default() -> Self {
        Self { cluster: CLUSTER.iter().filter_map(|cidr| cidr.parse().ok()).collect() }
    }
}

impl Default for Meters {
    fn default() -> Self {
        Self { extra: GlobSet::empty(), max: 1024 }
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1) }
    }
}

impl Config {
    /// Reads the file. One that is not there counts as empty, unless it was `asked` for.
    pub fn read(path: &Path, asked: bool) -> Result<Self, ConfigError> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !asked => Ok(Self::default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ConfigError::NotFound(path.to_owned())),
            Err(error) => Err(ConfigError::Read(path.to_owned(), error)),
        }
    }

    /// Parses the text of a file; an error names the file, the line and the key.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let mut track = serde_path_to_error::Track::new();
        let parsed = serde_saphyr::with_deserializer_from_str(text, |yaml| {
            Self::deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track))
        });
        parsed.map_err(|error| {
            let message = error.without_snippet().to_string();
            let Some(place) = error.location() else {
                return ConfigError::Invalid(format!("{}: {message}", file.display()));
            };
            let (line, column) = (place.line(), place.column());
            let message = message.trim_end_matches(&format!(" at line {line}, column {column}"));
            let key = match track.path().to_string().as_str() {
                "." | "?" => String::new(),
                key => format!("{key}: "),
            };
            ConfigError::Invalid(format!("{}:{line}:{column}: {key}{message}", file.display()))
        })
    }
}

/// A section of which every key is commented out is null in YAML.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(yaml: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(yaml)?.unwrap_or_default())
}

/// A value that is read as text and parsed, so that the error can say what is expected.
fn scalar<'de, D: Deserializer<'de>, T>(
    yaml: D,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let text = String::deserialize(yaml).map_err(|_| D::Error::custom(format!("expected {expected}")))?;
    parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not {expected}")))
}

#[derive(Clone, Copy)]
struct Cidr(IpNet);

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let parse = |text: &str| text.parse::<IpNet>().ok().filter(|cidr| cidr.addr() == cidr.network());
        scalar(yaml, "a CIDR without host bits, like 10.0.0.0/8 or fc00::/7", parse).map(Self)
    }
}

fn cidrs<'de, D: Deserializer<'de>>(yaml: D) -> Result<Vec<IpNet>, D::Error> {
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

fn globs<'de, D: Deserializer<'de>>(yaml: D) -> Result<GlobSet, D::Error> {
    let patterns = Vec::<String>::deserialize(yaml)?;
    extra_globs(&patterns).map_err(|error| D::Error::custom(format!("not a pattern: {error}")))
}

fn meters_max<'de, D: Deserializer<'de>>(yaml: D) -> Result<u32, D::Error> {
    let parse = |text: &str| text.parse().ok().filter(|max| (1..=MOST_METERS).contains(max));
    scalar(yaml, &format!("a whole number from 1 to {MOST_METERS}"), parse)
}

fn interval<'de, D: Deserializer<'de>>(yaml: D) -> Result<Duration, D::Error> {
    let parse = |text: &str| humantime::parse_duration(text).ok().filter(|interval| *interval >= LEAST_INTERVAL);
    scalar(yaml, "a duration of at least 10ms, like 500ms or 1s", parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("config.yaml")).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        for text in ["", "# nothing\n", "{}", "meters:\n  # max: 7\nsample:\n"] {
            let config = parse(text).expect("a config");
            assert_eq!(config.destinations.cluster.len(), CLUSTER.len());
            assert_eq!((config.meters.max, config.sample.interval), (1024, Duration::from_secs(1)));
        }
    }

    #[test]
    fn the_example_says_the_defaults() {
        let example = parse(include_str!("../../deploy/config.yaml")).expect("a config");
        let Config { destinations, meters, sample } = Config::default();
        assert_eq!(example.destinations.cluster, IpNet::aggregate(&destinations.cluster));
        assert_eq!((example.meters.max, example.sample.interval), (meters.max, sample.interval));
        assert!(example.meters.extra.is_empty());
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            "destinations:\n  cluster: [10.0.0.0/8, 10.1.0.0/16, 'fd00::/8']\n\
             meters: {extra: ['system.slice/*.service'], max: 64}\nsample: {interval: 250ms}\n",
        );
        let config = config.expect("a config");
        let cidrs: Vec<String> = config.destinations.cluster.iter().map(ToString::to_string).collect();
        assert_eq!(cidrs, ["10.0.0.0/8", "fd00::/8"]);
        assert!(config.meters.extra.is_match("system.slice/ssh.service"));
        assert_eq!((config.meters.max, config.sample.interval), (64, Duration::from_millis(250)));
        assert_eq!(parse("destinations: {cluster: []}").map(|c| c.destinations.cluster.len()), Ok(0));
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let many: Vec<String> = (0..17).map(|i| format!("10.{}.0.0/16", i * 2)).collect();
        let cases = [
            (
                "destinations:\n  cluster: [10.0.0.0/33]\n",
                "config.yaml:2:13: destinations.cluster[0]: \"10.0.0.0/33\" is not a CIDR",
            ),
            (
                "destinations:\n  cluster: [10.0.0.1/8]\n",
                "config.yaml:2:13: destinations.cluster[0]: \"10.0.0.1/8\" is not a CIDR without host bits",
            ),
            (
                "destinations:\n  clutser: []\n",
                "config.yaml:2:3: destinations.clutser: unknown field `clutser`, expected",
            ),
            ("meters:\n  max: lots\n", "config.yaml:2:8: meters.max: \"lots\" is not a whole number from 1 to 65535"),
            ("meters:\n  max: 0\n", "config.yaml:2:8: meters.max: \"0\" is not a whole number"),
            ("meters:\n  max: [1]\n", "config.yaml:2:8: meters.max: expected a whole number"),
            ("meters:\n  extra: x\n", "config.yaml:2:10: meters.extra: expected sequence"),
            ("meters:\n  extra: ['a[']\n", "config.yaml:2:10: meters.extra: not a pattern: error parsing glob 'a['"),
            ("sample: {interval: 1}\n", "config.yaml:1:20: sample.interval: \"1\" is not a duration of at least 10ms"),
            ("sample: {interval: 1ms}\n", "config.yaml:1:20: sample.interval: \"1ms\" is not a duration"),
            ("policy: {}\n", "config.yaml:1:1: policy: unknown field `policy`, expected"),
            ("[]\n", "config.yaml:1:1: expected mapping"),
            ("meters: {max: 1}\nmeters: {max: 2}\n", "config.yaml:2:1: duplicate mapping key: meters"),
            (
                &format!("destinations: {{cluster: [{}]}}", many.join(", ")),
                "config.yaml:1:25: destinations.cluster: 17 IPv4 CIDRs",
            ),
        ];
        for (text, expected) in cases {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(expected), "{error}\nshould start with\n{expected}");
            assert!(!error.contains('\n'), "one line: {error}");
        }
    }
}
