//! `cargo xtask test`: every test of the workspace, the whole-system ones last; `--long`: then the
//! core's properties in many more worlds, and the fuzz targets.

use anyhow::{Context as _, Result};

use crate::{
    e2e,
    fuzz::Fuzzer,
    manifests, node,
    process::{self, cargo, program, require_root, with_agent},
    setup,
};

const WHOLE_SYSTEM: &str = "guard-tests";

/// The whole-system tests that compare figures to the byte or measure rates: one at a time, on a quiet machine.
const EXACT: [&str; 6] = ["exact", "lifecycle", "packets", "atomics", "police", "restart"];

/// The others wait most of the time, each for an agent of its own: so many at once.
const AT_ONCE: &str = "3";

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
        let others =
            [WHOLE_SYSTEM, e2e::PACKAGE, node::PACKAGE, manifests::TESTS].map(|package| ["--exclude", package]);
        process::run(cargo().args(["test", "--workspace"]).args(others.as_flattened()))?;
    }
    if !args.is_empty() {
        return whole_system(&["--lib", "--bins", "--tests"], "1", args);
    }
    let (exact, patient) = files()?.into_iter().partition::<Vec<_>, _>(|file| EXACT.contains(&file.as_str()));
    let named =
        |files: &[String]| files.iter().flat_map(|file| ["--test".to_owned(), file.clone()]).collect::<Vec<_>>();
    whole_system(&["--lib", "--bins"], "1", args)?;
    whole_system(&named(&patient), AT_ONCE, args)?;
    whole_system(&named(&exact), "1", args)
}

/// The names of the files of whole-system tests.
fn files() -> Result<Vec<String>> {
    let folder = process::root().join("tests/tests");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let rust = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let mut names: Vec<String> = rust.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

fn whole_system(which: &[impl AsRef<std::ffi::OsStr>], threads: &str, args: &[String]) -> Result<()> {
    let mut tests = cargo();
    tests.args(["test", "-p", WHOLE_SYSTEM]).args(which).args(["--", "--test-threads", threads]).args(args);
    process::run(with_agent(&mut tests, "debug"))
}

/// The agent under test, and the one that takes over from it: the same, built again as another commit.
fn build_agents() -> Result<()> {
    let agent = program("debug", "guard-agent");
    process::run(cargo().args(["build", "-p", "guard-agent"]).env("EGRESS_GUARD_COMMIT", "rebuilt"))?;
    std::fs::copy(&agent, agent.with_file_name("guard-agent-rebuilt")).context("keep the rebuilt agent")?;
    process::run(cargo().args(["build", "-p", "guard-agent"]))
}
