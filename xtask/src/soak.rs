//! `cargo xtask soak`: random load, kills and faults on a whole node, and what must hold all the while.

use anyhow::Result;

use crate::{
    node,
    process::{self, cargo, require_root, root},
};

/// The package of the program.
const PACKAGE: &str = "guard-soak";

/// Where the result of the long run is told.
const DOCS: &str = "docs/soak.md";

pub(crate) fn run(minutes: u32, seed: Option<u64>, plan: bool, docs: bool) -> Result<()> {
    let mut soak = cargo();
    soak.args(["run", "--quiet", "-p", PACKAGE, "--bin", "soak", "--", "--minutes", &minutes.to_string()]);
    if let Some(seed) = seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    if plan {
        return process::run(soak.arg("--plan"));
    }
    require_root("soak")?;
    if docs {
        soak.arg("--docs").arg(root().join(DOCS));
    }
    node::parts(&mut soak)?;
    process::run(&mut soak)
}
