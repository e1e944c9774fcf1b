//! bpf-linker: it brings no LLVM of its own but loads the one that the compiler uses.

use std::path::Path;

use anyhow::Result;

use super::crates;

/// It goes with LLVM 22, which is the one in the packages.
pub(super) const VERSION: &str = "0.10.3";

/// Puts the linker into `folder`/bin.
pub(super) fn install(folder: &Path) -> Result<()> {
    crates::install("bpf-linker", VERSION, folder)
}
