//! What must not be evicted, and what only with leave.
//!
//! The same is asked twice: when a verdict is made, by what the node knows, and right before the eviction, by what the
//! API server says then.

use std::time::Duration;

use globset::Glob;

use crate::{
    inventory::{Pod, Volume},
    policy::Globs,
};

/// Whom no policy can give leave for.
#[derive(Clone, Debug)]
pub struct Protect {
    /// Namespaces whose pods are never evicted: `protect.namespaces`.
    pub namespaces: Globs,
    /// The agent's own namespace, which is one of them; empty outside a cluster.
    pub own_namespace: String,
    /// The UID of the agent's own pod; empty outside a cluster.
    pub own_uid: String,
}

/// Namespaces that are protected if the file does not say.
pub const NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "gke-managed-*"];

impl Default for Protect {
    fn default() -> Self {
        let globs = NAMESPACES.iter().filter_map(|name| Glob::new(name).ok());
        Self { namespaces: Globs::new(globs), own_namespace: String::new(), own_uid: String::new() }
    }
}

/// What a policy's `onBreach.evict` gives leave for.
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the file")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// `unmanaged`: pods without a controller, which nobody starts again.
    pub unmanaged: bool,
    /// `daemonSets`: their pods.
    pub daemon_sets: bool,
    /// `lastReplica`: fewer than `minReady` others may be ready.
    pub last_replica: bool,
    /// `minReady`: so many of the workload's replicas must be ready beside this one.
    pub min_ready: u32,
    /// `minAge`: younger pods are left alone.
    pub min_age: Duration,
    /// `emptyDir`: pods whose emptyDir volumes are lost.
    pub empty_dir: bool,
    /// `localVolumes`: pods with a hostPath that they can write to, or a local PersistentVolume.
    pub local_volumes: bool,
}

impl Leave {
    /// What holds if the file does not say.
    pub const USUAL: Self = Self {
        unmanaged: false,
        daemon_sets: false,
        last_replica: false,
        min_ready: 1,
        min_age: Duration::from_mins(1),
        empty_dir: true,
        local_volumes: false,
    };
}

impl Default for Leave {
    fn default() -> Self {
        Self::USUAL
    }
}

/// Why a pod is not evicted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Unsafe {
    /// It is the agent's own pod.
    #[error("it is the agent itself")]
    Agent,
    /// Nobody but kubelet can end it.
    #[error("it is the mirror of a static pod, which only its file on the node starts afresh")]
    Mirror,
    /// `protect.namespaces`, or the agent's own.
    #[error("its namespace {0} is protected (protect.namespaces)")]
    Namespace(String),
    /// A `system-*` priority class.
    #[error("its priority class {0} is the system's")]
    Priority(String),
    /// It is on its way already.
    #[error("it is terminating already")]
    Terminating,
    /// It has ended: nothing would start it afresh.
    #[error("it has ended already")]
    Ended,
    /// Nobody would make another.
    #[error("it has no controller that would start another (onBreach.evict.unmanaged gives leave)")]
    Unmanaged,
    /// Of a DaemonSet.
    #[error("it belongs to a DaemonSet (onBreach.evict.daemonSets gives leave)")]
    DaemonSet,
    /// Too young.
    #[error("it is {age:?} old, and minAge is {least:?}")]
    TooYoung {
        /// How old it is.
        age: Duration,
        /// What the policy says.
        least: Duration,
    },
    /// What is in it would be lost.
    #[error("the data of its emptyDir volume {0} would be lost (onBreach.evict.emptyDir gives leave)")]
    EmptyDir(String),
    /// What is in it would stay behind, or be lost.
    #[error("its volume {0} is local to the node (onBreach.evict.localVolumes gives leave)")]
    LocalVolume(String),
    /// Too few others are ready.
    #[error(
        "{beside} of its workload's replicas are ready beside it, and minReady is {least} \
         (onBreach.evict.lastReplica gives leave)"
    )]
    LastReplica {
        /// How many are ready beside it.
        beside: u32,
        /// What the policy says.
        least: u32,
    },
    /// It cannot be known how many others are ready.
    #[error("how many replicas of a {0} are ready cannot be known (onBreach.evict.lastReplica gives leave)")]
    UnknownReplicas(String),
}

