//! A node with a real agent on it: real cgroups for the pods that the API server tells of, real traffic, real evictions.

mod seen;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    agent::snapshot,
    net::EXTERNAL_V4,
    pods::{Container, Pods},
    process::Traffic,
    world::World,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::{Behaviour, ControlPlane, Installation, Kubelet, Request, Space, eventually, kubelet::container_id};

/// How long it may take from a breach to everything that follows from it.
pub const SOON: Duration = Duration::from_secs(30);

/// More than the policies of these tests allow, in bytes per second.
const ATTACK: u64 = 2_000_000;

/// A namespace of workloads, an installation, and one node whose agent runs.
#[derive(Debug)]
pub struct Stage {
    /// The node with its agent, its wire and its cgroups.
    pub world: World,
    /// Where the workloads are.
    pub space: Space,
    /// What plays kubelet for them.
    pub kubelet: Kubelet,
    /// The agents' namespace.
    pub installation: Installation,
    /// The node's name.
    pub node: String,
    /// Cgroups by the pod's UID: they go with the stage.
    containers: BTreeMap<String, Container>,
}

/// A policy file in mode evict with 100 KB/s for all, evicted a second after the breach. `rest`: further sections, and
/// `evict`: further keys of `onBreach.evict`.
pub fn config(rest: &str, evict: &str) -> String {
    format!(
        "mode: evict\nsample: {{interval: 100ms}}\n{rest}\npolicies:\n  - name: small\n    match: {{}}\n    egress: \
         {{rate: 100KB/s, burst: 100KB}}\n    onBreach:\n      contain: {{throttle: 50KB/s, for: 10m}}\n      evict: \
         {{after: 1s, minAge: 0s{evict}}}\n"
    )
}

impl Stage {
    /// On a control plane, with a policy file.
    pub async fn new(plane: &ControlPlane, config: &str) -> Result<Self> {
        Self::with(plane, config, Behaviour::default()).await
    }

    /// As [`Self::new`], with another kubelet.
    pub async fn with(plane: &ControlPlane, config: &str, behaviour: Behaviour) -> Result<Self> {
        Self::by(plane, config, behaviour, async |installation| Ok(installation.kubeconfig.clone())).await
    }

    /// As [`Self::with`]. What `way` does comes right before the agent starts, and it returns the agent's kubeconfig.
    pub async fn by(
        plane: &ControlPlane,
        config: &str,
        behaviour: Behaviour,
        way: impl AsyncFnOnce(&Installation) -> Result<PathBuf>,
    ) -> Result<Self> {
        let installation = Installation::new(plane, "evict", config).await?;
        let client = plane.admin().await?;
        let space = Space::new(&client).await?;
        let node = format!("node-{}", space.name);
        let kubelet = Kubelet::start(&client, &space.name, &[&node], behaviour).await?;
        let kubeconfig = way(&installation).await?.display().to_string();
        let world = tokio::task::block_in_place(|| {
            World::prepared(|_: &Pods, setup| {
                setup.set("--orchestrator", "kubernetes");
                setup.set("--node-name", &*node);
                setup.environment.push(("KUBECONFIG".into(), kubeconfig));
                setup.environment.push(("POD_NAMESPACE".into(), installation.space.name.clone()));
                setup.configure(config)
            })
        })?;
        Ok(Self { world, space, kubelet, installation, node, containers: BTreeMap::new() })
    }

    /// Gives a pod's first container its cgroup, and waits until it has its meter and the names of the pod.
    pub async fn run(&mut self, pod: &Pod) -> Result<()> {
        self.place(pod)?;
        self.named(pod).await
    }

    /// Gives a pod's first container its cgroup.
    pub fn place(&mut self, pod: &Pod) -> Result<()> {
        let uid = pod.uid().context("a pod without UID")?;
        // Of a static pod kubelet itself knows another UID than the API server.
        let cgroup_uid = pod.annotations().get("kubernetes.io/config.hash").unwrap_or(&uid);
        let container = self.world.pods.container_of(cgroup_uid, &container_id(pod, first(pod)?))?;
        self.containers.insert(uid, container);
        Ok(())
    }

    /// Waits until that has its meter and the names of the pod.
    pub async fn named(&self, pod: &Pod) -> Result<()> {
        let name = first(pod)?;
        eventually(&format!("the agent knows {} by its name", pod.name_any()), SOON, async || {
            let listed = self.listed(pod)?;
            ensure!(listed.container == name, "it lists {listed:?}");
            Ok(())
        })
        .await
    }

    /// Removes the cgroup of a pod's container, in which nothing runs any more, as a kubelet does when the pod is gone.
    pub fn end(&mut self, pod: &Pod) -> Result<()> {
        self.container(pod)?.remove()?;
        self.containers.remove(&pod.uid().unwrap_or_default());
        Ok(())
    }

