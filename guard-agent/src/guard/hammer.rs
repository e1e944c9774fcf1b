//! Carries evictions out, beside the guard's task.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use guard_cluster::evict::{Attempt, Order, Outcome, Replacement};
use prometheus::core::Collector;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::keep::Written;
use crate::{
    config::Config,
    core::{
        breach::{ContainerId, Limit},
        inventory::Pod,
        judge::{Means, Settings},
    },
    kernel::kill_switch::KillSwitch,
    orchestrator::{
        cluster::Cluster,
        local::{self, Local, Target},
    },
    snapshot::Snapshot,
};

/// Why nothing is evicted without an orchestrator.
pub const NONE: &str = "there is no orchestrator that would start it afresh (--orchestrator none)";

/// How long a container is left to end by itself if neither its policy nor an orchestrator says.
const GRACE: Duration = Duration::from_secs(10);

/// Who starts afresh what is evicted.
#[derive(Clone, Debug)]
pub enum Arm {
    /// Nobody.
    Nobody,
    /// Whatever supervises the container on this node.
    Local(Local),
    /// The pod's controller, when the API server has taken the pod away.
    Cluster(Cluster),
}

impl Arm {
    /// The metrics, to be registered.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        match self {
            Self::Nobody => vec![],
            Self::Local(local) => local.collectors().into(),
            Self::Cluster(cluster) => cluster.collectors().collect(),
        }
    }
}

/// What became of an eviction.
#[derive(Debug)]
pub enum Struck {
    /// The container's processes were ended, or not.
    Local(ContainerId, local::Outcome),
    /// The API server was asked, or was not.
    Pod(ContainerId, Arc<Pod>, Attempt),
    /// An evicted pod has a replacement, or has none.
    Replaced(Arc<Pod>, Replacement),
}

/// An eviction, and for what.
#[derive(Debug)]
pub(super) struct Blow {
    pub(super) id: ContainerId,
    pub(super) what: What,
    /// Its name, for the log.
    pub(super) container: String,
    pub(super) limit: Limit,
}

/// What is evicted.
#[derive(Debug)]
pub(super) enum What {
    Container {
        target: Target,
        /// `None`: [`GRACE`].
        grace: Option<Duration>,
        /// Nothing is to be evicted.
        dry_run: bool,
    },
    Pod(Order),
}

/// Stops what has begun.
#[derive(Clone, Debug, Default)]
struct Halt {
    /// Nothing is to be evicted, for whatever reason the guard has.
    halted: Arc<AtomicBool>,
    /// How often all that had begun was called back.
    recalls: Arc<AtomicU64>,
}

impl Halt {
    /// For what begins now: whether it is to stop.
    fn begin(&self) -> impl Fn() -> bool + Send + use<> {
        let (halt, begun) = (self.clone(), self.recalls.load(Ordering::SeqCst));
        move || halt.halted.load(Ordering::SeqCst) || halt.recalls.load(Ordering::SeqCst) != begun
    }
}

/// Evicts.
#[derive(Debug)]
pub struct Hammer {
    arm: Arm,
    kill_switch: Arc<KillSwitch>,
    halt: Halt,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    struck: mpsc::UnboundedSender<Struck>,
}

impl Hammer {
    /// Returns the evictions as they end, too: at most as many as the budget allows.
    pub fn new(
        arm: Arm,
        kill_switch: Arc<KillSwitch>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> (Self, mpsc::UnboundedReceiver<Struck>) {
        let (struck, ended) = mpsc::unbounded_channel();
        (Self { arm, kill_switch, halt: Halt::default(), snapshots, struck }, ended)
    }

    /// What evictions can be of.
    pub fn means(&self) -> Means {
        match self.arm {
            Arm::Nobody => Means { only_pods: false, nothing: Some(NONE.into()) },
            Arm::Local(_) => Means::default(),
            Arm::Cluster(_) => Means { only_pods: true, nothing: None },
        }
    }

    /// What the operator wants, and who must not be hit because of whom it is that strikes.
    pub(super) fn settings(&self, config: &Config) -> Settings {
        let mut settings = Settings::from(config);
        if let Arm::Cluster(cluster) = &self.arm {
            cluster.protect(&mut settings.protect);
        }
        settings
    }

    /// Whether it evicts pods.
    pub(super) const fn takes_pods(&self) -> bool {
        matches!(self.arm, Arm::Cluster(_))
    }

    /// Nothing is to be evicted from now on, also of what has begun, or it may be again.
    pub(super) fn halt(&self, halted: bool) {
        self.halt.halted.store(halted, Ordering::SeqCst);
    }

    /// What it was ordered by may hold no longer: evictions of pods that have begun and are not sent yet are not. Those that
    /// are still wanted are begun again.
    pub(super) fn recall(&self) {
        self.halt.recalls.fetch_add(1, Ordering::SeqCst);
    }

    /// Begins an eviction, once it is `kept` that it is begun.
    pub(super) fn strike(&self, blow: Blow, kept: Written) {
        let (arm, kill_switch, struck) = (self.arm.clone(), Arc::clone(&self.kill_switch), self.struck.clone());
        let (snapshots, halt, recalled) = (self.snapshots.clone(), self.halt.clone(), self.halt.begin());
        tokio::spawn(async move {
            // Local ones go on: their processes have been told to end.
            let stop = || kill_switch.engaged() || halt.halted.load(Ordering::SeqCst);
            // Not kept is said already, and the budget is still in memory.
            let _done = kept.await;
            let Blow { id, what, container, limit } = blow;
            // Whoever listens goes only with the process.
            let tell = |what| drop(struck.send(what));
            match (arm, what) {
                (Arm::Local(local), What::Container { target, grace, dry_run }) => {
                    let grace = grace.unwrap_or(GRACE);
                    warn!(container, %limit, ?grace, dry_run, "evicting");
                    let begun = SystemTime::now();
                    let outcome =
                        if dry_run { local.dry_run(&target) } else { local.evict(&target, grace, stop).await };
                    let replaced = matches!(outcome, local::Outcome::Done { .. } | local::Outcome::Gone);
                    tell(Struck::Local(id, outcome));
                    if replaced {
                        local.await_replacement(&target, begun, snapshots).await;
                    }
                }
                (Arm::Cluster(cluster), What::Pod(order)) => {
                    warn!(container, %limit, grace = ?order.grace, dry_run = order.dry_run, "evicting its pod");
                    let attempt = cluster.evict(&order, || stop() || recalled()).await;
                    let evicted = match &attempt.outcome {
                        Outcome::Done(evicted) => Some(evicted.clone()),
                        _ => None,
                    };
                    tell(Struck::Pod(id, Arc::clone(&order.pod), attempt));
                    if let Some(evicted) = evicted {
                        let replacement = cluster.await_replacement(&evicted).await;
                        tell(Struck::Replaced(order.pod, replacement));
                    }
                }
                // The guard makes what its hammer is for.
                (Arm::Nobody, _) | (Arm::Local(_), What::Pod(_)) | (Arm::Cluster(_), What::Container { .. }) => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_back_stops_and_what_begins_later_does_not() {
        let halt = Halt::default();
        let before = halt.begin();
        assert!(!before());
        halt.recalls.fetch_add(1, Ordering::SeqCst);
        let after = halt.begin();
        assert!(before() && !after());
        halt.halted.store(true, Ordering::SeqCst);
        assert!(before() && after());
    }
}
