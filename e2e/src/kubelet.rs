//! Plays scheduler and kubelet for the pods of one namespace: they are bound to nodes, run, become ready, and are gone some time
//! after they were deleted. No container runs.

mod status;

use std::{
    collections::{BTreeMap, HashMap},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::WatchStreamExt as _,
    runtime::watcher::{self, Event, watcher},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use status::{conditions, status};
pub use status::{container_id, digest};

/// How often it looks whether something is due.
const TICK: Duration = Duration::from_millis(20);

/// When it tries again what failed.
const AGAIN: Duration = Duration::from_millis(200);

/// How many pods it sees to at once.
const AT_ONCE: usize = 16;

/// What becomes of pods. A change holds for whatever has not happened yet.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// From the binding until the API server is told of the pod's containers.
    pub running_after: Duration,
    /// From the binding until the pod is Ready, but not before it runs. `None`: it runs and never becomes ready.
    pub ready_after: Option<Duration>,
    /// From the deletion until the pod is gone. `None`: it stays in Terminating.
    pub gone_after: Option<Duration>,
    /// The digest of what an image's name stands for, `sha256:` and 64 hex digits; another image has [`digest`].
    pub digests: BTreeMap<String, String>,
}

impl Default for Behaviour {
    /// Ready at once, gone after 100 ms.
    fn default() -> Self {
        Self {
            running_after: Duration::ZERO,
            ready_after: Some(Duration::ZERO),
            gone_after: Some(Duration::from_millis(100)),
            digests: BTreeMap::new(),
        }
    }
}

/// Sees to a namespace's pods until it is dropped.
#[derive(Debug)]
pub struct Kubelet {
    behaviour: Arc<Mutex<Behaviour>>,
    task: JoinHandle<()>,
}

impl Kubelet {
    /// Makes the nodes unless they are there, and sees to the pods of `namespace` that are on one of them, or on none yet:
    /// those are dealt out in turn, but for a `DaemonSet`'s, which names its node.
    pub async fn start(client: &Client, namespace: &str, nodes: &[&str], behaviour: Behaviour) -> Result<Self> {
        for node in nodes {
            make_node(client, node).await?;
        }
        let behaviour = Arc::new(Mutex::new(behaviour));
        let node = Nodes {
            pods: Api::namespaced(client.clone(), namespace),
            names: nodes.iter().map(|&name| name.to_owned()).collect(),
            behaviour: Arc::clone(&behaviour),
            progress: HashMap::new(),
            next: 0,
        };
        Ok(Self { behaviour, task: tokio::spawn(node.run()) })
    }

    /// Changes what becomes of pods from now on.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut lock(&self.behaviour));
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Makes a node that is Ready, unless it is there.
pub async fn make_node(client: &Client, name: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
    });
    match nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(()),
        other => other.with_context(|| format!("make the node {name}"))?,
    };
    let room = json!({"cpu": "16", "memory": "64Gi", "pods": "500"});
    let conditions = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady"}]);
    let status = json!({"status": {"conditions": conditions, "capacity": room, "allocatable": room}});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// Sets a pod's condition Ready, as a kubelet does when its probe finds otherwise.
pub async fn set_ready(pods: &Api<Pod>, pod: &str, ready: bool) -> Result<()> {
    let found = pods.get(pod).await?;
    let mut statuses = json!(found.status.and_then(|status| status.container_statuses).unwrap_or_default());
    for status in statuses.as_array_mut().into_iter().flatten() {
        status["ready"] = json!(ready);
    }
    // A plain PUT of the status would take the pod's labels along.
    let status = json!({"status": {"conditions": conditions(ready), "containerStatuses": statuses}});
    pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// What has been done for a pod.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// Since when it is bound.
    bound: Option<Instant>,
    /// Since when it is being deleted.
    terminating: Option<Instant>,
    done: Step,
    /// Nothing is tried before this.
    not_before: Instant,
}

/// The steps of a pod's life, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Seen,
    Bound,
    Running,
    Ready,
    Gone,
}

struct Nodes {
    pods: Api<Pod>,
    names: Vec<String>,
    behaviour: Arc<Mutex<Behaviour>>,
    /// By UID.
    progress: HashMap<String, Progress>,
    /// The node that the next pod goes to.
    next: usize,
}

