//! Carries out evictions.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use guard_core::{
    inventory::{Pod, Volume},
    safety,
};
use http::Method;
use k8s_openapi::api::core::v1 as api;
use prometheus::{IntCounterVec, Opts, core::Collector};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::{
    Attempt, EvictError, Evicted, Missing, Order, Outcome, RESULTS, Replacement, Spent,
    answer::{self, Said},
    backoff::Backoffs,
    books::{Books, Hold},
    claims,
    discovery::{Discovery, Version},
    disruption,
    replacement::{Heir, Search},
    slots::{Slots, Taken},
    wire::{Silence, What, Wire},
    workload,
};
use crate::connect::{Clients, Identity};

/// Evicts pods of this node through the API server, and counts it.
pub struct Responder {
    wire: Wire,
    search: Search,
    books: Books,
    slots: Slots,
    discovery: Discovery,
    backoffs: Backoffs,
    /// Rights whose lack has been said.
    said: Mutex<BTreeSet<Option<Missing>>>,
    evictions: IntCounterVec,
}

impl Responder {
    /// Nothing is sent yet.
    pub fn new(clients: &Clients, identity: &Identity) -> Result<Self, prometheus::Error> {
        let wire = Wire::new(clients.once.clone())?;
        let Identity { node, namespace, .. } = identity;
        let evictions = Opts::new("egress_guard_evictions_total", "Evictions that were begun, by how they ended.");
        let evictions = IntCounterVec::new(evictions, &["result"])?;
        for result in RESULTS {
            evictions.with_label_values(&[result]);
        }
        Ok(Self {
            search: Search { patient: clients.patient.clone(), wire: wire.clone() },
            books: Books { wire: wire.clone(), namespace: namespace.clone(), node: node.clone() },
            slots: Slots { wire: wire.clone(), namespace: namespace.clone(), node: node.clone() },
            discovery: Discovery::default(),
            backoffs: Backoffs::default(),
            said: Mutex::default(),
            evictions,
            wire,
        })
    }

    /// The metrics, to be registered: evictions by `result`, requests by `what` and `result`.
    pub fn collectors(&self) -> [Box<dyn Collector>; 2] {
        [Box::new(self.evictions.clone()), Box::new(self.wire.requests().clone())]
    }

    /// Tries once to evict a pod, says and counts how it ended. `kill_switch` tells whether the kill switch is engaged; it
    /// is asked at the beginning and right before the eviction is sent.
    pub async fn evict(&self, order: &Order, kill_switch: impl Fn() -> bool + Send) -> Attempt {
        let outcome = self.attempt(order, &kill_switch).await.unwrap_or_else(|outcome| outcome);
        self.evictions.with_label_values(&[outcome.name()]).inc();
        let retry_after = self.backoffs.after(&order.pod.uid, &outcome);
        let attempt = Attempt { pod: format!("{}/{}", order.pod.namespace, order.pod.name), outcome, retry_after };
        self.say(&attempt);
        attempt
    }

    /// Waits until the replacement of an evicted pod is Ready, or for ten minutes, and says how it ended. If it is, the
    /// workload's budget is free again; else it will be after ten minutes.
    pub async fn await_replacement(&self, evicted: &Evicted) -> Replacement {
        let replacement = self.search.await_replacement(evicted).await;
        if let (Replacement::Ready { .. }, Some(heir)) = (&replacement, &evicted.heir) {
            self.books.finished(&heir.workload, &evicted.pod.uid).await;
        }
        self.books.sweep().await;
        replacement
    }

