//! What else a node goes through: containers that come and go by the hundred, a full disk, a bpffs that is unmounted, a clock
//! that is stepped.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guard_e2e::eventually;
use guard_node::{
    Agent, Clock, Installation, Load, Node, SOON, WORLD, Wire,
    agent::{self, external},
    load,
    stages::{self, Stages},
};
use guard_tests::net::Wire as Counted;
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::ResourceExt as _;

use crate::{faults::HELD, kill_switch::rate, rollout::another};

const OBSERVE: &str = "mode: observe\n";

const ATTACK: u64 = 200_000;

fn stream(rate: u64) -> String {
    format!("udp:{WORLD}:9100,500,{rate}")
}

/// A bare pod whose traffic is all its own.
async fn bare<'a>(node: &'a Node, space: &guard_e2e::Space) -> Result<Load<'a>> {
    space.create::<Pod>(load::pod("bare", &["serve"])).await?;
    let bare = node.loads(space, "bare", 1).await?.remove(0);
    node.agent().named(&bare.pod, "main").await?;
    Ok(bare)
}

/// Sends for some seconds, and fails unless the agent counts to the byte what was sent meanwhile.
async fn counts(agent: Agent<'_>, bare: &Load<'_>) -> Result<()> {
    counts_while(agent, bare, || Ok(())).await
}

/// As [`counts`], and something happens in the middle.
async fn counts_while(agent: Agent<'_>, bare: &Load<'_>, happens: impl FnOnce() -> Result<()>) -> Result<()> {
    let (before, sent_before) = (counted(agent, bare).await?, bare.sent()?.datagrams());
    bare.send(&stream(50_000))?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    happens()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    bare.stop()?;
    let sent = bare.sent()?.datagrams();
    let moved = (sent.bytes - sent_before.bytes, sent.packets - sent_before.packets);
    ensure!(moved.1 > 50, "{moved:?} is too little to compare");
    eventually("the agent counts what is sent", SOON, async || {
        let now = counted(agent, bare).await?;
        let counted = (now.bytes - before.bytes, now.packets - before.packets);
        ensure!(counted == moved, "(bytes, packets): {counted:?} counted, {moved:?} sent");
        Ok(())
    })
    .await
}

