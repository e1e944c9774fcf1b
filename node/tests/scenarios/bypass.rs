//! A pod sends frames past the IP stack, which no meter sees and no containment holds, with the capabilities that a runtime
//! gives every pod.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use guard_agent::core::bypass::{NOISE, SLACK};
use guard_e2e::eventually;
use guard_node::{
    Agent, Clock, Installation, Node, SOON,
    agent::external,
    load,
    stages::{self, Stages},
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::ResourceExt as _;

const CONFIG: &str = "mode: evict
policies:
  - name: default
    match: {}
    egress: {bypass: 100KB/s}
    onBreach:
      contain: {block: true, for: 10m}
      evict: {after: 3s, minAge: 0s}
";

const BYPASSED: &str = "egress_guard_bypass_bytes_total";

/// Bytes per second that the policy lets pass, and that it does not.
const ALLOWED: u64 = 50_000;
const ATTACK: u64 = 500_000;

fn frames(rate: u64) -> String {
    format!("frames:eth0,1000,{rate}")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_every_meter_is_told_and_its_pod_is_replaced() -> Result<()> {
    let node = Node::shared().await?;
    let agent = node.install(&Installation::of("evict", CONFIG)).await?;
    let space = node.space().await?;
    space.create::<Deployment>(load::deployment("web", 2, &["serve"])).await?;
    let replicas = node.loads(&space, "web", 2).await?;
    let [breacher, other] = [&replicas[0], &replicas[1]];
    let name = breacher.pod.name_any();
    for replica in &replicas {
        agent.named(&replica.pod, "main").await?;
        watched(agent, &replica.pod).await?;
    }

    // Less than the limit: it is told, to within what is forgiven, and nothing is done.
    let began = Instant::now();
    breacher.send(&frames(ALLOWED))?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    breacher.stop()?;
    let sent = breacher.sent()?.bytes;
    let metrics = agent.metrics().await?;
    let told = metrics.get(&of_pod(BYPASSED, &breacher.pod)).unwrap_or(0);
    // Each second has a readiness probe in it, too: of what the pod receives, headers are forgiven, for an answer without a
    // socket may have them.
    let forgiven = SLACK + 3 * NOISE * (began.elapsed().as_secs() + 1);
    eprintln!("{told} bytes are told of {sent}, {forgiven} may be missing");
    ensure!(sent > 3 * forgiven, "{sent} bytes were sent, {forgiven} of them are forgiven: this would show nothing");
    ensure!(told <= sent && told + forgiven >= sent, "{told} bytes are told of {sent}, {forgiven} may be missing");
    let metered = external(&metrics, &breacher.pod, "main");
    ensure!(metered.bytes == 0, "a meter has seen {metered:?}");
    ensure!(agent.series("egress_guard_breaches_total{limit=\"bypass\"}").await? == 0, "{}", agent.log().await?);

    // More: no containment holds it, an eviction ends it.
    let clock = Clock::of(&node)?;
    let mut stages = Stages::since(clock.on_host(breacher.send(&frames(ATTACK))?)?);
    let pods: Vec<&Pod> = replicas.iter().map(|replica| &replica.pod).collect();
    let replacement = stages::replacement(&space, "web", &pods).await?;
    for (stage, message) in [("breach", "\"breach\""), ("said that nothing holds it", "no containment holds")] {
        let line = agent.says(&[message, &name]).await?;
        stages.reached(stage, clock.on_host(stages::logged_at(&line)?)?);
    }
    stages.reached("eviction accepted", stages::eviction_of(&node.plane, &breacher.pod).await?);
    stages.reached("replacement Ready", replacement.ready);
    ensure!(agent.evictions("done").await? == 1, "{}", agent.log().await?);
    ensure!(agent.series("egress_guard_breaches_total{limit=\"bypass\"}").await? == 1, "{}", agent.log().await?);
    let declined = "egress_guard_declined_total{action=\"contain\",reason=\"bypass\"}";
    ensure!(agent.series(declined).await? == 1, "{}", agent.log().await?);

    // Of those that sent nothing of the kind nothing is told.
    let fresh = node.load(replacement.pod)?;
    watched(agent, &fresh.pod).await?;
    let metrics = agent.metrics().await?;
    for load in [other, &fresh] {
        let told = metrics.get(&of_pod(BYPASSED, &load.pod));
        ensure!(told == Some(0), "{told:?} bytes are told of {}", load.pod.name_any());
    }
    stages.tell("bypass")?;
    node.leave(space).await
}

fn of_pod(metric: &str, pod: &Pod) -> String {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    format!("{metric}{{container=\"\",namespace=\"{namespace}\",pod=\"{name}\"}}")
}

/// Waits until a pod's interface is compared with its meters.
async fn watched(agent: Agent<'_>, pod: &Pod) -> Result<()> {
    let series = of_pod("egress_guard_bypass_watched", pod);
    eventually(&series, SOON, async || {
        ensure!(agent.series(&series).await? == 1, "it is not 1");
        Ok(())
    })
    .await
}
