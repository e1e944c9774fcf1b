//! Evictions through the API server: what is asked, and how an attempt ends.

use std::{fmt, num::NonZeroU64, sync::Arc, time::Duration};

use guard_core::{
    inventory::{Pod, Workload},
    policy::Budget,
    safety::{Leave, Protect, Unsafe},
};

pub use self::{
    replacement::{BUCKETS, Changed, LIMIT, Replacement},
    responder::Responder,
};

mod answer;
mod backoff;
mod books;
mod claims;
mod discovery;
mod disruption;
#[cfg(test)]
mod fake;
mod judged;
mod replacement;
mod responder;
mod slots;
mod wire;
mod workload;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Order {
    /// As the node knows it. Its UID is what counts: all else is asked of the API server afresh.
    pub pod: Arc<Pod>,
    /// Between SIGTERM and SIGKILL, in whole seconds, rounded up, and one at least: none at all would take the pod out of the
    /// API before kubelet has ended it. `None`: the pod's own.
    pub grace: Option<Duration>,
    /// What its policy gives leave for.
    pub leave: Leave,
    /// Whom nothing gives leave for.
    pub protect: Protect,
    /// Everything is done but the eviction itself: the API server is asked whether it would.
    pub dry_run: bool,
    /// How many evictions there may be beyond this node.
    pub limits: Limits,
}

/// How many evictions there may be, of all nodes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In the cluster.
    pub cluster: Budget,
    /// Of one workload's pods at once: each until its replacement is Ready, or for ten minutes.
    pub at_once: NonZeroU64,
    /// And never more than so many percent of its ready replicas at once; but one may always.
    pub percent: u8,
}

/// An attempt, and when there may be another.
#[derive(Debug)]
pub struct Attempt {
    /// The pod: `namespace/name`.
    pub pod: String,
    /// How it ended.
    pub outcome: Outcome,
    /// When it may be tried again, if what led to it still holds. `None`: there is nothing left to try.
    pub retry_after: Option<Duration>,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// The API server has marked the pod for deletion.
    Done(Box<Evicted>),
    /// The API server would have.
    DryRun,
    /// It is not there any more; another pod may have its name.
    Gone,
    /// A disruption budget does not allow it now.
    Blocked {
        /// The `PodDisruptionBudget`'s name, if it can be known.
        budget: Option<String>,
        /// The API server's words.
        message: String,
        /// The budget's status is not up to date yet: it may be allowed in a moment.
        settling: bool,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The API server has too much to do, or is not well.
    Overloaded {
        /// The HTTP status.
        status: u16,
        /// Its words.
        message: String,
        /// `Retry-After`.
        retry_after: Option<Duration>,
        /// The eviction was under way: it may have happened.
        maybe: bool,
    },
    /// The agent has no right to, or an admission plugin or webhook is against it.
    Forbidden {
        /// The right that it lacks. `None`: it is not a matter of rights.
        missing: Option<Missing>,
        /// The API server's words.
        message: String,
    },
    /// More than one disruption budget is for the pod, which the API server refuses to handle.
    Misconfigured {
        /// Their names; empty if they cannot be listed.
        budgets: Vec<String>,
    },
    /// It must not be evicted, by what the API server says of it now.
    Protected(Unsafe),
    /// A budget of the guard is spent.
    Budget(Spent),
    /// Evictions do not help: it breaches again and again.
    NotCured {
        /// Whose pods were evicted.
        workload: String,
        /// How many within the last hour.
        evictions: usize,
        /// Until one of them is longer ago.
        retry_after: Duration,
    },
    /// The kill switch is engaged.
    KillSwitch,
    /// It could not be done.
    Failed(EvictError),
}

/// A right that the agent lacks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missing {
    /// Such as `create`.
    pub verb: String,
    /// Such as `pods/eviction`.
    pub resource: String,
}

/// A budget of the guard that is spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spent {
    /// The cluster's.
    Cluster {
        /// Evictions in the window.
        held: u64,
        /// How many there may be.
        most: u64,
        /// Until the first of them leaves the window.
        retry_after: Duration,
    },
    /// The workload's.
    Workload {
        /// Whose.
        workload: String,
        /// Evictions whose replacement is not Ready yet.
        held: u64,
        /// How many there may be.
        most: u64,
    },
    /// Too many agents want one at this very moment.
    Contended {
        /// What: `the cluster's budget`, or a workload.
        what: String,
    },
}

/// What was evicted: all that is needed to wait for its replacement.
#[derive(Clone, Debug)]
pub struct Evicted {
    /// As the API server told of it right before.
    pub pod: Pod,
    /// What makes its replacement, and how the replacement is known. `None`: nobody makes one.
    pub(crate) heir: Option<replacement::Heir>,
    /// When the API server's clock was asked last before the eviction, in seconds since 1970.
    pub(crate) since: i64,
    /// When it was answered.
    pub(crate) at: tokio::time::Instant,
}

