//! `cargo xtask lint`: format and lints, those of the kernel programs with the compiler that builds them.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{
    kernel::{self, Compiler},
    process::{self, at_root, cargo, root},
    setup,
};

const KERNEL_MANIFEST: &str = "guard-ebpf/Cargo.toml";
const FUZZ_MANIFEST: &str = "fuzz/Cargo.toml";

pub(crate) fn run() -> Result<()> {
    // The format needs no toolchain; who only forgot to format hears of it at once.
    process::run(cargo().args(["fmt", "--all", "--check"]))?;
    process::run(cargo().args(["fmt", "--check", "--manifest-path", KERNEL_MANIFEST]))?;
    process::run(cargo().args(["fmt", "--check", "--manifest-path", FUZZ_MANIFEST]))?;
    setup::toolchain()?;
    process::run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let compiler = kernel::find_compiler().context("no compiler for the kernel programs: run `cargo xtask setup`")?;
    process::run(&mut kernel_clippy(&compiler)?)
}

/// The kernel programs' clippy. It is the compiler's own, not rustup's: it reads `core` as that compiler wrote it.
fn kernel_clippy(compiler: &Compiler) -> Result<Command> {
    let Compiler { rustc, cargo_clippy, library_path, sysroot, args } = compiler;
    if !cargo_clippy.exists() {
        bail!("{} has no clippy beside it: install the one of the same version", rustc.display());
    }
    let mut clippy = at_root(cargo_clippy);
    // The programs have no test targets: there is no `std` to run tests with.
    clippy
        .args(["clippy", "--locked", "--lib", "--bins", "--target", kernel::TARGET, "--manifest-path", KERNEL_MANIFEST])
        .args(*args)
        .arg("--target-dir")
        .arg(root().join("target/ebpf-lint"))
        .args(["--", "-D", "warnings"])
        .env("RUSTC", rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", kernel::FLAGS.join("\x1f"))
        // How the driver learns where `core` lies when cargo calls it in the compiler's place.
        .env("SYSROOT", sysroot)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN");
    if let Some(path) = library_path {
        clippy.env("LD_LIBRARY_PATH", path);
    }
    Ok(clippy)
}
