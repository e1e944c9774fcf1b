//! `cargo xtask image`: the agent as an OCI archive. `--check`: that it runs under containerd, and that the same program
//! gives the same archive to the byte; `--rebuild`: that so do the same sources, in another folder.

mod archive;
mod check;
mod source;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::{
    process::{self, cargo, require_root, root, target_dir},
    setup,
};
use archive::Archive;
use source::Source;

/// The C library is linked in, so that the image needs none. Named as a target, so that the flag is not for what runs
/// while compiling: build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What images call [`TARGET`]'s processor.
const ARCHITECTURE: &str = "amd64";

/// The name under which runtimes know the image once it is imported.
const NAME: &str = concat!("localhost/egress-guard:", env!("CARGO_PKG_VERSION"));

pub(crate) fn run(check: bool, rebuild: bool) -> Result<()> {
    if env::consts::ARCH != "x86_64" {
        bail!("the image is made for {ARCHITECTURE} only, on such a machine: this one is {}", env::consts::ARCH);
    }
    if check {
        require_root("image --check")?;
        setup::everything()?;
    }
    setup::toolchain()?;
    let (buildah, source) = (setup::buildah()?, Source::current()?);
    // What is missing is said before anything takes its time.
    let containerd = if check { Some(setup::containerd()?) } else { None };
    let (archive, agent) = pack(&buildah, &source)?;
    let Some(containerd) = containerd else { return Ok(()) };
    check::is_anonymous(&agent)?;
    let pack = |agent: &Path, folder: &Path| Archive::make(&buildah, &source, agent, folder.join("again.oci.tar"));
    check::is_packed_the_same(&archive, || pack(&agent, &target_dir()))?;
    check::runs(&archive, &agent, &containerd)?;
    if rebuild {
        check::is_built_the_same(&archive, &agent, |folder| {
            let agent = build(folder, &folder.join("built"), &source)?;
            Ok((pack(&agent, folder)?, agent))
        })?;
    }
    Ok(())
}

/// The image, for tests that run it: where its archive is.
pub(crate) fn make() -> Result<PathBuf> {
    setup::toolchain()?;
    let (archive, _) = pack(&setup::buildah()?, &Source::current()?)?;
    Ok(archive.path)
}

fn pack(buildah: &setup::Unpacked, source: &Source) -> Result<(Archive, PathBuf)> {
    let agent = build(root(), &target_dir(), source)?;
    let place = target_dir().join(format!("egress-guard-{}-{ARCHITECTURE}.oci.tar", env!("CARGO_PKG_VERSION")));
    let archive = Archive::make(buildah, source, &agent, place)?;
    println!("image: {archive}");
    Ok((archive, agent))
}

/// Builds the agent from the sources in `folder`, which leave no trace of where that is.
fn build(folder: &Path, target_dir: &Path, source: &Source) -> Result<PathBuf> {
    let mut flags = OsString::from("-Ctarget-feature=+crt-static");
    // Of those that hold, rustc takes the last.
    let own = [(folder.to_owned(), "/egress-guard"), (target_dir.to_owned(), "/target")];
    for (folder, name) in own.into_iter().chain(libraries().into_iter().map(|folder| (folder, "/cargo"))) {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(folder);
        flags.push(format!("={name}"));
    }
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--package", "guard-agent", "--target", TARGET]);
    build.current_dir(folder).env("CARGO_TARGET_DIR", target_dir).env("CARGO_ENCODED_RUSTFLAGS", flags);
    process::run(build.env("EGRESS_GUARD_COMMIT", source.commit()))?;
    Ok(target_dir.join(TARGET).join("release/guard-agent"))
}

/// Where cargo keeps the sources of the libraries: a folder in its home for each registry, whose name says which it is.
fn libraries() -> Vec<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let Some(home) = home else { return vec![] };
    let registries = fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
    let mut folders: Vec<_> = registries.map(|registry| registry.path()).collect();
    folders.sort();
    folders.insert(0, home);
    folders
}
