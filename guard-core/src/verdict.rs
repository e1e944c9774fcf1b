//! What to do about all breaches now: a pure function of what is known.

use std::{borrow::Cow, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    breach::{Breach, ContainerId, Limit},
    budget::{Budgets, Refused, nanos},
    policy::{Contain, Containment, Evict, Mode, Policy},
    watch::{Open, Watch},
};

/// All that a verdict follows from.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// `CLOCK_BOOTTIME` nanoseconds.
    pub now: u64,
    /// The most that may be done.
    pub mode: Mode,
    /// The kill switch is engaged.
    pub kill_switch: bool,
    /// The open breaches.
    pub watch: &'a Watch,
    /// What is left of them.
    pub budgets: &'a Budgets,
    /// At least those that have an open breach or are contained; each once.
    pub containers: &'a [Container],
}

/// What is known of a container, beside its breaches.
#[derive(Clone, Debug)]
pub struct Container {
    /// Which.
    pub id: ContainerId,
    /// The policy that holds for it.
    pub policy: Option<Arc<Policy>>,
    /// What its budget belongs to: the same for it and its replacement.
    pub workload: Arc<str>,
    /// The containment that is in force, whoever began it.
    pub contained: Option<Contained>,
    /// When the operator last released it: the breaches that were open then are not acted on.
    pub released: Option<u64>,
    /// What became of its eviction, if one was begun.
    pub eviction: Option<Eviction>,
    /// Why it must never be evicted, in words.
    pub protected: Option<&'static str>,
}

/// A containment in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contained {
    /// How.
    pub how: Containment,
    /// Since when.
    pub since: u64,
    /// Until when, at the most.
    pub until: u64,
}

/// What became of an eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Eviction {
    /// It was begun, and how it ended is not known (yet).
    Underway,
    /// It took place.
    Done,
    /// It did not take place, or not to its end.
    Failed {
        /// When it may be tried again.
        retry_at: u64,
    },
}

/// What is to be done, in this order, and what is not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// To be carried out. Containments and releases come before evictions.
    pub actions: Vec<Action>,
    /// What a policy asks for and is not done. It is there again with every verdict as long as that is so: to be said
    /// and counted when the verdict before did not have it.
    pub declined: Vec<Declined>,
}

/// Something to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Hold a container's egress from now on.
    Contain {
        /// How.
        how: Containment,
        /// Until when.
        until: u64,
        /// Why.
        reason: Breach,
    },
    /// End a containment, and tell [`Watch::let_go`].
    Release {
        /// Of whom.
        container: ContainerId,
        /// Which.
        contained: Contained,
        /// Why.
        why: Release,
    },
    /// Make a container start afresh, and tell [`Budgets::spend`] (which checks again).
    Evict {
        /// Between SIGTERM and SIGKILL, where no orchestrator says otherwise.
        grace: Duration,
        /// Why.
        reason: Breach,
    },
}

/// Why a containment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Release {
    /// The kill switch is engaged.
    KillSwitch,
    /// The operator said so.
    Operator,
    /// The mode was lowered.
    Mode,
    /// No policy that contains holds for the container any more.
    Policy,
    /// It has lasted for as long as the policy says.
    Over,
}

/// Something that a policy asks for and that is not done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Declined {
    /// What: [`Mode::Contain`] or [`Mode::Evict`].
    pub what: Mode,
    /// Why it is asked for.
    pub reason: Breach,
    /// Why it is not done.
    pub why: Refusal,
}

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The kill switch is engaged.
    KillSwitch,
    /// The container must never be evicted, for this reason.
    Protected(&'static str),
    /// There have been enough evictions, or there is a storm.
    Budget(Refused),
}

/// Decides.
#[must_use]
pub fn decide(world: &World<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut due = Vec::new();
    for container in world.containers {
        if let Some(release) = container.contained.and_then(|contained| world.release(container, contained)) {
            verdict.actions.push(release);
            continue;
        }
        world.contain(container, &mut verdict);
        due.extend(world.evict(container).map(|(evict, reason)| (container, evict, reason)));
    }
    // Whoever breached first has the first claim on what is left of a budget.
    due.sort_by_key(|(.., reason)| reason.since);
    let mut budgets = Cow::Borrowed(world.budgets);
    for (container, evict, reason) in due {
        let refusal = match container.protected {
            _ if world.kill_switch => Some(Refusal::KillSwitch),
            Some(why) => Some(Refusal::Protected(why)),
            None => budgets.to_mut().spend(world.now, &container.workload).err().map(Refusal::Budget),
        };
        match refusal {
            Some(why) => verdict.declined.push(Declined { what: Mode::Evict, reason, why }),
            None => verdict.actions.push(Action::Evict { grace: evict.grace, reason }),
        }
    }
    verdict
}

