//! `cargo xtask e2e`: the agent against a real Kubernetes API server.

use anyhow::Result;

use crate::{
    manifests,
    process::{self, cargo, require_root, with_agent},
    setup,
};

/// The package of these tests.
pub(crate) const PACKAGE: &str = "guard-e2e";

/// Where the tests find the API server.
pub(crate) const CONTROL_PLANE: &str = "EGRESS_GUARD_CONTROL_PLANE";

pub(crate) fn run(args: &[String]) -> Result<()> {
    require_root("e2e")?;
    setup::everything()?;
    let control_plane = setup::control_plane()?;
    process::run(cargo().args(["build", "-p", "guard-agent", "-p", "guard-tests", "--bins"]))?;
    let mut tests = cargo();
    tests.args(["test", "-p", PACKAGE, "--"]).args(args).env(CONTROL_PLANE, control_plane);
    manifests::tools(&mut tests)?;
    process::run(with_agent(&mut tests, "debug"))
}
