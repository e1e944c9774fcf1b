//! Who makes a container start afresh.

pub mod cluster;
pub mod local;

use clap::ValueEnum;

/// Who carries out evictions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Orchestrator {
    /// Nobody: nothing is evicted
    #[default]
    None,
    /// The agent ends the container's processes; systemd, podman or docker starts it afresh
    Local,
}
