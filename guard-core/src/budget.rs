//! How many evictions there may be, and that there are none in a storm.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::policy::{Budget, Storm, WorkloadBudget};

/// How long it must be quiet for a storm to be over, in nanoseconds.
pub const QUIET: u64 = 600 * 1_000_000_000;

/// Evictions are remembered at least this long, in nanoseconds, so that a longer window finds them after a reload.
const KEEP: u64 = 24 * 3600 * 1_000_000_000;

/// What the operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Evictions on this node.
    pub node: Budget,
    /// Evictions of any one workload's containers. What it says of the whole cluster is not enforced here, but by whoever
    /// carries evictions out.
    pub workload: WorkloadBudget,
    /// Evictions in the whole cluster: not enforced here either.
    pub cluster: Budget,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// So many workloads breach that nothing is evicted any more.
    Storm {
        /// How many workloads.
        workloads: usize,
        /// How many pods; of what is in no pod, workloads.
        pods: usize,
        /// So many of them there are on the node.
        of: usize,
    },
    /// The storm is over, for it has been quiet for [`QUIET`] or the operator says so: there may be evictions again.
    Calm,
    /// A workload breaches again although it was evicted more than once: it is not evicted any more.
    NotCured {
        /// Which.
        workload: Arc<str>,
    },
}

/// Who breaches a limit of egress.
#[derive(Clone, Copy, Debug)]
pub struct Breaching<'a> {
    /// The workload.
    pub workload: &'a Arc<str>,
    /// The pod; of what is in no pod, the workload.
    pub pod: &'a Arc<str>,
}

/// How many of a node's pods must breach at least for their share to be a storm: on a node with few pods one or two are
/// many of them.
const FEW: usize = 3;

/// The evictions that were, and who breaches.
#[derive(Clone, Debug)]
pub struct Budgets {
    allowance: Allowance,
    spent: Vec<Spent>,
    /// When each workload was last seen to breach ...
    breaching: BTreeMap<Arc<str>, u64>,
    /// ... and each pod.
    pods: BTreeMap<Arc<str>, u64>,
    /// When each workload was last seen to breach for which the operator ended a storm: until it has been quiet it is
    /// part of no other.
    excused: BTreeMap<Arc<str>, u64>,
    /// There is a storm; when there were too many last.
    storm: Option<u64>,
}

/// An eviction that was begun, and takes its part of the budgets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// When.
    pub at: u64,
    /// Of which workload.
    pub workload: Arc<str>,
}

/// What is kept while the agent restarts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// When, and of which workload.
    evictions: Vec<(u64, String)>,
    breaching: BTreeMap<String, u64>,
    #[serde(default)]
    pods: BTreeMap<String, u64>,
    #[serde(default)]
    excused: BTreeMap<String, u64>,
    storm: Option<u64>,
}

