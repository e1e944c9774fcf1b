//! All that is decided on a node, from what is told: the same for a running agent and for the replay of a trace.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use guard_common::{Tally, Totals};

use self::{attempts::Attempts, holds::Holds, saved::SavedContainer};
pub use self::{
    saved::Saved,
    told::{About, Effect, Evicted, Means, Orders, Settings},
};
use crate::{
    breach::{Breach, ContainerId, Limit},
    bucket::Bucket,
    budget::{self, Budgets},
    detect::{Detector, Moved},
    inventory::Pod,
    policy::{Mode, Policy, RateLimit},
    relapse::Relapses,
    verdict::{self, Contained, Container},
    watch::{Found, Over, Watch},
};

mod attempts;
mod bypass;
mod decide;
mod holds;
mod saved;
mod told;

/// What is known of a container, beside its counts.
#[derive(Clone, Debug)]
struct Known {
    about: About,
    facts: Container,
}

/// What is known, and what follows from it.
#[derive(Clone, Debug)]
pub struct Judge {
    settings: Settings,
    kill_switch: bool,
    means: Means,
    /// So many nanoseconds the wall clock is ahead of `CLOCK_BOOTTIME`.
    wall: u64,
    detector: Detector,
    watch: Watch,
    budgets: Budgets,
    relapses: Relapses,
    attempts: Attempts,
    containers: BTreeMap<ContainerId, Known>,
    /// Of containers whose pods have passed by the meters.
    bypass: BTreeMap<ContainerId, Bucket>,
    /// How many containers each pod has; of what is in no pod, each workload.
    pods: BTreeMap<Arc<str>, usize>,
    holds: Holds,
    /// Of containers that an earlier agent knew and this one has not seen yet.
    kept: BTreeMap<ContainerId, SavedContainer>,
    /// What the last verdict declined: by container, limit, what and why.
    declined: BTreeSet<(ContainerId, Limit, Mode, &'static str)>,
}

impl Judge {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(settings: Settings, means: Means) -> Self {
        let budgets = Budgets::new(settings.allowance);
        Self {
            settings,
            kill_switch: false,
            means,
            wall: 0,
            detector: Detector::default(),
            watch: Watch::default(),
            budgets,
            relapses: Relapses::default(),
            attempts: Attempts::default(),
            containers: BTreeMap::new(),
            bypass: BTreeMap::new(),
            pods: BTreeMap::new(),
            holds: Holds::default(),
            kept: BTreeMap::new(),
            declined: BTreeSet::new(),
        }
    }

    /// So many nanoseconds the wall clock (since 1970) is ahead of `CLOCK_BOOTTIME`: to be told before anything else, and
    /// again before each sample, for somebody may set it. Pods' ages and exemptions are reckoned with it.
    pub const fn wall_clock(&mut self, ahead: u64) {
        self.wall = ahead;
    }

    /// A container appeared, or more is known of it.
    pub fn appeared(&mut self, now: u64, id: ContainerId, about: About) -> Vec<Effect> {
        let kept = self.kept.remove(&id);
        let Some(known) = self.containers.get_mut(&id) else {
            let kept = kept.unwrap_or_default();
            let About { workload, unit, pod, .. } = about.clone();
            let (contained, released) = (kept.contained(), kept.released);
            let facts =
                Container { id, policy: None, workload, unit, pod, contained, released, eviction: None, paid: None };
            let known = Known { about, facts };
            *self.pods.entry(Arc::clone(known.facts.pod_or_workload())).or_default() += 1;
            self.containers.insert(id, known);
            return self.assign(now, id);
        };
        if known.about == about {
            return vec![];
        }
        let same = known.about.subject == about.subject && known.about.series == about.series;
        let before = Arc::clone(known.facts.pod_or_workload());
        known.facts.workload = Arc::clone(&about.workload);
        known.facts.pod.clone_from(&about.pod);
        known.about = About { unit: known.about.unit.take(), ..about };
        let pod = Arc::clone(known.facts.pod_or_workload());
        if before != pod {
            self.leave_pod(&before);
            *self.pods.entry(pod).or_default() += 1;
        }
        if same { vec![] } else { self.assign(now, id) }
    }

