//! How many evictions there may be, and that there are none in a storm.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::policy::{Budget, Storm};

/// How long it must be quiet for a storm to be over, in nanoseconds.
pub const QUIET: u64 = 600 * 1_000_000_000;

/// Evictions are remembered at least this long, in nanoseconds, so that a longer window finds them after a reload.
const KEEP: u64 = 24 * 3600 * 1_000_000_000;

/// What the operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Evictions on this node.
    pub node: Budget,
    /// Evictions of any one workload's containers.
    pub workload: Budget,
    /// When there are none.
    pub storm: Storm,
}

/// Why there may be no eviction now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// Too many workloads breach, or did until a short while ago.
    Storm,
    /// The node's budget is spent.
    Node,
    /// The workload's budget is spent.
    Workload,
}

/// What is to be said loudly, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// So many workloads breach that nothing is evicted any more.
    Storm {
        /// How many.
        workloads: usize,
    },
    /// It has been quiet for [`QUIET`]: there may be evictions again.
    Calm,
}

/// The evictions that were, and the workloads that breach.
#[derive(Clone, Debug)]
pub struct Budgets {
    allowance: Allowance,
    spent: Vec<Eviction>,
    /// When each workload was last seen to breach.
    breaching: BTreeMap<Arc<str>, u64>,
    /// There is a storm; when there were too many last.
    storm: Option<u64>,
}

/// An eviction that began, and did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Eviction {
    at: u64,
    workload: Arc<str>,
}

/// What is kept while the agent restarts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// When, and of which workload.
    evictions: Vec<(u64, String)>,
    breaching: BTreeMap<String, u64>,
    storm: Option<u64>,
}

/// Why a saved budget cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written before the node's last boot, or not by us.
    #[error("the budget was saved at {at} or later, and it is {now} now (nanoseconds since boot)")]
    Future {
        /// An instant in it.
        at: u64,
        /// Now.
        now: u64,
    },
}

impl Budgets {
    /// Nothing spent yet.
    #[must_use]
    pub const fn new(allowance: Allowance) -> Self {
        Self { allowance, spent: Vec::new(), breaching: BTreeMap::new(), storm: None }
    }

    /// The operator allows something else. What is spent stays spent.
    pub const fn allow(&mut self, allowance: Allowance) {
        self.allowance = allowance;
    }

    /// Whether nothing is evicted because too many workloads breach.
    #[must_use]
    pub const fn storm(&self) -> bool {
        self.storm.is_some()
    }

    /// The workloads that breach a limit of egress now: to be told with every sample and every new breach.
    pub fn breaching<'a>(&mut self, now: u64, workloads: impl IntoIterator<Item = &'a Arc<str>>) -> Option<Alarm> {
        for workload in workloads {
            self.breaching.insert(Arc::clone(workload), now);
        }
        let Storm { workloads: most, per } = self.allowance.storm;
        self.breaching.retain(|_, at| within(now, *at, nanos(per)));
        let workloads = self.breaching.len();
        if workloads as u64 >= most.get() {
            let fresh = self.storm.replace(now).is_none();
            return fresh.then_some(Alarm::Storm { workloads });
        }
        self.storm.take_if(|loud| now.saturating_sub(*loud) >= QUIET).map(|_| Alarm::Calm)
    }

    /// Takes one eviction out of the budgets, if it may be.
    ///
    /// In no window of a budget's length, both ends included, are there more than it allows.
    pub fn spend(&mut self, now: u64, workload: &Arc<str>) -> Result<(), Refused> {
        if self.storm() {
            return Err(Refused::Storm);
        }
        let Allowance { node, workload: each, storm: _ } = self.allowance;
        let spent = |budget: Budget, of: &dyn Fn(&Eviction) -> bool| {
            let in_window = |spent: &&Eviction| within(now, spent.at, nanos(budget.per));
            self.spent.iter().filter(in_window).filter(|spent| of(spent)).count() as u64 >= budget.evictions.get()
        };
        if spent(node, &|_| true) {
            return Err(Refused::Node);
        }
        if spent(each, &|spent| spent.workload == *workload) {
            return Err(Refused::Workload);
        }
        let keep = KEEP.max(nanos(node.per)).max(nanos(each.per));
        self.spent.retain(|spent| within(now, spent.at, keep));
        self.spent.push(Eviction { at: now, workload: Arc::clone(workload) });
        Ok(())
    }

    /// The eviction that [`Budgets::spend`] allowed at `at` did not take place, and that is certain.
    pub fn refund(&mut self, at: u64, workload: &Arc<str>) {
        if let Some(index) = self.spent.iter().position(|spent| spent.at == at && spent.workload == *workload) {
            self.spent.remove(index);
        }
    }

    /// What a restarted agent needs to go on.
    #[must_use]
    pub fn save(&self) -> Saved {
        Saved {
            evictions: self.spent.iter().map(|Eviction { at, workload }| (*at, workload.to_string())).collect(),
            breaching: self.breaching.iter().map(|(workload, at)| (workload.to_string(), *at)).collect(),
            storm: self.storm,
        }
    }

    /// Goes on. An error: none of it can be trusted; begin with [`Budgets::new`].
    pub fn restore(now: u64, saved: Saved, allowance: Allowance) -> Result<Self, RestoreError> {
        let Saved { evictions, breaching, storm } = saved;
        let mut instants = evictions.iter().map(|(at, _)| *at).chain(breaching.values().copied()).chain(storm);
        if let Some(at) = instants.find(|at| *at > now) {
            return Err(RestoreError::Future { at, now });
        }
        Ok(Self {
            allowance,
            spent: evictions.into_iter().map(|(at, workload)| Eviction { at, workload: workload.into() }).collect(),
            breaching: breaching.into_iter().map(|(workload, at)| (workload.into(), at)).collect(),
            storm,
        })
    }
}

const fn within(now: u64, at: u64, length: u64) -> bool {
    now.saturating_sub(at) <= length
}

pub(crate) fn nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
