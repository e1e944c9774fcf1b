//! The node itself, and the agent on it.

use anyhow::{Result, ensure};
use guard_e2e::eventually;
use guard_node::{Installation, Node, SOON, WORLD, Wire, agent::counted, load};
use k8s_openapi::api::core::v1::Pod;

/// Fails unless the node is like one of Container-Optimized OS.
const HARDENED: &str = r#"
is() { findmnt -no OPTIONS "$1" | tr , '\n' | grep -qx "$2" || { echo "$1 is not mounted $2"; exit 1; }; }
is / ro
is /var noexec
[ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] && [ -z "$(findmnt -nt cgroup)" ] || { echo "not cgroup v2 only"; exit 1; }
[ "$(cat /proc/1/comm)" = systemd ] || { echo "not systemd"; exit 1; }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_traffic_is_counted_under_its_names_to_the_byte() -> Result<()> {
    let node = Node::shared().await?;
    eprintln!("the node came up in {:?}", node.timing());
    node.run(HARDENED)?;
    let agent = node.install(&Installation::of("observe", "mode: observe\n")).await?;
    let space = node.space().await?;
    space.create::<Pod>(load::pod("bare", &["serve"])).await?;
    let bare = node.loads(&space, "bare", 1).await?.remove(0);
    agent.named(&bare.pod, "main").await?;
    let wire = Wire::of(&node, bare.address())?;

    let read = async || {
        let metrics = agent.metrics().await?;
        let [tx, rx] = ["egress", "ingress"].map(|direction| counted(&metrics, &bare.pod, "main", direction));
        anyhow::Ok((tx, rx))
    };
    // Asking the pod is traffic of it: nobody asks between a pair of readings.
    let (wire_before, metered_before) = (wire.read()?, read().await?);
    bare.send(&format!("udp:{WORLD}:9100,972,50000"))?;
    bare.send(&format!("tcp:{WORLD}:9101,5000,50000"))?;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    bare.stop()?;
    let sent = bare.sent()?;
    eventually("the meters say what the wire says", SOON, async || {
        let (tx, rx) = read().await?;
        let moved = wire.since(wire_before)?;
        let metered = (tx.bytes - metered_before.0.bytes, rx.bytes - metered_before.1.bytes);
        ensure!(metered == (moved.tx.bytes, moved.rx.bytes), "meters {metered:?}, wire {moved:?}");
        ensure!(moved.tx.bytes > sent.bytes && sent.bytes > 100_000, "{sent:?} and {moved:?}");
        Ok(())
    })
    .await?;
    eventually("none of it is taken for a bypass", SOON, async || {
        let metrics = agent.metrics().await?;
        let of = format!("{{container=\"\",namespace=\"{}\",pod=\"bare\"}}", space.name);
        let [watched, bytes] =
            ["watched", "bytes_total"].map(|it| metrics.0.get(&format!("egress_guard_bypass_{it}{of}")));
        ensure!(watched == Some(&1.0) && bytes == Some(&0.0), "watched: {watched:?}, bytes: {bytes:?}");
        Ok(())
    })
    .await?;
    node.leave(space).await
}
