//! The processes of a control plane, and that nothing is left of them.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use guard_tests::process;

/// How much of a log a failure shows.
const TAIL: usize = 15;

/// How long a process may take to stand still.
const FREEZE: Duration = Duration::from_secs(10);

/// Waits for the end of its input, which is the end of whoever started it, then ends every process whose id is in a `.pid`
/// file of the folder, and removes the folder. A process that is just ending may still write there.
const JANITOR: &str = r#"
read -r _
cd "$1" || exit
for file in *.pid; do [ -e "$file" ] && kill -9 "$(cat "$file")"; done
cd /
for _ in $(seq 100); do rm -rf "$1" && exit; sleep 0.1; done
"#;

/// A folder that is removed, with all processes that belong to it, at the end of this value or of this process, whatever ends
/// it.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    janitor: Child,
}

impl Folder {
    pub(crate) fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(guard_tests::unique());
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        let mut janitor = Command::new("sh");
        // Out of reach of a terminal's Ctrl-C, and holding nothing that somebody may wait for.
        janitor.args(["-c", JANITOR, "janitor"]).arg(&path).process_group(0);
        janitor.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let janitor = janitor.spawn().context("start sh")?;
        Ok(Self { path, janitor })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _reaped = self.janitor.wait();
        if self.path.exists() {
            eprintln!("left behind {}", self.path.display());
        }
    }
}

/// A process with a log. It ends with the [`Folder`] that it is of, or before.
#[derive(Debug)]
pub(crate) struct Component {
    name: &'static str,
    command: Command,
    log: PathBuf,
    pid: PathBuf,
    child: Option<Child>,
}

impl Component {
    pub(crate) fn new(folder: &Path, program: &Path, name: &'static str, arguments: Vec<String>) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder).stdin(Stdio::null()).process_group(0);
        let [log, pid] = ["log", "pid"].map(|extension| folder.join(format!("{name}.{extension}")));
        Self { name, command, log, pid, child: None }
    }

    /// Starts it, or starts it again with the same arguments; its log goes on.
    pub(crate) fn start(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("{} runs already", self.name);
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        self.command.stdout(log.try_clone()?).stderr(log);
        let child = self.command.spawn().with_context(|| format!("start {}", self.command.get_program().display()))?;
        let id = child.id();
        self.child = Some(child);
        let mut file = File::create(&self.pid)?;
        Ok(file.write_all(id.to_string().as_bytes())?)
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { bail!("{} does not run", self.name) };
        match child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}: {}", self.name, self.tail()),
        }
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The id is not another's before the child is waited for.
            let _unlisted = fs::remove_file(&self.pid);
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        let child = self.child.as_ref().with_context(|| format!("{} does not run", self.name))?;
        process::kill(child.id(), signal);
        Ok(())
    }

    /// Freezes it. A thread may go on for a while after the signal, and answer: this returns when none does.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)?;
        let id = self.child.as_ref().with_context(|| format!("{} does not run", self.name))?.id();
        guard_tests::eventually(&format!("{} is frozen", self.name), FREEZE, || {
            for thread in fs::read_dir(format!("/proc/{id}/task"))? {
                let stat = fs::read_to_string(thread?.path().join("stat"))?;
                // Behind the name, which may have anything in it.
                let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
                ensure!(state == Some('T'), "a thread is in state {state:?}");
            }
            Ok(())
        })
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let shown = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        format!("the end of the log of {}:\n{shown}", self.name)
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleep(folder: &Folder) -> Component {
        let mut component = Component::new(folder.path(), Path::new("sleep"), "sleep", vec!["600".into()]);
        component.start().expect("sleep starts");
        component
    }

    #[test]
    fn who_is_killed_leaves_nothing_behind() {
        let mut folder = Folder::make().expect("a folder");
        let (path, mut component) = (folder.path().to_owned(), sleep(&folder));
        component.check().expect("it runs");
        // What the end of this process would do, whatever ended it.
        drop(folder.janitor.stdin.take());
        guard_tests::eventually("the janitor is done", Duration::from_secs(20), || {
            ensure!(component.check().is_err() && !path.exists(), "something is there");
            Ok(())
        })
        .expect("a process and a folder are gone");
    }

    #[test]
    fn who_ends_early_is_quoted() {
        let folder = Folder::make().expect("a folder");
        let script = "echo first; seq 100; echo what went wrong >&2; exit 3";
        let arguments = vec!["-c".into(), script.into()];
        let mut component = Component::new(folder.path(), Path::new("sh"), "server", arguments);
        component.start().expect("sh starts");
        let error = guard_tests::eventually("it ends", Duration::from_secs(20), || match component.check() {
            Ok(()) => bail!("it runs"),
            Err(error) => Ok(error.to_string()),
        });
        let error = error.expect("it ended");
        assert!(error.starts_with("server ended with exit status: 3: "), "{error}");
        assert!(error.ends_with("\n99\n100\nwhat went wrong") && !error.contains("first"), "{error}");
    }

    #[test]
    fn a_frozen_one_ends_as_well() {
        let folder = Folder::make().expect("a folder");
        let component = sleep(&folder);
        component.freeze().expect("it runs");
        let path = folder.path().to_owned();
        drop(component);
        drop(folder);
        assert!(!path.exists(), "{} is left", path.display());
    }
}
