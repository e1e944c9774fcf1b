//! What is seen of an agent from outside it, also while its API server is away.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    net::Interface,
    process::Traffic,
    world::{HEADERS, Reading},
};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    ResourceExt as _,
    api::{Api, ListParams},
};
use tokio::task::block_in_place;

use super::{SOON, Stage, first};
use crate::{ControlPlane, Request, eventually};

impl Stage {
    /// Ends the agent without a word (SIGKILL).
    pub fn kill_agent(&mut self) -> Result<()> {
        let agent = self.world.agent.take().context("no agent runs")?;
        block_in_place(|| agent.signal(libc::SIGKILL))?;
        Ok(())
    }

    /// Starts it again, and waits until it is ready.
    pub fn start_agent(&mut self) -> Result<()> {
        self.world.agent = Some(block_in_place(|| self.world.setup.start())?);
        Ok(())
    }

    /// What the agent asked of the API server: these requests, by the server's account.
    pub fn requests(&self, plane: &ControlPlane, verb: &str, resource: &str) -> Result<Vec<Request>> {
        let user = format!("system:serviceaccount:{}:egress-guard", self.installation.space.name);
        let mut requests = plane.requests()?;
        requests.retain(|it| it.user == user && it.verb == verb && it.resource == resource);
        Ok(requests)
    }

    /// The pods that the API server was asked to evict, with its answers.
    pub fn evicted(&self, plane: &ControlPlane) -> Result<Vec<(String, u16)>> {
        let asked = self.requests(plane, "create", "pods/eviction")?;
        Ok(asked.into_iter().map(|request| (request.name, request.code)).collect())
    }

    /// How many slots of the cluster's budget are taken.
    pub async fn taken(&self) -> Result<usize> {
        let leases: Api<Lease> = self.installation.space.api();
        let leases = leases.list(&ListParams::default().labels("egress-guard.dev/lease=eviction")).await?;
        let holder = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
        Ok(leases.iter().filter(|lease| holder(lease).is_some_and(|holder| !holder.is_empty())).count())
    }

    /// Waits until a pod's breach is known, and it is contained.
    pub async fn held(&self, pod: &Pod) -> Result<()> {
        eventually(&format!("{} is contained", pod.name_any()), SOON, async || {
            let standing = self.listed(pod)?.standing;
            ensure!(standing.breached && standing.contained, "it stands {standing:?}:\n{}", self.log()?);
            Ok(())
        })
        .await
    }

    /// Waits until the agent shows these pods' containers and no others, in its list and in its metrics, each under its names
    /// alone. The series of those that are `gone` may be there for a while.
    pub async fn shows(&self, pods: &[&Pod], gone: &[&Pod]) -> Result<()> {
        let key = |pod: &&Pod| Ok((pod.namespace().unwrap_or_default(), pod.name_any(), first(pod)?.to_owned()));
        let expected: BTreeSet<_> = pods.iter().map(key).collect::<Result<_>>()?;
        let gone: BTreeSet<_> = gone.iter().map(key).collect::<Result<_>>()?;
        eventually("the agent shows the pods that there are", SOON, async || {
            let listed = block_in_place(|| self.world.agent().list())?;
            ensure!(listed.len() == expected.len(), "{} are listed", listed.len());
            let listed: BTreeSet<_> = listed.into_iter().map(|it| (it.namespace, it.pod, it.container)).collect();
            ensure!(listed == expected, "it lists {listed:?} instead of {expected:?}");
            let series = &self.names()? - &gone;
            ensure!(series == expected, "there are series for {series:?} instead of {expected:?}");
            Ok(())
        })
        .await
    }

    /// Namespace, pod and container of each series.
    fn names(&self) -> Result<BTreeSet<(String, String, String)>> {
        let metrics = block_in_place(|| self.world.agent().scrape())?;
        let series = metrics.0.keys().filter_map(|series| {
            let labels = series.strip_prefix("egress_guard_container_egress_bytes_total{class=\"external\",")?;
            let label = |name: &str| {
                let (_, value) = labels.split_once(&format!("{name}=\""))?;
                Some(value.split_once('"')?.0.to_owned())
            };
            Some((label("namespace")?, label("pod")?, label("container")?))
        });
        Ok(series.collect())
    }

    /// What the meters and the wire say, once nothing moves. For stages whose containers all have the same name, which the
    /// agent knows.
    pub fn reading(&self, pod: &Pod) -> Result<Reading> {
        let container = self.container(pod)?.known_as(first(pod)?);
        block_in_place(|| self.world.read(&[&container]))
    }

    /// Fails unless meters and wire have moved by the same since then, to the byte. Returns by how much.
    pub fn exact_since(&self, before: Reading, pod: &Pod) -> Result<Interface> {
        let container = self.container(pod)?.known_as(first(pod)?);
        block_in_place(|| self.world.assert_exact(before, &[&container]))
    }

    /// Lets a pod send so many datagrams of a kilobyte; returns their bytes on the wire.
    pub fn send(&self, pod: &Pod, count: u64) -> Result<u64> {
        const SIZE: u64 = 972;
        block_in_place(|| self.world.send(self.container(pod)?, SIZE, count))?;
        Ok(count * (SIZE + HEADERS))
    }

    /// Takes what is sent, so that nothing comes back.
    pub fn sink(&self) -> Result<Traffic> {
        block_in_place(|| self.world.sink())
    }
}
