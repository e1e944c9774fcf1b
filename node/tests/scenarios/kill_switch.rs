//! The fleet's kill switch, while a pod is contained and about to be evicted.

use std::time::Duration;

use anyhow::{Result, ensure};
use guard_node::{
    Agent, Clock, Installation, Load, Node, WORLD, Wire, load,
    stages::{self, Stages},
};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;

/// Payload bytes per second that the policy lets pass, about.
const ALLOWED: u64 = 50_000;

/// Long enough for an operator to come in between.
const AFTER: Duration = Duration::from_secs(45);

/// In these, one switch and one pod.
pub(crate) const CONFIG: &str = "mode: evict
policies:
  - name: default
    match: {}
    egress: {rate: 50KB/s, burst: 64KiB}
    onBreach:
      contain: {throttle: 20KB/s, for: 10m}
      evict: {after: 45s, minAge: 0s}
";

#[tokio::test(flavor = "multi_thread")]
async fn the_fleets_kill_switch_lets_go_of_a_pod_that_is_about_to_be_evicted() -> Result<()> {
    scenario(&Installation::of("evict", CONFIG), "kill-switch").await
}

/// With another installation of the same configuration; the times go into this table.
pub(crate) async fn scenario(installation: &Installation<'_>, table: &str) -> Result<()> {
    let node = Node::shared().await?;
    let agent = node.install(installation).await?;
    let space = node.space().await?;
    space.create::<Deployment>(load::deployment("web", 2, &["serve"])).await?;
    let replicas = node.loads(&space, "web", 2).await?;
    let breacher = &replicas[0];
    let name = breacher.pod.name_any();
    agent.named(&breacher.pod, "main").await?;

    let clock = Clock::of(&node)?;
    let began = breacher.send(&format!("udp:{WORLD}:9100,1000,{}", 4 * ALLOWED))?;
    let contained = stages::logged_at(&agent.says(&["\"contained", &name]).await?)?;
    let held = rate(&node, breacher).await?;
    ensure!(held < ALLOWED, "{held} bytes/s: it is not held");
    // Ten seconds before its time.
    let due = clock
        .on_host(contained)?
        .checked_add(jiff::SignedDuration::try_from(AFTER.saturating_sub(Duration::from_secs(10)))?)?;
    tokio::time::sleep(Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default()).await;
    let engaged = Timestamp::now();
    agent.kill_switch("on")?;
    let released = stages::logged_at(&agent.says(&["\"released\"", "kill_switch", &name]).await?)?;
    let mut stages = Stages::since(clock.on_host(began)?);
    stages.reached("contained", clock.on_host(contained)?);
    stages.reached("`kubectl patch` of the kill switch", engaged);
    stages.reached("released", clock.on_host(released)?);

    // It sends on as it likes, and longer than an eviction would have waited for.
    tokio::time::sleep(AFTER + Duration::from_secs(10)).await;
    let free = rate(&node, breacher).await?;
    ensure!(free > 2 * ALLOWED, "{free} bytes/s, as if it were still held");
    untouched(&node, agent, breacher).await?;
    agent.says(&["kill_switch", "it is not done", &name]).await?;

    // What held it back was the switch and nothing else.
    let off = Timestamp::now();
    agent.kill_switch("off")?;
    stages.reached("the kill switch off again", off);
    stages.reached("eviction accepted", stages::eviction_of(&node.plane, &breacher.pod).await?);
    node.loads(&space, "web", 2).await?;
    stages.tell(table)?;
    node.leave(space).await
}

/// Bytes per second that a pod sends, by its interface: what a throttle drops counts as sent with the pod itself.
pub(crate) async fn rate(node: &Node, load: &Load<'_>) -> Result<u64> {
    let wire = Wire::of(node, load.address())?;
    let (began, before) = wire.read_at()?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (ended, after) = wire.read_at()?;
    Ok(((after.tx.bytes - before.tx.bytes) as f64 / (ended - began)) as u64)
}

/// Fails if anybody has asked for its eviction, or it is held.
async fn untouched(node: &Node, agent: Agent<'_>, load: &Load<'_>) -> Result<()> {
    let name = load.pod.name_any();
    let asked = node.plane.requests()?.into_iter().filter(|it| it.resource == "pods/eviction" && it.name == name);
    let asked: Vec<_> = asked.collect();
    ensure!(asked.is_empty(), "its eviction was asked for: {asked:?}");
    let listed = agent.listed(&load.pod, "main").await?;
    ensure!(!listed.standing.contained, "{listed:?}");
    Ok(())
}
