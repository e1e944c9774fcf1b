//! `cargo xtask manifests`: renders all that an operator applies, with the tools that an operator has, and tests it.

use std::process::Command;

use anyhow::Result;

use crate::{
    process::{self, cargo},
    setup::{self, Renderers},
};

/// The crate of these tests. They need more tools than the others, so the others leave them out.
pub(crate) const TESTS: &str = "guard-deploy";

pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut tests = cargo();
    tests.args(["test", "--no-fail-fast", "-p", TESTS, "--"]).args(args);
    tools(&mut tests)?;
    process::run(&mut tests)
}

/// Tells a test where the tools are that render.
pub(crate) fn tools(tests: &mut Command) -> Result<()> {
    let Renderers { kubectl, helm, promtool } = setup::renderers()?;
    tests.env("EGRESS_GUARD_KUBECTL", kubectl).env("EGRESS_GUARD_HELM", helm).env("EGRESS_GUARD_PROMTOOL", promtool);
    Ok(())
}
