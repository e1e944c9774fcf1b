//! What else a node goes through: containers that come and go by the hundred, a full disk, a bpffs that is unmounted, a clock
//! that is stepped.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guard_e2e::eventually;
use guard_node::{
    Agent, Installation, Load, Node, SOON, WORLD, Wire,
    agent::{self, external},
    load,
    stages::logged_at,
};
use guard_tests::net::Wire as Counted;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::{kill_switch::rate, rollout::another};

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
    let (before, sent_before) = (counted(agent, bare).await?, bare.sent()?.datagrams());
    bare.send(&stream(50_000))?;
    tokio::time::sleep(Duration::from_secs(5)).await;
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

/// Cgroups of pods that the kubelet does not know, as a runtime makes them: in each a process that sends, and ends.
const CHURN: &str = "
cd /sys/fs/cgroup/kubepods.slice/kubepods-besteffort.slice
for index in $(seq 200); do
    pod=kubepods-besteffort-pod$(printf '%08x' $index)_5eed_5eed_5eed_000000000000.slice
    scope=$pod/cri-containerd-$(printf '%064x' $index).scope
    mkdir -p $scope
    sh -c 'echo $$ >'$scope'/cgroup.procs && exec /run/node/load send udp:WORLD:9100,100,100000,0.02' >/dev/null 2>&1
    rmdir $scope && rmdir $pod
done 2>/dev/null
ls -d kubepods-besteffort-pod*_5eed_5eed_5eed_000000000000.slice 2>/dev/null | wc -l
";

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
    let (wire_before, before) = (world.read()?, figures().await?);
    bare.send(&stream(20_000))?;
    let began = Instant::now();
    let left = node.shell(&CHURN.replace("WORLD", WORLD), Duration::from_mins(5))?;
    let took = began.elapsed();
    bare.stop()?;
    ensure!(left.text.trim() == "0", "cgroups are left: {}", left.text);
    eprintln!("200 pods' cgroups came and went in {took:?}");
    eventually("every byte is counted once", SOON, async || {
        let (wire, now) = (world.since(wire_before)?.rx, figures().await?);
        let [all, containers, unattributed] = std::array::from_fn(|index| now[index] - before[index]);
        ensure!(all == wire.bytes, "the node's {all}, the wire's {}", wire.bytes);
        ensure!(all == containers + unattributed, "{all} of the node, {containers} + {unattributed} in parts");
        ensure!(wire.packets > 400, "{wire:?}: they have not sent");
        eprintln!("of {all} bytes {unattributed} are in no container's series");
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
    let failures = async || agent.series("egress_guard_state_failures_total").await;
    let (before, restarts) = (failures().await?, restarts(&agent.pod().await?));
    // A kubelet would evict pods for it. It is the agent that is looked at.
    node.run("systemctl stop kubelet; dd if=/dev/zero of=/var/fill bs=1M 2>/dev/null; dd if=/dev/zero of=/var/fill2 bs=512 2>/dev/null; true")?;
    let full = async {
        counts(agent, &bare).await?;
        // The file is written once a minute.
        eventually("the state file cannot be written", SOON, async || {
            ensure!(failures().await? > before, "nothing failed");
            Ok(())
        })
        .await?;
        bare.send(&stream(ATTACK))?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let held = rate(&node, &bare).await?;
        bare.stop()?;
        ensure!(held < ATTACK / 2, "{held} bytes/s: it is not held");
        anyhow::Ok(())
    }
    .await;
    node.run("rm -f /var/fill /var/fill2; systemctl start kubelet")?;
    full?;
    node.ready().await?;
    eventually("the state file is written again", SOON, async || {
        let now = failures().await?;
        tokio::time::sleep(Duration::from_secs(65)).await;
        ensure!(failures().await? == now, "it still fails");
        Ok(())
    })
    .await?;
    ensure!(restarts == self::restarts(&agent.pod().await?), "the agent was restarted");
    node.leave(space).await
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|one| one.restart_count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bpffs_that_is_unmounted_under_the_agent() -> Result<()> {
    let node = Node::shared().await?;
    let agent = node.install(&Installation::of("observe", OBSERVE)).await?;
    let space = node.space().await?;
    let bare = bare(&node, &space).await?;
    counts(agent, &bare).await?;
    node.run("umount --lazy /sys/fs/bpf")?;
    // What is attached counts on, and who comes now is counted too.
    counts(agent, &bare).await?;
    space.create::<Pod>(load::pod("later", &["serve"])).await?;
    let later = node.loads(&space, "later", 1).await?.remove(0);
    agent.named(&later.pod, "main").await?;
    counts(agent, &later).await?;
    // The next agent makes itself another one.
    let old = agent.pod().await?;
    node.kubectl(&["delete", "pod", "-n", agent::NAME, &old.name_any(), "--wait=false"])?;
    another(agent, &old).await?;
    agent.named(&bare.pod, "main").await?;
    counts(agent, &bare).await?;
    let mounted = node.run("findmnt -n -o FSTYPE /sys/fs/bpf && ls /sys/fs/bpf/egress-guard")?;
    ensure!(mounted.starts_with("bpf"), "{mounted}");
    node.leave(space).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_stepped_by_an_hour_both_ways() -> Result<()> {
    let node = Node::shared().await?;
    let config = "mode: evict
policies:
  - name: default
    match: {}
    egress: {rate: 100KB/s, burst: 64KiB, quota: {bytes: 100MB, per: 1h}, baseline: {factor: 100, floor: 1MB/s, learn: 10m}}
    onBreach:
      contain: {throttle: 20KB/s, for: 2m}
      evict: {after: 1h, minAge: 0s}
";
    let agent = node.install(&Installation::of("evict", config)).await?;
    let space = node.space().await?;
    let bare = bare(&node, &space).await?;
    let step = |seconds: i64| {
        node.run(&format!("date --set=\"@$(($(date +%s) + {seconds}))\" >/dev/null"))
            .with_context(|| format!("step by {seconds} s"))
    };
    let name = bare.pod.name_any();
    for seconds in [3600, -7200, 3600] {
        let began = Instant::now();
        let since = bare.send(&stream(ATTACK))?;
        let line = agent.says_since(since, &["\"contained\"", &name]).await?;
        let contained = logged_at(&line)?;
        step(seconds)?;
        let held = rate(&node, &bare).await?;
        ensure!(held < ATTACK / 2, "{held} bytes/s after a step by {seconds} s: it is not held any more");
        bare.stop()?;
        // Its two minutes are over when they are, whatever the clock says.
        eventually("it is let go", Duration::from_mins(4), async || {
            ensure!(!agent.listed(&bare.pod, "main").await?.standing.contained);
            Ok(())
        })
        .await?;
        let lasted = began.elapsed();
        ensure!((115..200).contains(&lasted.as_secs()), "it was held for {lasted:?} in all, after {contained}");
        counts(agent, &bare).await?;
    }
    ensure!(agent.evictions("done").await? == 0, "{}", agent.log().await?);
    node.leave(space).await
}
