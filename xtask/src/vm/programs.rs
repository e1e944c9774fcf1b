//! What runs in the guests: the whole-system tests and what they start, linked statically.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::process::{self, cargo, output, target_dir};

/// Named, so that the flag is not for what runs while compiling: build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

const STATIC: &str = "-Ctarget-feature=+crt-static";

/// What is emulated is slow: a little optimised it is several times quicker, and takes no longer to build than it saves.
const PROFILE: [&str; 4] = ["--config", "profile.dev.opt-level=1", "--config", "profile.dev.debug=false"];

/// Another profile, if only by this, is kept apart: neither agent is built anew for the other.
const APART: [&str; 2] = ["--config", "profile.dev.package.guard-agent.codegen-units=255"];

/// There is no such one.
const OLDER_LAYOUT: &str = "1";

/// Programs by name, stripped.
pub(crate) struct Programs {
    pub(crate) tests: Vec<(String, PathBuf)>,
    pub(crate) helpers: Vec<(String, PathBuf)>,
}

impl Programs {
    pub(crate) fn build() -> Result<Self> {
        let folder = target_dir().join("vm");
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let agent = target_dir().join(TARGET).join("debug/guard-agent");
        process::run(static_cargo("build").args(["-p", "guard-agent"]))?;
        let mut helpers = vec![strip("guard-agent", &agent, &folder)?];
        let mut rebuilt = static_cargo("build");
        rebuilt.args(["-p", "guard-agent"]).args(APART).env("EGRESS_GUARD_COMMIT", "rebuilt");
        process::run(&mut rebuilt)?;
        helpers.push(strip("guard-agent-rebuilt", &agent, &folder)?);
        let mut build = static_cargo("test");
        build.args(["--no-run", "-p", "guard-tests", "--tests", "--message-format", "json-render-diagnostics"]);
        let said = output(build.stderr(Stdio::inherit()))?;
        let mut tests = Vec::new();
        for line in said.lines() {
            let message: serde_json::Value = serde_json::from_str(line).context("cargo's messages are JSON")?;
            let (Some(path), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str()) else {
                continue;
            };
            if message["target"]["kind"][0] == "test" {
                tests.push(strip(name, Path::new(path), &folder)?);
            } else if name == "traffic" && message["profile"]["test"] == false {
                helpers.push(strip(name, Path::new(path), &folder)?);
            }
        }
        tests.sort();
        Ok(Self { tests, helpers })
    }
}

/// An agent as it was before an upgrade, for that one: what it pins lies in the folder of another layout.
pub(crate) fn older() -> Result<PathBuf> {
    let folder = target_dir().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let mut build = static_cargo("build");
    build.args(["-p", "guard-agent"]).args(APART).env("EGRESS_GUARD_LAYOUT", OLDER_LAYOUT);
    process::run(build.env("EGRESS_GUARD_COMMIT", "older"))?;
    let agent = target_dir().join(TARGET).join("debug/guard-agent");
    Ok(strip("guard-agent-older", &agent, &folder)?.1)
}

fn static_cargo(verb: &str) -> Command {
    let mut cargo = cargo();
    cargo.arg(verb).args(["--target", TARGET]).args(PROFILE).env("RUSTFLAGS", STATIC);
    cargo
}

/// A copy without symbols, of which a program has more than code; they would lie in the guest's memory.
fn strip(name: &str, program: &Path, folder: &Path) -> Result<(String, PathBuf)> {
    let place = folder.join(name);
    output(Command::new("strip").arg("-o").arg(&place).arg(program))
        .with_context(|| format!("strip {}", program.display()))?;
    Ok((name.to_owned(), place))
}
