//! `cargo xtask test`: every test of the workspace, the whole-system ones last and one at a time; `--long`: then the
//! core's properties in many more worlds, and the fuzz targets.

use anyhow::{Context as _, Result};

use crate::{
    fuzz::Fuzzer,
    process::{self, cargo, program, require_root, with_agent},
    setup,
};

const WHOLE_SYSTEM: &str = "guard-tests";

/// In how many random worlds the core's properties are tested.
const CASES: &str = "EGRESS_GUARD_CASES";

pub(crate) fn run(long: bool, args: &[String]) -> Result<()> {
    require_root("test")?;
    setup::everything()?;
    // What is missing is said before anything takes its time.
    let fuzzer = if long { Some(Fuzzer::get()?) } else { None };
    ordinary(args)?;
    let Some(fuzzer) = fuzzer else { return Ok(()) };
    process::run(cargo().args(["test", "--release", "-p", "guard-core"]).env(CASES, "1000000"))?;
    fuzzer.run()
}

fn ordinary(args: &[String]) -> Result<()> {
    build_agents()?;
    if args.is_empty() {
        process::run(cargo().args(["test", "--workspace", "--exclude", WHOLE_SYSTEM]))?;
    }
    // They share one kernel: its cgroups, interfaces and pinned maps.
    let mut tests = cargo();
    tests.args(["test", "-p", WHOLE_SYSTEM, "--", "--test-threads=1"]).args(args);
    process::run(with_agent(&mut tests, "debug"))
}

/// The agent under test, and the one that takes over from it: the same, built again as another commit.
fn build_agents() -> Result<()> {
    let agent = program("debug", "guard-agent");
    process::run(cargo().args(["build", "-p", "guard-agent"]).env("EGRESS_GUARD_COMMIT", "rebuilt"))?;
    std::fs::copy(&agent, agent.with_file_name("guard-agent-rebuilt")).context("keep the rebuilt agent")?;
    process::run(cargo().args(["build", "-p", "guard-agent"]))
}
