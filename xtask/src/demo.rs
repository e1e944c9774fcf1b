//! `cargo xtask demo`: the agent at work, on this machine and for a few seconds.

use std::process::Command;

use anyhow::Result;

use crate::{
    process::{self, cargo, program, require_root, with_agent},
    setup,
};

pub(crate) fn run(args: &[String]) -> Result<()> {
    require_root("demo")?;
    setup::everything()?;
    // All programs: the demo starts the agent and the traffic generator.
    process::run(cargo().args(["build", "-p", "guard-agent", "-p", "guard-tests", "--bins"]))?;
    let mut demo = Command::new(program("debug", "demo"));
    demo.args(args);
    process::run(with_agent(&mut demo, "debug"))
}