    /// What the agent lists of a pod's container.
    pub fn listed(&self, pod: &Pod) -> Result<snapshot::Container> {
        let listed = tokio::task::block_in_place(|| self.world.agent().list())?;
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let found = listed.iter().find(|listed| listed.namespace == namespace && listed.pod == name);
        found.cloned().with_context(|| format!("it lists {listed:?}"))
    }

    /// Fails unless the agent holds a pod's container.
    pub fn contained(&self, pod: &Pod) -> Result<()> {
        let standing = self.listed(pod)?.standing;
        ensure!(standing.contained, "{} is {standing:?}:\n{}", pod.name_any(), self.log()?);
        Ok(())
    }

    /// The cgroup of a pod's container.
    pub fn container(&self, pod: &Pod) -> Result<&Container> {
        let uid = pod.uid().unwrap_or_default();
        self.containers.get(&uid).with_context(|| format!("{} was given no cgroup", pod.name_any()))
    }

    /// Lets a pod send far more than it may, until what this returns is dropped.
    pub fn attack(&self, pod: &Pod) -> Result<Traffic> {
        let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 972 --rate {ATTACK} --seconds 600 --stubborn");
        Traffic::start(&self.world.wires.node, Some(self.container(pod)?), &send)
    }

    /// The value of a series of the agent's.
    pub fn series(&self, series: &str) -> Result<u64> {
        let scraped = tokio::task::block_in_place(|| self.world.agent().scrape())?;
        Ok(scraped.get(series).unwrap_or(0))
    }

    /// How many evictions ended so.
    pub fn evictions(&self, result: &str) -> Result<u64> {
        self.series(&format!("egress_guard_evictions_total{{result=\"{result}\"}}"))
    }

    /// Waits until an eviction has ended so.
    pub async fn ended(&self, result: &str) -> Result<()> {
        self.at_least(result, 1).await
    }

    /// Waits until so many evictions have ended so, or more.
    pub async fn at_least(&self, result: &str, wanted: u64) -> Result<()> {
        eventually(&format!("{wanted} evictions that end with {result:?}"), SOON, async || {
            let count = self.evictions(result)?;
            ensure!(count >= wanted, "there are {count}; the agent says:\n{}", self.log()?);
            Ok(())
        })
        .await
    }

    /// Waits until the log says this.
    pub async fn says(&self, text: &str) -> Result<()> {
        eventually(&format!("the agent says {text:?}"), SOON, async || {
            let log = self.log()?;
            ensure!(log.contains(text), "it says:\n{log}");
            Ok(())
        })
        .await
    }

    /// Waits until the log says this of a pod.
    pub async fn says_of(&self, pod: &Pod, text: &str) -> Result<()> {
        let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        eventually(&format!("the agent says {text:?} of {name}"), SOON, async || {
            let log = self.log()?;
            ensure!(log.lines().any(|line| line.contains(&name) && line.contains(text)), "it says:\n{log}");
            Ok(())
        })
        .await
    }

    /// How often the log has this.
    pub fn said(&self, text: &str) -> Result<usize> {
        self.world.agent().said(text)
    }

    /// What the agent asked the API server for that is about this pod's eviction, or one of its name.
    pub fn asked(&self, plane: &ControlPlane, pod: &Pod) -> Result<Vec<Request>> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let mut asked = self.all_asked(plane)?;
        asked.retain(|request| request.namespace == namespace && request.name == name);
        Ok(asked)
    }

    /// Every eviction that the agent asked the API server for.
    pub fn all_asked(&self, plane: &ControlPlane) -> Result<Vec<Request>> {
        let user = format!("system:serviceaccount:{}:egress-guard", self.installation.space.name);
        let mut asked = plane.requests()?;
        asked.retain(|request| request.user == user && request.resource == "pods/eviction");
        Ok(asked)
    }

    /// The agent's log.
    pub fn log(&self) -> Result<String> {
        self.world.agent().log()
    }

    /// Fails if a pod was deleted, or is about to be.
    pub async fn untouched(&self, pod: &Pod) -> Result<()> {
        let namespace = Space::existing(&self.space.client, &pod.namespace().unwrap_or_default());
        let found = namespace.api::<Pod>().get(&pod.name_any()).await?;
        ensure!(found.uid() == pod.uid(), "{} is another one", pod.name_any());
        ensure!(found.metadata.deletion_timestamp.is_none(), "{} is being deleted:\n{}", pod.name_any(), self.log()?);
        Ok(())
    }
}

/// The name of a pod's first container.
fn first(pod: &Pod) -> Result<&str> {
    let containers = pod.spec.as_ref().map(|spec| &*spec.containers);
    Ok(&containers.and_then(|all| all.first()).context("no container")?.name)
}
