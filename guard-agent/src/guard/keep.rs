//! What outlives the agent in a file: what is normal, what was used up, what was done.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::Guard;
use crate::{
    core::judge,
    kernel::kill_switch::Engaged,
    state_file::{StateFile, StateFileError},
};

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    judge: judge::Saved,
    /// The operator's engagement of the kill switch: bpffs is empty after a reboot.
    pub kill_switch: Option<Engaged>,
}

/// What was read at the start.
#[derive(Debug)]
pub struct Remembered {
    /// The content.
    pub kept: Kept,
    /// It was written since the node was booted.
    pub same_boot: bool,
}

/// The file, and how it is with it.
#[derive(Debug)]
pub struct Keeper {
    file: StateFile,
    failed: bool,
}

impl Keeper {
    /// Reads what an earlier agent kept.
    pub fn open(dir: &Path) -> Result<(Self, Option<Remembered>), StateFileError> {
        let file = StateFile::open(dir)?;
        let loaded = file.load(
            "what is normal for the workloads (learned anew), what quotas have used up, and which evictions there were",
        );
        let remembered = loaded.map(|loaded| Remembered { kept: loaded.state, same_boot: loaded.same_boot });
        Ok((Self { file, failed: false }, remembered))
    }
}

impl Guard {
    /// Writes the state file. One that cannot be written is said once: the old one stays, and the agent goes on.
    pub fn keep_now(&mut self) {
        let kill_switch = match self.kill_switch.engaged_by_operator() {
            Ok(engaged) => engaged,
            Err(error) => {
                error!("cannot read the kill switch: {error}");
                return;
            }
        };
        let kept = Kept { judge: self.judge.save(), kill_switch };
        let stored = self.keeper.file.store(&kept);
        match &stored {
            Err(error) if !self.keeper.failed => {
                error!("{error}; a restart would forget what is normal, what quotas have used up and what was evicted");
            }
            Ok(()) if self.keeper.failed => info!("the state file is written again"),
            _ => {}
        }
        self.metrics.state_failures.inc_by(u64::from(stored.is_err()));
        self.keeper.failed = stored.is_err();
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
