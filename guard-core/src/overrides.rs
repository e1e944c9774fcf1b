//! What a pod's annotations change of the policy that holds for its containers.
//!
//! They may always tighten it. What loosens it needs the file's leave: `overrides.allow` names it, `overrides.max` bounds
//! it, and `overrides.namespaces` says where. If one of a pod's annotations is bad, the file's policy holds whole.

mod instant;

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc, time::Duration};

use humantime::format_duration;

use crate::{
    config::{
        bucket,
        scalars::{FACTOR, large_enough, parse_factor},
    },
    policy::{BaselineLimit, EgressLimits, Globs, OnBreach, Policy, Quota, RateLimit, Subject},
    units::{Rate, Size, UnitError},
};

/// The annotation by which the guard itself says when a pod breached last, without [`crate::inventory::PREFIX`].
pub const FLAGGED: &str = "flagged";

/// The longest part of an annotation's value that is said, in characters.
const LONGEST: usize = 80;

/// An annotation that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `egress.rate`. Where there is no such limit, it adds one.
    Rate,
    /// `egress.burst`.
    Burst,
    /// `egress.quota.bytes`; the window stays the policy's.
    Quota,
    /// `egress.baseline.factor`.
    BaselineFactor,
    /// Until then no limit holds: RFC 3339.
    ExemptUntil,
}

/// `overrides`: what annotations may loosen. By default nothing.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// What.
    pub allow: BTreeSet<Key>,
    /// How far.
    pub max: Max,
    /// In which namespaces. `None`: in all.
    pub namespaces: Option<Globs>,
}

/// How far annotations may loosen what the file says. `None`: as far as they like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Max {
    /// Of a rate.
    pub rate: Option<Rate>,
    /// Of its burst.
    pub burst: Option<Size>,
    /// Of a quota.
    pub quota: Option<Size>,
    /// Of a baseline.
    pub baseline_factor: Option<f64>,
    /// How far ahead an exemption's end may be.
    pub exempt: Option<Duration>,
}

/// An annotation that is not followed, and so none of its pod's is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bad {
    /// Without [`crate::inventory::PREFIX`].
    pub key: String,
    /// Cut off if it is long.
    pub value: String,
    /// Why, with a remedy.
    pub why: Why,
}

/// Why an annotation is not followed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Why {
    /// There is no such annotation.
    #[error("there is no such annotation: those are {}", Key::ALL.map(Key::name).join(", "))]
    Unknown,
    /// Its value is none.
    #[error("{0}")]
    Value(String),
    /// No policy holds.
    #[error(
        "no policy of the file holds for it, so there is nothing to change: remove the annotation, or add a policy"
    )]
    NoPolicy,
    /// What it changes is not there.
    #[error(
        "policy {policy:?} has no {limit}, so there is nothing to change: remove the annotation, or add {limit} there"
    )]
    NoLimit {
        /// The policy's name.
        policy: String,
        /// Its key.
        limit: &'static str,
    },
    /// The file does not give leave for it.
    #[error("it loosens policy {policy:?}, which says {says}: tighten it, or add {key} to overrides.allow in the file")]
    NotAllowed {
        /// The policy's name.
        policy: String,
        /// What the policy says.
        says: String,
        /// Which.
        key: Key,
    },
    /// The file gives leave, but not here.
    #[error("it loosens policy {policy:?}, and overrides.namespaces in the file has not {namespace:?}")]
    Elsewhere {
        /// The policy's name.
        policy: String,
        /// Where it is.
        namespace: String,
    },
    /// The file does not give leave for that much.
    #[error("it is more than overrides.max.{key} in the file, which is {most}")]
    TooMuch {
        /// Which key of `max`.
        key: &'static str,
        /// What that says.
        most: String,
    },
}

/// What holds for a container, with its pod's annotations.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The policy; while its pod is exempt one of the same name that limits nothing.
    pub policy: Option<Arc<Policy>>,
    /// Until when its pod is exempt, in seconds since 1970, if it is.
    pub exempt_until: Option<i64>,
    /// Annotations that are not followed.
    pub bad: Vec<Bad>,
    /// From this instant on, in seconds since 1970, something else holds. `None`: never, as far as this depends on time.
    pub changes_at: Option<i64>,
}

