//! Eviction without a cluster: the container's processes are ended, and the supervisor that made it starts it afresh.

mod cgroup;
mod replacement;

use std::{io, path::PathBuf, time::Duration};

use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, core::Collector};
use tokio::time;
use tracing::{error, info, warn};

use crate::core::identity::Labels;
use cgroup::Cgroup;

pub use replacement::Replacement;

/// The time between two looks whether the processes are gone. It is short, because a supervisor may start the next ones
/// in the same cgroup (systemd waits 100 ms by default), and those are not to be ended.
const LOOK: Duration = Duration::from_millis(10);

/// How long processes may take to vanish after SIGKILL.
const KILLED: Duration = Duration::from_secs(10);

/// Seconds until a replacement appears: 50 ms to the minute after which it is given up.
const REPLACEMENT_BUCKETS: [f64; 10] = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// A container that is to be evicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its cgroup's id: the directory's inode number.
    pub cgroup_id: u64,
    /// Its cgroup's path from the root of the hierarchy, with or without the leading slash.
    pub cgroup_path: String,
    /// Namespace, pod and container, by which its replacement is known.
    pub labels: Labels,
}

/// How an eviction ended.
#[derive(Debug)]
pub enum Outcome {
    /// The processes are gone.
    Done {
        /// Not all of them went on SIGTERM within the grace.
        killed: bool,
    },
    /// The cgroup was not there any more, or another one is in its place.
    Gone,
    /// The agent or the system itself would have been hit.
    Protected(Protection),
    /// Nothing was to be evicted.
    DryRun,
    /// The kill switch is engaged. Processes that had SIGTERM before it was may have gone.
    KillSwitch,
    /// It could not be done, or not to the end.
    Failed(EvictError),
}

/// What a cgroup is protected for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Protection {
    /// The root of the hierarchy.
    #[error("it is the root cgroup")]
    Root,
    /// The agent runs in it or beneath it.
    #[error("the agent runs in it")]
    Agent,
    /// It lies beneath the agent's cgroup.
    #[error("it belongs to the agent: it lies beneath the agent's own cgroup")]
    AgentsOwn,
    /// Pid 1 runs in it or beneath it.
    #[error("pid 1 runs in it")]
    Init,
}

/// Why a container could not be evicted.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// The kernel lacks `cgroup.kill`.
    #[error(
        "the kernel has no cgroup.kill, which came with Linux 5.14: restart the container by hand, upgrade the kernel"
    )]
    NoKill,
    /// The cgroup is a part of a threaded one.
    #[error("its cgroup is of type {0:?}, which cannot be killed: meter the threaded domain above it instead")]
    Threaded(String),
    /// The agent does not see the processes.
    #[error(
        "its processes are in a pid namespace that the agent does not see: run the agent with the host's (hostPID)"
    )]
    OtherPids,
    /// They do not go.
    #[error(
        "processes are still there {KILLED:?} after SIGKILL; they hang in the kernel (state D in ps, often a dead NFS or \
         disk)"
    )]
    StillThere,
    /// A system call failed.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
}

/// Evicts containers of this node, and counts it.
#[derive(Clone, Debug)]
pub struct Local {
    root: PathBuf,
    evictions: IntCounterVec,
    replacement_seconds: Histogram,
}

impl Outcome {
    /// The label in metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Done { .. } => "done",
            Self::Gone => "gone",
            Self::Protected(_) => "protected",
            Self::DryRun => "dry_run",
            Self::KillSwitch => "kill_switch",
            Self::Failed(_) => "failed",
        }
    }
}

impl Local {
    /// For the containers beneath the root of a cgroup v2 hierarchy.
    pub fn new(root: PathBuf) -> Result<Self, prometheus::Error> {
        let evictions = Opts::new("egress_guard_evictions_total", "Evictions that were begun, by how they ended.");
        let evictions = IntCounterVec::new(evictions, &["result"])?;
        for result in ["done", "gone", "protected", "dry_run", "kill_switch", "failed"] {
            evictions.with_label_values(&[result]);
        }
        let help = "Time from an eviction to the fresh container's meter.";
        let replacement = HistogramOpts::new("egress_guard_replacement_seconds", help);
        let replacement_seconds = Histogram::with_opts(replacement.buckets(REPLACEMENT_BUCKETS.to_vec()))?;
        Ok(Self { root, evictions, replacement_seconds })
    }

