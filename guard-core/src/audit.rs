//! Whether pods may be evicted without an outage: every workload of a cluster, judged before anything is turned on.
//!
//! What the agent would decline is asked of [`safety`], so that it is said here in the words that the agent would use.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use self::checks::Judged;
pub use self::row::{Check, Finding, Row, Verdict};
use crate::{
    identity::Labels,
    inventory::{Controller, Phase, Pod, Workload},
    policy::{Policies, Subject},
    safety::{self, Leave, Protect},
};

mod checks;
mod row;

/// What there is, as an API server told of it.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// All objects that make pods, or make such objects.
    pub owners: Vec<Owner>,
    /// All pods.
    pub pods: Vec<Facts>,
    /// All `PodDisruptionBudget`s.
    pub budgets: Vec<Budget>,
    /// Each PersistentVolumeClaim, by namespace and name, whose data is local to a node, or whose whereabouts cannot be
    /// known.
    pub local: BTreeSet<(String, String)>,
}

/// An object that makes pods, or that makes such objects.
#[derive(Clone, Debug, Default)]
pub struct Owner {
    /// `metadata.uid`.
    pub uid: String,
    /// What it is itself.
    pub workload: Workload,
    /// Its own controller.
    pub controller: Option<Controller>,
    /// How many pods it is to have at once; of a DaemonSet, how many nodes it is for.
    pub desired: u32,
    /// How many of them are ready, by its status. `None`: its kind does not count them (a CronJob).
    pub ready: Option<u32>,
    /// A Job that has finished: nothing is left to do.
    pub finished: bool,
    /// What its pods will be.
    pub template: Facts,
}

/// A pod, and what else an eviction of it depends on.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The pod. Its [`Pod::workload`] is left open.
    pub pod: Pod,
    /// `spec.nodeName`; empty while it has none.
    pub node: String,
    /// All its containers but the ephemeral ones.
    pub containers: Vec<Container>,
    /// The names of the `PodDisruptionBudget`s of its namespace that select it.
    pub budgets: Vec<String>,
}

/// A container of a pod, as it is specified.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// Which requests and limits it lacks.
    pub missing: Vec<Bound>,
    /// `securityContext.readOnlyRootFilesystem`.
    pub read_only_root: bool,
}

/// A bound of what a container may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    /// `resources.requests.cpu`.
    CpuRequest,
    /// `resources.limits.cpu`.
    CpuLimit,
    /// `resources.requests.memory`.
    MemoryRequest,
    /// `resources.limits.memory`.
    MemoryLimit,
}

/// A `PodDisruptionBudget`.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `status.expectedPods`.
    pub expected: u32,
    /// `status.desiredHealthy`.
    pub desired: u32,
    /// `status.currentHealthy`.
    pub healthy: u32,
    /// `status.disruptionsAllowed`.
    pub allowed: u32,
    /// Its status is of its specification as it is now.
    pub current: bool,
    /// Why the status cannot be computed: the condition `DisruptionAllowed` with the reason `SyncFailed` (1.22 and up).
    pub failed: Option<String>,
}

/// Whose word counts.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Whom no policy can give leave for.
    pub protect: Protect,
    /// The policies that evict, and what they give leave for. `None`: as if one evicted every pod and gave no leave.
    pub policies: Option<Policies>,
}

/// All workloads by namespace, kind and name. Left out is what has ended: finished Jobs, pods that nobody starts again.
#[must_use]
pub fn audit(cluster: &Cluster, rules: &Rules) -> Vec<Row> {
    let owners: BTreeMap<&str, &Owner> = cluster.owners.iter().map(|owner| (owner.uid.as_str(), owner)).collect();
    // A workload, its object if that is known, and its pods.
    let mut workloads: BTreeMap<Workload, (Option<&Owner>, Vec<&Facts>)> = BTreeMap::new();
    for owner in &cluster.owners {
        if owner.above().is_none() {
            workloads.insert(owner.workload.clone(), (Some(owner), vec![]));
        }
    }
    for facts in &cluster.pods {
        workloads.entry(workload(&facts.pod, &owners)).or_default().1.push(facts);
    }
    let rows = workloads.into_iter().filter_map(|(workload, (owner, pods))| {
        let alive = alive(&workload, owner, &pods, &owners);
        let (count, judged) = match owner {
            _ if !alive.is_empty() => (alive.len(), alive),
            Some(owner) if owner.desired == 0 && !owner.finished => {
                return Some(Row::new(workload, 0, vec![checks::idle()]));
            }
            Some(owner) if !owner.finished => (0, vec![to_be(&workload, owner)]),
            _ => return None,
        };
        Some(Row::new(workload, count, findings(judged, owner, cluster, rules)))
    });
    let mut rows: Vec<Row> = rows.collect();
    rows.sort_by(|a, b| {
        let Workload { namespace, kind, name } = &a.workload;
        (namespace, kind, name).cmp(&(&b.workload.namespace, &b.workload.kind, &b.workload.name))
    });
    rows
}

