//! Builds the kernel programs with whatever compiler for them is at hand, for the agent to embed.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// Where `cargo xtask setup` puts the compiler and the linker.
const TOOLCHAIN: &str = "target/toolchain";

const FLAGS: &str = "-C debuginfo=2 -C target-cpu=v3 -C link-arg=--btf";

/// A way to compile for `bpfel-unknown-none`.
struct Compiler {
    rustc: PathBuf,
    /// What its LLVM needs to be found, by the linker as well.
    library_path: Option<PathBuf>,
    args: Vec<&'static str>,
}

fn main() -> Result<()> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?);
    let root = here.parent().context("the crate lies in the workspace")?.to_path_buf();
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    for watched in ["guard-ebpf/src", "guard-ebpf/Cargo.toml", "guard-ebpf/Cargo.lock", "guard-common/src"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-changed={}", root.join(TOOLCHAIN).join("complete").display());
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rustc-env=GIT_COMMIT={}", commit(&root));

    let compiler = find_compiler(&root)?;
    let linker = find_linker(&root)?;
    // Beside the profiles' folders, so that all of them share one build: <target>/<profile>/build/<package>/out.
    let target = out.ancestors().nth(4).context("cargo's OUT_DIR lies deeper")?.join("ebpf");
    let mut cargo = Command::new(env::var_os("CARGO").context("cargo sets CARGO")?);
    cargo
        .args(["build", "--release", "--locked", "--bins", "--target", "bpfel-unknown-none"])
        .args(&compiler.args)
        .arg("--manifest-path")
        .arg(root.join("guard-ebpf/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&root))
        .env("PATH", prepend(&linker, "PATH"))
        .env("RUSTC_WRAPPER", wrapper(&out)?)
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN");
    if let Some(path) = &compiler.library_path {
        cargo.env("LD_LIBRARY_PATH", prepend(path, "LD_LIBRARY_PATH"));
    }
    let status = cargo.status().context("cargo could not be started")?;
    if !status.success() {
        bail!("the kernel programs did not compile with {}", compiler.rustc.display());
    }
    for object in ["guard", "bench"] {
        fs::copy(target.join("bpfel-unknown-none/release").join(object), out.join(object))
            .with_context(|| format!("the build left no object {object}"))?;
    }
    Ok(())
}

/// guard-common lies outside the kernel programs' workspace, so cargo tells it, and all that uses it, apart by where
/// that is; and symbols have names by that.
const WRAPPER: &str = r#"#!/bin/sh
case ${CARGO_PKG_NAME:-} in
guard-*)
    for argument; do
        shift
        case $argument in metadata=*) argument=metadata=$CARGO_PKG_NAME ;; esac
        set -- "$@" "$argument"
    done
    ;;
esac
exec "$@"
"#;

/// Writes what the compiler is called through: the symbols of our own crates are to have the same names wherever they are
/// built.
fn wrapper(out: &Path) -> Result<PathBuf> {
    let path = out.join("rustc");
    fs::write(&path, WRAPPER).with_context(|| format!("{} could not be written", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// [`FLAGS`], and what keeps this machine's folders out of the debug information, which the kernel gets as line info: the
/// same commit is to give the same object wherever it is built.
fn flags(root: &Path) -> OsString {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    // A folder for each registry, whose name says which it is. Of those that hold, rustc takes the last.
    let registries = home.as_ref().and_then(|home| fs::read_dir(home.join("registry/src")).ok());
    let mut libraries: Vec<_> = registries.into_iter().flatten().flatten().map(|registry| registry.path()).collect();
    libraries.sort();
    let libraries = home.into_iter().chain(libraries).map(|folder| (folder, "/cargo"));
    let mut flags = OsString::from(FLAGS.replace(' ', "\x1f"));
    // What the wrapper does cargo does not see: with another flag it does not take what was built without it.
    flags.push("\x1f-Cmetadata=egress-guard");
    for (folder, name) in [(root.to_owned(), "/egress-guard")].into_iter().chain(libraries) {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(folder);
        flags.push(format!("={name}"));
    }
    flags
}

/// The project's own compiler, else Debian's with its BPF library, else rustup's nightly with the sources of `core`.
fn find_compiler(root: &Path) -> Result<Compiler> {
    let own = root.join(TOOLCHAIN);
    if own.join("complete").exists() {
        return Ok(Compiler {
            rustc: own.join("bin/rustc"),
            library_path: Some(own.join("usr/lib/x86_64-linux-gnu")),
            args: vec![],
        });
    }
    if Path::new("/usr/lib/rustlib/bpfel-unknown-none").exists() && Path::new("/usr/bin/rustc").exists() {
        return Ok(Compiler { rustc: "/usr/bin/rustc".into(), library_path: None, args: vec![] });
    }
    let nightly = Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]).output();
    if let Ok(found) = nightly
        && found.status.success()
    {
        let rustc = PathBuf::from(String::from_utf8(found.stdout)?.trim());
        let toolchain = rustc.ancestors().nth(2).context("rustc lies in its toolchain's bin")?;
        if toolchain.join("lib/rustlib/src/rust/library/core").exists() {
            let library_path = Some(toolchain.join("lib"));
            return Ok(Compiler { rustc, library_path, args: vec!["-Zbuild-std=core"] });
        }
    }
    bail!(
        "no compiler for the kernel programs: run `cargo xtask setup`, which puts one into {TOOLCHAIN} \
         (or install Debian's rustc and libstd-rust-dev-bpf, or rustup's nightly with the component rust-src)"
    )
}

/// The folder that holds bpf-linker.
fn find_linker(root: &Path) -> Result<PathBuf> {
    let own = root.join(TOOLCHAIN).join("bin");
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(own)
        .chain(env::split_paths(&path))
        .find(|dir| dir.join("bpf-linker").exists())
        .context("no bpf-linker: run `cargo xtask setup` (or `cargo install bpf-linker --version 0.10.3 --locked`)")
}

fn prepend(first: &Path, variable: &str) -> OsString {
    let rest = env::var_os(variable).unwrap_or_default();
    let all = std::iter::once(first.to_path_buf()).chain(env::split_paths(&rest).filter(|p| !p.as_os_str().is_empty()));
    env::join_paths(all).unwrap_or_else(|_| first.as_os_str().to_os_string())
}

/// The commit that is built, for `egress_guard_build_info`.
///
/// Whoever builds without the repository says it in `EGRESS_GUARD_COMMIT`.
fn commit(root: &Path) -> String {
    println!("cargo::rerun-if-env-changed=EGRESS_GUARD_COMMIT");
    if let Ok(commit) = env::var("EGRESS_GUARD_COMMIT") {
        return commit;
    }
    println!("cargo::rerun-if-changed={}", root.join(".git/HEAD").display());
    let git = Command::new("git").arg("-C").arg(root).args(["rev-parse", "--short=12", "HEAD"]).output();
    match git {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        _ => "unknown".into(),
    }
}