    /// False: it has been said, and nothing has changed since. A right that is missing is missing for all pods.
    fn is_news(&self, outcome: &Outcome) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Outcome::Forbidden { missing, .. } => said.insert(missing.clone()),
            Outcome::Done(_) | Outcome::DryRun => {
                // The rights are there (again).
                said.clear();
                true
            }
            _ => true,
        }
    }

    fn say(&self, attempt: &Attempt) {
        let outcome = &attempt.outcome;
        if !self.is_news(outcome) {
            return debug!("{attempt}");
        }
        match outcome {
            Outcome::Done(_) | Outcome::DryRun | Outcome::Gone => info!("{attempt}"),
            Outcome::Forbidden { .. }
            | Outcome::Misconfigured { .. }
            | Outcome::NotCured { .. }
            | Outcome::Failed(_) => error!("{attempt}"),
            Outcome::Blocked { .. }
            | Outcome::Overloaded { .. }
            | Outcome::Protected(_)
            | Outcome::Budget(_)
            | Outcome::KillSwitch => warn!("{attempt}"),
        }
    }

    async fn attempt(&self, order: &Order, kill_switch: &(impl Fn() -> bool + Send)) -> Result<Outcome, Outcome> {
        if kill_switch() {
            return Ok(Outcome::KillSwitch);
        }
        let pod = self.look(order).await?;
        let at_once = order.limits.at_once.get();
        let hold = self.books.hold(&pod.workload(), &pod.uid, at_once).await?;
        let outcome = self.spare(order, pod, &hold, kill_switch).await.unwrap_or_else(|outcome| outcome);
        if outcome.is_untouched() {
            self.books.give_back(hold).await;
        }
        Ok(outcome)
    }

    /// The pod as the API server tells of it now, if it may be evicted by that, and the API server's clock.
    async fn read(&self, order: &Order) -> Result<(Pod, i64), Outcome> {
        let Order { pod: known, leave, protect, .. } = order;
        let uri = format!("/api/v1/namespaces/{}/pods/{}", known.namespace, known.name);
        let found = self.wire.get::<api::Pod>(What::Pod, &uri).await?;
        let Some((found, answer)) = found else { return Err(Outcome::Gone) };
        let pod = crate::convert::pod(&found);
        if pod.uid != known.uid {
            return Err(Outcome::Gone);
        }
        let now = answer.now()?;
        safety::of_pod(&pod, protect, leave, &[], now).map_err(Outcome::Protected)?;
        Ok((pod, now))
    }

    /// As [`Self::read`], with its workload, and by its volumes too.
    async fn look(&self, order: &Order) -> Result<Pod, Outcome> {
        let Order { pod: known, leave, protect, .. } = order;
        let (mut pod, now) = self.read(order).await?;
        if !leave.local_volumes && pod.volumes.iter().any(|volume| matches!(volume, Volume::Claim { .. })) {
            let local = claims::local(&self.wire, &pod).await?;
            safety::of_pod(&pod, protect, leave, &local, now).map_err(Outcome::Protected)?;
        }
        pod.workload = match &known.workload {
            Some(workload) if pod.controller.is_some() => Some(workload.clone()),
            _ => workload::of_pod(&self.wire, &pod).await?,
        };
        Ok(pod)
    }

    /// With the workload's hold: nobody else takes one of its pods meanwhile, so what is counted now stays true.
    async fn spare(
        &self,
        order: &Order,
        mut pod: Pod,
        hold: &Hold,
        kill_switch: &(impl Fn() -> bool + Send),
    ) -> Result<Outcome, Outcome> {
        let Order { limits, leave, .. } = order;
        let maker = workload::maker(&self.wire, &pod).await?;
        // Leases may have taken a while. One that has become ready since may be among those that are counted.
        pod.ready |= self.read(order).await?.0.ready;
        // Its status may not say yet that those that are under way are gone.
        let ready =
            maker.as_ref().map(|maker| maker.ready.saturating_sub(u32::try_from(hold.others).unwrap_or(u32::MAX)));
        safety::of_workload(&pod, ready, leave).map_err(Outcome::Protected)?;
        let most = at_once(limits.at_once.get(), limits.percent, ready);
        if hold.others >= most {
            return Err(Outcome::Budget(Spent::Workload { workload: pod.workload(), held: hold.others, most }));
        }
        let heir = pod.controller.clone().map(|controller| Heir {
            deployment: maker.as_ref().filter(|it| it.kind == "Deployment").map(|it| it.uid.clone()),
            selector: maker.and_then(|it| it.selector),
            workload: pod.workload(),
            controller,
        });
        let version = self.discovery.eviction(&self.wire).await?;
        let name = format!("{}/{}", pod.namespace, pod.name);
        let taken = self.slots.take((&name, &pod.uid), limits.cluster).await?;
        let outcome = match self.send(order, &pod, version, &taken, kill_switch).await {
            Ok(()) if order.dry_run => Outcome::DryRun,
            Ok(()) => {
                let evicted = Evicted { pod: pod.clone(), heir, since: taken.now, at: Instant::now() };
                Outcome::Done(Box::new(evicted))
            }
            Err(outcome) => outcome,
        };
        if outcome.is_untouched() {
            self.slots.give_back(taken).await;
        }
        Ok(self.named(&pod, outcome).await)
    }

    /// With the names of the disruption budgets that the API server did not tell.
    async fn named(&self, pod: &Pod, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Blocked { budget: None, message, settling, retry_after } => {
                let budgets = disruption::of_pod(&self.wire, pod).await.unwrap_or_default();
                let budget = (!budgets.is_empty()).then(|| budgets.join(", "));
                Outcome::Blocked { budget, message, settling, retry_after }
            }
            Outcome::Misconfigured { .. } => {
                let budgets = disruption::of_pod(&self.wire, pod).await.unwrap_or_default();
                Outcome::Misconfigured { budgets }
            }
            outcome => outcome,
        }
    }

    /// Sends the eviction; once more if the API server knows another version of it by now.
    async fn send(
        &self,
        order: &Order,
        pod: &Pod,
        version: Version,
        taken: &Taken,
        kill_switch: &(impl Fn() -> bool + Send),
    ) -> Result<(), Outcome> {
        let unknown = match self.post(order, pod, version, taken, kill_switch).await? {
            Said::Accepted => return Ok(()),
            Said::No(outcome) => return Err(outcome),
            Said::OtherVersion(error) => error,
        };
        self.discovery.forget();
        let other = self.discovery.eviction(&self.wire).await?;
        if other == version {
            return Err(unknown.into());
        }
        match self.post(order, pod, other, taken, kill_switch).await? {
            Said::Accepted => Ok(()),
            Said::No(outcome) => Err(outcome),
            Said::OtherVersion(error) => Err(error.into()),
        }
    }

    async fn post(
        &self,
        order: &Order,
        pod: &Pod,
        version: Version,
        taken: &Taken,
        kill_switch: &(impl Fn() -> bool + Send),
    ) -> Result<Said, Outcome> {
        if !taken.is_good() {
            return Err(Outcome::Budget(Spent::Contended { what: "the cluster's budget".into() }));
        }
        if kill_switch() {
            return Err(Outcome::KillSwitch);
        }
        let (uri, body) = request(pod, version, order.grace, order.dry_run);
        match self.wire.send(What::Evict, Method::POST, &uri, Some(&body)).await {
            Ok(answer) => Ok(answer::classify(&answer)),
            Err(Silence { error, sent: true }) => Err(EvictError::Lost(error).into()),
            Err(Silence { error, sent: false }) => Err(EvictError::Unanswered { what: "evict the pod", error }.into()),
        }
    }
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Responder")
    }
}