/// Why what was saved cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written before the node's last boot, or not by us.
    #[error("it was saved at {at} or later, and it is {now} now (nanoseconds since boot)")]
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
        Self {
            allowance,
            spent: Vec::new(),
            breaching: BTreeMap::new(),
            pods: BTreeMap::new(),
            excused: BTreeMap::new(),
            storm: None,
        }
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

    /// Who breaches a limit of egress now, of so many pods that there are: to be told with every sample and every new
    /// breach.
    pub fn breaching<'a>(
        &mut self,
        now: u64,
        of: usize,
        breaching: impl IntoIterator<Item = Breaching<'a>>,
    ) -> Option<Alarm> {
        let Storm { workloads: most, pods: share, per } = self.allowance.storm;
        self.excused.retain(|_, at| within(now, *at, nanos(per)));
        for Breaching { workload, pod } in breaching {
            if let Some(at) = self.excused.get_mut(workload) {
                *at = now;
                continue;
            }
            self.breaching.insert(Arc::clone(workload), now);
            self.pods.insert(Arc::clone(pod), now);
        }
        for seen in [&mut self.breaching, &mut self.pods] {
            seen.retain(|_, at| within(now, *at, nanos(per)));
        }
        let (workloads, pods) = (self.breaching.len(), self.pods.len());
        let too_many = workloads as u64 >= most.get();
        if too_many || pods >= FEW && share.is_exceeded(pods as u64, of as u64) {
            let fresh = self.storm.replace(now).is_none();
            return fresh.then_some(Alarm::Storm { workloads, pods, of });
        }
        self.storm.take_if(|loud| now.saturating_sub(*loud) >= QUIET).map(|_| Alarm::Calm)
    }

    /// The operator ends the storm, if there is one. The workloads that breach now are part of no other until they have
    /// been quiet for the window in which breaches make a storm.
    pub fn resume(&mut self) -> Option<Alarm> {
        self.storm.take()?;
        self.pods.clear();
        self.excused.append(&mut self.breaching);
        Some(Alarm::Calm)
    }

    /// Takes one eviction out of the budgets, if it may be.
    ///
    /// In no window of a budget's length, both ends included, are there more than it allows.
    pub fn spend(&mut self, now: u64, workload: &Arc<str>) -> Result<Spent, Refused> {
        self.pay(now, workload, None)
    }

    /// As [`Budgets::spend`], for another attempt at the same eviction: at most one of both takes place, so only the later
    /// one counts.
    pub fn spend_again(&mut self, now: u64, workload: &Arc<str>, before: &Spent) -> Result<Spent, Refused> {
        self.pay(now, workload, Some(before))
    }

    fn pay(&mut self, now: u64, workload: &Arc<str>, before: Option<&Spent>) -> Result<Spent, Refused> {
        if self.storm() {
            return Err(Refused::Storm);
        }
        let before = before.and_then(|before| self.spent.iter().position(|spent| spent == before));
        let Allowance { node, workload: each, cluster: _, storm: _ } = self.allowance;
        let spent = |budget: Budget, of: &dyn Fn(&Spent) -> bool| {
            let in_window = |spent: &Spent| within(now, spent.at, nanos(budget.per)) && of(spent);
            let others = self.spent.iter().enumerate().filter(|(index, _)| Some(*index) != before);
            others.filter(|(_, spent)| in_window(spent)).count() as u64 >= budget.evictions.get()
        };
        if spent(node, &|_| true) {
            return Err(Refused::Node);
        }
        if spent(each.on_node(), &|spent| spent.workload == *workload) {
            return Err(Refused::Workload);
        }
        if let Some(index) = before {
            self.spent.remove(index);
        }
        let keep = self.keep();
        self.spent.retain(|spent| within(now, spent.at, keep));
        let spent = Spent { at: now, workload: Arc::clone(workload) };
        self.spent.push(spent.clone());
        Ok(spent)
    }

    /// How long an eviction is remembered, in nanoseconds.
    pub(crate) fn keep(&self) -> u64 {
        let Allowance { node, workload, cluster: _, storm: _ } = self.allowance;
        KEEP.max(nanos(node.per)).max(nanos(workload.per))
    }

    /// An eviction that [`Budgets::spend`] allowed did not take place, and that is certain.
    pub fn refund(&mut self, spent: &Spent) {
        if let Some(index) = self.spent.iter().position(|it| it == spent) {
            self.spent.remove(index);
        }
    }

    /// What a restarted agent needs to go on.
    #[must_use]
    pub fn save(&self) -> Saved {
        let seen = |seen: &BTreeMap<Arc<str>, u64>| seen.iter().map(|(name, at)| (name.to_string(), *at)).collect();
        Saved {
            evictions: self.spent.iter().map(|Spent { at, workload }| (*at, workload.to_string())).collect(),
            breaching: seen(&self.breaching),
            pods: seen(&self.pods),
            excused: seen(&self.excused),
            storm: self.storm,
        }
    }

    /// Goes on. An error: none of it can be trusted; begin with [`Budgets::new`].
    pub fn restore(now: u64, saved: Saved, allowance: Allowance) -> Result<Self, RestoreError> {
        let Saved { evictions, breaching, pods, excused, storm } = saved;
        let seen = [&breaching, &pods, &excused].into_iter().flat_map(|seen| seen.values().copied());
        let last = evictions.iter().map(|(at, _)| *at).chain(seen).chain(storm).max();
        if let Some(at) = last.filter(|at| *at > now) {
            return Err(RestoreError::Future { at, now });
        }
        let seen = |seen: BTreeMap<String, u64>| seen.into_iter().map(|(name, at)| (Arc::from(name), at)).collect();
        Ok(Self {
            allowance,
            spent: evictions.into_iter().map(|(at, workload)| Spent { at, workload: workload.into() }).collect(),
            breaching: seen(breaching),
            pods: seen(pods),
            excused: seen(excused),
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
