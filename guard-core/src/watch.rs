//! Which breaches are open: each is opened once, kept alive by signs of it, and closed once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    breach::{Breach, ContainerId, Limit},
    policy::Policy,
};

/// A breach is over after this long without a sign of it, in nanoseconds.
pub const CLEAR: u64 = 10_000_000_000;

/// By how much a limit is crossed: bytes per second; for a quota bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Over {
    /// What was measured.
    pub figure: f64,
    /// What would have been within the limit.
    pub allowed: f64,
}

/// What a sample says of a container.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Whom.
    pub container: ContainerId,
    /// Its quota is used up.
    pub quota: Option<Over>,
    /// It sends a multiple of its normal.
    pub baseline: Option<Over>,
    /// It has sent something since the last sample.
    pub sending: bool,
    /// It is contained, and bytes of it were dropped since the last sample.
    pub pressing: bool,
}

/// A breach that holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Open {
    /// As it was said when it was opened.
    pub breach: Breach,
    /// When there was a sign of it last.
    pub last: u64,
}

/// A breach that is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Closed {
    /// As it was said when it was opened.
    pub breach: Breach,
    /// Since when it is over.
    pub at: u64,
    /// Why.
    pub why: Closing,
}

/// Why a breach is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// There was no sign of it for [`CLEAR`].
    Clear,
    /// The container is gone.
    Gone,
    /// Its policy has no such limit any more.
    Unlimited,
    /// The containment for it ended: what is crossed from now on is another breach.
    LetGo,
}

/// What a sample changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// To be said, once.
    pub opened: Vec<Breach>,
    /// No longer.
    pub closed: Vec<Closed>,
}

/// All open breaches: of each container at most one for each limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Watch {
    open: BTreeMap<(ContainerId, Limit), Open>,
}

/// Open breaches as they are kept while the agent restarts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Saved(Vec<SavedOpen>);

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedOpen {
    container: u64,
    limit: String,
    since: u64,
    last: u64,
    figure: f64,
    allowed: f64,
}

/// Why saved breaches cannot be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum RestoreError {
    /// Written by another version, or not by us.
    #[error("there is no limit {0:?}")]
    Limit(String),
    /// Written before the node's last boot, or not by us.
    #[error("the {limit} breach of container {container} is from {since} to {last}, and it is {now} now")]
    Time {
        /// The cgroup's id.
        container: u64,
        /// Which limit.
        limit: Limit,
        /// When it was opened.
        since: u64,
        /// When there was a sign of it last.
        last: u64,
        /// Now.
        now: u64,
    },
    /// Not written by us.
    #[error("container {0} has two open {1} breaches")]
    Twice(u64, Limit),
}

impl Limit {
    /// Whether it is about what is sent: a flood of what is received is never acted on.
    #[must_use]
    pub const fn is_egress(self) -> bool {
        !matches!(self, Self::Ingress)
    }

    /// Whether a containment holds what it is about: what passes by the meters it cannot.
    #[must_use]
    pub const fn can_be_held(self) -> bool {
        self.is_egress() && !matches!(self, Self::Bypass)
    }
}

impl Policy {
    /// Whether it has this limit.
    #[must_use]
    pub const fn limits(&self, limit: Limit) -> bool {
        match limit {
            Limit::Rate => self.egress.rate.is_some(),
            Limit::Quota => self.egress.quota.is_some(),
            Limit::Baseline => self.egress.baseline.is_some(),
            Limit::Ingress => self.ingress.is_some(),
            Limit::Bypass => self.egress.bypass.is_some(),
        }
    }
}

impl Watch {
    /// A sign that a container is over a limit. `Some`: a breach that was not open, to be said.
    pub fn crossed(&mut self, now: u64, container: ContainerId, limit: Limit, over: Over) -> Option<Breach> {
        if self.sign(now, container, limit) {
            return None;
        }
        let Over { figure, allowed } = over;
        let breach = Breach { container, limit, since: now, figure, allowed };
        self.open.insert((container, limit), Open { breach, last: now });
        Some(breach)
    }

