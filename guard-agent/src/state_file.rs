//! The file that holds what an agent keeps across restarts.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, de::DeserializeOwned};
use tracing::warn;

use crate::{
    clock,
    core::state::{self, Kept, StateError},
};

const NAME: &str = "state.json";

/// Where a state is written until it is whole.
const TEMPORARY: &str = "state.json.tmp";

/// What the name of a file that was set aside begins with; the time in seconds since 1970 follows.
const BAD: &str = "state.json.bad-";

/// How many files that were set aside are kept.
const KEEP_BAD: usize = 3;

/// It is another with every boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why a state cannot be kept. The one that was kept before still is.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The kernel says no.
    #[error("cannot {what} {}: {cause}{}", .path.display(), remedy(.cause))]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel says.
        cause: io::Error,
    },
    /// The state cannot be written as text.
    #[error(transparent)]
    Encode(#[from] StateError),
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotADirectory => {
            "; pass a --state-dir that the agent can write to"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room on that filesystem",
        _ => "",
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateFileError {
    move |cause| StateFileError::Io { what, path: path.to_owned(), cause }
}

/// What an earlier agent kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded<T> {
    /// What it kept.
    pub state: T,
    /// Whether instants of `CLOCK_BOOTTIME` in it are of this boot.
    pub same_boot: bool,
    /// When it was written, by the wall clock ...
    pub written: SystemTime,
    /// ... and in `CLOCK_BOOTTIME` nanoseconds of that boot.
    pub at: u64,
}

/// The file. One agent has it at a time.
#[derive(Debug)]
pub struct StateFile {
    dir: PathBuf,
    boot_id: String,
}

impl StateFile {
    /// Makes the folder, for root only, if it is not there, and removes what an agent left that died while it wrote.
    pub fn open(dir: &Path) -> Result<Self, StateFileError> {
        let boot_id = fs::read_to_string(BOOT_ID).map_err(failed("read the boot's id from", Path::new(BOOT_ID)))?;
        Self::open_in_boot(dir, boot_id.trim())
    }

    fn open_in_boot(dir: &Path, boot_id: &str) -> Result<Self, StateFileError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make the state folder", dir))?;
        let temporary = dir.join(TEMPORARY);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &temporary)(error)),
            _ => Ok(Self { dir: dir.to_owned(), boot_id: boot_id.to_owned() }),
        }
    }

    /// What was stored last. `None`: nothing was, or it cannot be used; then it is set aside, and a warning says why
    /// and what is `lost` by that.
    pub fn load<T: DeserializeOwned>(&self, lost: &str) -> Option<Loaded<T>> {
        let path = self.dir.join(NAME);
        let why = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error.to_string(),
            Ok(bytes) => match state::decode(&bytes) {
                Ok(Kept { boot_id, written, at, state }) => {
                    let same_boot = boot_id == self.boot_id;
                    return Some(Loaded { state, same_boot, written: UNIX_EPOCH + Duration::from_nanos(written), at });
                }
                Err(error) => error.to_string(),
            },
        };
        let aside = match self.set_aside(&path) {
            Ok(aside) => format!("it is kept as {}", aside.display()),
            Err(error) => format!("it cannot be set aside ({error}) and will be overwritten"),
        };
        warn!("cannot use the state file {}: {why}; {aside}; lost: {lost}", path.display());
        None
    }

    fn set_aside(&self, path: &Path) -> io::Result<PathBuf> {
        let aside = self.dir.join(format!("{BAD}{}", since_1970().as_secs()));
        fs::rename(path, &aside)?;
        let names = fs::read_dir(&self.dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut bad: Vec<u64> = names.filter_map(|name| name.strip_prefix(BAD)?.parse().ok()).collect();
        bad.sort_unstable();
        for old in bad.iter().rev().skip(KEEP_BAD) {
            fs::remove_file(self.dir.join(format!("{BAD}{old}")))?;
        }
        Ok(aside)
    }

    /// Puts a state in the place of the one before, at once and as a whole: whatever happens, one of both is there.
    pub fn store<T: Serialize>(&self, state: &T) -> Result<(), StateFileError> {
        let (written, at) = (since_1970().as_nanos() as u64, clock::boottime());
        let bytes = state::encode(&Kept { boot_id: self.boot_id.clone(), written, at, state })?;
        let temporary = self.dir.join(TEMPORARY);
        write(&temporary, &bytes).map_err(failed("write", &temporary)).inspect_err(|_| {
            // What is there of it may be what fills the disk.
            let _gone = fs::remove_file(&temporary);
        })?;
        let path = self.dir.join(NAME);
        fs::rename(&temporary, &path).map_err(failed("replace", &path))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed("sync the state folder", &self.dir))
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A clock before 1970 is one that nobody set.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
#[path = "state_file_tests.rs"]
mod tests;
