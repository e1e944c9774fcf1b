//! All that is decided on a node, from what is told: the same for a running agent and for the replay of a trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use guard_common::{Tally, Totals};

pub use self::saved::Saved;
use self::saved::SavedContainer;
use crate::{
    breach::{Breach, ContainerId, Limit},
    budget::{self, Alarm, Allowance, Budgets},
    config::Config,
    detect::{Detector, Moved},
    policy::{Contain, Count, Mode, Policies, Policy, RateLimit, Subject},
    verdict::{self, Action, Contained, Container, Declined, Eviction, World},
    watch::{Closed, Found, Over, Watch},
};

mod saved;

/// How long after its grace an eviction must have ended, in nanoseconds. One whose agent died meanwhile is not tried
/// again before.
const PATIENCE: u64 = 60_000_000_000;

/// What the operator wants.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who may send how much, and what happens otherwise.
    pub policies: Policies,
    /// How many evictions there may be.
    pub allowance: Allowance,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        let Config { policies, budgets, storm, .. } = config;
        let allowance = Allowance { node: budgets.node, workload: budgets.workload, storm: *storm };
        Self { policies: policies.clone(), allowance }
    }
}

/// Something to be said or done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A breach, to be said with evidence.
    Opened(Breach),
    /// A breach is over.
    Closed(Closed),
    /// To be done.
    Act(Action),
    /// Not done, and why; said once.
    Declined(Declined),
    /// To be said loudly.
    Alarm(Alarm),
}

/// What the kernel is to check and to do by itself for a container.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Orders {
    /// Which bytes limits and containment are about.
    pub count: Count,
    /// Limit of what is sent.
    pub egress: Option<RateLimit>,
    /// Limit of what is received.
    pub ingress: Option<RateLimit>,
    /// The containment that a breach of `egress` leads to at once.
    pub arm: Option<Contain>,
}

/// How an eviction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// The container ended.
    Done,
    /// Nothing was done, and it may be tried again at this instant.
    Untouched {
        /// When.
        retry_at: u64,
    },
    /// Something may have been done; it may be tried again at this instant.
    Broken {
        /// When.
        retry_at: u64,
    },
}

/// What is known of a container, beside its counts.
#[derive(Clone, Debug)]
struct Known {
    subject: Subject,
    facts: Container,
    /// When its eviction was begun.
    evicted_at: u64,
    /// When it must have ended one way or the other.
    overdue_at: u64,
}

/// What is known, and what follows from it.
#[derive(Clone, Debug)]
pub struct Judge {
    settings: Settings,
    kill_switch: bool,
    /// Why there is no eviction at all.
    protected: Option<&'static str>,
    detector: Detector,
    watch: Watch,
    budgets: Budgets,
    containers: BTreeMap<ContainerId, Known>,
    /// Of containers that an earlier agent knew and this one has not seen yet.
    kept: BTreeMap<ContainerId, SavedContainer>,
    /// What the last verdict declined: by container, limit, what and why.
    declined: BTreeSet<(ContainerId, Limit, Mode, &'static str)>,
}

impl Judge {
    /// Nothing is known yet. `protected`: why nothing must be evicted, if so.
    #[must_use]
    pub fn new(settings: Settings, protected: Option<&'static str>) -> Self {
        let budgets = Budgets::new(settings.allowance);
        Self {
            settings,
            kill_switch: false,
            protected,
            detector: Detector::default(),
            watch: Watch::default(),
            budgets,
            containers: BTreeMap::new(),
            kept: BTreeMap::new(),
            declined: BTreeSet::new(),
        }
    }

    /// A container appeared, or more is known of it.
    pub fn appeared(&mut self, now: u64, id: ContainerId, subject: Subject, workload: Arc<str>) -> Vec<Effect> {
        let policy = self.settings.policies.of(&subject).cloned();
        self.detector.assign(now, id, &workload, policy.as_ref());
        let kept = self.kept.remove(&id).unwrap_or_default();
        let known = self.containers.entry(id).or_insert_with(|| {
            let SavedContainer { released, eviction, .. } = kept;
            let (contained, protected, workload) = (kept.contained(), self.protected, Arc::clone(&workload));
            let facts = Container { id, policy: None, workload, contained, released, eviction, protected };
            Known { subject: Subject::default(), facts, evicted_at: 0, overdue_at: 0 }
        });
        known.subject = subject;
        known.facts.workload = workload;
        known.facts.policy = policy;
        self.unlimited(now)
    }

    /// What a container has sent since it is metered, of one that was there before this agent.
    pub fn catch_up(&mut self, now: u64, id: ContainerId, egress: &Tally) {
        self.detector.catch_up(now, id, egress);
    }

