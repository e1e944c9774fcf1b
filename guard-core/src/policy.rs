//! Which limits and which actions hold for which containers.

use std::{collections::BTreeMap, num::NonZeroU64, sync::Arc, time::Duration};

use globset::GlobSet;

use crate::{
    identity::Labels,
    units::{Rate, Size},
};

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
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    /// The pod's namespace.
    pub namespaces: Option<GlobSet>,
    /// The pod's name.
    pub pods: Option<GlobSet>,
    /// The container's name; outside Kubernetes the cgroup's path.
    pub containers: Option<GlobSet>,
    /// Labels that the pod has, with these values.
    pub labels: BTreeMap<String, String>,
}

/// What a policy is matched with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Namespace, pod and container; empty where unknown.
    pub names: Labels,
    /// The pod's labels; empty while unknown.
    pub labels: BTreeMap<String, String>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Bytes that may pass.
    pub bytes: Size,
    /// The window.
    pub per: Duration,
}

/// So many times a workload's normal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BaselineLimit {
    /// How many times.
    pub factor: f64,
    /// The limit is never less than this.
    pub floor: Rate,
    /// How long normal must have been watched before there is a limit.
    pub learn: Duration,
}

/// What may be done when a limit of egress is crossed, as far as the [`Mode`] lets it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OnBreach {
    /// Hold it.
    pub contain: Option<Contain>,
    /// Make it start afresh.
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
    /// Between SIGTERM and SIGKILL, where no orchestrator says otherwise.
    pub grace: Duration,
}

/// How many evictions there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// So many ...
    pub evictions: NonZeroU64,
    /// ... in any window of this length.
    pub per: Duration,
}

/// When so many breach at once that it is the limits that are wrong, or the node that is lost: nothing is evicted then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storm {
    /// So many workloads that breach a limit of egress ...
    pub workloads: NonZeroU64,
    /// ... within this time.
    pub per: Duration,
}
