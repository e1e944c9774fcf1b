//! What the guard tells on the pods themselves.

use std::sync::Arc;

use guard_cluster::events::{Tell, What};

use super::Guard;
use crate::{
    breaches::{Done, Held, Report, State},
    core::{
        breach::{ContainerId, Limit},
        inventory::{PREFIX, Pod},
        overrides::Bad,
        verdict::Release,
    },
    webhook::alert,
};

impl Guard {
    /// The pod of a container that is there, if the API server has told of it.
    pub(super) fn pod_of(&self, id: ContainerId) -> Option<Arc<Pod>> {
        let uid = &self.owner(id)?.identity.pod_uid;
        self.roster.as_ref()?.pod(uid).cloned()
    }

    /// Tells something of a container on its pod.
    pub(super) fn tell_of(&self, id: ContainerId, what: impl FnOnce() -> What) {
        if self.voice.teller.is_none() {
            return;
        }
        let (Some(pod), Some(owner)) = (self.pod_of(id), self.owner(id)) else { return };
        self.tell_on(pod, &owner.labels.container, what());
    }

    /// Tells something on a pod. `container`: of which, as far as the pod has one of that name; what an id is known of alone
    /// says nothing there.
    pub(super) fn tell_on(&self, pod: Arc<Pod>, container: &str, what: What) {
        let Some(teller) = &self.voice.teller else { return };
        let is_known = pod.containers.iter().any(|known| known.name == container);
        let container = if is_known { container.to_owned() } else { String::new() };
        teller.tell(Tell { pod, container, what });
    }

    /// A breach is open.
    pub(super) fn tell_breach(&self, report: &Report) {
        let limit = report.limit;
        let destinations = || report.destinations.iter().map(ToString::to_string).collect();
        self.tell_of(ContainerId(report.cgroup_id), || What::LimitExceeded {
            limit,
            said: alert::summary(report),
            destinations: destinations(),
        });
    }

    /// The annotation on the pod of a breach that has just begun.
    pub(super) fn flag(&self, report: &Report) {
        let Some(teller) = self.voice.teller.as_ref().filter(|_| self.voice.flag) else { return };
        if let Some(pod) = self.pod_of(ContainerId(report.cgroup_id)) {
            teller.flag(pod, &report.opened.to_string(), report.limit.name());
        }
    }

    /// Breaches that last are told again now and then: each stays one Event, with a count and with a time that says so. Those
    /// of pods that the API server told of too late are told for the first time.
    pub fn tell_again(&self) {
        if self.voice.teller.is_some() {
            let reports = self.voice.breaches.newest_first();
            reports.iter().filter(|report| report.state == State::Open).for_each(|report| self.tell_breach(report));
        }
    }

    /// A container is held.
    pub(super) fn tell_contained(&self, id: ContainerId, limit: Limit, done: &Done) {
        let Done::Contained { how, .. } = done else { return };
        let block = *how == Held::Block;
        self.tell_of(id, || What::Contained {
            block,
            how: format!("its {limit} limit is crossed, so its egress is {}", alert::done(done)),
        });
    }

    /// A container is held no more.
    pub(super) fn tell_released(&self, id: ContainerId, why: Release) {
        let said = match why {
            Release::KillSwitch => "the kill switch is engaged",
            Release::Operator => "the operator let it go (guard-agent release)",
            Release::Mode => "the mode is observe now",
            Release::Policy => "no policy that contains holds for it any more",
            Release::Over => "it has lasted for as long as its policy says",
        };
        self.tell_of(id, || What::Released {
            cause: why.name().into(),
            why: format!("its egress is not held any more: {said}"),
        });
    }

    /// The pods whose breaches show that evictions do not cure their workload.
    pub(super) fn tell_not_cured(&self, workload: &str, said: &str) {
        let open: Vec<ContainerId> = self.judge.open().map(|breach| breach.container).collect();
        for id in open {
            if self.pod_of(id).is_some_and(|pod| pod.workload() == workload) {
                self.tell_of(id, || What::RestartDidNotCure { why: said.to_owned() });
            }
        }
    }

    /// An annotation of a pod is not followed.
    pub(super) fn tell_bad_annotation(&self, id: ContainerId, Bad { key, value, why }: &Bad) {
        if let Some(pod) = self.pod_of(id) {
            let (key, value, why) = (format!("{PREFIX}{key}"), value.clone(), why.to_string());
            self.tell_on(pod, "", What::BadAnnotation { key, value, why });
        }
    }
}