async fn counted(agent: Agent<'_>, bare: &Load<'_>) -> Result<Counted> {
    Ok(external(&agent.metrics().await?, &bare.pod, "main"))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_pods_come_and_go_in_a_minute() -> Result<()> {
    let node = Node::shared().await?;
    let agent = node.install(&Installation::of("observe", OBSERVE)).await?;
    let space = node.space().await?;
    let world = Wire::world(&node)?;
    let bare = bare(&node, &space).await?;
    let figures = async || {
        let metrics = agent.metrics().await?;
        let sum = |prefix: &str| {
            let series = metrics.0.iter().filter(|(name, _)| name.starts_with(prefix) && name.contains("external"));
            series.map(|(_, value)| *value as u64).sum::<u64>()
        };
        let names = ["node", "container", "unattributed"];
        anyhow::Ok(names.map(|name| sum(&format!("egress_guard_{name}_egress_bytes_total{{"))))
    };
    let (wire_before, before, bare_before) = (world.read()?, figures().await?, counted(agent, &bare).await?);
    bare.send(&stream(20_000))?;
    let began = Instant::now();
    let left =
        node.shell(&format!("/run/node/load churn 200 udp:{WORLD}:9100,100,100000,0.02"), Duration::from_mins(5))?;
    let took = began.elapsed();
    bare.stop()?;
    let (sent, left) = left.text.trim().split_once(' ').with_context(|| format!("it says {}", left.text))?;
    ensure!(left == "0", "{left} cgroups are left");
    // The kubelet ends what runs in cgroups that it does not know, now and then.
    ensure!(sent.parse::<u32>()? >= 150, "only {sent} of 200 have sent");
    // After five minutes series of containers that are gone are not shown any more.
    ensure!(took < Duration::from_mins(4), "{took:?}: too slow to compare");
    eprintln!("200 pods' cgroups came and went in {took:?}, and {sent} have sent");
    eventually("every byte is counted once", SOON, async || {
        let (wire, now) = (world.since(wire_before)?.rx, figures().await?);
        let [all, containers, unattributed] = std::array::from_fn(|index| now[index] - before[index]);
        ensure!(all == wire.bytes, "the node's {all}, the wire's {}", wire.bytes);
        ensure!(all == containers + unattributed, "{all} of the node, {containers} + {unattributed} in parts");
        let churned = containers - (counted(agent, &bare).await?.bytes - bare_before.bytes);
        ensure!(
            churned > unattributed,
            "{churned} bytes in series of those that came and went, {unattributed} in none"
        );
        eprintln!("of what they sent {churned} bytes are in their series, {unattributed} in none");
        Ok(())
    })
    .await?;
    counts(agent, &bare).await?;
    node.leave(space).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full() -> Result<()> {
    let node = Node::shared().await?;
    let config = "mode: contain
policies:
  - name: default
    match: {}
    egress: {rate: 100KB/s, burst: 64KiB}
    onBreach: {contain: {throttle: 20KB/s, for: 2m}}
";
    let agent = node.install(&Installation::of("contain", config)).await?;
    let space = node.space().await?;
    let bare = bare(&node, &space).await?;
    let clock = Clock::of(&node)?;
    let failures = async || agent.series("egress_guard_state_failures_total").await;
    let (before, restarts) = (failures().await?, restarts(&agent.pod().await?));
    // A kubelet would evict pods for it. It is the agent that is looked at.
    node.run(
        "systemctl stop kubelet
fallocate -l \"$(df --output=avail -B1 /var | tail -n 1)\" /var/fill
dd if=/dev/zero of=/var/fill2 bs=512 2>/dev/null
[ \"$(df --output=avail -B1 /var | tail -n 1)\" -lt 65536 ]",
    )?;
    let full = async {
        counts(agent, &bare).await?;
        // The file is written once a minute.
        eventually("the state file cannot be written", SOON, async || {
            ensure!(failures().await? > before, "nothing failed");
            Ok(())
        })
        .await?;
        let began = bare.send(&stream(ATTACK))?;
        let (namespace, pod) = (&space.name, bare.pod.name_any());
        let contained = format!("egress_guard_contained{{container=\"main\",namespace=\"{namespace}\",pod=\"{pod}\"}}");
        eventually("it is contained", SOON, async || {
            ensure!(agent.series(&contained).await? == 1);
            Ok(())
        })
        .await?;
        let contained = Timestamp::now();
        let held = rate(&node, &bare).await?;
        bare.stop()?;
        ensure!(held < HELD, "{held} bytes/s: it is not held");
        anyhow::Ok((began, contained, Timestamp::now()))
    }
    .await;
    node.run("rm -f /var/fill /var/fill2; systemctl start kubelet")?;
    let (began, contained, seen) = full?;
    let room = Timestamp::now();
    node.ready().await?;
    let written = stages::logged_at(&agent.says(&["the state file is written again"]).await?)?;
    let mut stages = Stages::since(clock.on_host(began)?);
    // What is logged meanwhile may be lost.
    stages.reached("seen to be contained, with the disk full", contained);
    stages.reached("seen to send no more than it may", seen);
    stages.reached("room again", room);
    stages.reached("state file written again", clock.on_host(written)?);
    stages.tell("disk")?;
    ensure!(restarts == self::restarts(&agent.pod().await?), "the agent was restarted");
    node.leave(space).await
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|one| one.restart_count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bpffs_that_is_unmounted_on_the_node() -> Result<()> {
    let node = Node::shared().await?;
    let agent = node.install(&Installation::of("observe", OBSERVE)).await?;
    let space = node.space().await?;
    let bare = bare(&node, &space).await?;
    counts(agent, &bare).await?;
    node.run("umount --lazy /sys/fs/bpf")?;
    // The agent has a mount of it of its own: what is attached counts on, and who comes now is counted too.
    counts(agent, &bare).await?;
    space.create::<Pod>(load::pod("later", &["serve"])).await?;
    let later = node.loads(&space, "later", 1).await?.remove(0);
    agent.named(&later.pod, "main").await?;
    counts(agent, &later).await?;
    // With its end all pins are gone. The next agent mounts another one, and begins anew.
    let before = counted(agent, &bare).await?;
    let old = agent.pod().await?;
    node.kubectl(&["delete", "pod", "-n", agent::NAME, &old.name_any(), "--wait=false"])?;
    another(agent, &old).await?;
    agent.named(&bare.pod, "main").await?;
    let anew = counted(agent, &bare).await?;
    ensure!(anew.bytes < before.bytes, "{anew:?} after {before:?}: where does it have that from?");
    counts(agent, &bare).await?;
    let mounted = node.run("findmnt -n -o FSTYPE /sys/fs/bpf && ls /sys/fs/bpf/egress-guard")?;
    ensure!(mounted.starts_with("bpf"), "{mounted}");
    node.leave(space).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_stepped_by_an_hour_both_ways() -> Result<()> {
    let node = Node::shared().await?;
    // An hour from now it would be evicted, and for a minute it is held.
    let config = "mode: evict
policies:
  - name: default
    match: {}
    egress: {rate: 100KB/s, burst: 64KiB, quota: {bytes: 100MB, per: 1h}, baseline: {factor: 100, floor: 1MB/s, learn: 10m}}
    onBreach:
      contain: {throttle: 20KB/s, for: 1m}
      evict: {after: 50m, minAge: 0s, lastReplica: true, minReady: 0}
";
    let agent = node.install(&Installation::of("evict", config)).await?;
    let space = node.space().await?;
    let mut deployment = load::deployment("web", 1, &["serve"]);
    // Whoever probes a pod moves its counters.
    if let Some(container) = deployment["spec"]["template"]["spec"]["containers"][0].as_object_mut() {
        container.remove("readinessProbe");
    }
    space.create::<Deployment>(deployment).await?;
    let web = node.loads(&space, "web", 1).await?.remove(0);
    agent.named(&web.pod, "main").await?;
    let step = |seconds: i64| {
        let script = format!("date --set=\"@$(($(date +%s) + {seconds}))\" >/dev/null");
        node.run(&script).map(drop).with_context(|| format!("step by {seconds} s"))
    };
    let held = async || anyhow::Ok(agent.listed(&web.pod, "main").await?.standing.contained);
    for (seconds, table) in [(3600, "clock-forward"), (-3600, "clock-back")] {
        // By the host's clock, which nobody steps.
        let began = Timestamp::now();
        let mut stages = Stages::since(began);
        web.send(&stream(ATTACK))?;
        eventually("it is held", SOON, async || {
            ensure!(held().await?);
            Ok(())
        })
        .await?;
        stages.reached("seen to be held", Timestamp::now());
        step(seconds)?;
        stages.reached("clock stepped", Timestamp::now());
        let rate = rate(&node, &web).await?;
        ensure!(rate < HELD, "{rate} bytes/s after a step by {seconds} s: it is not held any more");
        web.stop()?;
        // Its minute is over when it is, whatever the clock says.
        eventually("it is let go", SOON, async || {
            ensure!(!held().await?);
            Ok(())
        })
        .await?;
        let released = Timestamp::now();
        stages.reached("released, at the end of `for: 1m`", released);
        let lasted = released.duration_since(began);
        ensure!((55..150).contains(&lasted.as_secs()), "it was held for {lasted:?}");
        stages.tell(table)?;
        counts_while(agent, &web, || step(-seconds)).await?;
    }
    let asked =
        node.plane.requests()?.into_iter().filter(|it| it.resource == "pods/eviction" && it.namespace == space.name);
    let asked: Vec<_> = asked.collect();
    ensure!(asked.is_empty(), "somebody was to be evicted: {asked:?}");
    node.leave(space).await
}
