//! The pods of this node, as the API server tells of them.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::identity::{Identity, Labels};

/// Annotations under this prefix are the guard's: the operator's overrides, and its own flag.
pub const PREFIX: &str = "egress-guard.dev/";

/// A pod, as far as anything is decided by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: String,
    /// The UID by which kubelet names its cgroup, where that is another: a static pod's is the hash of its manifest
    /// (annotation `kubernetes.io/config.hash` of its mirror).
    pub cgroup_uid: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
    /// Those of its annotations that begin with [`PREFIX`], without it.
    pub annotations: BTreeMap<String, String>,
    /// Its owner reference with `controller: true`.
    pub controller: Option<Controller>,
    /// What its controllers belong to in the end. `None`: it has no controller, or that is not known yet.
    pub workload: Option<Workload>,
    /// `status.qosClass`: `Guaranteed`, `Burstable`, `BestEffort`; empty while unknown.
    pub qos: String,
    /// `spec.priorityClassName`; empty without one.
    pub priority_class: String,
    /// `spec.priority`.
    pub priority: i32,
    /// `status.phase`.
    pub phase: Phase,
    /// It is a mirror of a static pod, which only kubelet can end.
    pub mirror: bool,
    /// `metadata.deletionTimestamp` is there, or the API server tells of it no more.
    pub terminating: bool,
    /// Its condition Ready is True.
    pub ready: bool,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// `spec.terminationGracePeriodSeconds`.
    pub grace: Option<i64>,
    /// Volumes whose data an eviction could lose or leave behind.
    pub volumes: Vec<Volume>,
    /// Its containers, those of all kinds.
    pub containers: Vec<Container>,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not all its containers have run.
    Pending,
    /// At least one container runs.
    Running,
    /// All ended well.
    Succeeded,
    /// All ended, one of them badly.
    Failed,
    /// Nobody can tell.
    #[default]
    Unknown,
}

/// The object that makes a pod's replacement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Controller {
    /// Such as `apps/v1`.
    pub api_version: String,
    /// Such as `ReplicaSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// What an operator calls a pod's owner: a Deployment rather than its ReplicaSet, a CronJob rather than its Job.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Such as `Deployment`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        write!(f, "{namespace}/{kind}/{name}")
    }
}

/// A volume that is more than configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Volume {
    /// Goes with the pod: a clean start is the purpose.
    EmptyDir {
        /// The volume's name.
        name: String,
    },
    /// A folder of the node, mounted so that a container may write to it: it stays behind on this node.
    HostPath {
        /// The volume's name.
        name: String,
        /// The folder.
        path: String,
    },
    /// Its PersistentVolume may be local to the node: to be looked up before an eviction.
    Claim {
        /// The volume's name.
        name: String,
        /// The PersistentVolumeClaim's name.
        claim: String,
    },
}

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Container {
    /// Its name in the pod's specification.
    pub name: String,
    /// The 64 hex digits of `containerID`; empty before it is started.
    pub id: String,
    /// The image as the specification names it.
    pub image: String,
    /// `sha256:...` of the image that runs, of `imageID`; empty where the runtime does not say.
    pub digest: String,
    /// Its condition.
    pub ready: bool,
}

impl Pod {
    /// The UID in its cgroup's path.
    #[must_use]
    pub fn cgroup_uid(&self) -> &str {
        self.cgroup_uid.as_deref().unwrap_or(&self.uid)
    }

    /// What its budget belongs to: its workload; while that is not known its controller; without one it stands for itself.
    #[must_use]
    pub fn workload(&self) -> String {
        let Self { namespace, name, .. } = self;
        match (&self.workload, &self.controller) {
            (Some(workload), _) => workload.to_string(),
            (None, Some(Controller { kind, name, .. })) => format!("{namespace}/{kind}/{name}"),
            (None, None) => format!("{namespace}/Pod/{name}"),
        }
    }

    /// The container with this id.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<&Container> {
        self.containers.iter().find(|container| !id.is_empty() && container.id == id)
    }

    /// What a container of it is called. While its status does not tell the container's name, as it never does of the
    /// sandbox, the first digits of the id stand for that.
    #[must_use]
    pub fn labels_of(&self, identity: &Identity) -> Labels {
        let container = self.container(&identity.container_id).map(|container| container.name.clone());
        let container = container.unwrap_or_else(|| Labels::of(identity, false, "").container);
        Labels { namespace: self.namespace.clone(), pod: self.name.clone(), container }
    }
}

/// What the normal of a container belongs to: the same for all containers of that name in its workload's replicas.
#[must_use]
pub fn series(workload: &str, container: &str) -> String {
    format!("{workload}/{container}")
}

/// All pods of a node that are known, by the UID in their cgroups' paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inventory {
    pods: BTreeMap<String, Arc<Pod>>,
}

impl Inventory {
    /// All pods that there are: those that it knew and that are not among them are gone.
    #[must_use]
    pub fn of(pods: impl IntoIterator<Item = Arc<Pod>>) -> Self {
        let mut all = Self::default();
        for pod in pods {
            all.apply(pod);
        }
        all
    }

    /// A pod appeared or changed. What calls itself the mirror of a pod that the API server has a UID of its own for is none:
    /// anybody who may create pods can write that annotation.
    pub fn apply(&mut self, pod: Arc<Pod>) {
        let uid = pod.cgroup_uid();
        let is_taken = |known: &Arc<Pod>| known.uid == uid && known.uid != pod.uid;
        if !self.pods.get(uid).is_some_and(is_taken) {
            self.pods.insert(uid.to_owned(), pod);
        }
    }

    /// A pod is gone.
    pub fn delete(&mut self, pod: &Pod) {
        self.pods.remove(pod.cgroup_uid());
    }

    /// The pod whose cgroup has this UID.
    #[must_use]
    pub fn pod(&self, cgroup_uid: &str) -> Option<&Arc<Pod>> {
        self.pods.get(cgroup_uid)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// All pods, in the order of their cgroups' UIDs.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }
}
