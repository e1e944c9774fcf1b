//! `cargo xtask node`: the agent on a whole node, in a guest.

use std::{env, path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    e2e, image, manifests,
    process::{self, cargo, require_root, target_dir},
    setup, vm,
};

/// The package of these tests.
pub(crate) const PACKAGE: &str = "guard-node";

/// The program of the tests' pods. It has a C library within it, for there is nothing else in its image.
const LOAD: &str = "guard-load";
const TARGET: &str = "x86_64-unknown-linux-gnu";

pub(crate) fn run(docs: bool, shell: bool, args: &[String]) -> Result<()> {
    require_root("node")?;
    let mut tests = cargo();
    if shell {
        tests.args(["run", "--quiet", "-p", PACKAGE, "--bin", "shell"]);
    } else {
        // There is one node for all of them.
        tests.args(["test", "-p", PACKAGE, "--", "--test-threads", "1"]).args(args);
    }
    if docs {
        tests.env("EGRESS_GUARD_NODE_DOCS", "1");
    }
    parts(&mut tests)?;
    process::run(&mut tests)
}

/// Makes all that a node consists of, and tells a program where it is.
pub(crate) fn parts(program: &mut Command) -> Result<()> {
    setup::everything()?;
    let node = setup::node()?;
    let images = [image::make()?];
    let (load, older) = (load()?, vm::older()?);
    program.env(e2e::CONTROL_PLANE, &node.control_plane).env("EGRESS_GUARD_NODE", &node.filesystem);
    program.env("EGRESS_GUARD_KERNELS", &node.kernels).env("EGRESS_GUARD_LOAD", load);
    program.env("EGRESS_GUARD_OLDER", older);
    program.env("EGRESS_GUARD_IMAGES", env::join_paths(images)?);
    manifests::tools(program)
}

fn load() -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", LOAD, "--target", TARGET]);
    process::run(build.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static"))?;
    Ok(target_dir().join(TARGET).join("release/load"))
}
