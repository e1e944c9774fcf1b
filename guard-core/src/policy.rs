//! Which limits and which actions hold for which containers.

use std::{collections::BTreeMap, num::NonZeroU64, sync::Arc, time::Duration};

use serde::Deserialize;

pub use self::matching::{Conflict, Globs};
use crate::{
    config::scalars::{at_least, factor, labels, percent, required, some, whole},
    identity::Labels,
    safety::Leave,
    units::{Percent, Rate, Size},
};

mod matching;
mod words;

/// The most that the guard may do. Each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Count, report and alert.
    #[default]
    Observe,
    /// Hold a container's egress in the kernel.
    Contain,
    /// Make it start afresh.
    Evict,
}

/// Which bytes a policy's limits are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Count {
    /// Those to and from external destinations. Cluster traffic is not contained either.
    #[default]
    External,
    /// All but loopback.
    All,
}

/// All policies of a file; the first that matches a container holds.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    /// The most that any of them may do.
    pub mode: Mode,
    /// In the order of the file.
    pub policies: Vec<Arc<Policy>>,
}

/// What holds for the containers that it matches.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its name, unique in its file.
    pub name: String,
    /// Whom it is for.
    pub matcher: Matcher,
    /// Which bytes its limits are about.
    pub count: Count,
    /// Limits of what is sent.
    pub egress: EgressLimits,
    /// Limit of what is received: said, never acted on.
    pub ingress: Option<RateLimit>,
    /// What may be done when a limit of `egress` is crossed.
    pub on_breach: OnBreach,
}

/// Whom a policy is for. What is not said matches everything; what is said does not match what is not known.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Matcher {
    /// The pod's namespace.
    #[serde(deserialize_with = "some")]
    pub namespaces: Option<Globs>,
    /// The pod's name.
    #[serde(deserialize_with = "some")]
    pub pods: Option<Globs>,
    /// The container's name; outside Kubernetes the cgroup's path.
    #[serde(deserialize_with = "some")]
    pub containers: Option<Globs>,
    /// Labels that the pod has, with these values.
    #[serde(deserialize_with = "labels")]
    pub labels: BTreeMap<String, String>,
}

/// What a policy is matched with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Namespace, pod and container; empty where unknown.
    pub names: Labels,
    /// The pod's labels; empty while unknown.
    pub labels: BTreeMap<String, String>,
    /// The pod's annotations that begin with [`crate::inventory::PREFIX`], without it. They match nothing, but may
    /// [override](crate::overrides) what the policy says.
    pub annotations: BTreeMap<String, String>,
}

/// Limits of what a container sends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EgressLimits {
    /// Checked in the kernel, packet by packet.
    pub rate: Option<RateLimit>,
    /// Checked with every sample.
    pub quota: Option<Quota>,
    /// Checked with every sample.
    pub baseline: Option<BaselineLimit>,
    /// Of what its pod's interface sends and no meter sees; checked with every sample.
    pub bypass: Option<RateLimit>,
}

/// A token bucket: `burst + rate * t` bytes may pass in any time `t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes per second that refill the bucket.
    pub rate: Rate,
    /// The bucket's size.
    pub burst: Size,
}

/// So many bytes in a rolling window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Bytes that may pass.
    #[serde(deserialize_with = "required")]
    pub bytes: Size,
    /// The window: a minute at least, for it is kept in 60 parts.
    #[serde(deserialize_with = "at_least::<60, _>")]
    pub per: Duration,
}

/// So many times a workload's normal.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineLimit {
    /// How many times: more than once.
    #[serde(deserialize_with = "factor")]
    pub factor: f64,
    /// The limit is never less than this.
    #[serde(deserialize_with = "required")]
    pub floor: Rate,
    /// How long normal must have been watched before there is a limit.
    #[serde(deserialize_with = "at_least::<1, _>")]
    pub learn: Duration,
}

