//! Where the compiler and the linker of the kernel programs lie: the same places, in the same order, in which
//! guard-agent's build script looks for them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::root;

/// How the kernel programs are compiled, there as here.
pub(crate) const FLAGS: [&str; 6] = ["-C", "debuginfo=2", "-C", "target-cpu=v3", "-C", "link-arg=--btf"];

pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// A compiler for [`TARGET`], with the clippy that belongs to it.
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo_clippy: PathBuf,
    /// Where its libraries lie, if the loader does not know by itself.
    pub(crate) library_path: Option<PathBuf>,
    pub(crate) sysroot: PathBuf,
    pub(crate) args: &'static [&'static str],
}

/// The project's own folder for compiler and linker.
pub(crate) fn own_folder() -> PathBuf {
    root().join("target/toolchain")
}

pub(crate) fn find_compiler() -> Option<Compiler> {
    own(&own_folder()).or_else(find_system_compiler)
}

/// A compiler that the user brought along.
pub(crate) fn find_system_compiler() -> Option<Compiler> {
    debian(Path::new("/usr")).or_else(nightly)
}

/// The compiler that the setup unpacked into `folder`.
fn own(folder: &Path) -> Option<Compiler> {
    folder.join("complete").exists().then(|| Compiler {
        rustc: folder.join("bin/rustc"),
        cargo_clippy: folder.join("usr/bin/cargo-clippy"),
        library_path: Some(folder.join("usr/lib/x86_64-linux-gnu")),
        sysroot: folder.join("usr"),
        args: &[],
    })
}

/// The compiler that Debian's packages install.
fn debian(usr: &Path) -> Option<Compiler> {
    let rustc = usr.join("bin/rustc");
    (rustc.exists() && usr.join("lib/rustlib").join(TARGET).exists()).then(|| Compiler {
        rustc,
        cargo_clippy: usr.join("bin/cargo-clippy"),
        library_path: None,
        sysroot: usr.to_path_buf(),
        args: &[],
    })
}

/// rustup's nightly, which has no `core` for the target but can build it if the sources are there.
fn nightly() -> Option<Compiler> {
    let found = Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]).output().ok()?;
    let rustc = PathBuf::from(String::from_utf8(found.stdout).ok().filter(|_| found.status.success())?.trim());
    let sysroot = rustc.ancestors().nth(2)?.to_path_buf();
    sysroot.join("lib/rustlib/src/rust/library/core").exists().then(|| Compiler {
        rustc,
        cargo_clippy: sysroot.join("bin/cargo-clippy"),
        library_path: Some(sysroot.join("lib")),
        sysroot,
        args: &["-Zbuild-std=core"],
    })
}

/// Whether a bpf-linker lies where the build looks for one.
pub(crate) fn has_linker() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = own_folder().join("bin");
    std::iter::once(own).chain(env::split_paths(&path)).any(|dir| dir.join("bpf-linker").exists())
}
