//! Notices that the configuration has changed: its file, or what the API server says that the file is.

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
    /// What the file was when it was last taken note of: made a configuration, refused, or passed over because the API
    /// server says what holds.
    read: Content,
    /// What was last made a configuration, or refused.
    taken: Content,
    /// Where that came from.
    source: PathBuf,
    /// What the API server says holds now.
    told: bool,
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
            taken: Err(io::ErrorKind::NotFound),
            source: path.to_owned(),
            told: false,
            seen: content(path),
            status: watch::Sender::new(Status { refused: None, since: SystemTime::now() }),
            timer,
            hangup,
        };
        Ok((reload.take()?, reload))
    }

    /// What the API server says that the configuration is, with a name for that; `None`: nothing, or nothing that holds. The
    /// mounted file lags behind that by a minute or more, so it is passed over meanwhile, and counts again once it changes
    /// when the API server is silent. As [`Self::changed`].
    pub(crate) fn told(&mut self, config: Option<(&str, String)>) -> Option<Result<Config, ConfigError>> {
        self.told = config.is_some();
        let (text, name) = config?;
        if self.taken.as_deref() == Ok(text) {
            return None;
        }
        self.taken = Ok(text.to_owned());
        self.source = name.into();
        Some(self.conclude())
    }

    /// Where what was last made a configuration, or refused, came from: the file's path, or the ConfigMap's name.
    pub fn source(&self) -> &Path {
        &self.source
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
                    return if self.told { self.conclude() } else { self.take() };
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
        if !settled || self.seen == self.read {
            return None;
        }
        // It is what the API server has said, at last, or it is out of date.
        if self.told || (self.seen.is_ok() && self.seen == self.taken) {
            self.read.clone_from(&self.seen);
            self.found |= self.read.is_ok();
            return None;
        }
        Some(self.take())
    }

    /// Makes what was seen a configuration.
    fn take(&mut self) -> Result<Config, ConfigError> {
        self.read.clone_from(&self.seen);
        self.taken.clone_from(&self.seen);
        self.source.clone_from(&self.path);
        self.conclude()
    }

    /// Makes what was taken a configuration.
    fn conclude(&mut self) -> Result<Config, ConfigError> {
        let result = if self.found && self.taken == Err(io::ErrorKind::NotFound) {
            Err(ConfigError::Gone(self.path.clone()))
        } else {
            config::parse(&self.taken, &self.source, self.asked)
        };
        self.found |= self.taken.is_ok();
        let refused = result.as_ref().err().map(ToString::to_string);
        self.status.send_replace(Status { refused, since: SystemTime::now() });
        result
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
