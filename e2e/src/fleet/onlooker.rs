//! What becomes of workloads, as one sees it who has no part in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    pin::pin,
};

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::{sync::watch, task::JoinHandle};

use crate::{Space, space::is_ready};

/// Watches a namespace's pods until it is dropped. The API server tells of changes in the order in which they happened.
#[derive(Debug)]
pub struct Onlooker {
    seen: watch::Receiver<Seen>,
    task: JoinHandle<Infallible>,
}

/// What it has seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The UIDs of pods that began to terminate.
    pub terminated: BTreeSet<String>,
    /// How many pods of each workload (label `app`) were Ready and not terminating, at the least.
    pub least: BTreeMap<String, usize>,
    /// The pods that there are, by UID: the workload, and whether it is Ready and not terminating.
    pods: BTreeMap<String, (String, bool)>,
    /// A list is being read.
    listing: bool,
}

impl Onlooker {
    /// To be called when all pods are Ready.
    pub fn new(space: &Space) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let pods = space.api::<Pod>();
        let task = tokio::spawn(async move {
            let mut events = pin!(watcher(pods, watcher::Config::default()).default_backoff());
            loop {
                // After an error the watcher lists again.
                if let Ok(Some(event)) = events.try_next().await {
                    sender.send_modify(|seen| seen.take(event));
                }
            }
        });
        Self { seen, task }
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// How many pods began to terminate.
    pub fn terminated(&self) -> usize {
        self.seen.borrow().terminated.len()
    }
}

impl Drop for Onlooker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => {
                self.pods.clear();
                self.listing = true;
            }
            Event::InitDone => self.listing = false,
            Event::Apply(pod) | Event::InitApply(pod) => {
                let (uid, app) = (pod.uid().unwrap_or_default(), pod.labels().get("app").cloned().unwrap_or_default());
                let terminating = pod.metadata.deletion_timestamp.is_some();
                if terminating {
                    self.terminated.insert(uid.clone());
                }
                self.pods.insert(uid, (app, is_ready(&pod) && !terminating));
            }
            Event::Delete(pod) => drop(self.pods.remove(&pod.uid().unwrap_or_default())),
        }
        if self.listing {
            return;
        }
        let mut ready = BTreeMap::<&String, usize>::new();
        for (app, is_ready) in self.pods.values() {
            *ready.entry(app).or_default() += usize::from(*is_ready);
        }
        for (app, ready) in ready {
            let least = self.least.entry(app.clone()).or_insert(ready);
            *least = ready.min(*least);
        }
    }
}
