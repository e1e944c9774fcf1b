//! The root filesystem of the guest that is a whole node.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    control_plane,
    kept::{Kept, cache},
    recipe::Recipe,
};
use crate::process::{self, at_root, root, target_dir};

/// Makes it; what it says is its recipe, with what the programs of the node are made by.
const SCRIPT: &str = include_str!("node.sh");
const SCRIPT_PATH: &str = "xtask/src/setup/node.sh";

/// What the tests on a node take.
pub(crate) struct Node {
    /// The folder of the programs of the control plane.
    pub(crate) control_plane: PathBuf,
    /// The folder of the root filesystem.
    pub(crate) filesystem: PathBuf,
    /// The folder in which kernels are kept.
    pub(crate) kernels: PathBuf,
}

/// Makes it if it is not there: a minute or two, and ten where the programs of the node are not there either.
pub(super) fn ensure() -> Result<Node> {
    let control_plane = control_plane::ensure()?;
    let own = target_dir().join("node");
    let recipe = Recipe::new("node", format!("{SCRIPT}\n{}", control_plane::SCRIPT));
    Kept { recipe: &recipe, make, probe }.ensure(&own)?;
    let kernels = cache().unwrap_or_else(|| root().join("target"));
    Ok(Node { control_plane, filesystem: own, kernels })
}

fn make(folder: &Path) -> Result<String> {
    let mut make = at_root("nice");
    make.args(["-n", "5", "bash"]).args([&root().join(SCRIPT_PATH), folder, &control_plane::ensure()?]);
    process::run(&mut make).context("the root filesystem of the node could not be made")?;
    Ok(String::new())
}

fn probe(folder: &Path) -> Result<()> {
    let image = folder.join("root.ext4");
    let size = fs::metadata(&image).with_context(|| format!("{} could not be read", image.display()))?.len();
    ensure!(size > 0, "{} is empty", image.display());
    Ok(())
}
