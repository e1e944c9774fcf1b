//! The pods of this node, watched.
//!
//! What was seen last holds while the API server is away. After any failure the whole list is read again and takes the
//! place of what was known: that sees deletions too, and does not care why the watch broke (a version that is too old, a
//! server that was set back). The list is the one from the API server's cache, as kubelet's own: it costs the server
//! little, and the watch that follows catches up if it was old.

use std::{convert::Infallible, fmt, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use guard_core::inventory::{Inventory, Pod, Workload};
use k8s_openapi::api::core::v1 as api;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, watcher},
};
use prometheus::{IntCounter, IntGauge, core::Collector};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tracing::{info, warn};

use crate::{backoff::Backoff, convert, owners::Owners};

/// How long the next pod of a list may be waited for.
const LIST: Duration = Duration::from_secs(30);

/// A watch that says nothing for so long is begun anew: there is no telling whether it is alive.
const SILENCE: Duration = Duration::from_mins(10);

/// A watch that lasted so long is one that works.
const STEADY: Duration = Duration::from_mins(1);

/// Between two attempts.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// The pods as they were told last. `None`: they were not listed yet.
pub type Latest = watch::Receiver<Option<Arc<Inventory>>>;

/// How it stands with the API server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// The pods are listed, and changes of them are told as they happen.
    pub connected: bool,
    /// When it told something last.
    pub last: Option<Instant>,
}

/// Watches the pods of a node.
pub struct Pods {
    api: Api<api::Pod>,
    node: String,
    owners: Owners,
    known: Inventory,
    /// What is listed so far, while a list is being read.
    listing: Option<Inventory>,
    latest: watch::Sender<Option<Arc<Inventory>>>,
    contact: watch::Sender<Contact>,
    /// When it was connected last.
    since: Instant,
    said: Said,
    backoff: Backoff,
    connected: IntGauge,
    count: IntGauge,
    failures: IntCounter,
}

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pods").field("node", &self.node).finish_non_exhaustive()
    }
}

/// What the log has of it: one line for the loss of a watch that worked, and one when it works again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Connected,
    Lost,
    Again,
}

/// Why a watch has ended.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Watch(#[from] watcher::Error),
    #[error("the list of pods stalls for {LIST:?}")]
    Slow,
}

