//! The evictions that were begun, by what they are of: of a pod there is one, whichever of its containers it is for.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Evicted;
use crate::{
    breach::ContainerId,
    budget::{Budgets, RestoreError, Spent},
    relapse::Relapses,
    verdict::Eviction,
};

/// What an eviction is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unit {
    /// A pod, by its UID: to evict it twice does no more than to evict it once.
    Pod(Arc<str>),
    /// A container in no pod.
    Container(ContainerId),
}

impl Unit {
    pub(super) fn of(id: ContainerId, pod: Option<&Arc<str>>) -> Self {
        pod.map_or(Self::Container(id), |uid| Self::Pod(Arc::clone(uid)))
    }
}

/// An eviction, or several attempts at it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Attempt {
    /// For whose breach the last one was.
    container: ContainerId,
    pub(super) state: Eviction,
    begun_at: u64,
    /// When it must have ended one way or the other.
    overdue_at: u64,
    /// What was paid for it and not given back.
    paid: Option<Spent>,
    /// It is of a pod, and it or one before may have been carried out.
    unsure: bool,
    /// It was only asked for so that nothing is evicted.
    dry: bool,
}

impl Attempt {
    /// What was paid for it is given back once evictions are in earnest, also when its container is gone by then.
    fn is_lent(&self) -> bool {
        self.dry && self.paid.is_some()
    }
}

/// What an eviction begins with.
pub(super) struct Begun {
    pub(super) container: ContainerId,
    pub(super) at: u64,
    pub(super) overdue_at: u64,
    pub(super) paid: Spent,
    pub(super) dry: bool,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempts(BTreeMap<Unit, Attempt>);

impl Attempts {
    pub(super) fn state(&self, unit: &Unit) -> Option<Eviction> {
        self.0.get(unit).map(|attempt| attempt.state)
    }

    /// What was paid for an attempt that another one need not pay for: at most one of both takes place.
    pub(super) fn paid(&self, unit: &Unit) -> Option<&Spent> {
        let attempt = self.0.get(unit).filter(|attempt| attempt.dry || matches!(unit, Unit::Pod(_)));
        attempt.and_then(|attempt| attempt.paid.as_ref())
    }

    /// `keep`: how long one is remembered of what is not there any more, in nanoseconds.
    pub(super) fn begin(&mut self, unit: Unit, begun: Begun, keep: u64, is_there: impl Fn(&Unit) -> bool) {
        let Begun { container, at, overdue_at, paid, dry } = begun;
        self.0.retain(|unit, attempt| {
            let yet_to_be_told = attempt.state == Eviction::Underway;
            yet_to_be_told || is_there(unit) || at.saturating_sub(attempt.begun_at) <= keep
        });
        let unsure = self.0.get(&unit).is_some_and(|before| before.unsure);
        let state = Eviction::Underway;
        self.0.insert(unit, Attempt { container, state, begun_at: at, overdue_at, paid: Some(paid), unsure, dry });
    }

    /// Takes over how the one ended that is underway for a container's breach. Returns the workload whose it was. `None`:
    /// none is.
    pub(super) fn end(
        &mut self,
        id: ContainerId,
        how: Evicted,
        dry_run: bool,
        budgets: &mut Budgets,
        relapses: &mut Relapses,
    ) -> Option<Arc<str>> {
        let underway = |attempt: &Attempt| attempt.container == id && attempt.state == Eviction::Underway;
        let (unit, attempt) = self.0.iter_mut().find(|(_, attempt)| underway(attempt))?;
        let workload = attempt.paid.as_ref().map(|paid| Arc::clone(&paid.workload))?;
        let is_pod = matches!(unit, Unit::Pod(_));
        // What was dry did nothing, however it ended.
        let how = match how {
            Evicted::Broken { retry_at } if attempt.dry => Evicted::Untouched { retry_at },
            Evicted::Done if attempt.dry && !dry_run => Evicted::Untouched { retry_at: 0 },
            how => how,
        };
        attempt.state = match how {
            Evicted::Done => Eviction::Done,
            Evicted::Untouched { retry_at } | Evicted::Broken { retry_at } => Eviction::Failed { retry_at },
            Evicted::NotCured => Eviction::Failed { retry_at: 0 },
        };
        match how {
            Evicted::Done if !attempt.dry => {
                let at = attempt.begun_at;
                relapses.evicted(at, Spent { at, workload: Arc::clone(&workload) });
            }
            Evicted::Done => {}
            Evicted::Broken { .. } => attempt.unsure = is_pod,
            // One before may have been carried out all the same.
            Evicted::Untouched { .. } | Evicted::NotCured if attempt.unsure => {}
            Evicted::Untouched { .. } | Evicted::NotCured => {
                attempt.paid.take().iter().for_each(|paid| budgets.refund(paid));
            }
        }
        Some(workload)
    }

