//! What the image is made from, and of when that is.

use std::env;

use anyhow::{Context as _, Result};

use crate::process::{at_root, output};

/// <https://reproducible-builds.org/specs/source-date-epoch/>
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// As guard-agent's build script knows it.
const COMMIT: &str = "EGRESS_GUARD_COMMIT";

pub(super) struct Source {
    revision: String,
    seconds: u64,
}

impl Source {
    /// The commit that is checked out, or what the environment says for one who builds without the repository.
    pub(super) fn current() -> Result<Self> {
        let git = |arguments: &[&str]| output(at_root("git").args(arguments)).map(|said| said.trim().to_owned());
        let revision = if let Ok(commit) = env::var(COMMIT) {
            commit
        } else {
            let commit = git(&["rev-parse", "HEAD"]).with_context(|| format!("no commit: set {COMMIT}"))?;
            let clean = git(&["status", "--porcelain"])?.is_empty();
            if clean { commit } else { format!("{commit}-dirty") }
        };
        let seconds = match env::var(EPOCH) {
            Ok(seconds) => seconds,
            Err(_) => git(&["log", "-1", "--format=%ct"]).with_context(|| format!("no commit: set {EPOCH}"))?,
        };
        let seconds = seconds.parse().with_context(|| format!("{EPOCH}: {seconds:?} is not a number of seconds"))?;
        Ok(Self { revision, seconds })
    }

    /// The whole commit; `-dirty` follows where files were changed since.
    pub(super) fn revision(&self) -> &str {
        &self.revision
    }

    /// For `egress_guard_build_info`.
    pub(super) fn commit(&self) -> &str {
        self.revision.get(..12).unwrap_or(&self.revision)
    }

    /// The time of everything in the image, in seconds since 1970.
    pub(super) fn seconds(&self) -> u64 {
        self.seconds
    }

    /// The same as RFC 3339 has it.
    pub(super) fn created(&self) -> Result<String> {
        let time =
            output(at_root("date").args(["--utc", "+%Y-%m-%dT%H:%M:%SZ", "--date"]).arg(format!("@{}", self.seconds)))?;
        Ok(time.trim().to_owned())
    }
}