/// What may be done when a limit of egress is crossed, as far as the [`Mode`] lets it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnBreach {
    /// Hold it.
    #[serde(deserialize_with = "some")]
    pub contain: Option<Contain>,
    /// Make it start afresh.
    #[serde(deserialize_with = "some")]
    pub evict: Option<Evict>,
}

/// How a container is held, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contain {
    /// How.
    pub how: Containment,
    /// How long from the breach on.
    pub length: Duration,
}

/// How a container's egress is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Containment {
    /// This much passes.
    Throttle(Rate),
    /// Nothing passes.
    Block,
}

/// When a container is made to start afresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evict {
    /// How long the breach must have held.
    pub after: Duration,
    /// How long it is left to end by itself. `None`: as its orchestrator says, which for a pod is what the pod says.
    pub grace: Option<Duration>,
    /// Which pods may be evicted that otherwise are not.
    pub leave: Leave,
}

/// How many evictions there may be, whatever the policies say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budgets {
    /// On the node.
    pub node: Budget,
    /// Of one workload.
    pub workload: WorkloadBudget,
    /// On all nodes of the cluster together.
    pub cluster: Budget,
}

/// How many evictions there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// So many ...
    #[serde(deserialize_with = "whole::<1, _>")]
    pub evictions: NonZeroU64,
    /// ... in any window of this length.
    #[serde(deserialize_with = "at_least::<1, _>")]
    pub per: Duration,
}

/// How many evictions there may be of one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadBudget {
    /// So many of its pods on one node ...
    #[serde(deserialize_with = "whole::<1, _>")]
    pub evictions: NonZeroU64,
    /// ... in any window of this length.
    #[serde(deserialize_with = "at_least::<1, _>")]
    pub per: Duration,
    /// In the whole cluster, so many may be on their way at once: evicted, and without a replacement that is ready.
    #[serde(default = "WorkloadBudget::one", deserialize_with = "whole::<1, _>")]
    pub at_once: NonZeroU64,
    /// And no more than this part of its ready replicas, but always one.
    #[serde(default = "WorkloadBudget::quarter", deserialize_with = "percent")]
    pub share: Percent,
}

/// Too many breaches at once: then it is the limits that are wrong, or the node that is lost, and nothing is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storm {
    /// So many workloads that breach, or more ...
    #[serde(deserialize_with = "whole::<2, _>")]
    pub workloads: NonZeroU64,
    /// ... or more than this part of the node's pods, if that is three at least ...
    #[serde(deserialize_with = "percent")]
    pub pods: Percent,
    /// ... in any window of this length.
    #[serde(deserialize_with = "at_least::<1, _>")]
    pub per: Duration,
}

impl WorkloadBudget {
    const fn one() -> NonZeroU64 {
        NonZeroU64::MIN
    }

    const fn quarter() -> Percent {
        const { Percent::new(25).expect("a part") }
    }

    /// What holds on one node.
    #[must_use]
    pub const fn on_node(self) -> Budget {
        let Self { evictions, per, at_once: _, share: _ } = self;
        Budget { evictions, per }
    }
}

impl Default for Budgets {
    fn default() -> Self {
        let budget = |evictions| Budget { evictions, per: Duration::from_mins(10) };
        let Budget { evictions, per } = budget(NonZeroU64::MIN);
        let (at_once, share) = (WorkloadBudget::one(), WorkloadBudget::quarter());
        Self {
            node: budget(const { NonZeroU64::new(3).expect("not zero") }),
            workload: WorkloadBudget { evictions, per, at_once, share },
            cluster: budget(const { NonZeroU64::new(10).expect("not zero") }),
        }
    }
}

impl Default for Storm {
    fn default() -> Self {
        Self {
            workloads: const { NonZeroU64::new(5).expect("not zero") },
            pods: const { Percent::new(30).expect("a part") },
            per: Duration::from_mins(1),
        }
    }
}
