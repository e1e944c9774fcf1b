//! The agent without `privileged`: three capabilities and the runtime's filter of system calls.

use anyhow::{Result, ensure};
use guard_node::{Installation, Node};

use crate::{kill_switch, replaced};

fn hardened(config: &str) -> Installation<'_> {
    Installation { components: &["hardened"], ..Installation::of("evict", config) }
}

/// `CAP_NET_ADMIN`, `CAP_PERFMON` and `CAP_BPF`, as proc(5) has them.
const CAPABILITIES: u64 = 1 << 12 | 1 << 38 | 1 << 39;

#[tokio::test(flavor = "multi_thread")]
async fn a_breacher_is_replaced_while_its_service_answers() -> Result<()> {
    replaced::scenario(&hardened(replaced::CONFIG), "hardened-replaced").await?;
    // Its agent is there still: is it held as the component says?
    let node = Node::shared().await?;
    let status = node.run("cat /proc/$(pgrep -o -x guard-agent)/status")?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        ensure!(u64::from_str_radix(field(set), 16)? == CAPABILITIES, "{status}");
    }
    ensure!((field("Seccomp:"), field("NoNewPrivs:")) == ("2", "1"), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleets_kill_switch_lets_go_of_a_pod_that_is_about_to_be_evicted() -> Result<()> {
    kill_switch::scenario(&hardened(kill_switch::CONFIG), "hardened-kill-switch").await
}
