//! A `PodDisruptionBudget` that allows nothing, until it does.

use anyhow::{Result, ensure};
use guard_node::{
    Clock, Installation, Node, SOON, WORLD, load,
    stages::{self, Stages},
};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{faults::HELD, kill_switch::rate};

/// A containment ends after forty seconds; by then the API server has refused the eviction.
const CONFIG: &str = "mode: evict
policies:
  - name: default
    match: {}
    egress: {rate: 50KB/s, burst: 64KiB}
    onBreach:
      contain: {throttle: 20KB/s, for: 40s}
      evict: {after: 3s, minAge: 0s}
";

const ATTACK: u64 = 200_000;
const NORMAL: u64 = 30_000;

fn stream(rate: u64) -> String {
    format!("udp:{WORLD}:9100,1000,{rate}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_allows_nothing_is_named_and_heard() -> Result<()> {
    let node = Node::shared().await?;
    let agent = node.install(&Installation::of("evict", CONFIG)).await?;
    let space = node.space().await?;
    space.create::<Deployment>(load::deployment("web", 2, &["serve"])).await?;
    let breacher = node.loads(&space, "web", 2).await?.remove(0);
    space.budget("keep-two", "web", 2).await?;
    space.budget_allows("keep-two", 0).await?;
    let name = breacher.pod.name_any();
    agent.named(&breacher.pod, "main").await?;

    // It breaches, and stops once the eviction is refused.
    let clock = Clock::of(&node)?;
    let began = breacher.send(&stream(ATTACK))?;
    let mut stages = Stages::since(clock.on_host(began)?);
    let refused = agent.says(&["keep-two", "does not allow it now", &name]).await?;
    let held = rate(&node, &breacher).await?;
    ensure!(held < HELD, "{held} bytes/s: it is not held");
    breacher.stop()?;
    let stopped = Timestamp::now();
    let contained = agent.says(&["\"contained", &name]).await?;
    stages.reached("contained", clock.on_host(stages::logged_at(&contained)?)?);
    stages.reached("blocked said, with the budget's name", clock.on_host(stages::logged_at(&refused)?)?);
    stages.reached("it stops", stopped);
    let over = agent.says(&["\"breach over", &name]).await?;
    stages.reached("breach over", clock.on_host(stages::logged_at(&over)?)?);
    let released = agent.says(&["\"released\"", &name]).await?;
    stages.reached("released, at the end of `for: 40s`", clock.on_host(stages::logged_at(&released)?)?);
    let said = node.event(&breacher.pod, "EgressEvictionRefused").await?;
    ensure!(said.contains("keep-two"), "the Event says {said}");
    ensure!(agent.evictions("done").await? == 0 && agent.evictions("blocked").await? > 0, "{}", agent.log().await?);
    // What is normal for it passes again.
    breacher.send(&stream(NORMAL))?;
    let rate = rate(&node, &breacher).await?;
    ensure!(rate > HELD, "{rate} bytes/s of {NORMAL}, as if it were still held to 20 KB/s");
    stages.tell("blocked")?;

    // It breaches again, and now the budget comes to have room for one.
    let began = breacher.send(&stream(ATTACK))?;
    let mut stages = Stages::since(clock.on_host(began)?);
    let refused = agent.says_since(began, &["keep-two", "does not allow it now", &name]).await?;
    stages.reached("blocked said", clock.on_host(stages::logged_at(&refused)?)?);
    let three = Patch::Merge(json!({"spec": {"replicas": 3}}));
    space.api::<Deployment>().patch("web", &PatchParams::default(), &three).await?;
    stages.reached("a third replica wanted", Timestamp::now());
    space.budget_allows_within("keep-two", 1, SOON).await?;
    stages.reached("the budget allows one", Timestamp::now());
    stages.reached("eviction accepted", stages::eviction_of(&node.plane, &breacher.pod).await?);
    let after = node.loads(&space, "web", 3).await?;
    stages.reached("three Ready", Timestamp::now());
    ensure!(after.iter().all(|it| it.pod.uid() != breacher.pod.uid()), "the breacher is still one of the three");
    ensure!(agent.evictions("done").await? == 1, "{}", agent.log().await?);
    stages.tell("allowed")?;
    node.leave(space).await
}
