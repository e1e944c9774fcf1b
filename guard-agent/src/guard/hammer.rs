//! Carries evictions out, beside the guard's task.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::keep::Written;
use crate::{
    core::{breach::Limit, judge::Means},
    kernel::kill_switch::KillSwitch,
    orchestrator::local::{Local, Outcome, Target},
    snapshot::Snapshot,
};

/// Why nothing is evicted without an orchestrator.
pub const NONE: &str = "there is no orchestrator that would start it afresh (--orchestrator none)";

/// How long a container is left to end by itself if its policy does not say.
const GRACE: Duration = Duration::from_secs(10);

/// An eviction that has ended.
pub type Struck = (Target, Outcome);

/// An eviction, and for what.
#[derive(Debug)]
pub(super) struct Blow {
    pub(super) target: Target,
    /// `None`: [`GRACE`].
    pub(super) grace: Option<Duration>,
    /// Nothing is to be evicted.
    pub(super) dry_run: bool,
    /// Its name, for the log.
    pub(super) container: String,
    pub(super) limit: Limit,
}

/// Evicts.
#[derive(Debug)]
pub struct Hammer {
    local: Option<Local>,
    kill_switch: Arc<KillSwitch>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    struck: mpsc::UnboundedSender<Struck>,
}

impl Hammer {
    /// Returns the evictions as they end, too: at most as many as the budget allows.
    pub fn new(
        local: Option<Local>,
        kill_switch: Arc<KillSwitch>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> (Self, mpsc::UnboundedReceiver<Struck>) {
        let (struck, ended) = mpsc::unbounded_channel();
        (Self { local, kill_switch, snapshots, struck }, ended)
    }

    /// What evictions can be of.
    pub fn means(&self) -> Means {
        Means { only_pods: false, nothing: self.local.is_none().then_some(NONE.into()) }
    }

    /// Begins an eviction, once it is `kept` that it is begun.
    pub(super) fn strike(&self, blow: Blow, kept: Written) {
        let Some(local) = self.local.clone() else { return };
        let (kill_switch, struck) = (Arc::clone(&self.kill_switch), self.struck.clone());
        let snapshots = self.snapshots.clone();
        tokio::spawn(async move {
            // Not kept is said already, and the budget is still in memory.
            let _done = kept.await;
            let Blow { target, grace, dry_run, container, limit } = blow;
            let grace = grace.unwrap_or(GRACE);
            warn!(container, %limit, ?grace, dry_run, "evicting");
            let begun = SystemTime::now();
            let outcome = if dry_run {
                local.dry_run(&target)
            } else {
                local.evict(&target, grace, || kill_switch.engaged()).await
            };
            let replaced = matches!(outcome, Outcome::Done { .. } | Outcome::Gone);
            // The guard goes only with the process.
            let _sent = struck.send((target.clone(), outcome));
            if replaced {
                local.await_replacement(&target, begun, snapshots).await;
            }
        });
    }
}
