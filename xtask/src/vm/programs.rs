//! What runs in the guests: the whole-system tests and what they start, linked statically.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::process::{self, cargo, output, target_dir};

/// Named, so that the flag is not for what runs while compiling: build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

const STATIC: &str = "-Ctarget-feature=+crt-static";

/// What is emulated is slow: a little optimised it is several times quicker, and takes no longer to build than it saves.
const PROFILE: [&str; 4] = ["--config", "profile.dev.opt-level=1", "--config", "profile.dev.debug=false"];

/// The commit that the agent is said to be built from, whichever it is: another one would have it built anew.
const COMMIT: &str = "built-by-the-kernel-matrix";

/// What the one that takes over from it says instead. On the host that is the same agent built again as another commit,
/// of which nothing but this would be different: it is written into a copy.
const REBUILT: &str = "rebuilt-for-kernel-matrix.";

/// What the tests start besides the agent.
const TRAFFIC: [&str; 2] = ["attacker", "traffic"];

/// Of an agent as it was before an upgrade. It is built in another profile, if only by this, and so kept apart: neither is
/// built anew for the other.
const OLDER_LAYOUT: &str = "1";
const APART: [&str; 2] = ["--config", "profile.dev.package.guard-common.codegen-units=255"];

/// Programs by name, stripped.
pub(crate) struct Programs {
    /// Where they lie.
    pub(crate) folder: PathBuf,
    pub(crate) tests: Vec<(String, PathBuf)>,
    pub(crate) helpers: Vec<(String, PathBuf)>,
}

impl Programs {
    /// Builds them; of the tests only these files, if any are named.
    pub(crate) fn build(files: &[String]) -> Result<Self> {
        let folder = target_dir().join("vm");
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let agent = target_dir().join(TARGET).join("debug/guard-agent");
        process::run(static_cargo("build").args(["-p", "guard-agent"]))?;
        let mut helpers = vec![strip("guard-agent", &agent, &folder)?];
        helpers.push(rebuilt(&folder.join("guard-agent"), &folder)?);
        let mut build = static_cargo("test");
        build.args(["--no-run", "-p", "guard-tests", "--message-format", "json-render-diagnostics"]);
        if files.is_empty() {
            build.arg("--tests");
        } else {
            // What the tests start comes along with the first of them.
            build.args(files.iter().flat_map(|file| ["--test", file]));
        }
        let said = output(build.stderr(Stdio::inherit()))?;
        let mut tests = Vec::new();
        for line in said.lines() {
            let message: serde_json::Value = serde_json::from_str(line).context("cargo's messages are JSON")?;
            let (Some(path), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str()) else {
                continue;
            };
            if message["target"]["kind"][0] == "test" {
                tests.push(strip(name, Path::new(path), &folder)?);
            } else if TRAFFIC.contains(&name) && message["profile"]["test"] == false {
                helpers.push(strip(name, Path::new(path), &folder)?);
            }
        }
        tests.sort();
        Ok(Self { folder, tests, helpers })
    }
}

/// An agent as it was before an upgrade, for that one: what it pins lies in the folder of another layout.
pub(crate) fn older() -> Result<PathBuf> {
    let folder = target_dir().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let mut build = static_cargo("build");
    build.args(["-p", "guard-agent"]).args(APART).env("EGRESS_GUARD_LAYOUT", OLDER_LAYOUT);
    process::run(&mut build)?;
    let agent = target_dir().join(TARGET).join("debug/guard-agent");
    Ok(strip("guard-agent-older", &agent, &folder)?.1)
}

fn static_cargo(verb: &str) -> Command {
    let mut cargo = cargo();
    cargo
        .arg(verb)
        .args(["--target", TARGET])
        .args(PROFILE)
        .env("RUSTFLAGS", STATIC)
        .env("EGRESS_GUARD_COMMIT", COMMIT);
    cargo
}

/// A copy of the agent that says that it was built from another commit.
fn rebuilt(agent: &Path, folder: &Path) -> Result<(String, PathBuf)> {
    const { assert!(COMMIT.len() == REBUILT.len()) };
    let mut bytes = fs::read(agent).with_context(|| format!("read {}", agent.display()))?;
    let says = bytes.windows(COMMIT.len()).enumerate().filter(|(_, window)| *window == COMMIT.as_bytes());
    let places: Vec<usize> = says.map(|(place, _)| place).collect();
    ensure!(!places.is_empty(), "{} does not say what it was built from", agent.display());
    for place in places {
        bytes[place..place + REBUILT.len()].copy_from_slice(REBUILT.as_bytes());
    }
    let place = folder.join("guard-agent-rebuilt");
    fs::write(&place, bytes).with_context(|| format!("write {}", place.display()))?;
    Ok(("guard-agent-rebuilt".to_owned(), place))
}

/// A copy without symbols, of which a program has more than code; they would lie in the guest's memory.
fn strip(name: &str, program: &Path, folder: &Path) -> Result<(String, PathBuf)> {
    let place = folder.join(name);
    output(Command::new("strip").arg("-o").arg(&place).arg(program))
        .with_context(|| format!("strip {}", program.display()))?;
    Ok((name.to_owned(), place))
}