impl Pods {
    /// For a node, with a client that does not repeat requests by itself. `known`: pods that an earlier agent knew, with
    /// the workloads that it found out.
    pub fn new<'a>(
        client: Client,
        node: &str,
        known: impl Iterator<Item = &'a Pod>,
    ) -> Result<Self, prometheus::Error> {
        let mut owners = Owners::new(client.clone());
        known.for_each(|pod| owners.learn(pod));
        Ok(Self {
            api: Api::all(client),
            node: node.to_owned(),
            owners,
            known: Inventory::default(),
            listing: None,
            latest: watch::Sender::default(),
            contact: watch::Sender::default(),
            since: Instant::now(),
            said: Said::Nothing,
            backoff: BACKOFF,
            connected: IntGauge::new(
                "egress_guard_cluster_connected",
                "1 while the API server tells of this node's pods as they change; 0: what it told last holds.",
            )?,
            count: IntGauge::new("egress_guard_pods", "Pods of this node that the API server told of.")?,
            failures: IntCounter::new(
                "egress_guard_cluster_watch_failures_total",
                "Times that the list or the watch of this node's pods failed.",
            )?,
        })
    }

    /// The pods as they are told.
    #[must_use]
    pub fn latest(&self) -> Latest {
        self.latest.subscribe()
    }

    /// How it stands with the API server.
    #[must_use]
    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.contact.subscribe()
    }

    /// The metrics, to be registered.
    #[must_use]
    pub fn collectors(&self) -> [Box<dyn Collector>; 3] {
        [Box::new(self.connected.clone()), Box::new(self.count.clone()), Box::new(self.failures.clone())]
    }

    /// Watches for ever.
    pub async fn run(mut self) -> Infallible {
        loop {
            let failure = self.follow().await;
            let next = Instant::now() + self.lost(&failure);
            loop {
                tokio::select! {
                    () = sleep_until(next) => break,
                    found = self.owners.next() => self.found(&found),
                }
            }
        }
    }

    /// Lists and watches until that fails.
    async fn follow(&mut self) -> Failure {
        loop {
            let of_node = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node)).any_semantic();
            // With pages kube leaves out that the cache will do, and the API server reads all pods of the cluster.
            let in_one = watcher::Config { page_size: None, ..of_node };
            let mut events = pin!(watcher(self.api.clone(), in_one));
            loop {
                let patience = if self.listing.is_some() { LIST } else { SILENCE };
                let event = tokio::select! {
                    event = timeout(patience, events.next()) => event,
                    found = self.owners.next() => {
                        self.found(&found);
                        continue;
                    }
                };
                match event {
                    Ok(Some(Ok(event))) => self.take(event),
                    Ok(Some(Err(error))) => return error.into(),
                    Err(_) if self.listing.is_some() => return Failure::Slow,
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }

    fn take(&mut self, event: Event<api::Pod>) {
        match event {
            // Nothing was said yet.
            Event::Init => {
                self.listing = Some(Inventory::default());
                return;
            }
            Event::InitApply(pod) => {
                let pod = self.pod(&pod);
                self.listing.get_or_insert_default().apply(pod);
            }
            Event::InitDone => {
                self.known = self.listing.take().unwrap_or_default();
                self.owners.forget(self.known.pods().map(Arc::as_ref));
                self.publish();
                self.live();
            }
            Event::Apply(pod) => {
                let pod = self.pod(&pod);
                self.known.apply(pod);
                self.publish();
            }
            Event::Delete(pod) => {
                let pod = convert::pod(&pod);
                // A static pod's mirror that was made anew has the same UID in its cgroups' paths.
                if self.known.pod(pod.cgroup_uid()).is_some_and(|known| known.uid == pod.uid) {
                    self.known.delete(&pod);
                    self.owners.forget(self.known.pods().map(Arc::as_ref));
                    self.publish();
                }
            }
        }
        self.contact.send_modify(|contact| contact.last = Some(Instant::now()));
    }

    /// A pod as it is kept: the one that is known already, if nothing of interest has changed.
    fn pod(&mut self, pod: &api::Pod) -> Arc<Pod> {
        let mut pod = convert::pod(pod);
        pod.workload = self.owners.of(&pod);
        match self.known.pod(pod.cgroup_uid()) {
            Some(known) if **known == pod => Arc::clone(known),
            _ => Arc::new(pod),
        }
    }

    /// The workload of some pods is known now.
    fn found(&mut self, (uid, workload): &(String, Workload)) {
        let of_it = |pod: &&Arc<Pod>| pod.controller.as_ref().is_some_and(|controller| controller.uid == *uid);
        for pods in [&mut self.known].into_iter().chain(&mut self.listing) {
            for pod in pods.pods().filter(of_it).cloned().collect::<Vec<_>>() {
                pods.apply(Arc::new(Pod { workload: Some(workload.clone()), ..(*pod).clone() }));
            }
        }
        // A list is told as a whole.
        if self.latest.borrow().is_some() {
            self.publish();
        }
    }

    fn publish(&self) {
        self.count.set(i64::try_from(self.known.len()).unwrap_or(i64::MAX));
        self.latest.send_replace(Some(Arc::new(self.known.clone())));
    }

    /// The list is whole, and the watch begins.
    fn live(&mut self) {
        if self.contact.borrow().connected {
            return;
        }
        self.since = Instant::now();
        self.owners.hurry();
        self.connected.set(1);
        self.contact.send_modify(|contact| contact.connected = true);
        self.said = match self.said {
            Said::Nothing => {
                info!(node = self.node, pods = self.known.len(), "the API server tells of this node's pods");
                Said::Connected
            }
            Said::Lost => {
                info!(node = self.node, pods = self.known.len(), "the API server tells of this node's pods again");
                Said::Again
            }
            said @ (Said::Connected | Said::Again) => said,
        };
    }

    /// The list or the watch failed. Returns when to try again.
    fn lost(&mut self, failure: &Failure) -> Duration {
        let connected = self.contact.borrow().connected;
        if connected && self.since.elapsed() >= STEADY {
            self.backoff.reset();
            self.said = Said::Connected;
        }
        self.listing = None;
        self.failures.inc();
        self.connected.set(0);
        self.contact.send_modify(|contact| contact.connected = false);
        if matches!(self.said, Said::Nothing | Said::Connected) {
            self.said = Said::Lost;
            let remedy = failure.remedy();
            warn!(
                node = self.node,
                "cannot watch this node's pods: {failure}; what is known of them holds, and all else goes on; {remedy}"
            );
        }
        self.backoff.next()
    }
}

impl Failure {
    fn remedy(&self) -> &'static str {
        use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
        let forbidden = match self {
            Self::Watch(InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status))) => {
                status.is_forbidden()
            }
            Self::Watch(
                InitialListFailed(_) | WatchStartFailed(_) | WatchFailed(_) | WatchError(_) | NoResourceVersion,
            )
            | Self::Slow => false,
        };
        if forbidden { "grant the agent `list` and `watch` of pods" } else { "it is tried again until it works" }
    }
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
