//! `cargo xtask test`: every test of the workspace, the whole-system ones last and one at a time.

use anyhow::Result;

use crate::{
    process::{self, cargo, require_root, with_agent},
    setup,
};

const WHOLE_SYSTEM: &str = "guard-tests";

pub(crate) fn run(args: &[String]) -> Result<()> {
    require_root("test")?;
    setup::everything()?;
    // On its own, so that the program under test is built with the features it ships with.
    process::run(cargo().args(["build", "-p", "guard-agent"]))?;
    if args.is_empty() {
        process::run(cargo().args(["test", "--workspace", "--exclude", WHOLE_SYSTEM]))?;
    }
    // They share one kernel: its cgroups, interfaces and pinned maps.
    let mut tests = cargo();
    tests.args(["test", "-p", WHOLE_SYSTEM, "--", "--test-threads=1"]).args(args);
    process::run(with_agent(&mut tests, "debug"))
}