/// What the kernel is told to do by itself when a container's rate bucket runs empty. `released`: see
/// [`Container::is_released`].
#[must_use]
pub fn arm(policy: &Policy, mode: Mode, kill_switch: bool, released: bool) -> Option<Contain> {
    let may = mode >= Mode::Contain && !kill_switch && !released && policy.limits(Limit::Rate);
    policy.on_breach.contain.filter(|_| may)
}

/// The workloads that breach a limit of egress, for [`Budgets::breaching`]; one may be there more than once.
pub fn breaching<'a>(watch: &Watch, containers: &'a [Container]) -> impl Iterator<Item = &'a Arc<str>> {
    let breaches = |container: &&Container| watch.of(container.id).any(|open| open.breach.limit.is_egress());
    containers.iter().filter(breaches).map(|container| &container.workload)
}

impl World<'_> {
    /// The end of a containment, if it is to end.
    fn release(&self, whom: &Container, contained: Contained) -> Option<Action> {
        let policy = whom.policy.as_ref().and_then(|policy| policy.on_breach.contain);
        // The policy's length counts too: a shorter one holds at once, and none of a strange kernel record.
        let end = |length| contained.until.min(contained.since.saturating_add(nanos(length)));
        let why = match policy {
            _ if self.kill_switch => Release::KillSwitch,
            _ if whom.released.is_some_and(|at| at >= contained.since) => Release::Operator,
            _ if self.mode < Mode::Contain => Release::Mode,
            None => Release::Policy,
            Some(Contain { length, .. }) if end(length) <= self.now => Release::Over,
            Some(_) => return None,
        };
        Some(Action::Release { container: whom.id, contained, why })
    }

    /// Holds a container that is to be held and is not.
    fn contain(&self, container: &Container, verdict: &mut Verdict) {
        let policy = container.policy.as_ref().and_then(|policy| policy.on_breach.contain);
        let Some(Contain { how, length }) = policy.filter(|_| self.mode >= Mode::Contain) else { return };
        let first = container.breaches(self.watch).map(|open| open.breach).min_by_key(|breach| breach.since);
        let Some(reason) = first.filter(|_| container.contained.is_none()) else { return };
        if self.kill_switch {
            verdict.declined.push(Declined { what: Mode::Contain, reason, why: Refusal::KillSwitch });
        } else {
            let until = self.now.saturating_add(nanos(length));
            verdict.actions.push(Action::Contain { how, until, reason });
        }
    }

    /// The eviction that is due, and why.
    fn evict(&self, container: &Container) -> Option<(Evict, Breach)> {
        let policy = container.policy.as_ref().and_then(|policy| policy.on_breach.evict);
        let evict = policy.filter(|_| self.mode >= Mode::Evict)?;
        let may = match container.eviction {
            None => true,
            Some(Eviction::Underway | Eviction::Done) => false,
            Some(Eviction::Failed { retry_at }) => retry_at <= self.now,
        };
        let held = |open: &&Open| open.last.saturating_sub(open.breach.since) >= nanos(evict.after);
        let due = container.breaches(self.watch).filter(held).min_by_key(|open| open.breach.since);
        due.filter(|_| may).map(|open| (evict, open.breach))
    }
}

impl Container {
    /// A breach of egress that was open when the operator released it is still open. Until it is over, neither the
    /// agent nor the kernel holds the container for it.
    #[must_use]
    pub fn is_released(&self, watch: &Watch) -> bool {
        watch.of(self.id).any(|open| open.breach.limit.is_egress() && self.excused(open))
    }

    /// The breaches that may be acted on.
    fn breaches<'a>(&'a self, watch: &'a Watch) -> impl Iterator<Item = &'a Open> {
        let limited = |limit| self.policy.as_ref().is_some_and(|policy| policy.limits(limit));
        let acted_on = move |limit: Limit| limit.is_egress() && limited(limit);
        watch.of(self.id).filter(move |open| acted_on(open.breach.limit) && !self.excused(open))
    }

    fn excused(&self, open: &Open) -> bool {
        self.released.is_some_and(|at| open.breach.since <= at)
    }
}

impl Action {
    /// Whom it is about.
    #[must_use]
    pub const fn container(&self) -> ContainerId {
        match self {
            Self::Contain { reason, .. } | Self::Evict { reason, .. } => reason.container,
            Self::Release { container, .. } => *container,
        }
    }
}

impl Release {
    /// The name in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillSwitch => "kill_switch",
            Self::Operator => "operator",
            Self::Mode => "mode",
            Self::Policy => "policy",
            Self::Over => "over",
        }
    }
}

impl Refusal {
    /// The name in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillSwitch => "kill_switch",
            Self::Protected(_) => "protected",
            Self::Budget(Refused::Storm) => "storm",
            Self::Budget(Refused::Node) => "node_budget",
            Self::Budget(Refused::Workload) => "workload_budget",
        }
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