impl Owner {
    /// What its pods count as: those of a ReplicaSet or a Job are its controller's.
    fn above(&self) -> Option<&Controller> {
        self.controller.as_ref().filter(|_| matches!(self.workload.kind.as_str(), "ReplicaSet" | "Job"))
    }
}

/// Whose pod it is.
fn workload(pod: &Pod, owners: &BTreeMap<&str, &Owner>) -> Workload {
    let named = |kind: &str, name: &str| Workload {
        kind: kind.to_owned(),
        namespace: pod.namespace.clone(),
        name: name.to_owned(),
    };
    match &pod.controller {
        // A mirror belongs to its node, on which there may be others.
        Some(controller) if !pod.mirror => {
            let above = owners.get(controller.uid.as_str()).and_then(|owner| owner.above()).unwrap_or(controller);
            named(&above.kind, &above.name)
        }
        _ => named("Pod", &pod.name),
    }
}

/// The pods that there are.
fn alive<'a>(
    workload: &Workload,
    owner: Option<&Owner>,
    pods: &[&'a Facts],
    owners: &BTreeMap<&str, &Owner>,
) -> Vec<Judged<'a>> {
    let ended = |pod: &Pod| pod.terminating || matches!(pod.phase, Phase::Succeeded | Phase::Failed);
    let judged = pods.iter().filter(|facts| !ended(&facts.pod)).map(|facts| {
        let controller = facts.pod.controller.as_ref();
        // As the agent counts: those of the workload, else those of what makes the pod.
        let ready = owner.and_then(|owner| owner.ready);
        let ready = ready.or_else(|| owners.get(controller?.uid.as_str())?.ready);
        let pod = Pod { workload: controller.map(|_| workload.clone()), ..facts.pod.clone() };
        Judged { facts, pod, ready, leave: Leave::default() }
    });
    judged.collect()
}

/// The pod that a workload would have if it had one.
fn to_be<'a>(workload: &Workload, owner: &'a Owner) -> Judged<'a> {
    let facts = &owner.template;
    let pod = Pod {
        namespace: workload.namespace.clone(),
        // For patterns of names: the first pod of a StatefulSet, and like one of any other kind.
        name: format!("{}-0", workload.name),
        controller: Some(Controller {
            kind: workload.kind.clone(),
            name: workload.name.clone(),
            ..Controller::default()
        }),
        workload: Some(workload.clone()),
        // What does not count its pods is between two runs, and is judged as if all of them ran.
        ready: owner.ready.is_none(),
        ..facts.pod.clone()
    };
    Judged { facts, pod, ready: Some(owner.ready.unwrap_or(owner.desired)), leave: Leave::default() }
}

fn findings(pods: Vec<Judged<'_>>, owner: Option<&Owner>, cluster: &Cluster, rules: &Rules) -> Vec<Finding> {
    let mut never = None;
    let mut evictable = vec![];
    for mut judged in pods {
        match (safety::never(&judged.pod, &rules.protect), rules.leave(&judged.pod)) {
            (Err(why), _) => never = Some(checks::never(&why)),
            (Ok(()), None) => never = Some(checks::no_policy()),
            (Ok(()), Some(leave)) => {
                judged.leave = leave;
                evictable.push(judged);
            }
        }
    }
    match never {
        Some(never) if evictable.is_empty() => vec![never],
        _ => checks::all(&evictable, owner, cluster),
    }
}

impl Rules {
    /// What all policies together give leave for that may evict the pod for one of its containers. `None`: none may.
    fn leave(&self, pod: &Pod) -> Option<Leave> {
        let Some(policies) = &self.policies else { return Some(Leave::default()) };
        let leaves = pod.containers.iter().filter_map(|container| {
            let names =
                Labels { namespace: pod.namespace.clone(), pod: pod.name.clone(), container: container.name.clone() };
            let policy = policies.of(&Subject { names, labels: pod.labels.clone(), annotations: BTreeMap::new() })?;
            policy.on_breach.evict.map(|evict| evict.leave)
        });
        leaves.reduce(strictest)
    }
}

fn strictest(a: Leave, b: Leave) -> Leave {
    let Leave { unmanaged, daemon_sets, last_replica, min_ready, min_age, empty_dir, local_volumes } = a;
    Leave {
        unmanaged: unmanaged && b.unmanaged,
        daemon_sets: daemon_sets && b.daemon_sets,
        last_replica: last_replica && b.last_replica,
        min_ready: min_ready.max(b.min_ready),
        min_age: min_age.max(b.min_age),
        empty_dir: empty_dir && b.empty_dir,
        local_volumes: local_volumes && b.local_volumes,
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CpuRequest => "CPU request",
            Self::CpuLimit => "CPU limit",
            Self::MemoryRequest => "memory request",
            Self::MemoryLimit => "memory limit",
        })
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
