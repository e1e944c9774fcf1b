//! `cargo xtask bench`: what the agent costs, measured on programs built as they ship.

use std::process::Command;

use anyhow::Result;

use crate::{
    process::{self, cargo, program, require_root, with_agent},
    setup,
};

pub(crate) fn run(args: &[String]) -> Result<()> {
    require_root("bench")?;
    setup::everything()?;
    process::run(cargo().args(["build", "--release", "-p", "guard-agent", "-p", "guard-tests"]))?;
    let mut bench = Command::new(program("release", "bench"));
    bench.args(args);
    process::run(with_agent(&mut bench, "release"))
}
