//! `cargo xtask demo`: the agent at work, on this machine and for a few seconds.

use anyhow::Result;

use crate::{
    process::{self, cargo, require_root, with_agent},
    setup,
};

pub(crate) fn run(args: &[String]) -> Result<()> {
    require_root("demo")?;
    setup::everything()?;
    process::run(cargo().args(["build", "-q", "-p", "guard-agent"]))?;
    let mut demo = cargo();
    demo.args(["run", "-q", "-p", "guard-tests", "--bin", "demo", "--"]).args(args);
    process::run(with_agent(&mut demo, "debug"))
}
