//! Eviction in a cluster: the API server takes the pod away, and its controller makes another.

use std::sync::Arc;

use guard_cluster::{
    connect::{Clients, Identity},
    evict::{Attempt, BUCKETS, Evicted, Order, Replacement, Responder},
};
use prometheus::{Histogram, HistogramOpts, core::Collector};

use crate::core::safety::Protect;

/// Evicts pods of this node, and counts it.
#[derive(Clone, Debug)]
pub struct Cluster {
    responder: Arc<Responder>,
    replacement_seconds: Histogram,
    identity: Identity,
}

impl Cluster {
    /// Nothing is sent yet.
    pub fn new(clients: &Clients, identity: &Identity) -> Result<Self, prometheus::Error> {
        let help = "Time from an eviction to the Ready replacement of the pod.";
        let options = HistogramOpts::new("egress_guard_replacement_seconds", help);
        let replacement_seconds = Histogram::with_opts(options.buckets(BUCKETS.to_vec()))?;
        let responder = Arc::new(Responder::new(clients, identity)?);
        Ok(Self { responder, replacement_seconds, identity: identity.clone() })
    }

    /// The metrics, to be registered.
    pub fn collectors(&self) -> impl Iterator<Item = Box<dyn Collector>> + use<> {
        let replacement: Box<dyn Collector> = Box::new(self.replacement_seconds.clone());
        self.responder.collectors().into_iter().chain([replacement])
    }

    /// The agent itself is protected, and all that is in its namespace.
    pub fn protect(&self, protect: &mut Protect) {
        let Identity { namespace, pod_uid, .. } = &self.identity;
        protect.own_namespace.clone_from(namespace);
        protect.own_uid.clone_from(pod_uid);
    }

    /// Tries once to evict a pod: see [`Responder::evict`].
    pub async fn evict(&self, order: &Order, kill_switch: impl Fn() -> bool + Send) -> Attempt {
        self.responder.evict(order, kill_switch).await
    }

    /// Waits for the evicted pod's replacement: see [`Responder::await_replacement`].
    pub async fn await_replacement(&self, evicted: &Evicted) -> Replacement {
        let replacement = self.responder.await_replacement(evicted).await;
        if let Replacement::Ready { took, .. } = &replacement {
            self.replacement_seconds.observe(took.as_secs_f64());
        }
        replacement
    }
}
