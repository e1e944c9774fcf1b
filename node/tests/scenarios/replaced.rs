//! One replica of a service sends far more than a hundred times its normal, and is replaced, while the service answers.

use std::time::Duration;

use anyhow::{Result, ensure};
use guard_e2e::{eventually, objects::merge};
use guard_node::{
    Clock, Installation, Load, Node, SOON, WORLD, load,
    stages::{self, Stages},
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use kube::ResourceExt as _;
use serde_json::json;

use crate::{faults::nobody_is_held, names::exact};

/// Payload bytes per second of each replica.
const NORMAL: u64 = 5_000;
/// As much more is what it breaches with: beyond any doubt of what its normal was.
const TIMES: u64 = 150;
/// Of a datagram.
const SIZE: u64 = 1400;

/// As a user has it, but for the times.
pub(crate) const CONFIG: &str = "mode: evict
policies:
  - name: default
    match: {}
    egress: {baseline: {factor: 100, floor: 100KB/s, learn: 20s}}
    onBreach:
      contain: {throttle: 50KB/s, for: 10m}
      evict: {after: 3s, minAge: 0s}
";

fn stream(times: u64) -> String {
    format!("udp:{WORLD}:9100,{SIZE},{}", NORMAL * times)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breacher_is_replaced_while_its_service_answers() -> Result<()> {
    scenario(&Installation::of("evict", CONFIG), "replaced").await
}

/// With another installation of the same configuration; the times go into this table.
pub(crate) async fn scenario(installation: &Installation<'_>, table: &str) -> Result<()> {
    let node = Node::shared().await?;
    let agent = node.install(installation).await?;
    let space = node.space().await?;
    let web = load::deployment("web", 3, &["serve", "--send", &stream(1), "--drain", "30"]);
    // It serves on until nobody asks it any more, as whoever wants a service without a gap has it: here, where nodes take ten
    // times as long to hear of it, for half a minute.
    let patient = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 60}}}});
    space.create::<Deployment>(merge(web, patient)).await?;
    space.budget("web", "web", 2).await?;
    let service: Service = space.create(load::service("web")).await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
    let replicas = node.loads(&space, "web", 3).await?;
    space
        .create::<Pod>(load::pod("client", &["serve", "--poll", &format!("{address}:8080"), "--every", "300"]))
        .await?;
    let client = node.loads(&space, "client", 1).await?.remove(0);
    let breacher = &replicas[0];
    learnt(&node, &breacher.pod).await?;
    let polled_before = client.polled()?;

    let clock = Clock::of(&node)?;
    let mut stages = Stages::since(clock.on_host(breacher.send(&stream(TIMES))?)?);
    let pods: Vec<&Pod> = replicas.iter().map(|replica| &replica.pod).collect();
    let replacement = stages::replacement(&space, "web", &pods).await?;
    let name = breacher.pod.name_any();
    for (stage, message) in [("breach", "\"breach\""), ("contained", "\"contained")] {
        let line = agent.says(&[message, &name]).await?;
        stages.reached(stage, clock.on_host(stages::logged_at(&line)?)?);
    }
    stages.reached("eviction accepted", stages::eviction_of(&node.plane, &breacher.pod).await?);
    stages.reached("replacement Running", replacement.running);
    stages.reached("replacement Ready", replacement.ready);

    let after = node.loads(&space, "web", 3).await?;
    ensure!(after.iter().all(|it| it.pod.uid() != breacher.pod.uid()), "the breacher is still one of the three");
    ensure!(agent.evictions("done").await? == 1, "{}", agent.log().await?);
    let images = [&breacher.pod, &replacement.pod].map(|pod| stages::image_of(pod, "main"));
    let [old, new] = images;
    ensure!(old? == new?, "the replacement runs another image");
    clean(&node, &node.load(replacement.pod)?).await?;
    // The last moments of the one that goes are the ones in which it may fail those who still ask it.
    eventually("the breacher is gone", SOON, async || {
        let left = space.api::<Pod>().get_opt(&name).await?;
        ensure!(left.is_none_or(|pod| pod.uid() != breacher.pod.uid()), "it is not");
        Ok(())
    })
    .await?;
    let polled_then = client.polled()?;
    eventually("the service answers without it", SOON, async || {
        let polled = client.polled()?;
        ensure!(polled.answered > polled_then.answered + 10, "{polled_then:?} became {polled:?}");
        Ok(())
    })
    .await?;
    let polled = client.polled()?;
    ensure!(polled.failed == 0, "{polled:?}");
    eprintln!("{polled_before:?} became {polled:?}");
    stages.lasted(
        "the client's longest wait for an answer, since it began to ask",
        Duration::from_millis(polled.longest_millis),
    );
    stages.tell(table)?;
    node.leave(space).await
}

/// Waits until the agent has watched the pod for longer than its policy says (a sample each second), and so knows what is
/// normal.
async fn learnt(node: &Node, pod: &Pod) -> Result<()> {
    node.agent().named(pod, "main").await?;
    let samples = async || node.agent().series("egress_guard_sample_seconds_count").await;
    let before = samples().await?;
    eventually("the agent knows what is normal", SOON, async || {
        let now = samples().await?;
        ensure!(now >= before + 40, "{} samples of 40", now - before);
        Ok(())
    })
    .await
}

/// Fails unless the counters of a fresh pod say what it itself has sent, to the byte, and it is not held for the one before it.
async fn clean(node: &Node, fresh: &Load<'_>) -> Result<()> {
    node.agent().named(&fresh.pod, "main").await?;
    eventually("the fresh pod sends", SOON, async || {
        let sent = fresh.sent()?;
        ensure!(sent.count > 20, "{sent:?}");
        Ok(())
    })
    .await?;
    fresh.stop()?;
    exact(node.agent(), &fresh.pod, "main", fresh.sent()?).await?;
    nobody_is_held(node.agent()).await
}
