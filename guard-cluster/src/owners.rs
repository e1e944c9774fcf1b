//! Which workload a pod's controller belongs to.
//!
//! A `ReplicaSet`'s name tells its Deployment's (`<deployment>-<hash>`), but not whether it has one: other controllers
//! name theirs alike, and one whose Deployment was deleted with `--cascade=orphan` stands for itself. What is normal
//! belongs to the workload, so a guess that turns out wrong later would be worse than none. Each is asked for once,
//! and its answer holds as long as its UID does.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    future, mem,
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use guard_core::inventory::{Controller, Pod, Workload};
use k8s_openapi::api::{apps::v1::ReplicaSet, batch::v1::Job};
use kube::{Api, Client, Error, Resource, api::PartialObjectMeta};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use crate::{backoff::Backoff, connect::PATIENCE, convert};

/// So many are remembered; beyond that, those that no pod of the node has are forgotten.
const KNOWN: usize = 1024;

/// Between two questions when the last one failed.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));

type Answer = Result<Workload, Failure>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Api(#[from] Error),
    #[error("no answer within {PATIENCE:?}")]
    Slow,
}

/// A controller that is to be asked for.
#[derive(Clone, Debug)]
struct Question {
    namespace: String,
    controller: Controller,
}

/// The workloads of controllers, by their UIDs.
pub(crate) struct Owners {
    client: Client,
    known: HashMap<String, Workload>,
    /// Each once.
    open: VecDeque<Question>,
    /// The first of `open` is asked for.
    asking: Option<BoxFuture<'static, Answer>>,
    not_before: Option<Instant>,
    backoff: Backoff,
    /// That it fails was said.
    said: bool,
}

impl Owners {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            known: HashMap::new(),
            open: VecDeque::new(),
            asking: None,
            not_before: None,
            backoff: BACKOFF,
            said: false,
        }
    }

    /// What an earlier agent found out.
    pub(crate) fn learn(&mut self, pod: &Pod) {
        if let (Some(controller), Some(workload)) = (&pod.controller, &pod.workload) {
            self.known.insert(controller.uid.clone(), workload.clone());
        }
    }

    /// The workload of a pod. `None`: it has no controller, or it is found out by [`Self::next`].
    pub(crate) fn of(&mut self, pod: &Pod) -> Option<Workload> {
        let controller = pod.controller.as_ref()?;
        if let Some(workload) = self.known.get(&controller.uid) {
            return Some(workload.clone());
        }
        let question = Question { namespace: pod.namespace.clone(), controller: controller.clone() };
        if Kind::of(controller).is_none() {
            return Some(question.itself());
        }
        if !self.open.iter().any(|open| open.controller.uid == controller.uid) {
            self.open.push_back(question);
        }
        None
    }

    /// Asks for one after the other; done whenever one is known: its UID and its workload. Waits for ever if there is
    /// nothing to be asked. Nothing is lost if it is dropped halfway.
    pub(crate) async fn next(&mut self) -> (String, Workload) {
        loop {
            let Some(question) = self.open.front() else { future::pending().await };
            if let Some(at) = self.not_before {
                sleep_until(at).await;
                self.not_before = None;
            }
            let asking = self.asking.get_or_insert_with(|| question.clone().ask(self.client.clone()).boxed());
            let answer = asking.await;
            self.asking = None;
            let Some(question) = self.open.pop_front() else { continue };
            match answer {
                Ok(workload) => {
                    self.backoff.reset();
                    self.said = false;
                    let uid = question.controller.uid;
                    self.known.insert(uid.clone(), workload.clone());
                    return (uid, workload);
                }
                Err(failure) => {
                    self.not_before = Some(Instant::now() + self.backoff.next());
                    if !mem::replace(&mut self.said, true) {
                        warn!("{}", question.not_found(&failure));
                    }
                    // The others may have more luck.
                    self.open.push_back(question);
                }
            }
        }
    }

    /// The API server answers again: there is no need to wait.
    pub(crate) fn hurry(&mut self) {
        self.not_before = None;
        self.backoff.reset();
    }

    /// Forgets what none of these pods needs.
    pub(crate) fn forget<'a>(&mut self, pods: impl Iterator<Item = &'a Pod>) {
        let used: BTreeSet<&str> =
            pods.filter_map(|pod| pod.controller.as_ref()).map(|controller| controller.uid.as_str()).collect();
        let asked = self.open.front().map(|question| question.controller.uid.clone());
        self.open.retain(|question| used.contains(question.controller.uid.as_str()));
        if self.open.front().map(|question| &question.controller.uid) != asked.as_ref() {
            self.asking = None;
        }
        if self.known.len() > KNOWN {
            self.known.retain(|uid, _| used.contains(uid.as_str()));
        }
    }
}

/// The kinds of controllers that mostly belong to another one.
enum Kind {
    ReplicaSet,
    Job,
}

impl Kind {
    fn of(controller: &Controller) -> Option<Self> {
        let (group, _version) = controller.api_version.split_once('/')?;
        match (group, controller.kind.as_str()) {
            // Made up: to ask for it would be to ask for something else.
            _ if !convert::is_name(&controller.name) => None,
            ("apps", "ReplicaSet") => Some(Self::ReplicaSet),
            ("batch", "Job") => Some(Self::Job),
            _ => None,
        }
    }
}

impl Question {
    fn itself(&self) -> Workload {
        let Self { namespace, controller: Controller { kind, name, .. } } = self;
        Workload { kind: kind.clone(), namespace: namespace.clone(), name: name.clone() }
    }

    async fn ask(self, client: Client) -> Answer {
        let metadata = async {
            match Kind::of(&self.controller) {
                Some(Kind::ReplicaSet) => self.get::<ReplicaSet>(client).await,
                Some(Kind::Job) => self.get::<Job>(client).await,
                None => Ok(None),
            }
        };
        let owner = timeout(PATIENCE, metadata).await.map_err(|_| Failure::Slow)??;
        let owner = owner.map(|controller| Self { namespace: self.namespace.clone(), controller });
        Ok(owner.unwrap_or(self).itself())
    }

    /// The controller of the controller. `None`: it has none, or is gone.
    async fn get<K>(&self, client: Client) -> Result<Option<Controller>, Error>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned,
        K: std::fmt::Debug,
    {
        let Self { namespace, controller } = self;
        let api: Api<K> = Api::namespaced(client, namespace);
        let found: Option<PartialObjectMeta<K>> = api.get_metadata_opt(&controller.name).await?;
        // Another one may have the same name by now.
        let same = found.filter(|found| found.metadata.uid.as_deref() == Some(controller.uid.as_str()));
        Ok(same.and_then(|found| convert::controller(&found.metadata)))
    }

    fn not_found(&self, failure: &Failure) -> String {
        let Self { namespace, controller: Controller { kind, name, .. } } = self;
        let remedy = match failure {
            Failure::Api(Error::Api(status)) if status.is_forbidden() => {
                "grant the agent `get` of replicasets.apps and jobs.batch"
            }
            _ => "it is asked for again",
        };
        format!(
            "cannot find out what {kind} {namespace}/{name} belongs to: {failure}; until then it counts as a workload of \
             its own; {remedy}"
        )
    }
}

#[cfg(test)]
#[path = "owners_tests.rs"]
mod tests;
