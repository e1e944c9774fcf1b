//! Whether the controller has started the pod afresh.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, pin_mut};
use guard_core::inventory::{Container, Controller, Phase, Pod};
use k8s_openapi::api::core::v1 as api;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::time;
use tracing::{info, warn};

use super::{
    Evicted,
    wire::{What, Wire},
    workload,
};
use crate::convert;

/// How long it may take until a replacement is Ready. The workload's budget waits as long.
pub const LIMIT: Duration = Duration::from_mins(10);

/// Buckets for `egress_guard_replacement_seconds` where pods are what is replaced, in seconds: 1 s to [`LIMIT`].
pub const BUCKETS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// What became of an evicted pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// Another one is in its place.
    Ready {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
        /// From the eviction's answer to when it was seen Ready.
        took: Duration,
        /// Images that are another one under the same name.
        changed: Vec<Changed>,
    },
    /// There was none that is Ready within [`LIMIT`].
    TimedOut {
        /// The one that comes closest: its name and phase.
        candidate: Option<(String, Phase)>,
    },
    /// Nobody makes one: it had no controller.
    Unmanaged,
}

/// A container whose image is another one, though it is called the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The container's name.
    pub container: String,
    /// The image as the specification names it.
    pub image: String,
    /// The digest that the evicted pod ran.
    pub before: String,
    /// The digest that the replacement runs.
    pub after: String,
}

/// By what a replacement is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heir {
    /// The evicted pod's controller.
    pub(crate) controller: Controller,
    /// The Deployment's UID, if its controller is a ReplicaSet of one: in mid roll-out another one makes it.
    pub(crate) deployment: Option<String>,
    /// Labels, as a list's `labelSelector`; `None`: all pods of the namespace are looked at.
    pub(crate) selector: Option<String>,
    /// The workload in the guard's books.
    pub(crate) workload: String,
}

/// Whether a pod is the replacement.
#[derive(Debug, PartialEq, Eq)]
enum Kin {
    Yes,
    No,
    /// If this ReplicaSet is one of the Deployment's.
    If(String),
}

/// What is asked for to find out.
pub(crate) struct Search {
    pub(crate) patient: Client,
    pub(crate) wire: Wire,
}

impl Search {
    /// Waits until the replacement is Ready, and says so.
    pub(crate) async fn await_replacement(&self, evicted: &Evicted) -> Replacement {
        let Some(heir) = &evicted.heir else { return Replacement::Unmanaged };
        let pod = format!("{}/{}", evicted.pod.namespace, evicted.pod.name);
        let mut candidate = None;
        let left = LIMIT.saturating_sub(evicted.at.elapsed());
        let Ok(ready) = time::timeout(left, self.ready(evicted, heir, &mut candidate)).await else {
            let candidate = candidate.map(|it: Pod| (it.name, it.phase));
            warn!(
                %pod, workload = heir.workload, newest = ?candidate,
                "evicted, and there is no replacement that is Ready after {LIMIT:?}: see kubectl describe on the workload and \
                 its newest pod (no room on any node, an image that cannot be pulled, a readiness probe that fails)"
            );
            return Replacement::TimedOut { candidate };
        };
        let took = evicted.at.elapsed();
        let changed = changed(&evicted.pod.containers, &ready.containers);
        info!(%pod, replacement = ready.name, ?took, "a fresh pod has taken the place of the evicted one");
        for Changed { container, image, before, after } in &changed {
            warn!(
                %pod, replacement = ready.name, container, image, before, after,
                "the replacement runs another image under the same name: the tag was moved since the evicted pod started; pin \
                 images by digest"
            );
        }
        Replacement::Ready { name: ready.name, uid: ready.uid, took, changed }
    }

    async fn ready(&self, evicted: &Evicted, heir: &Heir, candidate: &mut Option<Pod>) -> Pod {
        let pods: Api<api::Pod> = Api::namespaced(self.patient.clone(), &evicted.pod.namespace);
        let config = watcher::Config::default();
        let config = match &heir.selector {
            Some(selector) => config.labels(selector),
            None => config,
        };
        let events = watcher(pods, config).default_backoff();
        pin_mut!(events);
        let mut ours = BTreeMap::new();
        loop {
            let pod = match events.next().await {
                Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => convert::pod(&pod),
                Some(Ok(watcher::Event::InitDone)) => {
                    self.wire.count(What::Watch, Some(200));
                    continue;
                }
                Some(Ok(watcher::Event::Init | watcher::Event::Delete(_))) => continue,
                Some(Err(error)) => {
                    self.wire.count(What::Watch, None);
                    tracing::debug!(%error, "the watch for a replacement broke and is made again");
                    continue;
                }
                // A watcher has no end.
                None => std::future::pending().await,
            };
            let is = match kin(evicted, heir, &pod) {
                Kin::Yes => true,
                Kin::No => false,
                Kin::If(set) => self.is_of_deployment(&pod, heir, set, &mut ours).await,
            };
            if is && pod.ready {
                return pod;
            }
            if is {
                *candidate = Some(pod);
            }
        }
    }

    async fn is_of_deployment(&self, pod: &Pod, heir: &Heir, set: String, ours: &mut BTreeMap<String, bool>) -> bool {
        if let Some(known) = ours.get(&set) {
            return *known;
        }
        let Some(controller) = &pod.controller else { return false };
        // What cannot be asked now is asked again at the pod's next change.
        let parent = workload::parent(&self.wire, &pod.namespace, "ReplicaSet", &controller.name).await;
        let Ok(parent) = parent else { return false };
        let is = parent.is_some_and(|parent| Some(parent.uid) == heir.deployment);
        ours.insert(set, is);
        is
    }
}

fn kin(evicted: &Evicted, heir: &Heir, pod: &Pod) -> Kin {
    let Some(controller) = &pod.controller else { return Kin::No };
    if pod.uid == evicted.pod.uid || pod.terminating || pod.created < evicted.since {
        return Kin::No;
    }
    if controller.uid == heir.controller.uid {
        // A StatefulSet's pods have their places.
        let is = controller.kind != "StatefulSet" || pod.name == evicted.pod.name;
        return if is { Kin::Yes } else { Kin::No };
    }
    match heir.deployment {
        Some(_) if controller.kind == "ReplicaSet" => Kin::If(controller.uid.clone()),
        _ => Kin::No,
    }
}

/// Containers that run another image than before, under the same name. Without a digest nothing is known.
fn changed(before: &[Container], after: &[Container]) -> Vec<Changed> {
    let changed = after.iter().filter_map(|new| {
        let old = before.iter().find(|old| old.name == new.name && old.image == new.image)?;
        let known = !old.digest.is_empty() && !new.digest.is_empty();
        (known && old.digest != new.digest).then(|| Changed {
            container: new.name.clone(),
            image: new.image.clone(),
            before: old.digest.clone(),
            after: new.digest.clone(),
        })
    });
    changed.collect()
}

#[cfg(test)]
#[path = "replacement_tests.rs"]
mod tests;
