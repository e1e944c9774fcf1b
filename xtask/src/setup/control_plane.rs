//! The programs of a Kubernetes control plane, of a node, and kubectl, for the tests that want a real API server.
//!
//! Nobody packages an API server for Debian, but Debian has the source: the newest that it has is Kubernetes 1.20.2.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{kept::Kept, recipe::Recipe};
use crate::process::{self, is_installed, output, root, target_dir};

/// Makes them; what it says is their recipe.
pub(super) const SCRIPT: &str = include_str!("control_plane.sh");
const SCRIPT_PATH: &str = "xtask/src/setup/control_plane.sh";

/// Each with the argument that makes it say its version.
const PROGRAMS: [(&str, &[&str]); 7] = [
    ("etcd", &["--version"]),
    ("kube-apiserver", &["--version"]),
    ("kube-controller-manager", &["--version"]),
    ("kube-scheduler", &["--version"]),
    ("kubelet", &["--version"]),
    ("kube-proxy", &["--version"]),
    ("kubectl", &["version", "--client"]),
];

/// What the script calls that a Debian system may lack.
const NEEDED: [&str; 3] = ["apt-get", "dpkg", "bash"];

/// Makes them if they are not there, which takes minutes, and returns the folder that they are in.
pub(super) fn ensure() -> Result<PathBuf> {
    let own = target_dir().join("control-plane");
    Kept { recipe: &Recipe::new("control-plane", SCRIPT), make, probe }.ensure(&own)?;
    Ok(own.join("bin"))
}

fn make(folder: &Path) -> Result<String> {
    if let Some(missing) = NEEDED.into_iter().find(|program| !is_installed(program)) {
        bail!("`{missing}` is not there: the Kubernetes API server is built from Debian's packages, on Debian only");
    }
    // Others shall get a word in edgeways on the two CPUs that it takes for minutes.
    let mut build = Command::new("nice");
    build.args(["-n", "5", "bash"]).args([&root().join(SCRIPT_PATH), folder]);
    process::run(&mut build).context("the Kubernetes control plane could not be built")?;
    Ok(String::new())
}

fn probe(folder: &Path) -> Result<()> {
    for (program, arguments) in PROGRAMS {
        output(Command::new(folder.join("bin").join(program)).args(arguments))?;
    }
    Ok(())
}
