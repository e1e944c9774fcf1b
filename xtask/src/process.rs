//! What the verbs share: where things lie, child processes, and how they fail.

use std::{
    env,
    ffi::OsStr,
    fmt, fs,
    os::unix::{fs::MetadataExt as _, fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
};

use anyhow::{Context as _, Result, bail};

/// The program that the demo, the benchmark and the whole-system tests start.
const AGENT_BINARY: &str = "EGRESS_GUARD_AGENT_BIN";

/// A child ended badly. It has said why itself, so this only says which one; its status becomes ours.
#[derive(Debug)]
struct ChildFailed {
    what: String,
    status: ExitStatus,
}

impl fmt::Display for ChildFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` failed ({})", self.what, self.status)
    }
}

impl std::error::Error for ChildFailed {}

/// The child's own exit status if a child is to blame, as a shell would give it; else 1.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    let child = error.downcast_ref::<ChildFailed>();
    ExitCode::from(child.map_or(1, |child| shell_status(child.status)))
}

fn shell_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The top of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// Where cargo builds, for one who moved it elsewhere as well.
pub(crate) fn target_dir() -> PathBuf {
    let moved = env::var_os("CARGO_TARGET_DIR").and_then(|dir| std::path::absolute(dir).ok());
    moved.unwrap_or_else(|| root().join("target"))
}

/// The path of a program that cargo built with `profile` (`debug` or `release`).
pub(crate) fn program(profile: &str, name: &str) -> PathBuf {
    target_dir().join(profile).join(name)
}

/// The same cargo that runs us.
pub(crate) fn cargo() -> Command {
    at_root(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A command at the top of the workspace that builds where [`program`] looks, without the variables in which cargo
/// describes *this* package: what the child builds would take them for its own.
pub(crate) fn at_root(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).env("CARGO_TARGET_DIR", target_dir());
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(describes_this_package) {
            command.env_remove(name);
        }
    }
    command
}

fn describes_this_package(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_") || variable.starts_with("CARGO_MANIFEST_")
}

/// Tells a program which agent to start.
pub(crate) fn with_agent<'a>(command: &'a mut Command, profile: &str) -> &'a mut Command {
    with_agent_at(command, &program(profile, "guard-agent"))
}

/// As [`with_agent`], for one that lies elsewhere.
pub(crate) fn with_agent_at<'a>(command: &'a mut Command, agent: &Path) -> &'a mut Command {
    command.env(AGENT_BINARY, agent)
}

/// Runs a child whose output is the user's to read.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let what = describe(command);
    let status = command.status().with_context(|| format!("`{what}` could not be started"))?;
    if status.success() { Ok(()) } else { Err(ChildFailed { what, status }.into()) }
}

/// Runs a child in silence and returns what it printed; if it fails, the error holds its complaint.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let what = describe(command);
    let out = command.output().with_context(|| format!("`{what}` could not be started"))?;
    if !out.status.success() {
        let complaint = String::from_utf8_lossy(&out.stderr);
        bail!("`{what}` failed ({}): {}", out.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Whether the shell would find the program; `sbin` counts too, though a user's `PATH` often lacks it.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).any(|dir| is_executable(&dir.join(program)))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0)
}

/// Refuses to go on as somebody who may not load kernel programs.
pub(crate) fn require_root(verb: &str) -> Result<()> {
    if !is_root() {
        bail!(
            "`{verb}` loads programs into the kernel, which needs root: \
             run `sudo -E env PATH=$PATH cargo xtask {verb}`"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_child_hands_its_status_on() {
        for (script, code) in [("exit 7", 7), ("kill -9 $$", 137)] {
            let error = run(Command::new("sh").args(["-c", script])).expect_err("the script fails");
            let child = error.downcast_ref::<ChildFailed>().expect("a child is to blame");
            assert_eq!(shell_status(child.status), code, "status of `{script}`");
        }
    }

    #[test]
    fn a_silent_child_complains_through_the_error() {
        let error = output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).expect_err("it fails");
        assert!(error.to_string().contains("no such thing"), "the complaint is lost: {error}");
    }
}
