//! A memory of all evictions, and what it says of budgets.

use guard_core::{breach::ContainerId, judge::Evicted, policy::Budget};

use crate::node::Cell;

/// All evictions that were begun.
#[derive(Default)]
pub(crate) struct Evictions(Vec<Eviction>);

struct Eviction {
    at: u64,
    container: ContainerId,
    workload: usize,
    /// When it must have ended.
    overdue: u64,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is not told yet.
    Open,
    /// The agent that would have told it is gone.
    Lost,
    Told(Evicted),
}

impl Eviction {
    /// From when on there may be another one.
    const fn retry_at(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Open | Outcome::Told(Evicted::Done) => None,
            Outcome::Lost => Some(self.overdue),
            Outcome::Told(Evicted::Untouched { retry_at } | Evicted::Broken { retry_at }) => Some(retry_at),
        }
    }

    /// It takes its part of the budgets.
    const fn counts(&self) -> bool {
        !matches!(self.outcome, Outcome::Told(Evicted::Untouched { .. }))
    }
}

impl Evictions {
    /// Returns how the one before ended.
    pub(crate) fn begin(&mut self, at: u64, cell: &Cell, overdue: u64) -> Option<Outcome> {
        let before = self.of(cell.id).last().map(|eviction| eviction.outcome);
        let (container, workload) = (cell.id, cell.workload);
        self.0.push(Eviction { at, container, workload, overdue, outcome: Outcome::Open });
        before
    }

    /// `false`: none is underway.
    pub(crate) fn end(&mut self, id: ContainerId, how: Evicted) -> bool {
        let underway = self.0.iter_mut().find(|it| it.container == id && it.outcome == Outcome::Open);
        underway.map(|eviction| eviction.outcome = Outcome::Told(how)).is_some()
    }

    /// Nobody will tell how those that are underway ended.
    pub(crate) fn lose(&mut self) {
        for eviction in self.0.iter_mut().filter(|eviction| eviction.outcome == Outcome::Open) {
            eviction.outcome = Outcome::Lost;
        }
    }

    /// All of a container so far failed, and may be tried again.
    pub(crate) fn may(&self, now: u64, id: ContainerId) -> bool {
        self.of(id).all(|it| it.retry_at().is_some_and(|at| at <= now))
    }

    /// One more now would be one too many in the window that ends now, of one workload or all.
    pub(crate) fn are_spent(&self, now: u64, budget: Budget, workload: Option<usize>) -> bool {
        let per = budget.per.as_nanos() as u64;
        let of = |it: &&Eviction| workload.is_none_or(|workload| it.workload == workload);
        let counts = |it: &&Eviction| it.counts() && it.at + per >= now;
        self.0.iter().filter(of).filter(counts).count() as u64 >= budget.evictions.get()
    }

    fn of(&self, id: ContainerId) -> impl Iterator<Item = &Eviction> {
        self.0.iter().filter(move |it| it.container == id)
    }
}