    fn leave_pod(&mut self, pod: &Arc<str>) {
        if let Some(containers) = self.pods.get_mut(pod) {
            *containers -= 1;
            if *containers == 0 {
                self.pods.remove(pod);
            }
        }
    }

    /// What a container has sent since it is metered, of one that was there before this agent.
    pub fn catch_up(&mut self, now: u64, id: ContainerId, egress: &Tally) {
        self.detector.catch_up(now, id, egress);
    }

    /// All containers that are there have appeared.
    pub fn settled(&mut self, now: u64) -> Vec<Effect> {
        self.detector.settled();
        self.kept.clear();
        self.attempts.settled(|id| self.containers.contains_key(&id));
        let there = |breach: &Breach| self.containers.contains_key(&breach.container);
        let gone: Vec<ContainerId> =
            self.watch.all().map(|open| open.breach).filter(|breach| !there(breach)).map(|b| b.container).collect();
        gone.into_iter().flat_map(|id| self.gone(now, id)).collect()
    }

    /// A container is gone.
    pub fn gone(&mut self, now: u64, id: ContainerId) -> Vec<Effect> {
        if let Some(known) = self.containers.remove(&id) {
            self.leave_pod(known.facts.pod_or_workload());
        }
        self.attempts.gone(id);
        self.holds_no_more(id);
        self.bypass.remove(&id);
        self.detector.gone(id);
        self.watch.gone(now, id).into_iter().map(Effect::Closed).collect()
    }

    /// Other settings hold.
    pub fn reload(&mut self, now: u64, settings: Settings) -> Vec<Effect> {
        self.budgets.allow(settings.allowance);
        self.settings = settings;
        if !self.settings.dry_run {
            self.attempts.forget_dry(&mut self.budgets);
        }
        let mut effects = self.assign_all(now);
        effects.extend(self.decide(now));
        effects
    }

    /// Nothing is to be evicted from now on, for this reason; or it may be again.
    pub fn protect(&mut self, now: u64, nothing: Option<Cow<'static, str>>) -> Vec<Effect> {
        self.means.nothing = nothing;
        self.decide(now)
    }

    /// The operator ends the storm. `None`: there is none.
    pub fn resume(&mut self, now: u64) -> Option<Vec<Effect>> {
        let mut effects = vec![Effect::Alarm(self.budgets.resume()?)];
        effects.extend(self.decide(now));
        Some(effects)
    }

    /// Whether nothing is evicted because too many breach.
    #[must_use]
    pub const fn storm(&self) -> bool {
        self.budgets.storm()
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
            Limit::Quota | Limit::Baseline | Limit::Bypass => None,
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
        let mut effects = self.assign_changed(now);
        let found = moved.into_iter().filter_map(|(id, counted)| {
            let contained = self.containers.get(&id)?.facts.contained.is_some();
            let breached = self.watch.of(id).next().is_some();
            self.detector.sample(now, id, Moved { counted, nanos, breached, contained })
        });
        // Most samples say nothing of most containers.
        let telling = |found: &Found| found.quota.is_some() || found.baseline.is_some() || found.pressing;
        let found: Vec<_> = found.filter(telling).collect();
        let changes = self.watch.sample(now, found);
        effects.extend(changes.closed.into_iter().map(Effect::Closed));
        effects.extend(changes.opened.into_iter().map(Effect::Opened));
        effects.extend(self.decide(now));
        effects
    }

    /// How the eviction ended that is underway for a breach of this container; it may be gone.
    pub fn evicted(&mut self, now: u64, id: ContainerId, how: Evicted) -> Vec<Effect> {
        let Self { attempts, budgets, relapses, settings, containers, .. } = self;
        let workload = attempts.end(id, how, settings.dry_run, budgets, relapses);
        if !containers.contains_key(&id) {
            attempts.gone(id);
        }
        let workload = workload.filter(|_| how == Evicted::NotCured);
        workload.and_then(|workload| relapses.told(now, &workload)).map(Effect::Alarm).into_iter().collect()
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

    /// What the operator wants.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The pod that a container is in, as far as the API server has told of it.
    #[must_use]
    pub fn pod(&self, id: ContainerId) -> Option<&Arc<Pod>> {
        self.containers.get(&id)?.facts.pod.as_ref()
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
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
