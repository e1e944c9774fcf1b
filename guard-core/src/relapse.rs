//! Whom a fresh start does not cure.
//!
//! A workload that breaches again within [`SOON`] after it was evicted [`ENOUGH`] times is not evicted again: its image, or
//! what it is told to do, is the problem. It stays so until it has been without a breach for that long.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::budget::{Alarm, RestoreError, Spent};

/// How soon a breach must follow an eviction to be the same trouble, in nanoseconds.
pub const SOON: u64 = 3600 * 1_000_000_000;

/// So many evictions are enough.
pub const ENOUGH: usize = 2;

/// Evictions are remembered this long, in nanoseconds.
const KEEP: u64 = 24 * SOON;

/// The evictions that took place, and the workloads that they did not cure.
#[derive(Clone, Debug, Default)]
pub struct Relapses {
    evicted: Vec<Spent>,
    /// When each of them was last seen to breach.
    not_cured: BTreeMap<Arc<str>, u64>,
}

/// What is kept while the agent restarts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// When, and of which workload.
    evicted: Vec<(u64, String)>,
    not_cured: BTreeMap<String, u64>,
}

impl Relapses {
    /// An eviction took place.
    pub fn evicted(&mut self, now: u64, eviction: Spent) {
        self.evicted.retain(|it| now.saturating_sub(it.at) <= KEEP);
        self.evicted.push(eviction);
    }

    /// Somebody who knows of evictions on other nodes says that a workload is not cured.
    pub fn told(&mut self, now: u64, workload: &Arc<str>) -> Option<Alarm> {
        let fresh = self.not_cured.insert(Arc::clone(workload), now).is_none();
        fresh.then(|| Alarm::NotCured { workload: Arc::clone(workload) })
    }

    /// The breaches of egress that are open now, each as its workload and when it was opened: to be told before every
    /// verdict. Those of what was evicted, and is not gone yet, are none.
    pub fn breaching<'a>(&mut self, now: u64, breaches: impl IntoIterator<Item = (&'a Arc<str>, u64)>) -> Vec<Alarm> {
        self.not_cured.retain(|_, at| now.saturating_sub(*at) <= SOON);
        let mut alarms = Vec::new();
        for (workload, since) in breaches {
            if self.not_cured.contains_key(workload) || self.follows(workload, since) {
                alarms.extend(self.told(now, workload));
            }
        }
        alarms
    }

    /// Whether another eviction of a workload would be one too many.
    #[must_use]
    pub fn is_not_cured(&self, workload: &Arc<str>) -> bool {
        self.not_cured.contains_key(workload)
    }

    /// Whether a breach that was opened at `since` follows enough evictions, and the last of them soon.
    fn follows(&self, workload: &Arc<str>, since: u64) -> bool {
        let ages = self.evicted.iter().filter(|it| it.workload == *workload).filter_map(|it| since.checked_sub(it.at));
        let (mut count, mut soon) = (0, false);
        // One of that very instant has nothing to do with it.
        for age in ages.filter(|age| (1..=KEEP).contains(age)) {
            count += 1;
            soon |= age <= SOON;
        }
        count >= ENOUGH && soon
    }

    /// What a restarted agent needs to go on.
    #[must_use]
    pub fn save(&self) -> Saved {
        Saved {
            evicted: self.evicted.iter().map(|Spent { at, workload }| (*at, workload.to_string())).collect(),
            not_cured: self.not_cured.iter().map(|(workload, at)| (workload.to_string(), *at)).collect(),
        }
    }

    /// Goes on. An error: none of it can be trusted; begin with [`Relapses::default`].
    pub fn restore(now: u64, saved: Saved) -> Result<Self, RestoreError> {
        let Saved { evicted, not_cured } = saved;
        let mut instants = evicted.iter().map(|(at, _)| *at).chain(not_cured.values().copied());
        if let Some(at) = instants.find(|at| *at > now) {
            return Err(RestoreError::Future { at, now });
        }
        Ok(Self {
            evicted: evicted.into_iter().map(|(at, workload)| Spent { at, workload: workload.into() }).collect(),
            not_cured: not_cured.into_iter().map(|(workload, at)| (workload.into(), at)).collect(),
        })
    }
}

#[cfg(test)]
#[path = "relapse_tests.rs"]
mod tests;
