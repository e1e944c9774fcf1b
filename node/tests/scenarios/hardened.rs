//! The agent without `privileged`: three capabilities and the runtime's filter of system calls.

use anyhow::Result;
use guard_node::Installation;

use crate::{kill_switch, replaced};

fn hardened(config: &str) -> Installation<'_> {
    Installation { components: &["hardened"], ..Installation::of("evict", config) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breacher_is_replaced_while_its_service_answers() -> Result<()> {
    replaced::scenario(&hardened(replaced::CONFIG), "hardened-replaced").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleets_kill_switch_lets_go_of_a_pod_that_is_about_to_be_evicted() -> Result<()> {
    kill_switch::scenario(&hardened(kill_switch::CONFIG), "hardened-kill-switch").await
}
