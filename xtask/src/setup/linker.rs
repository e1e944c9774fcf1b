//! bpf-linker, compiled from its crate: it brings no LLVM of its own but loads the one that the compiler uses.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::process::{cargo, output};

/// It goes with LLVM 22, which is the one in the packages.
pub(super) const VERSION: &str = "0.10.3";

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

/// Puts the linker into `folder`/bin.
pub(super) fn install(folder: &Path) -> Result<()> {
    super::say(format_args!("compiling bpf-linker {VERSION} (a minute or two)"));
    let build = folder.join("bpf-linker-build");
    let mut install = cargo();
    install.args(["install", "--quiet", "bpf-linker", "--version", VERSION, "--locked", "--root"]).arg(folder);
    install.env("CARGO_TARGET_DIR", &build);
    for variable in FOREIGN {
        install.env_remove(variable);
    }
    output(&mut install).context("bpf-linker could not be compiled")?;
    fs::remove_dir_all(&build).with_context(|| format!("{} could not be removed", build.display()))
}
