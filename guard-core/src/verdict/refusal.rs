//! Why what a policy asks for is not done.

use std::{borrow::Cow, fmt};

use crate::{budget::Refused, safety::Unsafe};

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The kill switch is engaged.
    KillSwitch,
    /// It must not be evicted.
    Protected(Protection),
    /// A containment cannot hold it.
    Bypass,
    /// Evictions do not cure its workload.
    NotCured,
    /// There have been enough evictions, or there is a storm.
    Budget(Refused),
}

/// Why a container must not be evicted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Protection {
    /// Nothing is evicted now, for this reason.
    #[error("{0}")]
    Nothing(Cow<'static, str>),
    /// It is in no pod.
    #[error("it is not in a pod, so nobody would start it afresh")]
    NoPod,
    /// The API server has not told of its pod.
    #[error("the API server has not told of its pod yet")]
    UnknownPod,
    /// Its pod must not be evicted.
    #[error(transparent)]
    Pod(#[from] Unsafe),
}

impl Refusal {
    /// The name in metrics and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::KillSwitch => "kill_switch",
            Self::Protected(Protection::Nothing(_)) => "protected",
            Self::Protected(Protection::NoPod) => "no_pod",
            Self::Protected(Protection::UnknownPod) => "unknown_pod",
            Self::Protected(Protection::Pod(why)) => why.name(),
            Self::Bypass => "bypass",
            Self::NotCured => "not_cured",
            Self::Budget(Refused::Storm) => "storm",
            Self::Budget(Refused::Node) => "node_budget",
            Self::Budget(Refused::Workload) => "workload_budget",
        }
    }
}

/// In words, as they follow "and it is not done:".
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillSwitch => f.write_str("the kill switch is engaged"),
            Self::Protected(why) => why.fmt(f),
            Self::Bypass => f.write_str(
                "what passes by the meters no containment holds: an eviction ends it, and a pod without CAP_NET_RAW cannot \
                 do it",
            ),
            Self::NotCured => f.write_str(
                "its workload was evicted more than once and breaches again, so a fresh start does not cure it",
            ),
            Self::Budget(Refused::Storm) => f.write_str("too many breach at once (storm)"),
            Self::Budget(Refused::Node) => f.write_str("the node's budget is spent (budgets.node)"),
            Self::Budget(Refused::Workload) => f.write_str("the workload's budget is spent (budgets.workload)"),
        }
    }
}
