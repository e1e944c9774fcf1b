//! The configuration, from the text of its file.

use std::{path::Path, sync::Arc, time::Duration};

use globset::GlobSet;
use http::Uri;
use ipnet::IpNet;
use serde::{Deserialize, de::IgnoredAny};
use serde_saphyr::{Location, Spanned};

pub(crate) use self::policies::bucket;
pub use self::scalars::extra_globs;
use self::scalars::{cidrs, interval, or_default, truth, webhook};
use crate::{
    overrides::Overrides,
    policy::{Budgets, Conflict, Mode, Policies, Policy, Storm},
    safety::Protect,
};

mod evictions;
mod overrides;
mod policies;
pub(crate) mod scalars;

/// What is inside the cluster if the file does not say: private, shared (RFC 6598), link-local and unique local
/// addresses.
const CLUSTER: [&str; 7] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10"];

/// What is wrong with a configuration: one line with the file, the line, the key and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

/// The configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Sections")]
pub struct Config {
    /// `killSwitch`: nothing is touched, whatever the policies say.
    pub kill_switch: bool,
    /// What is where. A change takes effect at a restart.
    pub destinations: Destinations,
    /// What is metered. A change takes effect at a restart.
    pub meters: Meters,
    /// How it is read. A change takes effect at a restart.
    pub sample: Sample,
    /// `mode` and `policies`.
    pub policies: Policies,
    /// Who is told.
    pub alerts: Alerts,
    /// How containers are held.
    pub containment: Containing,
    /// How many may be evicted.
    pub budgets: Budgets,
    /// When too many breach at once.
    pub storm: Storm,
    /// `protect`: whom no policy can give leave to evict. The agent adds itself.
    pub protect: Protect,
    /// `dryRun`: evictions are asked for so that nothing is evicted.
    pub dry_run: bool,
    /// How a breach is made known on the pod.
    pub flag: Flag,
    /// What annotations of pods may change.
    pub overrides: Overrides,
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
#[serde(from = "scalars::MetersText")]
pub struct Meters {
    /// Cgroups outside Kubernetes, relative to the cgroup root.
    pub extra: GlobSet,
    /// What `extra` was made from.
    patterns: Vec<String>,
    /// How many, at most.
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

/// Who is told of breaches, beside the log, the metrics and the socket.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// Where alerts are posted: `http` or `https`, with a host.
    #[serde(deserialize_with = "webhook")]
    pub webhook: Option<Uri>,
}

/// How containers are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Containing {
    /// A containment goes on to its end when the agent is dead, instead of lapsing after some seconds.
    #[serde(deserialize_with = "truth")]
    pub outlive_agent: bool,
}

/// How a breach is made known on the pod, beside an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flag {
    /// The pod gets the annotation `egress-guard.dev/flagged`.
    #[serde(deserialize_with = "truth")]
    pub annotation: bool,
}

/// The file's sections.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[derive(Default)]
struct Sections {
    mode: Mode,
    #[serde(deserialize_with = "truth")]
    kill_switch: bool,
    #[serde(deserialize_with = "or_default")]
    destinations: Destinations,
    #[serde(deserialize_with = "or_default")]
    meters: Meters,
    #[serde(deserialize_with = "or_default")]
    sample: Sample,
    #[serde(deserialize_with = "or_default")]
    policies: Vec<Policy>,
    #[serde(deserialize_with = "or_default")]
    alerts: Alerts,
    #[serde(deserialize_with = "or_default")]
    containment: Containing,
    #[serde(deserialize_with = "or_default")]
    budgets: Budgets,
    #[serde(deserialize_with = "or_default")]
    storm: Storm,
    #[serde(deserialize_with = "or_default")]
    protect: Protect,
    #[serde(deserialize_with = "truth")]
    dry_run: bool,
    #[serde(deserialize_with = "or_default")]
    flag: Flag,
    #[serde(deserialize_with = "or_default")]
    overrides: Overrides,
}

