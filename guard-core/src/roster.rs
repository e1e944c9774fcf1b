//! The pods whose containers may be on this node: those that there are, and those that are gone from the API server while
//! a container of theirs is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    identity::{Identity, Labels},
    inventory::{Inventory, Phase, Pod},
};

/// What outlives the agent. Nothing that is pinned has a name, so without this a restart with the API server away would
/// show all series under ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The pods.
    pods: Inventory,
    /// What containers are called that have a series, by their ids: a pod tells only of its latest ones.
    containers: BTreeMap<String, Labels>,
}

/// All pods that anything is known of.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// What the API server told last. `None`: nothing yet.
    told: Option<Arc<Inventory>>,
    /// What it told before and does not any more, by the UID in the cgroups' paths.
    departed: BTreeMap<String, Arc<Pod>>,
    /// Of containers that an earlier agent knew, by their ids.
    containers: BTreeMap<String, Labels>,
}

impl Roster {
    /// What an earlier agent kept.
    #[must_use]
    pub fn restore(saved: Saved) -> Self {
        let Saved { pods, containers } = saved;
        let departed = pods.pods().map(|pod| (pod.cgroup_uid().to_owned(), Arc::clone(pod))).collect();
        Self { told: None, departed, containers }
    }

    /// What the next agent needs. `owners`: the containers that have a series, with what they are called. Pods that have
    /// ended and have none are left out: a node may have hundreds of them.
    #[must_use]
    pub fn save<'a>(&self, owners: impl IntoIterator<Item = (&'a Identity, &'a Labels)>) -> Saved {
        let named: Vec<_> = owners.into_iter().filter(|(identity, labels)| is_named(identity, labels)).collect();
        let used: BTreeSet<&str> = named.iter().map(|(identity, _)| identity.pod_uid.as_str()).collect();
        let told = self.told.iter().flat_map(|told| told.pods());
        let all = self.departed.values().chain(told);
        let pods =
            all.filter(|pod| !matches!(pod.phase, Phase::Succeeded | Phase::Failed) || used.contains(pod.cgroup_uid()));
        Saved {
            pods: Inventory::of(pods.cloned()),
            containers: named.iter().map(|(id, labels)| (id.container_id.clone(), (*labels).clone())).collect(),
        }
    }

    /// What the API server tells of now. Returns of which pods that is another than before, by the UIDs in their cgroups'
    /// paths. What is known of one that is gone stays, for its containers may still be there: they are on their way, also if
    /// that it was terminating was never told, as when a deletion without grace was told together with its end.
    pub fn tell(&mut self, told: Arc<Inventory>) -> BTreeSet<String> {
        let before = self.told.take();
        let mut changed = BTreeSet::new();
        for pod in told.pods() {
            let uid = pod.cgroup_uid();
            let departed = self.departed.remove(uid);
            let earlier = before.as_ref().and_then(|before| before.pod(uid)).or(departed.as_ref());
            // What has not changed is mostly the very same.
            if earlier.is_none_or(|earlier| !Arc::ptr_eq(earlier, pod) && earlier != pod) {
                changed.insert(uid.to_owned());
            }
        }
        let gone = before.iter().flat_map(|before| before.pods()).filter(|pod| told.pod(pod.cgroup_uid()).is_none());
        self.departed.extend(gone.map(|pod| (pod.cgroup_uid().to_owned(), Arc::clone(pod))));
        for (uid, pod) in self.departed.iter_mut().filter(|(_, pod)| !pod.terminating) {
            Arc::make_mut(pod).terminating = true;
            changed.insert(uid.clone());
        }
        self.told = Some(told);
        changed
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.departed.values().chain(self.told.iter().flat_map(|told| told.pods())).map(Arc::as_ref)
    }

    /// Whether the API server told anything since the agent began.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// The pod whose cgroup has this UID.
    #[must_use]
    pub fn pod(&self, cgroup_uid: &str) -> Option<&Arc<Pod>> {
        let told = self.told.as_ref().and_then(|told| told.pod(cgroup_uid));
        told.or_else(|| self.departed.get(cgroup_uid))
    }

    /// What a container beneath the pods' root is called. `before`: what it was called up to now; a name that was known
    /// once is not forgotten. `None`: nothing is known of its pod.
    #[must_use]
    pub fn labels(&self, identity: &Identity, before: Option<&Labels>) -> Option<Labels> {
        let now = self.pod(&identity.pod_uid).map(|pod| (pod.labels_of(identity), pod));
        let kept = self.containers.get(&identity.container_id);
        match now {
            Some((labels, pod)) if pod.container(&identity.container_id).is_some() => Some(labels),
            now => {
                let before = before.filter(|labels| is_named(identity, labels));
                before.or(kept).cloned().or(now.map(|(labels, _)| labels))
            }
        }
    }

    /// Forgets what is known of no container: `owners` are those that have a series. Not before the API server has told of
    /// the pods that there are.
    pub fn forget<'a>(&mut self, owners: impl IntoIterator<Item = &'a Identity>) {
        if self.told.is_none() {
            return;
        }
        let (pods, containers): (BTreeSet<&str>, BTreeSet<&str>) =
            owners.into_iter().map(|owner| (owner.pod_uid.as_str(), owner.container_id.as_str())).unzip();
        self.departed.retain(|uid, _| pods.contains(uid.as_str()));
        self.containers.retain(|id, _| containers.contains(id.as_str()));
    }
}

/// Whether the pod is known by more than its UID.
fn is_named(identity: &Identity, labels: &Labels) -> bool {
    !identity.container_id.is_empty() && !labels.namespace.is_empty()
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
