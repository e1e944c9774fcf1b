//! A memory of all evictions, and what it says of budgets.

use guard_core::{breach::ContainerId, judge::Evicted, policy::Budget};

use crate::node::{Cell, Whole};

/// All evictions that were begun.
#[derive(Default)]
pub(crate) struct Evictions(Vec<Eviction>);

struct Eviction {
    at: u64,
    container: ContainerId,
    whole: Whole,
    workload: usize,
    /// When it must have ended.
    overdue: u64,
    dry: bool,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is not told yet.
    Open,
    /// The agent that would have told it is gone, since this instant.
    Lost(u64),
    Told(Evicted),
    /// It was dry, and that is over.
    Void,
}

impl Eviction {
    /// From when on there may be another one.
    const fn retry_at(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Open | Outcome::Told(Evicted::Done) => None,
            Outcome::Lost(at) if matches!(self.whole, Whole::Pod(_)) => Some(at),
            Outcome::Lost(_) => Some(self.overdue),
            Outcome::Told(Evicted::Untouched { retry_at } | Evicted::Broken { retry_at }) => Some(retry_at),
            Outcome::Told(Evicted::NotCured) | Outcome::Void => Some(0),
        }
    }

    /// It may have taken place, or may yet.
    const fn may_be(&self) -> bool {
        match self.outcome {
            Outcome::Void => false,
            Outcome::Told(how) => matches!(how, Evicted::Done | Evicted::Broken { .. }),
            Outcome::Open | Outcome::Lost(_) => true,
        }
    }

    /// Nobody knows whether it took place.
    const fn is_unsure(&self) -> bool {
        !self.dry && matches!(self.outcome, Outcome::Lost(_) | Outcome::Told(Evicted::Broken { .. }))
    }
}

impl Evictions {
    /// Returns how the one before ended.
    pub(crate) fn begin(&mut self, at: u64, cell: &Cell, overdue: u64, dry: bool) -> Option<Outcome> {
        let before = self.of(cell.whole()).last().map(|eviction| eviction.outcome);
        let (container, whole, workload) = (cell.id, cell.whole(), cell.workload);
        self.0.push(Eviction { at, container, whole, workload, overdue, dry, outcome: Outcome::Open });
        before
    }

    /// For whose breaches there are some underway.
    pub(crate) fn underway(&self) -> Vec<ContainerId> {
        self.0.iter().filter(|it| it.outcome == Outcome::Open).map(|it| it.container).collect()
    }

    /// Returns when it was begun, of which workload, and whether it took place. `None`: none is underway.
    pub(crate) fn end(&mut self, id: ContainerId, how: Evicted, dry_run: bool) -> Option<(u64, usize, bool)> {
        let underway = self.0.iter_mut().find(|it| it.container == id && it.outcome == Outcome::Open)?;
        underway.outcome = match how {
            // Nothing was done.
            Evicted::Broken { retry_at } if underway.dry => Outcome::Told(Evicted::Untouched { retry_at }),
            Evicted::Done if underway.dry && !dry_run => Outcome::Told(Evicted::Untouched { retry_at: 0 }),
            how => Outcome::Told(how),
        };
        Some((underway.at, underway.workload, how == Evicted::Done && !underway.dry))
    }

    /// Nobody will tell how those that are underway ended.
    pub(crate) fn lose(&mut self, now: u64) {
        for eviction in self.0.iter_mut().filter(|eviction| eviction.outcome == Outcome::Open) {
            eviction.outcome = Outcome::Lost(now);
        }
    }

    /// Evictions are in earnest from now on.
    pub(crate) fn earnest(&mut self) {
        for eviction in self.0.iter_mut().filter(|eviction| eviction.dry && eviction.outcome != Outcome::Open) {
            eviction.outcome = Outcome::Void;
        }
    }

    /// All of a pod, or of a container in none, failed so far, and it may be tried again.
    pub(crate) fn may(&self, now: u64, whole: Whole) -> bool {
        self.of(whole).all(|it| it.retry_at().is_some())
            && self.of(whole).last().is_none_or(|it| it.retry_at() <= Some(now))
    }

    /// It took place.
    pub(crate) fn is_done(&self, whole: Whole) -> bool {
        self.of(whole).last().is_some_and(|it| it.outcome == Outcome::Told(Evicted::Done))
    }

    /// One more now would be one too many in the window that ends now, of one workload or all. Of all attempts at a pod
    /// one takes place at most, and a dry one never does: another one takes the place of those before.
    pub(crate) fn are_spent(&self, now: u64, budget: Budget, workload: Option<usize>, whole: Whole) -> bool {
        let per = budget.per.as_nanos() as u64;
        let of = |it: &&Eviction| workload.is_none_or(|workload| it.workload == workload);
        let another = |it: &&Eviction| it.whole != whole || (matches!(whole, Whole::Container(_)) && !it.dry);
        let counts = |it: &&Eviction| self.counts(it) && it.at + per >= now;
        self.0.iter().filter(of).filter(another).filter(counts).count() as u64 >= budget.evictions.get()
    }

    fn counts(&self, it: &Eviction) -> bool {
        let last = self.of(it.whole).all(|other| other.at <= it.at);
        if matches!(it.whole, Whole::Container(_)) {
            return it.may_be() && (last || !it.dry);
        }
        last && (it.may_be() || self.of(it.whole).any(Eviction::is_unsure))
    }

    fn of(&self, whole: Whole) -> impl Iterator<Item = &Eviction> {
        self.0.iter().filter(move |it| it.whole == whole)
    }
}
