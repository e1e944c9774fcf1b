//! cargo-fuzz, which compiles and runs the fuzz targets.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{crates, kept};
use crate::process::{output, root};

const NAME: &str = "cargo-fuzz";
const VERSION: &str = "0.13.2";

/// Compiles it if it is not there, or does not run on this system, and returns where it is.
pub(super) fn ensure() -> Result<PathBuf> {
    let shared = kept::cache().unwrap_or_else(|| root().join("target"));
    let folder = std::path::absolute(shared.join(format!("{NAME}-{VERSION}")))?;
    let program = folder.join("bin").join(NAME);
    kept::locked(&folder, || if runs(&program) { Ok(()) } else { crates::install(NAME, VERSION, &folder) })?;
    Ok(program)
}

fn runs(program: &Path) -> bool {
    output(Command::new(program).arg("--version")).is_ok()
}
