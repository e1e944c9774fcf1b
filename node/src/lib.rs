//! A whole node in a guest, as the agent's users run one: a kernel of Container-Optimized OS' series, systemd, cgroup v2
//! only, a read-only root, `/var` without programs, containerd, runc, a kubelet and a kube-proxy that have joined a control
//! plane on the host's loopback. The agent runs there from the project's own image, by the project's own manifests.
//!
//! `cargo xtask node` makes all that it takes and runs the scenarios in `tests/`. They share one node, one after the other:
//! it takes a minute and a half to come up, for everything in it is emulated in software.

pub mod agent;
pub mod clock;
mod image;
mod join;
pub mod load;
pub mod node;
pub mod stages;
pub mod wire;

use std::time::Duration;

pub use agent::{Agent, Installation};
pub use clock::Clock;
pub use load::Load;
pub use node::{Node, Shared};
pub use wire::Wire;

/// How long what takes a second elsewhere may take in the guest.
pub const SOON: Duration = Duration::from_mins(3);

/// An address outside the cluster that takes what comes: UDP to 9100, TCP to 9101, HTTP on 80. So does all of its /24.
pub const WORLD: &str = "198.51.100.2";
