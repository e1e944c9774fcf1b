//! Pods of all kinds are counted, each under the names of its own containers.

use anyhow::{Result, ensure};
use guard_e2e::{Space, eventually, objects::merge};
use guard_node::{
    Agent, Installation, Load, Node, SOON, WORLD,
    agent::external,
    load::{self, Sent},
};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{ResourceExt as _, api::ListParams};
use serde_json::json;

fn stream(rate: u64) -> String {
    format!("udp:{WORLD}:9100,1000,{rate}")
}

/// Waits until the agent says that a container has sent just this to the world, under its names.
pub(crate) async fn exact(agent: Agent<'_>, pod: &Pod, container: &str, sent: Sent) -> Result<()> {
    ensure!(sent.count > 10, "{}/{container} has sent too little to compare: {sent:?}", pod.name_any());
    eventually(&format!("{}/{container} is counted to the byte", pod.name_any()), SOON, async || {
        let counted = external(&agent.metrics().await?, pod, container);
        ensure!(counted == sent.datagrams(), "{counted:?} counted, {:?} sent", sent.datagrams());
        Ok(())
    })
    .await
}

/// Lets it send for a while, and compares.
async fn sends(agent: Agent<'_>, load: &Load<'_>, container: &str) -> Result<()> {
    agent.named(&load.pod, container).await?;
    load.send(&stream(20_000))?;
    eventually("some datagrams are sent", SOON, async || {
        let sent = load.sent()?;
        ensure!(sent.count > 50, "{sent:?}");
        Ok(())
    })
    .await?;
    load.stop()?;
    exact(agent, &load.pod, container, load.sent()?).await
}

async fn stage(node: &Node) -> Result<(Agent<'_>, Space)> {
    Ok((node.install(&Installation::of("observe", "mode: observe\n")).await?, node.space().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_all_kinds_are_counted_under_their_names() -> Result<()> {
    let node = Node::shared().await?;
    let (agent, space) = stage(&node).await?;

    let host = merge(load::pod("host", &["serve", "--port", "18080"]), json!({"spec": {"hostNetwork": true}}));
    space.create::<Pod>(host).await?;
    let mut nested = load::pod("nested", &["nest", "inner/most", "serve"]);
    nested["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    space.create::<Pod>(nested).await?;
    let mut company = load::pod("company", &["serve"]);
    company["spec"]["initContainers"] = json!([load::container("first", &["send", &format!("{},2", stream(30_000))])]);
    let sidecar = load::container("sidecar", &["serve", "--port", "8081"]);
    company["spec"]["containers"].as_array_mut().expect("it is a list").push(sidecar);
    space.create::<Pod>(company).await?;
    space.create::<Job>(load::job("job", &["send", &format!("{},3", stream(30_000))])).await?;

    let host = node.loads(&space, "host", 1).await?.remove(0).on(18080);
    sends(agent, &host, "main").await?;
    let nested = node.loads(&space, "nested", 1).await?.remove(0);
    let cgroup = agent.named(&nested.pod, "main").await?.cgroup_path;
    let inner = node.run(&format!("cat '/sys/fs/cgroup/{cgroup}/inner/most/cgroup.procs'"))?;
    ensure!(!inner.trim().is_empty(), "nobody is in the inner cgroup");
    sends(agent, &nested, "main").await?;
    let company = node.loads(&space, "company", 1).await?.remove(0);
    let first = node.sent_in_all(&company.pod, "first").await?;
    sends(agent, &company, "main").await?;
    sends(agent, &company.clone().on(8081), "sidecar").await?;
    // It has ended long since.
    exact(agent, &company.pod, "first", first).await?;
    let job = space.api::<Pod>().list(&ListParams::default().labels("job-name=job")).await?.items.remove(0);
    exact(agent, &job, "main", node.sent_in_all(&job, "main").await?).await?;
    node.leave(space).await
}