    /// The metrics, to be registered.
    pub fn collectors(&self) -> [Box<dyn Collector>; 2] {
        [Box::new(self.evictions.clone()), Box::new(self.replacement_seconds.clone())]
    }

    /// Ends all processes of a container: SIGTERM, `grace`, then SIGKILL to what is left. `kill_switch` tells whether the
    /// kill switch is engaged, and is asked right before each of the two. Says and counts how it ended.
    pub async fn evict(&self, target: &Target, grace: Duration, kill_switch: impl Fn() -> bool) -> Outcome {
        let begun = time::Instant::now();
        let outcome = self.try_evict(target, grace, kill_switch).await.unwrap_or_else(Outcome::Failed);
        self.tell(target, &outcome, begun.elapsed());
        outcome
    }

    /// Says and counts an eviction that is not to take place.
    pub fn dry_run(&self, target: &Target) -> Outcome {
        self.tell(target, &Outcome::DryRun, Duration::ZERO);
        Outcome::DryRun
    }

    fn tell(&self, target: &Target, outcome: &Outcome, took: Duration) {
        self.evictions.with_label_values(&[outcome.name()]).inc();
        let cgroup = &target.cgroup_path;
        match outcome {
            Outcome::Done { killed } => info!(%cgroup, killed, ?took, "evicted"),
            Outcome::Gone => info!(%cgroup, "not evicted: the container is gone already"),
            Outcome::Protected(why) => warn!(%cgroup, "not evicted: {why}"),
            Outcome::DryRun => warn!(%cgroup, "not evicted: dryRun is true in the configuration"),
            Outcome::KillSwitch => warn!(%cgroup, "not evicted, or not to the end: the kill switch is engaged"),
            Outcome::Failed(error) => error!(%cgroup, "not evicted: {error}"),
        }
    }

    async fn try_evict(
        &self,
        target: &Target,
        grace: Duration,
        kill_switch: impl Fn() -> bool,
    ) -> Result<Outcome, EvictError> {
        let Some(cgroup) = Cgroup::open(&self.root, &target.cgroup_path, target.cgroup_id)? else {
            return Ok(Outcome::Gone);
        };
        if let Some(why) = cgroup.protection()? {
            return Ok(Outcome::Protected(why));
        }
        // Before anything is done, so that a container is not stopped halfway.
        let Some(kill) = cgroup.open_kill()? else {
            return Ok(Outcome::Gone);
        };
        if kill_switch() {
            return Ok(Outcome::KillSwitch);
        }
        cgroup.terminate()?;
        if vanished(&cgroup, grace).await? {
            return Ok(Outcome::Done { killed: false });
        }
        if let Some(why) = cgroup.protection()? {
            return Ok(Outcome::Protected(why));
        }
        if kill_switch() {
            return Ok(Outcome::KillSwitch);
        }
        cgroup::kill(&kill)?;
        if vanished(&cgroup, KILLED).await? {
            return Ok(Outcome::Done { killed: true });
        }
        Err(EvictError::StillThere)
    }
}

/// Waits until no process is left, for at most `limit`.
async fn vanished(cgroup: &Cgroup, limit: Duration) -> Result<bool, EvictError> {
    let end = time::Instant::now() + limit;
    loop {
        if !cgroup.is_populated()? {
            return Ok(true);
        }
        if time::Instant::now() >= end {
            return Ok(false);
        }
        time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn how_an_eviction_ends_is_counted() {
        let local = Local::new("/nowhere".into()).expect("metrics");
        let target = Target { cgroup_id: 1, cgroup_path: "a".into(), labels: Labels::default() };
        let outcome = local.evict(&target, Duration::ZERO, || false).await;
        assert!(matches!(outcome, Outcome::Failed(EvictError::Io("open the cgroup", _))), "{outcome:?}");
        let registry = prometheus::Registry::new();
        local.collectors().into_iter().for_each(|metric| registry.register(metric).expect("a new metric"));
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        for (result, count) in
            [("done", 0), ("gone", 0), ("protected", 0), ("dry_run", 0), ("kill_switch", 0), ("failed", 1)]
        {
            let line = format!("egress_guard_evictions_total{{result=\"{result}\"}} {count}\n");
            assert!(text.contains(&line), "no {line} in {text}");
        }
    }
}
