//! Looking at the guest.

use anyhow::{Context as _, Result};
use guard_node::Node;
use guard_soak::reading::{Reading, SCRIPT};

use crate::pods::{PATIENCE, Pods};

/// How often a rest is waited for; each time takes some seconds in the guest.
const TRIES: u32 = 45;

/// Looks at the agent as it is.
pub(crate) fn glance(node: &Node) -> Result<Reading> {
    look(node, "PODS=''\nREST=no\nTRIES=2\n")
}

/// Waits until nothing moves, and looks at everything.
pub(crate) fn rest(node: &Node, pods: &Pods) -> Result<Reading> {
    look(node, &format!("PODS='{}'\nREST=yes\nTRIES={TRIES}\n", pods.wires()))
}

fn look(node: &Node, variables: &str) -> Result<Reading> {
    let said = node.shell(&format!("{variables}{SCRIPT}"), 2 * PATIENCE)?;
    Reading::parse(&said.text).with_context(|| format!("the look ended with {}:\n{}", said.status, said.text))
}
