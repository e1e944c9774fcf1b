//! An agent with limits: its configuration, a sender that crosses them, and what it says.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{eventually, net::EXTERNAL_V4, pods::Container, process::Traffic, world::World};

/// 100 KB/s after a burst of 100 KB, sampled quickly.
pub fn config(mode: &str, on_breach: &str) -> String {
    format!(
        "mode: {mode}\nsample: {{interval: 100ms}}\npolicies:\n  - name: small\n    match: {{}}\n    \
         egress: {{rate: 100KB/s, burst: 100KB}}\n    ingress: {{rate: 100KB/s, burst: 100KB}}\n    \
         onBreach: {{{on_breach}}}\n"
    )
}

/// Blocks for long.
pub const BLOCK: &str = "contain: {block: true, for: 10m}";

/// A sender of so many bytes per second that goes on until it is dropped.
pub fn sender(world: &World, container: &Container, rate: u64) -> Result<Traffic> {
    let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 972 --rate {rate} --seconds 120 --stubborn");
    Traffic::start(&world.wires.node, Some(container), &send)
}

/// The value of a container's series, by its metric's name.
pub fn metric(world: &World, name: &str, container: &Container) -> Result<u64> {
    world.agent().gauge(name, container)
}

/// Waits until a container's series has a value.
pub fn wait_for(world: &World, name: &str, container: &Container, value: u64) -> Result<()> {
    world.agent().wait_for_gauge(name, container, value)
}

/// Metric of a container.
pub const BREACHED: &str = "egress_guard_container_breached";
/// Metric of a container.
pub const CONTAINED: &str = "egress_guard_contained";
/// Metric of a container.
pub const DROPPED: &str = "egress_guard_dropped_bytes_total";

/// In how many lines of a log this is said.
pub fn said(log: &Path, text: &str) -> Result<usize> {
    let log = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    Ok(log.lines().filter(|line| line.contains(text)).count())
}

/// Waits until less than `most` bytes per second leave, or more than `least`.
pub fn flows(world: &World, least: u64, most: u64, within: Duration) -> Result<Duration> {
    let start = Instant::now();
    eventually(&format!("between {least} and {most} bytes/s leave"), within, || {
        let before = world.wires.node.interface()?.tx.bytes;
        let from = Instant::now();
        thread::sleep(Duration::from_millis(20));
        let rate = (world.wires.node.interface()?.tx.bytes - before) as f64 / from.elapsed().as_secs_f64();
        ensure!((least as f64..=most as f64).contains(&rate), "{rate} bytes/s leave");
        Ok(())
    })?;
    Ok(start.elapsed())
}
