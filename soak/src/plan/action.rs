//! What is done to a node.

/// What a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// So many replicas that wait to be told what to send.
    Deployment(u32),
    /// A pod without a controller.
    Bare,
    /// A pod that sends at once and ends by itself, after so many seconds.
    Job(u32),
    /// A pod in the node's own network.
    HostNetwork,
    /// A pod whose process makes a cgroup within its container's, and sends from there.
    Nested,
}

impl Kind {
    /// How many pods it has.
    #[must_use]
    pub const fn pods(self) -> u32 {
        match self {
            Self::Deployment(replicas) => replicas,
            Self::Bare | Self::Job(_) | Self::HostNetwork | Self::Nested => 1,
        }
    }

    /// The word of the report.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Deployment(_) => "deployment",
            Self::Bare => "bare pod",
            Self::Job(_) => "job",
            Self::HostNetwork => "hostNetwork pod",
            Self::Nested => "pod with nested cgroups",
        }
    }
}

/// What is wrong with the API server, for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is killed, and started again.
    Away,
    /// Requests wait.
    Frozen,
    /// Evictions reach it late.
    Slow,
    /// Evictions are refused with this status.
    Refusing(u16),
    /// Evictions reach it, and their answers are lost.
    LosesAnswers,
    /// All watches end.
    EndsWatches,
}

impl Fault {
    /// Whether it is one of evictions only.
    pub(super) const fn is_of_evictions(self) -> bool {
        matches!(self, Self::Slow | Self::Refusing(_) | Self::LosesAnswers)
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a workload.
    Make {
        /// Its name; none is used twice.
        name: String,
        /// What it is.
        kind: Kind,
    },
    /// Remove a workload.
    Remove {
        /// Its name.
        name: String,
    },
    /// Have a pod send a hundred times as much.
    Breach {
        /// The workload.
        name: String,
        /// Which of its pods, by name; modulo how many there are.
        replica: u32,
    },
    /// Have it send what is normal again.
    EndBreach {
        /// The workload.
        name: String,
    },
    /// Kill the agent (SIGKILL).
    KillAgent,
    /// `kubectl rollout restart` of the agent.
    Rollout,
    /// Kill a container (SIGKILL).
    KillContainer {
        /// The workload.
        name: String,
        /// Which of its pods, by name; modulo how many there are.
        replica: u32,
    },
    /// From now on the API server is not what it should be.
    Fault(Fault),
    /// It is again.
    EndFault,
    /// Engage or release the kill switch of the fleet.
    KillSwitch(bool),
    /// Make and remove so many cgroups that look like containers.
    Churn(u32),
    /// Stop all traffic, wait until nothing moves, compare, and go on.
    Checkpoint,
}

impl Action {
    /// The word of the report.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Make { kind, .. } => kind.word(),
            Self::Remove { .. } => "workload removed",
            Self::Breach { .. } => "breach",
            Self::EndBreach { .. } => "breach ended",
            Self::KillAgent => "agent killed",
            Self::Rollout => "agent rolled out",
            Self::KillContainer { .. } => "container killed",
            Self::Fault(Fault::Away) => "API server away",
            Self::Fault(Fault::Frozen) => "API server frozen",
            Self::Fault(Fault::Slow) => "API server slow",
            Self::Fault(Fault::Refusing(_)) => "API server refusing",
            Self::Fault(Fault::LosesAnswers) => "API server's answers lost",
            Self::Fault(Fault::EndsWatches) => "watches ended",
            Self::EndFault => "API fault ended",
            Self::KillSwitch(true) => "kill switch engaged",
            Self::KillSwitch(false) => "kill switch released",
            Self::Churn(_) => "cgroup churn",
            Self::Checkpoint => "checkpoint",
        }
    }
}