    /// All containers that are there have appeared.
    pub fn settled(&mut self, now: u64) -> Vec<Effect> {
        self.detector.settled();
        self.kept.clear();
        let there = |breach: &Breach| self.containers.contains_key(&breach.container);
        let gone: Vec<ContainerId> =
            self.watch.all().map(|open| open.breach).filter(|breach| !there(breach)).map(|b| b.container).collect();
        gone.into_iter().flat_map(|id| self.gone(now, id)).collect()
    }

    /// A container is gone.
    pub fn gone(&mut self, now: u64, id: ContainerId) -> Vec<Effect> {
        self.containers.remove(&id);
        self.detector.gone(id);
        self.watch.gone(now, id).into_iter().map(Effect::Closed).collect()
    }

    /// Other settings hold.
    pub fn reload(&mut self, now: u64, settings: Settings) -> Vec<Effect> {
        self.budgets.allow(settings.allowance);
        self.settings = settings;
        for (id, known) in &mut self.containers {
            known.facts.policy = self.settings.policies.of(&known.subject).cloned();
            self.detector.assign(now, *id, &known.facts.workload, known.facts.policy.as_ref());
        }
        let mut effects = self.unlimited(now);
        effects.extend(self.decide(now));
        effects
    }

    /// The kill switch is engaged, or not.
    pub fn kill_switch(&mut self, now: u64, engaged: bool) -> Vec<Effect> {
        self.kill_switch = engaged;
        self.decide(now)
    }

    /// The operator lets a container go. `None`: it is not known.
    pub fn release(&mut self, now: u64, id: ContainerId) -> Option<Vec<Effect>> {
        self.containers.get_mut(&id)?.facts.released = Some(now);
        Some(self.decide(now))
    }

    /// What the kernel says of a container's containment: it holds some by itself, and lets go of what nobody renews. Its
    /// end is the policy's to say.
    pub fn contained(&mut self, now: u64, id: ContainerId, contained: Option<Contained>) -> Vec<Effect> {
        let Some(known) = self.containers.get_mut(&id) else { return vec![] };
        let length =
            known.facts.policy.as_ref().and_then(|policy| policy.on_breach.contain).map(|contain| contain.length);
        let contained = contained.map(|contained| {
            let end = length.map_or(contained.until, |length| contained.since.saturating_add(budget::nanos(length)));
            Contained { until: contained.until.min(end), ..contained }
        });
        let before = std::mem::replace(&mut known.facts.contained, contained);
        // One that began at another time is another one: the one before has ended.
        let same = |before: Contained| contained.is_some_and(|contained| contained.since == before.since);
        if before.is_none_or(same) {
            return vec![];
        }
        self.watch.let_go(now, id, known.facts.released).into_iter().map(Effect::Closed).collect()
    }

    /// A packet found the bucket of a limit empty.
    pub fn crossed(&mut self, now: u64, id: ContainerId, limit: Limit, figure: f64) -> Vec<Effect> {
        let policy = self.containers.get(&id).and_then(|known| known.facts.policy.as_ref());
        let allowed = policy.and_then(|policy| match limit {
            Limit::Rate => policy.egress.rate,
            Limit::Ingress => policy.ingress,
            Limit::Quota | Limit::Baseline => None,
        });
        let Some(RateLimit { rate, .. }) = allowed else { return vec![] };
        let over = Over { figure, allowed: rate.bytes_per_second() as f64 };
        let Some(breach) = self.watch.crossed(now, id, limit, over) else { return vec![] };
        let mut effects = vec![Effect::Opened(breach)];
        effects.extend(self.decide(now));
        effects
    }

    /// What all containers did since the last sample, `nanos` ago.
    pub fn sample(
        &mut self,
        now: u64,
        nanos: u64,
        moved: impl IntoIterator<Item = (ContainerId, Totals)>,
    ) -> Vec<Effect> {
        let found = moved.into_iter().filter_map(|(id, counted)| {
            let contained = self.containers.get(&id)?.facts.contained.is_some();
            let breached = self.watch.of(id).next().is_some();
            self.detector.sample(now, id, Moved { counted, nanos, breached, contained })
        });
        // Most samples say nothing of most containers.
        let telling = |found: &Found| found.quota.is_some() || found.baseline.is_some() || found.pressing;
        let found: Vec<_> = found.filter(telling).collect();
        let changes = self.watch.sample(now, found);
        let closed = changes.closed.into_iter().map(Effect::Closed);
        let mut effects: Vec<Effect> = closed.chain(changes.opened.into_iter().map(Effect::Opened)).collect();
        effects.extend(self.decide(now));
        effects
    }