    /// A container is gone. What was done to its pod is remembered, and how its own eviction ended is yet to be told.
    pub(super) fn gone(&mut self, id: ContainerId) {
        let unit = Unit::Container(id);
        if self.0.get(&unit).is_some_and(|attempt| attempt.state != Eviction::Underway && !attempt.is_lent()) {
            self.0.remove(&unit);
        }
    }

    /// Only containers that are there are.
    pub(super) fn settled(&mut self, is_there: impl Fn(ContainerId) -> bool) {
        self.0.retain(|unit, attempt| !matches!(unit, Unit::Container(id) if !is_there(*id)) || attempt.is_lent());
    }

    /// What was only asked for so that nothing is evicted is as if it had not been.
    pub(super) fn forget_dry(&mut self, budgets: &mut Budgets) {
        self.0.retain(|_, attempt| {
            if !attempt.dry || attempt.state == Eviction::Underway {
                return true;
            }
            attempt.state = Eviction::Failed { retry_at: 0 };
            if !attempt.unsure {
                attempt.paid.iter().for_each(|paid| budgets.refund(paid));
            }
            attempt.unsure
        });
    }

    pub(super) fn save(&self) -> Vec<Saved> {
        let saved = |(unit, attempt): (&Unit, &Attempt)| {
            let Attempt { container, state, begun_at, overdue_at, paid, unsure, dry } = attempt.clone();
            Saved {
                pod: if let Unit::Pod(uid) = unit { Some(uid.to_string()) } else { None },
                container: container.0,
                state,
                begun_at,
                overdue_at,
                paid: paid.map(|Spent { at, workload }| (at, workload.to_string())),
                unsure,
                dry,
            }
        };
        self.0.iter().map(saved).collect()
    }

    /// Nobody will tell this agent how those ended that were underway. A pod's is tried again at once, which does no harm if
    /// it took place; another one not before the first must have ended.
    pub(super) fn restore(now: u64, saved: Vec<Saved>) -> Result<Self, RestoreError> {
        if let Some(at) = saved.iter().map(|saved| saved.begun_at).find(|at| *at > now) {
            return Err(RestoreError::Future { at, now });
        }
        let restored = |saved: Saved| {
            let Saved { pod, container, state, begun_at, overdue_at, paid, unsure, dry } = saved;
            let container = ContainerId(container);
            let unit = pod.map_or(Unit::Container(container), |uid| Unit::Pod(uid.into()));
            let lost = state == Eviction::Underway;
            let (state, unsure) = match unit {
                _ if !lost => (state, unsure),
                Unit::Pod(_) => (Eviction::Failed { retry_at: now }, unsure || !dry),
                Unit::Container(_) => (Eviction::Failed { retry_at: overdue_at }, false),
            };
            let paid = paid.map(|(at, workload)| Spent { at, workload: workload.into() });
            (unit, Attempt { container, state, begun_at, overdue_at, paid, unsure, dry })
        };
        Ok(Self(saved.into_iter().map(restored).collect()))
    }

    /// One that an agent of an earlier version kept.
    pub(super) fn adopt(&mut self, container: ContainerId, state: Eviction) {
        let attempt = Attempt { container, state, begun_at: 0, overdue_at: 0, paid: None, unsure: false, dry: false };
        self.0.entry(Unit::Container(container)).or_insert(attempt);
    }
}

/// What is kept of an eviction while the agent restarts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    pod: Option<String>,
    container: u64,
    state: Eviction,
    begun_at: u64,
    overdue_at: u64,
    paid: Option<(u64, String)>,
    unsure: bool,
    dry: bool,
}