    /// What a sample says of all containers. A limit that is in no policy must not be said to be crossed.
    pub fn sample(&mut self, now: u64, all: impl IntoIterator<Item = Found>) -> Changes {
        let mut opened = Vec::new();
        for Found { container, quota, baseline, sending, pressing } in all {
            if pressing {
                // Held, it cannot be over these: that it would send more is the sign.
                self.sign(now, container, Limit::Rate);
                self.sign(now, container, Limit::Baseline);
            }
            // A used-up quota is no breach of one that keeps still until its window has moved on.
            let quota = quota.filter(|_| sending || pressing);
            for (limit, over) in [(Limit::Quota, quota), (Limit::Baseline, baseline)] {
                opened.extend(over.and_then(|over| self.crossed(now, container, limit, over)));
            }
        }
        let closed = self.close(now, Closing::Clear, |open| now.saturating_sub(open.last) >= CLEAR);
        Changes { opened, closed }
    }

    /// A container is gone.
    pub fn gone(&mut self, now: u64, container: ContainerId) -> Vec<Closed> {
        self.close(now, Closing::Gone, |open| open.breach.container == container)
    }

    /// A container's containment ended, or lapsed: its breaches of what that holds have had theirs. Those that the operator's
    /// release (`released`: when) took out of it stay open, for as long as there are signs of them; so all do when it
    /// is that release that ended it.
    pub fn let_go(&mut self, now: u64, container: ContainerId, released: Option<u64>) -> Vec<Closed> {
        self.close(now, Closing::LetGo, |Open { breach, .. }| {
            let excused = released.is_some_and(|at| breach.since <= at);
            breach.container == container && breach.limit.can_be_held() && !excused
        })
    }

    /// Policies changed, or which of them holds for whom. `limited`: whether there still is the limit of a breach.
    pub fn reloaded(&mut self, now: u64, limited: impl Fn(&Breach) -> bool) -> Vec<Closed> {
        self.close(now, Closing::Unlimited, |open| !limited(&open.breach))
    }

    /// A container's open breaches, in the order of their limits.
    pub fn of(&self, container: ContainerId) -> impl Iterator<Item = &Open> {
        self.open.range((container, Limit::Rate)..=(container, Limit::Bypass)).map(|(_, open)| open)
    }

    /// All open breaches, in the order of their containers.
    pub fn all(&self) -> impl Iterator<Item = &Open> {
        self.open.values()
    }

    /// What a restarted agent needs to go on.
    #[must_use]
    pub fn save(&self) -> Saved {
        let all = self.all().map(|&Open { breach, last }| {
            let Breach { container, limit, since, figure, allowed } = breach;
            SavedOpen { container: container.0, limit: limit.name().to_owned(), since, last, figure, allowed }
        });
        Saved(all.collect())
    }

    /// Goes on. An error: none of it can be trusted; begin with [`Watch::default`].
    pub fn restore(now: u64, saved: Saved) -> Result<Self, RestoreError> {
        let mut watch = Self::default();
        for SavedOpen { container, limit, since, last, figure, allowed } in saved.0 {
            let known = Limit::ALL.into_iter().find(|known| known.name() == limit);
            let limit = known.ok_or(RestoreError::Limit(limit))?;
            if since > last || last > now {
                return Err(RestoreError::Time { container, limit, since, last, now });
            }
            let id = ContainerId(container);
            let open = Open { breach: Breach { container: id, limit, since, figure, allowed }, last };
            if watch.open.insert((id, limit), open).is_some() {
                return Err(RestoreError::Twice(container, limit));
            }
        }
        Ok(watch)
    }

    /// A sign of a breach if it is open; whether it is.
    fn sign(&mut self, now: u64, container: ContainerId, limit: Limit) -> bool {
        let Some(open) = self.open.get_mut(&(container, limit)) else { return false };
        open.last = open.last.max(now);
        true
    }

    fn close(&mut self, at: u64, why: Closing, mut over: impl FnMut(&Open) -> bool) -> Vec<Closed> {
        self.open
            .extract_if(.., |_, open| over(open))
            .map(|(_, open)| Closed { breach: open.breach, at, why })
            .collect()
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
