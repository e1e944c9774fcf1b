//! What outlives the agent in a file: what is normal, what was used up, what was done.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::Guard;
use crate::{
    core::{judge, roster},
    kernel::kill_switch::{Engaged, Source},
    metrics::Metrics,
    state_file::{StateFile, StateFileError},
};

/// How long the end of the agent waits for the disk.
const PATIENCE: Duration = Duration::from_millis(300);

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    judge: judge::Saved,
    /// The operator's engagement of the kill switch: bpffs is empty after a reboot.
    kill_switch: Option<Engaged>,
    /// The cluster's, for whoever starts without an API server.
    #[serde(default)]
    cluster_kill_switch: Option<Engaged>,
    /// What is known of pods; not in the files of agents that knew nothing of any.
    #[serde(default)]
    pub pods: roster::Saved,
}

impl Kept {
    /// Who had engaged the kill switch, of those who may not be asked after a reboot.
    pub fn engaged(&self) -> Vec<(Source, Engaged)> {
        let all = [(Source::Operator, &self.kill_switch), (Source::Cluster, &self.cluster_kill_switch)];
        all.into_iter().filter_map(|(source, engaged)| Some((source, engaged.clone()?))).collect()
    }
}

/// What was read at the start.
#[derive(Debug)]
pub struct Remembered {
    /// The content.
    pub kept: Kept,
    /// It was written since the node was booted.
    pub same_boot: bool,
}

/// The end of a write, well or not.
pub type Written = oneshot::Receiver<()>;

/// Writes the file on a thread of its own, in order: a disk that is busy must not keep the guard from its work.
#[derive(Debug)]
pub struct Keeper(mpsc::Sender<(Kept, oneshot::Sender<()>)>);

impl Keeper {
    /// Reads what an earlier agent kept.
    pub fn open(dir: &Path) -> Result<(Opened, Option<Remembered>), StateFileError> {
        let file = StateFile::open(dir)?;
        let loaded = file.load(
            "what is normal for the workloads (learned anew), what quotas have used up, which evictions there were, and \
             what containers are called (until the API server says)",
        );
        let remembered = loaded.map(|loaded| Remembered { kept: loaded.state, same_boot: loaded.same_boot });
        Ok((Opened(file), remembered))
    }
}

/// The file, not written to yet.
#[derive(Debug)]
pub struct Opened(StateFile);

impl Opened {
    /// Starts the thread. It ends with the keeper.
    pub fn keep(self, metrics: Arc<Metrics>) -> Keeper {
        let (sender, queue) = mpsc::channel::<(Kept, oneshot::Sender<()>)>();
        thread::spawn(move || {
            let mut failed = false;
            for (kept, written) in queue {
                let stored = self.0.store(&kept);
                match &stored {
                    // Said once: the old file stays, and the agent goes on.
                    Err(error) if !failed => error!(
                        "{error}; a restart would forget what is normal, what quotas have used up and what was evicted"
                    ),
                    Ok(()) if failed => info!("the state file is written again"),
                    _ => {}
                }
                metrics.state_failures.inc_by(u64::from(stored.is_err()));
                failed = stored.is_err();
                // Nobody may be waiting.
                let _unheard = written.send(());
            }
        });
        Keeper(sender)
    }
}

impl Guard {
    /// Has the state file written. What it returns is done when it is, or could not be.
    pub fn keep_now(&self) -> Written {
        let (sender, written) = oneshot::channel();
        let by = |source| self.kill_switch.engaged_by(source);
        match by(Source::Operator).and_then(|operator| Ok((operator, by(Source::Cluster)?))) {
            Ok((kill_switch, cluster_kill_switch)) => {
                let owners = self.ledger.owners().map(|owner| (&owner.identity, &owner.labels));
                let pods = self.roster.as_ref().map(|roster| roster.save(owners)).unwrap_or_default();
                let kept = Kept { judge: self.judge.save(), kill_switch, cluster_kill_switch, pods };
                // The thread goes only after the keeper.
                let _queued = self.keeper.0.send((kept, sender));
            }
            Err(error) => error!("cannot read the kill switch, so the state file is not written: {error}"),
        }
        written
    }

    /// Has it written a last time, and waits for that a little.
    pub fn keep_and_wait(&self) {
        let mut written = self.keep_now();
        let end = std::time::Instant::now() + PATIENCE;
        while matches!(written.try_recv(), Err(oneshot::error::TryRecvError::Empty)) && std::time::Instant::now() < end
        {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Goes on from what was kept.
    pub(super) fn remember(&mut self, remembered: Remembered) {
        let Remembered { kept, same_boot } = remembered;
        let now = crate::clock::boottime();
        for lost in self.judge.restore(now, kept.judge, same_boot) {
            warn!("of the state file, not usable: {lost}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::judge::{Judge, Means, Settings},
        state_file::StateFile,
    };

    /// As agents kept it that knew nothing of pods.
    #[derive(Serialize)]
    struct Before {
        judge: judge::Saved,
        kill_switch: Option<Engaged>,
    }

    #[test]
    fn the_file_of_an_agent_that_knew_nothing_of_pods_can_be_used() {
        let dir = tempfile::tempdir().expect("a folder");
        let judge = Judge::new(Settings::from(&crate::config::Config::default()), Means::default());
        let file = StateFile::open(dir.path()).expect("a file");
        file.store(&Before { judge: judge.save(), kill_switch: None }).expect("it is stored");
        let (_, remembered) = Keeper::open(dir.path()).expect("a folder");
        assert_eq!(remembered.expect("it is used").kept.pods, roster::Saved::default());
    }
}
