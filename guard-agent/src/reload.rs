//! Notices that the configuration's file has changed.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{self, Interval, MissedTickBehavior},
};

use crate::config::{self, Config, ConfigError, Content, content};

/// The time between two looks at the file. It is small, and read in whole: that sees through every symlink, and through
/// changes that leave size and time as they were.
const LOOK: Duration = Duration::from_millis(500);

/// How it stands with the file.
#[derive(Clone, Debug)]
pub struct Status {
    /// Why the file was refused; what was read before it holds. `None`: the file is what holds.
    pub refused: Option<String>,
    /// When it was read.
    pub since: SystemTime,
}

/// Watches the file that a [`Config`] came from.
#[derive(Debug)]
pub struct Reload {
    path: PathBuf,
    /// It must be there.
    asked: bool,
    /// It has been there.
    found: bool,
    /// What was last made a configuration, or refused.
    read: Content,
    /// What the last look saw.
    seen: Content,
    status: watch::Sender<Status>,
    timer: Interval,
    hangup: Signal,
}

impl Reload {
    /// Reads the file, and watches it from then on; SIGHUP no longer ends the process. A file that is not there counts
    /// as empty, unless it was `asked` for.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(path: &Path, asked: bool) -> Result<(Config, Self), ConfigError> {
        let hangup = signal(SignalKind::hangup()).map_err(ConfigError::Signal)?;
        let mut timer = time::interval(LOOK);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reload = Self {
            path: path.to_owned(),
            asked,
            found: false,
            read: Err(io::ErrorKind::NotFound),
            seen: content(path),
            status: watch::Sender::new(Status { refused: None, since: SystemTime::now() }),
            timer,
            hangup,
        };
        Ok((reload.take()?, reload))
    }

    /// How it stands with the file, now and later.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Waits until the file has changed, or SIGHUP has come, and reads it: a configuration to take over in whole, or an
    /// error, with which the one in force stays. Each change is said once. Nothing is lost if the wait is given up.
    pub async fn changed(&mut self) -> Result<Config, ConfigError> {
        loop {
            tokio::select! {
                _ = self.timer.tick() => {
                    if let Some(changed) = self.look() {
                        return changed;
                    }
                }
                _ = self.hangup.recv() => {
                    self.seen = content(&self.path);
                    return self.take();
                }
            }
        }
    }

    /// A change counts when two looks have seen the same: the first may have met a file that was half written, or between
    /// its old name and its new one, and an empty file would mean that nothing is limited.
    fn look(&mut self) -> Option<Result<Config, ConfigError>> {
        let now = content(&self.path);
        let settled = now == self.seen;
        self.seen = now;
        (settled && self.seen != self.read).then(|| self.take())
    }

    /// Makes what was seen a configuration.
    fn take(&mut self) -> Result<Config, ConfigError> {
        self.read.clone_from(&self.seen);
        let result = if self.found && self.read == Err(io::ErrorKind::NotFound) {
            Err(ConfigError::Gone(self.path.clone()))
        } else {
            config::parse(&self.read, &self.path, self.asked)
        };
        self.found |= self.read.is_ok();
        let refused = result.as_ref().err().map(ToString::to_string);
        self.status.send_replace(Status { refused, since: SystemTime::now() });
        result
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
