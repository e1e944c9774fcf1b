//! Evictions: begun here, carried out by the [hammer](super::hammer), and said when they end.

use std::{sync::Arc, time::Duration};

use guard_cluster::{
    events::What as Tell,
    evict::{self, Attempt, LIMIT, Order, Replacement},
};

use super::{
    Guard,
    act::wall,
    hammer::{Blow, Struck, What},
};
use crate::{
    breaches::Done,
    clock,
    core::{
        breach::{Breach, ContainerId},
        inventory::Pod,
        judge::Evicted,
        safety::Leave,
    },
    orchestrator::local::{self, Target},
    webhook::Alert,
};

/// When an eviction that failed is tried again, in nanoseconds.
const RETRY: u64 = 60_000_000_000;

/// An eviction as the judge orders it.
pub(super) struct Ordered {
    pub(super) grace: Option<Duration>,
    pub(super) leave: Leave,
    pub(super) dry_run: bool,
    pub(super) reason: Breach,
}

impl Guard {
    pub(super) fn evict(&mut self, ordered: &Ordered) {
        let Ordered { reason, .. } = ordered;
        let id = reason.container;
        let Some(what) = self.blow(id, ordered) else {
            // The judge is told, or it would wait for an end for ever.
            let effects = self.judge.evicted(clock::boottime(), id, untouched(RETRY));
            return self.carry_out(effects);
        };
        // Kept before it is said and done: an agent that dies in between does not do it twice.
        self.metrics.actions.with_label_values(&["evict"]).inc();
        if matches!(what, What::Container { .. }) {
            self.done(*reason, Done::Evicted { at: wall(clock::boottime()) });
        }
        let written = self.keep_now();
        let (container, limit) = (self.name(id), reason.limit);
        self.hammer.strike(Blow { id, what, container, limit }, written);
    }

    fn blow(&self, id: ContainerId, Ordered { grace, leave, dry_run, .. }: &Ordered) -> Option<What> {
        let (grace, leave, dry_run) = (*grace, *leave, *dry_run);
        if self.hammer.takes_pods() {
            let pod = Arc::clone(self.judge.pod(id)?);
            let settings = self.judge.settings();
            let limits = settings.allowance.into();
            return Some(What::Pod(Order { pod, grace, leave, protect: settings.protect.clone(), dry_run, limits }));
        }
        let owner = self.owner(id)?;
        let target = Target { cgroup_id: id.0, cgroup_path: owner.path.clone(), labels: owner.labels.clone() };
        Some(What::Container { target, grace, dry_run })
    }

    /// An eviction has ended.
    pub fn struck(&mut self, struck: Struck) {
        match struck {
            Struck::Local(id, outcome) => self.local_ended(id, &outcome),
            Struck::Pod(id, pod, attempt) => self.attempt_ended(id, &pod, &attempt),
            Struck::Replaced(pod, replacement) => self.replaced(pod, &replacement),
        }
    }

    fn local_ended(&mut self, id: ContainerId, outcome: &local::Outcome) {
        use local::Outcome;
        let retry_at = clock::boottime() + RETRY;
        let (how, why_not) = match outcome {
            Outcome::Done { .. } | Outcome::Gone => (Evicted::Done, None),
            Outcome::Protected(why) => (Evicted::Untouched { retry_at: u64::MAX }, Some(why.to_string())),
            Outcome::DryRun => (Evicted::Done, Some("dryRun is true in the configuration".into())),
            Outcome::KillSwitch => (Evicted::Broken { retry_at }, Some("the kill switch is engaged".into())),
            Outcome::Failed(error) => (Evicted::Broken { retry_at }, Some(error.to_string())),
        };
        self.ended(id, how);
        if let Some(why) = why_not
            && let Some(report) = self.voice.breaches.not_evicted(id.0, &why)
        {
            self.voice.alert(|node| Alert::of(&report, node));
        }
    }

    fn attempt_ended(&mut self, id: ContainerId, pod: &Arc<Pod>, attempt: &Attempt) {
        self.ended(id, attempt.ended(clock::boottime()));
        let done = match &attempt.outcome {
            evict::Outcome::Done(_) => Done::Evicted { at: wall(clock::boottime()) },
            other => Done::Nothing { why: other.to_string() },
        };
        if let Some(what) = attempt.event() {
            let container = self.owner(id).map(|owner| owner.labels.container.clone()).unwrap_or_default();
            self.tell_on(Arc::clone(pod), &container, what);
        }
        // The breach may be over by now: what became of it is noted with the last of its container.
        if let Some(report) = self.voice.breaches.noted(id.0, done) {
            self.voice.alert(|node| Alert::of(&report, node));
        }
    }

    fn ended(&mut self, id: ContainerId, how: Evicted) {
        let effects = self.judge.evicted(clock::boottime(), id, how);
        self.carry_out(effects);
        drop(self.keep_now());
    }

    fn replaced(&self, pod: Arc<Pod>, replacement: &Replacement) {
        let how = match replacement {
            Replacement::Ready { name, took, changed, .. } => {
                let images = if changed.is_empty() {
                    "the same images".to_owned()
                } else {
                    let changed = changed.iter().map(|changed| format!("{} ({})", changed.image, changed.container));
                    let changed = changed.collect::<Vec<_>>().join(", ");
                    format!("OTHER images under the same names, pin them by digest: {changed}")
                };
                format!("pod {name} has taken its place after {:.1} s, from {images}", took.as_secs_f64())
            }
            Replacement::TimedOut { candidate } => {
                let newest = candidate.as_ref().map(|(name, phase)| format!(" (the newest is {name}, {phase:?})"));
                format!("no pod that is Ready has taken its place within {LIMIT:?}{}", newest.unwrap_or_default())
            }
            Replacement::Unmanaged => return,
        };
        self.tell_on(pod, "", Tell::Replaced { how });
    }
}

fn untouched(after: u64) -> Evicted {
    Evicted::Untouched { retry_at: clock::boottime() + after }
}
