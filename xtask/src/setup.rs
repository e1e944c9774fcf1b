//! `cargo xtask setup`: fetches what is missing and nothing else; a second run finds everything there and says so.

mod apt;
mod control_plane;
mod crates;
mod fuzzer;
mod kept;
mod linker;
mod node;
mod recipe;
mod renderers;
mod toolchain;
mod tools;
mod unpacked;

use std::path::PathBuf;

use anyhow::{Result, bail};

pub(crate) use self::{node::Node, renderers::Renderers};
pub(crate) use unpacked::Unpacked;

/// The verb.
pub(crate) fn run() -> Result<()> {
    everything()?;
    println!("setup: everything is there");
    Ok(())
}

/// For the verbs that also start programs of the system.
pub(crate) fn everything() -> Result<()> {
    let mut missing = tools::ensure(&tools::SYSTEM);
    missing.extend(toolchain::ensure().err().map(|error| format!("{error:#}")));
    report(&missing)
}

/// For the verbs that only compile.
pub(crate) fn toolchain() -> Result<()> {
    let missing = toolchain::ensure().err().map(|error| format!("{error:#}"));
    report(missing.as_slice())
}

/// For the fuzz targets: where cargo-fuzz is.
pub(crate) fn fuzzer() -> Result<PathBuf> {
    report(&tools::ensure(&tools::FUZZING))?;
    fuzzer::ensure()
}

/// For the tests against a Kubernetes API server: where its programs are.
pub(crate) fn control_plane() -> Result<PathBuf> {
    control_plane::ensure()
}

/// For the tests on a whole node: what it is made of.
pub(crate) fn node() -> Result<Node> {
    report(&tools::ensure(&tools::GUESTS))?;
    node::ensure()
}

/// For the manifests: where kubectl, Helm and promtool are.
pub(crate) fn renderers() -> Result<Renderers> {
    report(&tools::ensure(&tools::FETCHING))?;
    renderers::ensure()
}

/// For the image: Debian's buildah and certificate authorities.
pub(crate) fn buildah() -> Result<Unpacked> {
    Unpacked::get("buildah", &["buildah", "ca-certificates"])
}

/// For the image's check: Debian's containerd.
pub(crate) fn containerd() -> Result<Unpacked> {
    Unpacked::get("containerd", &["containerd", "runc"])
}

/// All that is missing at once, each with its remedy: nobody wants to learn of it one run at a time.
fn report(missing: &[String]) -> Result<()> {
    if !missing.is_empty() {
        // What a child complained about may take several lines.
        let missing: Vec<_> = missing.iter().map(|thing| thing.replace('\n', "\n    ")).collect();
        bail!("setup is incomplete:\n  - {}", missing.join("\n  - "));
    }
    Ok(())
}

/// One line for each thing done.
fn say(what: impl std::fmt::Display) {
    println!("setup: {what}");
}