impl Key {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Rate, Self::Burst, Self::Quota, Self::BaselineFactor, Self::ExemptUntil];

    /// Its name, without [`crate::inventory::PREFIX`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Burst => "burst",
            Self::Quota => "quota",
            Self::BaselineFactor => "baseline-factor",
            Self::ExemptUntil => "exempt-until",
        }
    }

    /// Its key in `overrides.max`.
    #[must_use]
    pub const fn max(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Burst => "burst",
            Self::Quota => "quota",
            Self::BaselineFactor => "baselineFactor",
            Self::ExemptUntil => "exempt",
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Max {
    /// Whether there is a bound.
    #[must_use]
    pub const fn has(&self, key: Key) -> bool {
        match key {
            Key::Rate => self.rate.is_some(),
            Key::Burst => self.burst.is_some(),
            Key::Quota => self.quota.is_some(),
            Key::BaselineFactor => self.baseline_factor.is_some(),
            Key::ExemptUntil => self.exempt.is_some(),
        }
    }
}

/// What a file allows, as an operator reads it.
impl fmt::Display for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allow, max: Max { rate, burst, quota, baseline_factor, exempt }, namespaces: _ } = self;
        let bound = |key: &Key| match key {
            Key::Rate => rate.map(|rate| format!("up to {rate}")),
            Key::Burst => burst.map(|burst| format!("up to {burst}")),
            Key::Quota => quota.map(|quota| format!("up to {quota}")),
            Key::BaselineFactor => baseline_factor.map(|factor| format!("up to {factor}")),
            Key::ExemptUntil => exempt.map(|exempt| format!("at most {} ahead", format_duration(exempt))),
        };
        let said = allow.iter().map(|key| bound(key).map_or(key.to_string(), |bound| format!("{key} ({bound})")));
        f.write_str(&said.collect::<Vec<_>>().join(", "))
    }
}

/// What holds for a container. `policy`: the file's for it. `now`: seconds since 1970.
#[must_use]
pub fn resolve(policy: Option<&Arc<Policy>>, subject: &Subject, overrides: &Overrides, now: i64) -> Resolved {
    let said = subject.annotations.iter().filter(|(key, _)| *key != FLAGGED);
    let said: Vec<(&str, &str)> = said.map(|(key, value)| (key.as_str(), value.trim())).collect();
    let mut resolved = Resolved { policy: policy.cloned(), exempt_until: None, bad: Vec::new(), changes_at: None };
    if said.is_empty() {
        return resolved;
    }
    let bad = |(key, value): (&str, &str), why| Bad { key: cut(key), value: cut(value), why };
    let Some(file) = policy else {
        resolved.bad = said.into_iter().map(|said| bad(said, Why::NoPolicy)).collect();
        return resolved;
    };
    let mut change =
        Change { file, subject, overrides, now, limits: file.egress.clone(), exempt: None, changes_at: None };
    // In the order of the keys: a burst is of the rate beside it.
    for key in Key::ALL {
        if let Some(said) = said.iter().find(|(name, _)| *name == key.name())
            // What is longer than that is no value, and errors quote it.
            && let Err(why) = change.apply(key, &cut(said.1))
        {
            resolved.bad.push(bad(*said, why));
        }
    }
    let unknown = said.into_iter().filter(|(name, _)| Key::ALL.into_iter().all(|key| key.name() != *name));
    resolved.bad.extend(unknown.map(|said| bad(said, Why::Unknown)));
    resolved.changes_at = change.changes_at;
    if !resolved.bad.is_empty() {
        return resolved;
    }
    resolved.exempt_until = change.exempt;
    let policy = match change.exempt {
        Some(_) => Policy {
            egress: EgressLimits::default(),
            ingress: None,
            on_breach: OnBreach::default(),
            ..Policy::clone(file)
        },
        None => Policy { egress: change.limits, ..Policy::clone(file) },
    };
    resolved.policy = Some(Arc::new(policy));
    resolved
}

/// Nothing of it is said that could fill a log, or begin a line of its own there.
fn cut(text: &str) -> String {
    let mut cut: String = text.chars().take(LONGEST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if cut.len() < text.len() && text.chars().count() > LONGEST {
        cut.push('…');
    }
    cut
}

/// What the annotations make of a policy, one after the other.
struct Change<'a> {
    file: &'a Policy,
    subject: &'a Subject,
    overrides: &'a Overrides,
    now: i64,
    limits: EgressLimits,
    exempt: Option<i64>,
    changes_at: Option<i64>,
}