    /// How the eviction that is underway ended.
    pub fn evicted(&mut self, id: ContainerId, how: Evicted) {
        let Some(Known { facts, evicted_at, .. }) = self.containers.get_mut(&id) else { return };
        if facts.eviction != Some(Eviction::Underway) {
            return;
        }
        facts.eviction = Some(match how {
            Evicted::Done => Eviction::Done,
            Evicted::Untouched { retry_at } | Evicted::Broken { retry_at } => Eviction::Failed { retry_at },
        });
        if matches!(how, Evicted::Untouched { .. }) {
            self.budgets.refund(*evicted_at, &facts.workload);
        }
    }

    /// What the kernel is to check and to do by itself for a container.
    #[must_use]
    pub fn orders(&self, id: ContainerId) -> Orders {
        let Some(Known { facts, .. }) = self.containers.get(&id) else { return Orders::default() };
        let Some(policy) = &facts.policy else { return Orders::default() };
        let released = facts.is_released(&self.watch);
        Orders {
            count: policy.count,
            egress: policy.egress.rate,
            ingress: policy.ingress,
            arm: verdict::arm(policy, self.settings.policies.mode, self.kill_switch, released),
        }
    }

    /// The policy that holds for a container.
    #[must_use]
    pub fn policy(&self, id: ContainerId) -> Option<&Arc<Policy>> {
        self.containers.get(&id)?.facts.policy.as_ref()
    }

    /// What the containment in force ends with, at the latest.
    #[must_use]
    pub fn contained_now(&self, id: ContainerId) -> Option<Contained> {
        self.containers.get(&id)?.facts.contained
    }

    /// The limit that a container's baseline comes to now, in bytes per second.
    #[must_use]
    pub fn allowed(&self, id: ContainerId) -> Option<f64> {
        self.detector.allowed(id)
    }

    /// The open breaches.
    pub fn open(&self) -> impl Iterator<Item = &Breach> {
        self.watch.all().map(|open| &open.breach)
    }

    /// All containers that appeared and are not gone.
    pub fn ids(&self) -> impl Iterator<Item = ContainerId> {
        self.containers.keys().copied()
    }

    fn unlimited(&mut self, now: u64) -> Vec<Effect> {
        let limits = |known: &Known, limit| known.facts.policy.as_ref().is_some_and(|policy| policy.limits(limit));
        // What an earlier agent left open of a container that this one has not seen yet stays so until it is settled.
        let limited =
            |breach: &Breach| self.containers.get(&breach.container).is_none_or(|known| limits(known, breach.limit));
        self.watch.reloaded(now, limited).into_iter().map(Effect::Closed).collect()
    }

    fn decide(&mut self, now: u64) -> Vec<Effect> {
        let open = |id: &ContainerId| self.watch.of(*id).next().is_some();
        let concerned = self.containers.iter().filter(|(id, known)| known.facts.contained.is_some() || open(id));
        let containers: Vec<Container> = concerned.map(|(_, known)| known.facts.clone()).collect();
        let alarm = self.budgets.breaching(now, verdict::breaching(&self.watch, &containers));
        let mut effects: Vec<Effect> = alarm.map(Effect::Alarm).into_iter().collect();
        let (mode, kill_switch) = (self.settings.policies.mode, self.kill_switch);
        let (watch, budgets) = (&self.watch, &self.budgets);
        let verdict = verdict::decide(&World { now, mode, kill_switch, watch, budgets, containers: &containers });
        for action in verdict.actions {
            effects.extend(self.take(now, action));
        }
        let key = |d: &Declined| (d.reason.container, d.reason.limit, d.what, d.why.name());
        let declined = verdict.declined.iter().map(key).collect();
        let before = std::mem::replace(&mut self.declined, declined);
        effects.extend(verdict.declined.into_iter().filter(|d| !before.contains(&key(d))).map(Effect::Declined));
        effects
    }

    /// Takes an action for granted, for whoever is told will carry it out.
    fn take(&mut self, now: u64, action: Action) -> Vec<Effect> {
        let Some(Known { facts, evicted_at, overdue_at, .. }) = self.containers.get_mut(&action.container()) else {
            return vec![];
        };
        let mut effects = vec![Effect::Act(action)];
        match action {
            Action::Contain { how, until, .. } => facts.contained = Some(Contained { how, since: now, until }),
            Action::Release { container, .. } => {
                facts.contained = None;
                let closed = self.watch.let_go(now, container, facts.released);
                effects.extend(closed.into_iter().map(Effect::Closed));
            }
            Action::Evict { grace, .. } => match self.budgets.spend(now, &facts.workload) {
                Ok(()) => {
                    facts.eviction = Some(Eviction::Underway);
                    (*evicted_at, *overdue_at) =
                        (now, now.saturating_add(budget::nanos(grace)).saturating_add(PATIENCE));
                }
                // The verdict asked the same budgets: if they differ, nothing is done.
                Err(_) => effects.clear(),
            },
        }
        effects
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