impl Nodes {
    async fn run(mut self) {
        let events = watcher(self.pods.clone(), watcher::Config::default()).default_backoff();
        let mut events = pin!(events);
        let mut pods: HashMap<String, Arc<Pod>> = HashMap::new();
        let mut listed = HashMap::new();
        loop {
            tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(Event::Apply(pod))) => drop(pods.insert(uid(&pod), Arc::new(pod))),
                    Ok(Some(Event::Delete(pod))) => drop(pods.remove(&uid(&pod))),
                    Ok(Some(Event::Init)) => listed.clear(),
                    Ok(Some(Event::InitApply(pod))) => drop(listed.insert(uid(&pod), Arc::new(pod))),
                    Ok(Some(Event::InitDone)) => pods = std::mem::take(&mut listed),
                    Ok(None) => return,
                    // The API server is away, or was: the watcher waits and lists again.
                    Err(_) => {}
                },
                () = tokio::time::sleep(TICK) => {}
            }
            self.progress.retain(|uid, _| pods.contains_key(uid));
            self.see_to(pods.values()).await;
        }
    }

    /// Does what is due.
    async fn see_to(&mut self, pods: impl Iterator<Item = &Arc<Pod>>) {
        let behaviour = Arc::new(lock(&self.behaviour).clone());
        let now = Instant::now();
        let mut due = Vec::new();
        for pod in pods {
            let progress = self.progress.entry(uid(pod)).or_insert_with(|| Progress::new(pod, now));
            progress.see(pod, now);
            if let Some(step) = progress.due(&behaviour, now)
                && let Some(node) = place(pod, &self.names, &mut self.next)
            {
                due.push(act(self.pods.clone(), Arc::clone(pod), step, node, Arc::clone(&behaviour)));
            }
        }
        let results: Vec<_> = futures_util::stream::iter(due).buffer_unordered(AT_ONCE).collect().await;
        for (pod, step, result) in results {
            let Some(progress) = self.progress.get_mut(&uid(&pod)) else { continue };
            match result {
                Ok(()) => progress.done = step,
                Err(error) => {
                    progress.not_before = Instant::now() + AGAIN;
                    complain(&pod, step, &error);
                }
            }
        }
    }
}

impl Progress {
    /// Of a pod that is seen for the first time; somebody else may have seen to it before.
    fn new(pod: &Pod, now: Instant) -> Self {
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        let ready = status.and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
            conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
        let done = match phase {
            "Pending" => Step::Seen,
            "Running" if !ready => Step::Running,
            _ => Step::Ready,
        };
        Self { bound: None, terminating: None, done, not_before: now }
    }

    fn see(&mut self, pod: &Pod, now: Instant) {
        if node_of(pod).is_some() {
            self.bound.get_or_insert(now);
            self.done = self.done.max(Step::Bound);
        }
        if pod.metadata.deletion_timestamp.is_some() {
            self.terminating.get_or_insert(now);
        }
    }

    fn due(&self, behaviour: &Behaviour, now: Instant) -> Option<Step> {
        let since = |instant: Option<Instant>, after: Option<Duration>| {
            instant.zip(after).is_some_and(|(instant, after)| now.duration_since(instant) >= after)
        };
        if now < self.not_before || self.done == Step::Gone {
            return None;
        }
        if self.terminating.is_some() {
            return since(self.terminating, behaviour.gone_after).then_some(Step::Gone);
        }
        match self.done {
            Step::Seen => Some(Step::Bound),
            // Since when it is bound the watch tells.
            Step::Bound if !since(self.bound, Some(behaviour.running_after)) => None,
            Step::Bound | Step::Running if since(self.bound, behaviour.ready_after) => Some(Step::Ready),
            Step::Bound => Some(Step::Running),
            Step::Running | Step::Ready | Step::Gone => None,
        }
    }
}

/// Takes a pod's next step.
async fn act(
    pods: Api<Pod>,
    pod: Arc<Pod>,
    step: Step,
    node: String,
    behaviour: Arc<Behaviour>,
) -> (Arc<Pod>, Step, Result<(), kube::Error>) {
    let result = match step {
        Step::Seen => Ok(()),
        Step::Bound => bind(&pods, &pod, &node).await,
        Step::Running | Step::Ready => {
            let status = Patch::Merge(status(&pod, step == Step::Ready, &behaviour));
            pods.patch_status(&pod.name_any(), &PatchParams::default(), &status).await.map(drop)
        }
        Step::Gone => {
            let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
            let parameters = DeleteParams::default().grace_period(0).preconditions(preconditions);
            pods.delete(&pod.name_any(), &parameters).await.map(drop)
        }
    };
    (pod, step, result)
}

async fn bind(pods: &Api<Pod>, pod: &Pod, node: &str) -> Result<(), kube::Error> {
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod.name_any(), "uid": uid(pod)},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let answer: Result<Value, _> =
        pods.create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding).await;
    answer.map(drop)
}

/// The node that a pod is on or goes to; none if that is not one of ours.
fn place(pod: &Pod, nodes: &[String], next: &mut usize) -> Option<String> {
    if let Some(node) = node_of(pod).map(str::to_owned).or_else(|| wanted_node(pod)) {
        return nodes.contains(&node).then_some(node);
    }
    let node = nodes.get(*next % nodes.len().max(1)).cloned();
    *next += 1;
    node
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty())
}

/// The node that a `DaemonSet`'s controller has chosen.
fn wanted_node(pod: &Pod) -> Option<String> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().filter_map(|term| term.match_fields.as_ref()).flatten();
    fields.filter(|field| field.key == "metadata.name").find_map(|field| field.values.as_ref()?.first().cloned())
}

fn uid(pod: &Pod) -> String {
    pod.uid().unwrap_or_default()
}

/// A pod that is gone or another by now needs nothing.
fn complain(pod: &Pod, step: Step, error: &kube::Error) {
    if !matches!(error, kube::Error::Api(status) if status.is_not_found() || status.is_conflict()) {
        eprintln!("the pod {} could not be made {step:?}: {error}", pod.name_any());
    }
}

fn lock(behaviour: &Mutex<Behaviour>) -> MutexGuard<'_, Behaviour> {
    behaviour.lock().unwrap_or_else(PoisonError::into_inner)
}
