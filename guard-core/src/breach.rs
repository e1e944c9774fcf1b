//! A limit that a container crossed.

use std::fmt;

/// A container on this node: its cgroup's id. It is never another's as long as the node is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(pub u64);

/// Which limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Limit {
    /// `egress.rate` and `egress.burst`.
    Rate = 0,
    /// `egress.quota`.
    Quota = 1,
    /// `egress.baseline`.
    Baseline = 2,
    /// `ingress.rate` and `ingress.burst`: never acted on.
    Ingress = 3,
    /// `egress.bypass`: of what a pod's interface sent and no meter saw. No containment can hold it.
    Bypass = 4,
}

impl Limit {
    /// All limits, in the order of their index.
    pub const ALL: [Self; 5] = [Self::Rate, Self::Quota, Self::Baseline, Self::Ingress, Self::Bypass];

    /// The name in metrics, logs and alerts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Quota => "quota",
            Self::Baseline => "baseline",
            Self::Ingress => "ingress",
            Self::Bypass => "bypass",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A limit crossed by a container.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breach {
    /// Who.
    pub container: ContainerId,
    /// Which limit.
    pub limit: Limit,
    /// `CLOCK_BOOTTIME` nanoseconds since when.
    pub since: u64,
    /// What was measured: bytes per second; for a quota bytes.
    pub figure: f64,
    /// What would have been within the limit, in the same unit.
    pub allowed: f64,
}
