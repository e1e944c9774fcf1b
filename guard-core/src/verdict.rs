//! What to do about all breaches now: a pure function of what is known.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    breach::{Breach, ContainerId, Limit},
    budget::{Budgets, Spent, nanos},
    inventory::Pod,
    policy::{Contain, Containment, Evict, Mode, Policy},
    relapse::Relapses,
    safety::{self, Leave, Protect},
    watch::{Open, Watch},
};

pub use self::refusal::{Protection, Refusal};

mod refusal;

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
    /// Whom evictions do not cure.
    pub relapses: &'a Relapses,
    /// They are asked for so that nothing is evicted.
    pub dry_run: bool,
    /// Whom they are not for.
    pub safety: Safety<'a>,
    /// At least those that have an open breach or are contained; each once.
    pub containers: &'a [Container],
}

/// What must not be evicted, whatever the policies say.
#[derive(Clone, Copy, Debug)]
pub struct Safety<'a> {
    /// Why nothing is, if so.
    pub nothing: Option<&'a Cow<'static, str>>,
    /// Only pods are, and only those of which the API server has told.
    pub only_pods: bool,
    /// No pod of these.
    pub protect: &'a Protect,
    /// Seconds since 1970.
    pub wall: i64,
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
    /// What an eviction ends, with all its containers: its pod's UID. `None`: the container alone.
    pub unit: Option<Arc<str>>,
    /// Its pod, as far as the API server has told of it.
    pub pod: Option<Arc<Pod>>,
    /// The containment that is in force, whoever began it.
    pub contained: Option<Contained>,
    /// When the operator last released it: the breaches that were open then are not acted on.
    pub released: Option<u64>,
    /// What became of its eviction, or its pod's, if one was begun.
    pub eviction: Option<Eviction>,
    /// What was paid for that, if another attempt at it need not be paid for.
    pub paid: Option<Spent>,
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
    /// Make a container start afresh, with its pod if it is in one, and tell [`Budgets::spend`] (which checks again).
    Evict {
        /// How long it is left to end by itself. `None`: as its orchestrator says.
        grace: Option<Duration>,
        /// What the policy gives leave for: to be checked again right before.
        leave: Leave,
        /// It is asked for so that nothing is evicted.
        dry_run: bool,
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
#[derive(Clone, Debug, PartialEq)]
pub struct Declined {
    /// What: [`Mode::Contain`] or [`Mode::Evict`].
    pub what: Mode,
    /// Why it is asked for.
    pub reason: Breach,
    /// Why it is not done.
    pub why: Refusal,
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
    let mut begun = BTreeSet::new();
    for (container, evict, reason) in due {
        // With another container of its pod.
        if container.unit.as_ref().is_some_and(|unit| begun.contains(unit)) {
            continue;
        }
        let refusal = world.refuse(container, evict.leave).or_else(|| {
            let (budgets, workload) = (budgets.to_mut(), &container.workload);
            let spent = match &container.paid {
                Some(paid) => budgets.spend_again(world.now, workload, paid),
                None => budgets.spend(world.now, workload),
            };
            spent.err().map(Refusal::Budget)
        });
        if let Some(why) = refusal {
            verdict.declined.push(Declined { what: Mode::Evict, reason, why });
        } else {
            let Evict { after: _, grace, leave } = evict;
            verdict.actions.push(Action::Evict { grace, leave, dry_run: world.dry_run, reason });
            begun.extend(&container.unit);
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

/// The containers that breach a limit of egress.
pub fn breaching<'a>(watch: &Watch, containers: &'a [Container]) -> impl Iterator<Item = &'a Container> {
    containers.iter().filter(|container| watch.of(container.id).any(|open| open.breach.limit.is_egress()))
}

impl Safety<'_> {
    /// Whether a container may be evicted with this leave.
    fn check(&self, container: &Container, leave: Leave) -> Result<(), Protection> {
        let Self { nothing, only_pods, protect, wall } = *self;
        if let Some(why) = nothing {
            return Err(Protection::Nothing(why.clone()));
        }
        match (&container.unit, &container.pod) {
            // Whether a claim is local to the node is looked up right before the eviction.
            (_, Some(pod)) => Ok(safety::of_pod(pod, protect, &leave, &[], wall)?),
            (None, None) if only_pods => Err(Protection::NoPod),
            (Some(_), None) if only_pods => Err(Protection::UnknownPod),
            (_, None) => Ok(()),
        }
    }
}

impl World<'_> {
    /// Why a container must not be evicted, whatever is left of the budgets.
    fn refuse(&self, container: &Container, leave: Leave) -> Option<Refusal> {
        if self.kill_switch {
            return Some(Refusal::KillSwitch);
        }
        if let Err(why) = self.safety.check(container, leave) {
            return Some(Refusal::Protected(why));
        }
        self.relapses.is_not_cured(&container.workload).then_some(Refusal::NotCured)
    }

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
        let open = container.breaches(self.watch).map(|open| open.breach);
        let first = open.min_by_key(|breach| (!breach.limit.can_be_held(), breach.since));
        let Some(reason) = first.filter(|_| container.contained.is_none()) else { return };
        if !reason.limit.can_be_held() {
            verdict.declined.push(Declined { what: Mode::Contain, reason, why: Refusal::Bypass });
        } else if self.kill_switch {
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

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