impl Change<'_> {
    fn apply(&mut self, key: Key, value: &str) -> Result<(), Why> {
        let max = &self.overrides.max;
        match key {
            Key::Rate => {
                let rate: Rate = parse(value)?;
                let before = self.limits.rate;
                if let Some(before) = before.filter(|before| rate > before.rate) {
                    self.may_loosen(key, &before.rate)?;
                    within(key, &rate, max.rate.as_ref())?;
                }
                let burst = before.map(|before| before.burst);
                self.limits.rate = Some(bucket(rate, burst));
            }
            Key::Burst => {
                let burst: Size = parse(value)?;
                let burst = large_enough(burst).map_err(|least| Why::Value(format!("{value:?}: {least}")))?;
                let RateLimit { rate, .. } = self.limits.rate.ok_or_else(|| self.no_limit("egress.rate"))?;
                // One that the annotations add is stricter than none, whatever its burst.
                if let Some(before) = self.file.egress.rate.filter(|before| burst > before.burst) {
                    self.may_loosen(key, &before.burst)?;
                    within(key, &burst, max.burst.as_ref())?;
                }
                self.limits.rate = Some(RateLimit { rate, burst });
            }
            Key::Quota => {
                let bytes: Size = parse(value)?;
                let before = self.limits.quota.ok_or_else(|| self.no_limit("egress.quota"))?;
                if bytes > before.bytes {
                    self.may_loosen(key, &before.bytes)?;
                    within(key, &bytes, max.quota.as_ref())?;
                }
                self.limits.quota = Some(Quota { bytes, ..before });
            }
            Key::BaselineFactor => {
                let factor = parse_factor(value).ok_or_else(|| Why::Value(format!("{value:?} is not {FACTOR}")))?;
                let before = self.limits.baseline.ok_or_else(|| self.no_limit("egress.baseline"))?;
                if factor > before.factor {
                    self.may_loosen(key, &before.factor)?;
                    within(key, &factor, max.baseline_factor.as_ref())?;
                }
                self.limits.baseline = Some(BaselineLimit { factor, ..before });
            }
            Key::ExemptUntil => self.exempt(value)?,
        }
        Ok(())
    }

    fn exempt(&mut self, value: &str) -> Result<(), Why> {
        let until = instant::parse(value).map_err(Why::Value)?;
        if until <= self.now {
            return Ok(());
        }
        self.may_loosen(Key::ExemptUntil, &"that there are limits")?;
        let most = self.overrides.max.exempt;
        let latest = most.map(|most| self.now.saturating_add(i64::try_from(most.as_secs()).unwrap_or(i64::MAX)));
        if let Some((most, latest)) = most.zip(latest).filter(|(_, latest)| until > *latest) {
            // In time its end will be near enough.
            self.changes_at = Some(self.now.saturating_add(until - latest));
            let most = format!("{} ahead of now", format_duration(most));
            return Err(Why::TooMuch { key: Key::ExemptUntil.max(), most });
        }
        (self.exempt, self.changes_at) = (Some(until), Some(until));
        Ok(())
    }

    fn no_limit(&self, limit: &'static str) -> Why {
        Why::NoLimit { policy: self.file.name.clone(), limit }
    }

    /// The file gives leave to loosen this here.
    fn may_loosen(&self, key: Key, says: &dyn fmt::Display) -> Result<(), Why> {
        let (policy, namespace) = (self.file.name.clone(), &self.subject.names.namespace);
        if !self.overrides.allow.contains(&key) {
            return Err(Why::NotAllowed { policy, says: says.to_string(), key });
        }
        match &self.overrides.namespaces {
            Some(globs) if !globs.is_match(namespace) => Err(Why::Elsewhere { policy, namespace: cut(namespace) }),
            _ => Ok(()),
        }
    }
}

/// The error quotes the value.
fn parse<T: FromStr<Err = UnitError>>(value: &str) -> Result<T, Why> {
    value.parse().map_err(|error: UnitError| Why::Value(error.to_string()))
}

fn within<T: PartialOrd + fmt::Display>(key: Key, value: &T, most: Option<&T>) -> Result<(), Why> {
    match most {
        Some(most) if value > most => Err(Why::TooMuch { key: key.max(), most: most.to_string() }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "overrides_tests.rs"]
mod tests;
