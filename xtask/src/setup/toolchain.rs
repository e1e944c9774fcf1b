//! The compiler and the linker of the kernel programs, in a folder of their own beneath `target`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{
    apt,
    kept::{Kept, clear, empty, locked},
    linker,
    recipe::Recipe,
    say,
};
use crate::{kernel, process::output};

/// Calls the unpacked compiler as if it were installed.
const WRAPPER: &str = r#"#!/bin/sh
here=$(cd "$(dirname "$0")/.." && pwd)
export LD_LIBRARY_PATH="$here/usr/lib/x86_64-linux-gnu"
exec "$here/usr/bin/rustc" --sysroot "$here/usr" "$@"
"#;

/// The least that needs compiler, `core`, linker and LLVM to be there and to go together.
const PROBE: &str = "#![no_std]\n#![no_main]\n\
    #[panic_handler]\nfn panic(_: &core::panic::PanicInfo) -> ! { loop {} }\n\
    #[unsafe(no_mangle)]\npub extern \"C\" fn probe() -> u64 { 0 }\n";

/// Sees to it that the kernel programs can be compiled.
pub(super) fn ensure() -> Result<()> {
    let (own, recipe) = (kernel::own_folder(), Recipe::toolchain());
    if recipe.is_done(&own) {
        return Ok(());
    }
    let apt = apt::is_available();
    if !(apt && apt::knows_compiler()) && kernel::find_system_compiler().is_some() {
        return ensure_linker(&own);
    }
    if !apt {
        bail!(
            "no compiler for the kernel programs, and no apt-get to fetch Debian's for x86-64: \
             run `rustup toolchain install nightly --component rust-src`"
        );
    }
    Kept { recipe: &recipe, make, probe }.ensure(&own)
}

/// To go with a compiler that is not ours; our own toolchain brings its linker along.
fn ensure_linker(own: &Path) -> Result<()> {
    if kernel::has_linker() { Ok(()) } else { locked(own, || linker::install(own)) }
}

/// Puts compiler and linker into `folder` and returns the packages' names with their versions, one a line.
fn make(folder: &Path) -> Result<String> {
    let packages = fetch(folder)?;
    wrap(folder)?;
    linker::install(folder)?;
    Ok(packages)
}

/// Unpacks the compiler beneath `folder` and returns the packages' names with their versions, one a line.
fn fetch(folder: &Path) -> Result<String> {
    let folder_for_packages = folder.join("packages");
    say("downloading Debian's compiler for the kernel programs");
    let packages = apt::with_current_lists(|| download(&folder_for_packages))?;
    let mut names = String::new();
    for package in &packages {
        apt::unpack(package, folder)?;
        names.extend([&*package.file_stem().unwrap_or_default().to_string_lossy(), "\n"]);
    }
    clear(&folder_for_packages)?;
    say(format_args!("{} packages unpacked", packages.len()));
    Ok(names)
}

fn download(folder: &Path) -> Result<Vec<PathBuf>> {
    let packages = apt::packages()?
        .ok_or_else(|| anyhow!("apt knows no compiler for the kernel programs (the package {})", apt::BPF_PACKAGES))?;
    empty(folder)?;
    apt::download(&packages, folder)
}

fn wrap(folder: &Path) -> Result<()> {
    let bin = folder.join("bin");
    let wrapper = bin.join("rustc");
    fs::create_dir_all(&bin)
        .and_then(|()| fs::write(&wrapper, WRAPPER))
        .and_then(|()| fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("{} could not be written", wrapper.display()))
}

/// Compiles and links a program for the kernel.
fn probe(folder: &Path) -> Result<()> {
    let (source, object) = (folder.join("probe.rs"), folder.join("probe"));
    fs::write(&source, PROBE).with_context(|| format!("{} could not be written", source.display()))?;
    let mut rustc = Command::new(folder.join("bin/rustc"));
    rustc
        // As the release profile does: linking all of an unoptimised `core` takes seconds.
        .args(["-C", "lto", "-C", "opt-level=3", "-C", "panic=abort", "--edition", "2024", "--target", kernel::TARGET])
        .args(kernel::FLAGS)
        .arg("-C")
        .arg(format!("linker={}", folder.join("bin/bpf-linker").display()))
        .arg("-o")
        .args([&object, &source]);
    output(&mut rustc).with_context(|| {
        format!("the compiler in Debian's packages does not go with bpf-linker {}", linker::VERSION)
    })?;
    clear(&source)?;
    clear(&object)
}