/// Its path and its body: `policy/v1` and `policy/v1beta1` differ in nothing else. What is not said is the pod's own.
fn request(pod: &Pod, version: Version, grace: Option<Duration>, dry_run: bool) -> (String, Value) {
    let mut options = json!({"preconditions": {"uid": pod.uid}});
    if let Some(grace) = grace {
        options["gracePeriodSeconds"] = json!(grace.as_millis().div_ceil(1000).max(1));
    }
    let mut uri = format!("/api/v1/namespaces/{}/pods/{}/eviction", pod.namespace, pod.name);
    if dry_run {
        options["dryRun"] = json!(["All"]);
        // In both places, so that no server misses it.
        uri.push_str("?dryRun=All");
    }
    let body = json!({
        "apiVersion": version.api_version(),
        "kind": "Eviction",
        "metadata": {"name": pod.name, "namespace": pod.namespace},
        "deleteOptions": options,
    });
    (uri, body)
}

/// How many of a workload's pods may be evicted at once.
fn at_once(most: u64, percent: u8, ready: Option<u32>) -> u64 {
    let Some(ready) = ready else { return 1 };
    most.min(u64::from(ready) * u64::from(percent) / 100).max(1)
}

#[cfg(test)]
#[path = "responder_tests.rs"]
mod tests;
