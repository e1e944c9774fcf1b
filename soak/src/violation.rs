//! What did not hold.

use std::{fmt, time::Duration};

use crate::{evictions::Wrong, leaks::Leak, wire::Disagreement};

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The node's total.
    #[error(
        "node = sum + unattributed does not hold of {class} bytes: {node} is not {sum} + {unattributed} + {gone} (of series that \
         are gone)"
    )]
    Sum {
        /// Of which class.
        class: &'static str,
        /// All pods'.
        node: u64,
        /// All containers'.
        sum: u64,
        /// Said to be unattributed.
        unattributed: u64,
        /// Of series that are not shown any more.
        gone: u64,
    },
    /// A pod and its wire.
    #[error("the pod {pod} and its wire disagree: {how}")]
    Pod {
        /// Which.
        pod: String,
        /// How.
        how: Disagreement,
    },
    /// The node and the wire to the world.
    #[error("the node and its wire to the world disagree: {0}")]
    World(Disagreement),
    /// A counter went down.
    #[error("{what} of {of} went from {before} to {now}")]
    Down {
        /// Of whom.
        of: String,
        /// Which counter.
        what: String,
        /// Before.
        before: u64,
        /// Now.
        now: u64,
    },
    /// The series of a pod that runs is not there.
    #[error("there is no series of {pod} any more, which runs and had sent {bytes} bytes")]
    Lost {
        /// Which.
        pod: String,
        /// Bytes.
        bytes: u64,
    },
    /// Unattributed, although an agent was there.
    #[error("{bytes} more {class} bytes are unattributed than at the checkpoint before, and the same agent was there")]
    Unattributed {
        /// Of which class.
        class: &'static str,
        /// How many more.
        bytes: u64,
    },
    /// Taken for what passed by the meters.
    #[error("{bytes} bytes of {pod} are said to have passed by its meters, and nobody sends any")]
    Bypassed {
        /// Whose.
        pod: String,
        /// How many.
        bytes: u64,
    },
    /// An agent ended by itself.
    #[error("the agent {0} has ended, and nobody ended it: its own log, and the kubelet's, may say why")]
    Died(u32),
    /// An eviction.
    #[error(transparent)]
    Eviction(Wrong),
    /// A leak.
    #[error(transparent)]
    Leak(Leak),
}

/// What was found, when, and how to see it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// From the beginning of the soak.
    pub at: Duration,
    /// What.
    pub broken: Broken,
    /// The soak.
    pub soak: Soak,
}

/// Which soak it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Soak {
    /// The seed of its plan.
    pub seed: u64,
    /// Its length.
    pub minutes: u32,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, broken, soak: Soak { seed, minutes } } = self;
        write!(
            f,
            "VIOLATION after {:.0} s, seed {seed}: {broken} (again: cargo xtask soak --minutes {minutes} --seed {seed})",
            at.as_secs_f64()
        )
    }
}