impl From<Sections> for Config {
    fn from(sections: Sections) -> Self {
        let Sections {
            mode,
            kill_switch,
            destinations,
            meters,
            sample,
            policies,
            alerts,
            containment,
            budgets,
            storm,
            protect,
            dry_run,
            flag,
            overrides,
        } = sections;
        let policies = Policies { mode, policies: policies.into_iter().map(Arc::new).collect() };
        Self {
            kill_switch,
            destinations,
            meters,
            sample,
            policies,
            alerts,
            containment,
            budgets,
            storm,
            protect,
            dry_run,
            flag,
            overrides,
        }
    }
}

impl Default for Destinations {
    fn default() -> Self {
        Self { cluster: CLUSTER.iter().filter_map(|cidr| cidr.parse().ok()).collect() }
    }
}

impl Default for Meters {
    fn default() -> Self {
        Self { extra: GlobSet::empty(), patterns: Vec::new(), max: 1024 }
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1) }
    }
}

impl Default for Flag {
    fn default() -> Self {
        Self { annotation: true }
    }
}

impl Config {
    /// Parses the text of a file; an error names the file, the line and the key.
    pub fn parse(text: &str, file: &Path) -> Result<Self, Invalid> {
        let mut track = serde_path_to_error::Track::new();
        let parsed = serde_saphyr::with_deserializer_from_str(text, |yaml| {
            Self::deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track))
        });
        let config = parsed.map_err(|error| {
            let message = error.without_snippet().to_string();
            let place = error.location();
            let message = match place {
                Some(place) => {
                    message.trim_end_matches(&format!(" at line {}, column {}", place.line(), place.column()))
                }
                None => &message,
            };
            let key = track.path().to_string();
            invalid(file, place, if matches!(key.as_str(), "." | "?") { "" } else { &key }, message)
        })?;
        match config.policies.conflict() {
            Some(conflict) => Err(config.refuse(conflict, text, file)),
            None => Ok(config),
        }
    }

    /// Names the policies of a conflict and their lines.
    fn refuse(&self, conflict: Conflict, text: &str, file: &Path) -> Invalid {
        #[derive(Deserialize)]
        struct Outline {
            policies: Vec<Spanned<IgnoredAny>>,
        }
        let outline = serde_saphyr::from_str::<Outline>(text).map_or_else(|_| Vec::new(), |outline| outline.policies);
        let place = |index: usize| outline.get(index).map(|policy| policy.referenced);
        let line = |index: usize| place(index).map_or(0, |place| place.line());
        let name = |index: usize| self.policies.policies[index].name.as_str();
        match conflict {
            Conflict::SameName { earlier, later } => {
                let (name, line) = (name(earlier), line(earlier));
                let message = format!("{name:?} is the name of the policy in line {line} too: give it another");
                invalid(file, place(later), &format!("policies[{later}].name"), &message)
            }
            Conflict::Unreachable { earlier, later } => {
                let message = format!(
                    "{:?} can never hold, for {:?} in line {} comes first and matches all that it matches: \
                     move it above that one, or remove it",
                    name(later),
                    name(earlier),
                    line(earlier)
                );
                invalid(file, place(later), &format!("policies[{later}].match"), &message)
            }
        }
    }

    /// The keys in which `new` differs and that take effect only at a restart.
    #[must_use]
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let differs = [
            ("destinations.cluster", self.destinations.cluster != new.destinations.cluster),
            ("meters.extra", self.meters.patterns != new.meters.patterns),
            ("meters.max", self.meters.max != new.meters.max),
            ("sample.interval", self.sample.interval != new.sample.interval),
        ];
        differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }
}

fn invalid(file: &Path, place: Option<Location>, key: &str, message: &str) -> Invalid {
    let place = place.map(|place| format!(":{}:{}", place.line(), place.column())).unwrap_or_default();
    let separator = if key.is_empty() { "" } else { ": " };
    let said = format!("{}{place}: {key}{separator}{message}", file.display());
    // Key and message quote the file: a line break in it would begin a line of its own in a log.
    Invalid(said.replace(char::is_control, "\u{fffd}"))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