/// Why an eviction could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvictError {
    /// Asked before the eviction; nothing was done.
    #[error("cannot {what}: {error}; is the API server reachable from this node?")]
    Unanswered {
        /// What was asked for.
        what: &'static str,
        /// What happened.
        error: String,
    },
    /// Said no before the eviction, or to it; nothing was done.
    #[error("cannot {what}: the API server answers {status}: {message}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// Not what it should be.
    #[error("cannot {what}: what the API server answers cannot be read: {error}")]
    Unreadable {
        /// What was asked for.
        what: &'static str,
        /// What is wrong with it.
        error: String,
    },
    /// Nobody knows what time it is.
    #[error(
        "the API server's answers have no Date, and the nodes' clocks are not trusted with the cluster's budget: does a proxy \
         on the way to it drop headers?"
    )]
    NoDate,
    /// Cannot be evicted at all.
    #[error(
        "the API server serves neither policy/v1 nor policy/v1beta1, so it cannot evict: it must be Kubernetes 1.7 or newer"
    )]
    NoEviction,
    /// The eviction was sent, and what became of it is not known.
    #[error("the eviction was sent and not answered ({0}): it may have happened; the next attempt will see")]
    Lost(String),
}

impl EvictError {
    /// It is certain that nothing was evicted.
    #[must_use]
    pub const fn is_untouched(&self) -> bool {
        !matches!(self, Self::Lost(_))
    }
}

/// All names of [`Outcome`]s.
pub const RESULTS: [&str; 12] = [
    "done",
    "dry_run",
    "gone",
    "blocked",
    "overloaded",
    "forbidden",
    "misconfigured",
    "protected",
    "budget",
    "not_cured",
    "kill_switch",
    "failed",
];

impl Outcome {
    /// The label in metrics: one of [`RESULTS`].
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::DryRun => "dry_run",
            Self::Gone => "gone",
            Self::Blocked { .. } => "blocked",
            Self::Overloaded { .. } => "overloaded",
            Self::Forbidden { .. } => "forbidden",
            Self::Misconfigured { .. } => "misconfigured",
            Self::Protected(_) => "protected",
            Self::Budget(_) => "budget",
            Self::NotCured { .. } => "not_cured",
            Self::KillSwitch => "kill_switch",
            Self::Failed(_) => "failed",
        }
    }

    /// It is certain that this attempt evicted nothing: what it took out of a budget may be put back.
    #[must_use]
    pub const fn is_untouched(&self) -> bool {
        match self {
            Self::Done(_) => false,
            Self::Overloaded { maybe, .. } => !*maybe,
            Self::Failed(error) => error.is_untouched(),
            _ => true,
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, outcome, retry_after } = self;
        write!(f, "pod {pod}: {outcome}")?;
        match retry_after {
            Some(after) => write!(f, "; tried again in {after:.0?} if its breach goes on"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(_) => write!(f, "evicted"),
            Self::DryRun => write!(f, "would be evicted: the API server accepted the dry run, and nothing was done"),
            Self::Gone => write!(f, "not evicted: it is gone already"),
            Self::Blocked { budget: Some(budget), message, .. } => {
                write!(f, "not evicted: the PodDisruptionBudget {budget} does not allow it now ({message})")
            }
            Self::Blocked { budget: None, message, .. } => {
                write!(f, "not evicted: a PodDisruptionBudget of its namespace does not allow it now ({message})")
            }
            Self::Overloaded { status, message, maybe, .. } => {
                let what = if *maybe { "it may have been evicted" } else { "not evicted" };
                write!(f, "{what}: the API server has trouble, it answers {status}: {message}")
            }
            Self::Forbidden { missing: Some(Missing { verb, resource }), message } => write!(
                f,
                "not evicted: the agent may not {verb} {resource}; apply the ClusterRole and its binding that come with this \
                 version ({message})"
            ),
            Self::Forbidden { missing: None, message } => {
                write!(
                    f,
                    "not evicted: the API server, or an admission webhook or policy of the cluster, forbids it: {message}"
                )
            }
            Self::Misconfigured { budgets } => {
                let names = if budgets.is_empty() { "which cannot be listed".to_owned() } else { budgets.join(", ") };
                write!(
                    f,
                    "not evicted: more than one PodDisruptionBudget selects it, and the API server evicts no such pod: {names}; \
                     change their selectors so that one is left"
                )
            }
            Self::Protected(why) => write!(f, "not evicted: {why}"),
            Self::Budget(spent) => write!(f, "not evicted: {spent}"),
            Self::NotCured { workload, evictions, .. } => write!(
                f,
                "not evicted: {evictions} evictions of {workload} within the last hour did not cure it: it breaches again, so \
                 its image or its input is the problem; look into it, its containment stays"
            ),
            Self::KillSwitch => {
                write!(f, "not evicted: the kill switch is engaged, or evictions were halted meanwhile")
            }
            Self::Failed(error) => write!(f, "not evicted: {error}"),
        }
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster { held, most, .. } => {
                write!(
                    f,
                    "the cluster's budget is spent: {held} evictions in the window, and budgets.cluster allows {most}"
                )
            }
            Self::Workload { workload, held, most } => write!(
                f,
                "the budget of {workload} is spent: {held} evictions of its pods are under way or wait for a Ready \
                 replacement, and {most} may be at once (budgets.workload)"
            ),
            Self::Contended { what } => {
                write!(
                    f,
                    "too many agents want an eviction of {what} at this very moment, so none is taken for granted"
                )
            }
        }
    }
}

impl Evicted {
    /// The workload whose budget it came out of.
    #[must_use]
    pub fn workload(&self) -> Option<&Workload> {
        self.pod.workload.as_ref()
    }
}
