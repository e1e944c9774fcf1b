//! The agent is replaced in mid traffic: an upgrade from an older layout, and then by itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use guard_e2e::eventually;
use guard_node::{
    Agent, Installation, Load, Node, SOON, WORLD,
    agent::{self, OLDER, external},
    load,
};
use guard_tests::net::Wire;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

const CONFIG: &str = "mode: observe\n";

/// Payload bytes per second: two hundred datagrams.
const RATE: u64 = 100_000;

fn stream() -> String {
    format!("udp:{WORLD}:9100,500,{RATE}")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_rolled_out_in_mid_traffic_and_no_byte_is_lost_or_counted_twice() -> Result<()> {
    let node = Node::shared().await?;
    let older = Installation { image: OLDER, ..Installation::of("observe", CONFIG) };
    let agent = node.install(&older).await?;
    let space = node.space().await?;
    space.create::<Pod>(load::pod("steady", &["serve"])).await?;
    let steady = node.loads(&space, "steady", 1).await?.remove(0);
    agent.named(&steady.pod, "main").await?;
    let pins = || node.run("ls /sys/fs/bpf/egress-guard");
    let layouts = pins()?;
    ensure!(layouts.split_whitespace().any(|name| name == "v1"), "the older agent has pinned {layouts}");
    steady.send(&stream())?;
    tokio::time::sleep(Duration::from_secs(10)).await;

    // The upgrade. What the older one had counted is not the new one's: it begins anew, says so, counts nothing twice, and
    // all that is sent from then on.
    let old = agent.pod().await?;
    let before = steady.sent()?.datagrams().bytes;
    ensure!(before > RATE, "{before} bytes prove nothing");
    node.apply(&Installation::of("observe", CONFIG).render()?)?;
    another(agent, &old).await?;
    let ready = steady.sent()?.datagrams().bytes;
    agent.says(&["all totals start from nothing"]).await?;
    agent.named(&steady.pod, "main").await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let layouts = pins()?;
    ensure!(!layouts.split_whitespace().any(|name| name == "v1"), "pins of the older layout are left: {layouts}");
    let begun = at_rest(agent, &steady).await?;
    let [most, least] = [before, ready].map(|earlier| begun.sent.bytes - earlier);
    ensure!(least > 0, "nothing was sent to the new agent");
    ensure!(
        (least..=most).contains(&begun.counted.bytes),
        "{begun:?}: {most} bytes were sent since the upgrade began, {least} since the new agent was Ready"
    );

    // By itself, twice, in mid traffic.
    for _ in 0..2 {
        steady.send(&stream())?;
        let old = agent.pod().await?;
        node.kubectl(&["rollout", "restart", "-n", agent::NAME, &format!("daemonset/{}", agent::NAME)])?;
        another(agent, &old).await?;
        agent.says(&["took over the meters of an earlier agent"]).await?;
    }
    let ended = at_rest(agent, &steady).await?;
    let (counted, sent) = (ended.counted.bytes - begun.counted.bytes, ended.sent.bytes - begun.sent.bytes);
    let packets = (ended.counted.packets - begun.counted.packets, ended.sent.packets - begun.sent.packets);
    ensure!(counted == sent && packets.0 == packets.1, "{counted} bytes counted of {sent} sent, {packets:?} packets");
    ensure!(packets.1 > 1000, "{packets:?} datagrams prove nothing");
    node.leave(space).await
}

/// What a pod sent, and what was counted of it.
#[derive(Clone, Copy, Debug)]
struct Both {
    counted: Wire,
    sent: Wire,
}

/// Stops a pod and waits until the agent has read all that was counted.
async fn at_rest(agent: Agent<'_>, load: &Load<'_>) -> Result<Both> {
    load.stop()?;
    let sent = load.sent()?.datagrams();
    let counted = external(&agent.metrics().await?, &load.pod, "main");
    let again = external(&agent.metrics().await?, &load.pod, "main");
    ensure!(counted == again, "it is not at rest: {counted:?}, then {again:?}");
    Ok(Both { counted, sent })
}

/// Waits until the agent is another pod than this one, and Ready.
pub(crate) async fn another(agent: Agent<'_>, old: &Pod) -> Result<Pod> {
    eventually("another pod of the agent is there", SOON, async || {
        let pod = agent.pod().await?;
        ensure!(pod.uid() != old.uid(), "it is {} still", pod.name_any());
        Ok(())
    })
    .await?;
    agent.ready().await.context("the new agent")
}
