//! Programs that are compiled from their crates.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::process::{cargo, output};

/// What a user set for their own builds does not concern this one.
const FOREIGN: [&str; 8] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC",
    "RUSTC_BOOTSTRAP",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
];

/// Puts the program into `folder`/bin.
pub(super) fn install(name: &str, version: &str, folder: &Path) -> Result<()> {
    super::say(format_args!("compiling {name} {version} (a minute or two)"));
    let build = folder.join(format!("{name}-build"));
    let mut install = cargo();
    install.args(["install", "--quiet", "--force", name, "--version", version, "--locked", "--root"]).arg(folder);
    install.env("CARGO_TARGET_DIR", &build);
    for variable in FOREIGN {
        install.env_remove(variable);
    }
    output(&mut install).with_context(|| format!("{name} could not be compiled"))?;
    fs::remove_dir_all(&build).with_context(|| format!("{} could not be removed", build.display()))
}
