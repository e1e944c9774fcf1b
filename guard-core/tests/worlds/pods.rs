//! Pods of a node: what the API server says of them, and what of that keeps them from being evicted.

use std::sync::Arc;

use guard_core::{
    inventory::{Controller, Pod},
    safety::Leave,
};

use crate::setup::WORKLOADS;

/// What a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Replica,
    DaemonSet,
    Unmanaged,
    Terminating,
    OfTheSystem,
}

pub(crate) const KINDS: [Kind; 8] = [
    Kind::Replica,
    Kind::Replica,
    Kind::Replica,
    Kind::Replica,
    Kind::DaemonSet,
    Kind::Unmanaged,
    Kind::Terminating,
    Kind::OfTheSystem,
];

/// A pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) uid: u64,
    pub(crate) workload: usize,
    pub(crate) kind: Kind,
    /// The agent has heard of it.
    pub(crate) told: bool,
    /// Seconds since 1970.
    pub(crate) created: i64,
}

impl Facts {
    pub(crate) fn name(&self) -> Arc<str> {
        format!("pod-{}", self.uid).into()
    }

    /// As the agent hears of it, if it does.
    pub(crate) fn pod(&self) -> Option<Arc<Pod>> {
        let kind = match self.kind {
            Kind::DaemonSet => "DaemonSet",
            _ => "ReplicaSet",
        };
        let controller = Controller { kind: kind.to_owned(), ..Controller::default() };
        let pod = Pod {
            uid: self.name().to_string(),
            namespace: if self.kind == Kind::OfTheSystem { "kube-system" } else { "shop" }.to_owned(),
            name: WORKLOADS[self.workload].to_owned(),
            controller: (self.kind != Kind::Unmanaged).then_some(controller),
            terminating: self.kind == Kind::Terminating,
            created: self.created,
            ..Pod::default()
        };
        self.told.then(|| Arc::new(pod))
    }

    /// The name of what keeps it from being evicted now. `wall`: seconds since 1970.
    pub(crate) fn forbids(&self, leave: &Leave, wall: i64) -> Option<&'static str> {
        match self.kind {
            Kind::OfTheSystem => Some("namespace"),
            Kind::Terminating => Some("terminating"),
            Kind::Unmanaged if !leave.unmanaged => Some("unmanaged"),
            Kind::DaemonSet if !leave.daemon_sets => Some("daemon_set"),
            _ => (wall - self.created < leave.min_age.as_secs() as i64).then_some("too_young"),
        }
    }
}
