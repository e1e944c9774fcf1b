//! The configuration's file. What is in it, [`crate::core::config`] knows.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use crate::core::config::{Alerts, Config, Containing, Destinations, Invalid, Meters, Sample};

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there but cannot be read.
    #[error("cannot read the config file {0}: {1}")]
    Read(PathBuf, io::ErrorKind),
    /// It is no text.
    #[error("the config file {0} is not UTF-8: save it as such")]
    NotText(PathBuf),
    /// A file that was asked for is not there.
    #[error("there is no config file {0}: make it, or leave out --config")]
    NotFound(PathBuf),
    /// A file that was there is not there any more.
    #[error("the config file {0} is gone: put it back")]
    Gone(PathBuf),
    /// What is in it is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The signal that asks for another look at it cannot be had.
    #[error("cannot handle SIGHUP: {0}")]
    Signal(io::Error),
}

/// What reading the file gives.
pub(crate) type Content = Result<String, io::ErrorKind>;

/// Reads the file. One that is not there counts as empty, unless it was `asked` for.
pub fn read(path: &Path, asked: bool) -> Result<Config, ConfigError> {
    parse(&content(path), path, asked)
}

pub(crate) fn content(path: &Path) -> Content {
    fs::read_to_string(path).map_err(|error| error.kind())
}

/// Makes a configuration of what reading the file gave.
pub(crate) fn parse(content: &Content, path: &Path, asked: bool) -> Result<Config, ConfigError> {
    match content {
        Ok(text) => Ok(Config::parse(text, path)?),
        Err(io::ErrorKind::NotFound) if asked => Err(ConfigError::NotFound(path.to_owned())),
        Err(io::ErrorKind::NotFound) => Ok(Config::default()),
        Err(io::ErrorKind::InvalidData) => Err(ConfigError::NotText(path.to_owned())),
        Err(kind) => Err(ConfigError::Read(path.to_owned(), *kind)),
    }
}
