//! What the last sample said, for everybody who asks.

use std::{sync::Arc, time::SystemTime};

use guard_common::{Tally, Totals};
use serde::{Deserialize, Serialize};

use crate::{
    clock,
    core::{
        identity::Labels,
        inventory::Pod,
        ledger::{Ledger, Owner},
        usage::{PerClass, Rates, Traffic},
    },
    kernel::sys::ProgStats,
};

/// A container with a meter, as `GET /containers` tells it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// The cgroup's id: its directory's inode number.
    pub cgroup_id: u64,
    /// Its path from the root of the hierarchy.
    pub cgroup_path: String,
    /// The pod's namespace. Empty while unknown.
    pub namespace: String,
    /// The pod's name; its UID while that is unknown. Empty outside Kubernetes.
    pub pod: String,
    /// The pod's UID. Empty outside Kubernetes.
    pub pod_uid: String,
    /// The container's name; the first 12 digits of its id while that is unknown; outside Kubernetes the cgroup's path.
    pub container: String,
    /// The container's id. Empty for a cgroup that is no container.
    pub container_id: String,
    /// The runtime. Empty where the cgroup's path does not say.
    pub runtime: String,
    /// Since when it is metered (RFC 3339).
    pub since: String,
    /// What it sent.
    pub egress: PerClass<Traffic>,
    /// What it received.
    pub ingress: PerClass<Traffic>,
    /// Bytes per second over the last sample.
    pub rates: Rates,
    /// Bytes that a containment did not let go.
    pub dropped_bytes: u64,
    /// How it stands.
    #[serde(flatten)]
    pub standing: Standing,
    /// Its pod, as far as the API server has told of it; for the agent's own use.
    #[serde(skip)]
    pub pod_known: Option<Arc<Pod>>,
}

/// How a container stands with its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// It has an open breach.
    pub breached: bool,
    /// It is contained.
    pub contained: bool,
}

/// One sample.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// `CLOCK_BOOTTIME` nanoseconds of the sample. 0: there was none yet.
    pub at: u64,
    /// The containers with a meter.
    pub containers: Vec<Container>,
    /// The series: those of the containers, and for a while of those that are gone.
    pub series: Vec<(Labels, Totals)>,
    /// All pods.
    pub node: Totals,
    /// What the pods sent and no container's meter saw.
    pub unattributed: Tally,
    /// Meters in use, those of removed cgroups that linger among them.
    pub meters: usize,
    /// The statistics of the egress and ingress programs, while the kernel keeps them.
    pub programs: Option<[ProgStats; 2]>,
    /// What passed by the meters, by pod, and by cgroup outside of any.
    pub bypass: Vec<Bypassed>,
}

/// What passed by a pod's meters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bypassed {
    /// The pod's; of a cgroup outside of any its path, as `container`.
    pub labels: Labels,
    /// Its interface is compared with its meters.
    pub watched: bool,
    /// Some container of it is there.
    pub is_there: bool,
    /// Bytes since this agent began. `None`: it was never watched.
    pub bytes: Option<u64>,
}

impl Snapshot {
    /// What the books say now.
    pub fn of(
        ledger: &Ledger,
        meters: usize,
        programs: Option<[ProgStats; 2]>,
        standing: impl Fn(u64) -> Standing,
        pod: impl Fn(&Owner) -> Option<Arc<Pod>>,
    ) -> Self {
        let offset = clock::wall(0);
        let containers = ledger.metered().map(|(_, owner, totals, rates)| Container {
            cgroup_id: owner.cgroup_id,
            cgroup_path: format!("/{}", owner.path),
            namespace: owner.labels.namespace.clone(),
            pod: owner.labels.pod.clone(),
            pod_uid: owner.identity.pod_uid.clone(),
            container: owner.labels.container.clone(),
            container_id: owner.identity.container_id.clone(),
            runtime: owner.identity.runtime.clone(),
            since: rfc3339(offset + std::time::Duration::from_nanos(owner.since)),
            egress: totals.egress.into(),
            ingress: totals.ingress.into(),
            rates,
            dropped_bytes: totals.dropped(),
            standing: standing(owner.cgroup_id),
            pod_known: pod(owner),
        });
        Self {
            at: ledger.sampled_at(),
            containers: containers.collect(),
            series: ledger.series().map(|(labels, totals)| (labels.clone(), totals)).collect(),
            node: ledger.node(),
            unattributed: ledger.unattributed(),
            meters,
            programs,
            bypass: Vec::new(),
        }
    }

    /// The same, with what passed by the meters.
    #[must_use]
    pub fn with(self, bypass: Vec<Bypassed>) -> Self {
        Self { bypass, ..self }
    }
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