impl Unsafe {
    /// The name in metrics, Events and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Mirror => "mirror",
            Self::Namespace(_) => "namespace",
            Self::Priority(_) => "priority",
            Self::Terminating => "terminating",
            Self::Ended => "ended",
            Self::Unmanaged => "unmanaged",
            Self::DaemonSet => "daemon_set",
            Self::TooYoung { .. } => "too_young",
            Self::EmptyDir(_) => "empty_dir",
            Self::LocalVolume(_) => "local_volume",
            Self::LastReplica { .. } => "last_replica",
            Self::UnknownReplicas(_) => "unknown_replicas",
        }
    }
}

/// Whether a pod may be evicted, by what it says of itself. `now`: seconds since 1970. `local`: those of its
/// [`Volume::Claim`]s that are known to be local to the node.
pub fn of_pod(pod: &Pod, protect: &Protect, leave: &Leave, local: &[String], now: i64) -> Result<(), Unsafe> {
    never(pod, protect)?;
    match &pod.controller {
        None if !leave.unmanaged => return Err(Unsafe::Unmanaged),
        Some(controller) if controller.kind == "DaemonSet" && !leave.daemon_sets => return Err(Unsafe::DaemonSet),
        _ => {}
    }
    // One that was made in the future was made by another clock.
    let age = Duration::from_secs(u64::try_from(now.saturating_sub(pod.created)).unwrap_or(0));
    if age < leave.min_age {
        return Err(Unsafe::TooYoung { age, least: leave.min_age });
    }
    pod.volumes.iter().try_for_each(|volume| match volume {
        Volume::EmptyDir { name } if !leave.empty_dir => Err(Unsafe::EmptyDir(name.clone())),
        Volume::HostPath { name, .. } if !leave.local_volumes => Err(Unsafe::LocalVolume(name.clone())),
        Volume::Claim { name, claim } if !leave.local_volumes && local.contains(claim) => {
            Err(Unsafe::LocalVolume(name.clone()))
        }
        _ => Ok(()),
    })
}

/// What no policy can give leave for.
pub fn never(pod: &Pod, protect: &Protect) -> Result<(), Unsafe> {
    let Protect { namespaces, own_namespace, own_uid } = protect;
    if pod.uid == *own_uid && !own_uid.is_empty() {
        return Err(Unsafe::Agent);
    }
    if pod.mirror {
        return Err(Unsafe::Mirror);
    }
    if namespaces.is_match(&pod.namespace) || pod.namespace == *own_namespace && !own_namespace.is_empty() {
        return Err(Unsafe::Namespace(pod.namespace.clone()));
    }
    // Priorities of 2,000,000,000 and up are the system's alone.
    if pod.priority_class.starts_with("system-") || pod.priority >= 2_000_000_000 {
        return Err(Unsafe::Priority(pod.priority_class.clone()));
    }
    if pod.terminating {
        return Err(Unsafe::Terminating);
    }
    match pod.phase {
        crate::inventory::Phase::Succeeded | crate::inventory::Phase::Failed => Err(Unsafe::Ended),
        _ => Ok(()),
    }
}

/// Whether a workload can spare a pod. `ready`: how many of its replicas are, this one included if `pod.ready`. `None`: its
/// kind has no such count.
pub fn of_workload(pod: &Pod, ready: Option<u32>, leave: &Leave) -> Result<(), Unsafe> {
    if leave.last_replica || pod.controller.is_none() {
        return Ok(());
    }
    let kind = || pod.workload.as_ref().map(|workload| workload.kind.clone()).unwrap_or_default();
    let Some(ready) = ready else { return Err(Unsafe::UnknownReplicas(kind())) };
    let beside = ready.saturating_sub(u32::from(pod.ready));
    if beside < leave.min_ready {
        return Err(Unsafe::LastReplica { beside, least: leave.min_ready });
    }
    Ok(())
}
