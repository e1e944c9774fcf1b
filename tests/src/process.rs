//! Processes in a namespace and a cgroup.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{eventually, net::Namespace, pods::Container, sibling};

/// A process of the traffic generator; ended when dropped.
#[derive(Debug)]
pub struct Traffic {
    child: Child,
    command: String,
}

/// How long a generator may take at most.
const LIMIT: Duration = Duration::from_mins(1);

impl Traffic {
    /// Starts the generator in a namespace, and in a container if there is one. It is in both before its first
    /// instruction.
    pub fn start(namespace: &Namespace, container: Option<&Container>, arguments: &str) -> Result<Self> {
        let mut command = Command::new(sibling("traffic")?);
        command.args(arguments.split_whitespace());
        Self::spawn(command, namespace, container, arguments)
    }

    /// Starts the attacker instead of the generator.
    pub fn attack(namespace: &Namespace, container: Option<&Container>, arguments: &str) -> Result<Self> {
        let mut command = Command::new(sibling("attacker")?);
        command.args(arguments.split_whitespace());
        Self::spawn(command, namespace, container, arguments)
    }

    /// Starts a shell script instead of the generator.
    pub fn shell(namespace: &Namespace, container: Option<&Container>, script: &str) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Self::spawn(command, namespace, container, script)
    }

    fn spawn(mut command: Command, namespace: &Namespace, container: Option<&Container>, what: &str) -> Result<Self> {
        let namespace = namespace.open()?;
        let procs = container.map(Container::procs).transpose()?;
        enter(&mut command, namespace, procs);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Ok(Self { child: child.with_context(|| format!("start {what}"))?, command: what.into() })
    }

    /// Starts a sink or an echo and waits until it listens.
    pub fn serve(namespace: &Namespace, container: Option<&Container>, arguments: &str) -> Result<Self> {
        let mut traffic = Self::start(namespace, container, arguments)?;
        let line = traffic.line()?;
        ensure!(line == "listening", "traffic {arguments} said {line:?} instead of listening");
        Ok(traffic)
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> Result<String> {
        let stdout = self.child.stdout.as_mut().context("it has no stdout")?;
        let mut line = String::new();
        BufReader::with_capacity(1, stdout).read_line(&mut line)?;
        Ok(line.trim().into())
    }

    /// Waits until a sender that waits (`--wait`) has made its socket.
    pub fn socket_made(&mut self) -> Result<()> {
        let line = self.line()?;
        ensure!(line == "waiting", "traffic {} said {line:?} instead of waiting", self.command);
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Lets a sender go on that waits for a line (`--wait`).
    pub fn go(&mut self) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("it has no stdin")?;
        stdin.write_all(b"go\n").with_context(|| format!("traffic {} does not listen", self.command))
    }

    /// Waits for its end, whatever it is.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        wait(&mut self.child, LIMIT).with_context(|| format!("traffic {}", self.command))
    }

    /// Waits for its end, which must be a good one.
    pub fn finish(mut self) -> Result<()> {
        let status = self.ended()?;
        ensure!(status.success(), "traffic {} ended with {status}", self.command);
        Ok(())
    }

    /// Runs to the end.
    pub fn run(namespace: &Namespace, container: Option<&Container>, arguments: &str) -> Result<()> {
        Self::start(namespace, container, arguments)?.finish()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Waits for a child, but not for ever.
pub fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let start = Instant::now();
    eventually("the process ends", limit, || match child.try_wait()? {
        Some(status) => Ok(status),
        None => bail!("it still runs after {:?}", start.elapsed()),
    })
}

/// Sends a signal to a child that was not waited for yet.
#[expect(unsafe_code, reason = "kill(2)")]
pub fn kill(child: u32, signal: i32) {
    // SAFETY: takes two numbers.
    unsafe { libc::kill(child as i32, signal) };
}

/// Makes a command start in a namespace and a cgroup, out of a terminal's reach: Ctrl-C is for the parent to handle.
#[expect(unsafe_code, reason = "what runs between fork and exec")]
fn enter(command: &mut Command, namespace: File, procs: Option<File>) {
    command.process_group(0);
    // SAFETY: only system calls on descriptors that were opened before, which is all that may be done there.
    unsafe {
        command.pre_exec(move || {
            if let Some(procs) = &procs
                && libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1
            {
                return Err(std::io::Error::last_os_error());
            }
            // A test that is killed takes its processes along.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}
