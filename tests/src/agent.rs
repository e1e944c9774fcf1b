//! A real agent, on a tree of its own.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
pub use guard_agent::snapshot;

pub use crate::metrics::Metrics;
use crate::{
    eventually,
    pods::{Container, Pods},
    process::{kill, wait},
    sibling, unique,
};

/// How an agent is started, again and again with the same pins.
#[derive(Debug)]
pub struct Setup {
    dir: PathBuf,
    /// Its arguments but for the binary's path.
    pub arguments: Vec<String>,
    /// The folder of its pins.
    pub bpffs: PathBuf,
    /// The binary.
    pub binary: PathBuf,
    /// Its environment.
    pub environment: Vec<(String, String)>,
    port: u16,
}

/// A running agent; killed when dropped, its pins stay.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    socket: PathBuf,
    port: u16,
    log: PathBuf,
}

/// Where beneath an agent's `--bpffs` lies what it pins.
pub fn pins(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{}", guard_common::LAYOUT))
}

impl Setup {
    /// Where its pins lie.
    pub fn pins(&self) -> PathBuf {
        pins(&self.bpffs)
    }

    /// An agent for a tree of pods, with this configuration file.
    pub fn new(pods: &Pods, config: &str) -> Result<Self> {
        let name = unique();
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(&dir)?;
        let bpffs = PathBuf::from("/sys/fs/bpf").join(&name);
        // Free a moment ago; whoever takes it in between makes the test fail loudly.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let arguments = [
            "run",
            "--pods-root",
            &pods.root.display().to_string(),
            "--bpffs",
            &bpffs.display().to_string(),
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--socket",
            &dir.join("agent.sock").display().to_string(),
            "--state-dir",
            &dir.join("state").display().to_string(),
            "--config",
            &dir.join("config.yaml").display().to_string(),
        ];
        let arguments = arguments.map(str::to_owned).to_vec();
        let setup = Self { dir, arguments, bpffs, binary: sibling("guard-agent")?, environment: vec![], port };
        setup.configure(config)?;
        Ok(setup)
    }

    /// Gives a flag another value, or adds it.
    pub fn set(&mut self, flag: &str, value: impl Into<String>) {
        let value = value.into();
        match self.arguments.iter().position(|argument| argument == flag) {
            Some(index) => self.arguments[index + 1] = value,
            None => self.arguments.extend([flag.into(), value]),
        }
    }

    /// Leaves a flag out.
    pub fn unset(&mut self, flag: &str) {
        if let Some(index) = self.arguments.iter().position(|argument| argument == flag) {
            self.arguments.drain(index..=index + 1);
        }
    }

    /// Copies the binary to where everybody may read it, whatever folder the project lies in.
    pub fn copy_binary(&mut self) -> Result<()> {
        let copy = self.dir.join("guard-agent");
        // Not by ourselves: what other tests start meanwhile would hold it open for writing ("text file busy").
        ensure!(Command::new("cp").args([&self.binary, &copy]).status()?.success(), "the binary is not copied");
        self.binary = copy;
        Ok(())
    }

    /// Writes the configuration file.
    pub fn configure(&self, config: &str) -> Result<()> {
        Ok(fs::write(self.dir.join("config.yaml"), config)?)
    }

    /// Where it logs.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// A file of its folder, for the test's own use.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Starts it.
    pub fn spawn(&self) -> Result<Agent> {
        let log = self.log();
        let file = fs::File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).envs(self.environment.clone()).stderr(file).stdin(Stdio::null());
        alone(&mut command);
        let child = command.spawn();
        let child = child.with_context(|| format!("start {}", self.binary.display()))?;
        Ok(Agent { child, socket: self.dir.join("agent.sock"), port: self.port, log })
    }

    /// Starts it and waits until it is ready.
    pub fn start(&self) -> Result<Agent> {
        self.start_within(Duration::from_secs(20))
    }

    /// As [`Self::start`], with more or less patience.
    pub fn start_within(&self, patience: Duration) -> Result<Agent> {
        let mut agent = self.spawn()?;
        eventually("the agent is ready", patience, || {
            if let Some(status) = agent.child.try_wait()? {
                bail!("the agent ended with {status}: {}", agent.log()?);
            }
            agent.get("/readyz")
        })?;
        Ok(agent)
    }

    /// Runs it to its end, which must come soon; returns its exit code and what it wrote to stderr.
    pub fn fail(&self, prepare: impl FnOnce(&mut Command)) -> Result<(Option<i32>, String)> {
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn()?;
        let status = wait(&mut child, Duration::from_secs(10));
        if status.is_err() {
            child.kill()?;
        }
        let output = child.wait_with_output()?;
        Ok((status?.code(), String::from_utf8(output.stderr)?))
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // One that a test left engaged would be kept. Gone already is as good.
        let _gone = fs::remove_file(self.bpffs.join("kill-switch"));
        let cleanup = Command::new(&self.binary)
            .envs(self.environment.clone())
            .arg("cleanup")
            .arg("--bpffs")
            .arg(&self.bpffs)
            .output();
        match cleanup {
            Ok(output) if output.status.success() => {}
            other => eprintln!("left behind {}: {other:?}", self.bpffs.display()),
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("left behind {}: {error}", self.dir.display());
        }
    }
}

impl Agent {
    /// `GET`s a path of the metrics port.
    pub fn get(&self, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        Ok(ureq::get(&url).call()?.body_mut().read_to_string()?)
    }

    /// Connects to the metrics port and says nothing.
    pub fn connect(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect(("127.0.0.1", self.port))?)
    }

    /// The metrics of a sample that was taken after this call.
    pub fn metrics(&self) -> Result<Metrics> {
        let samples = |metrics: &Metrics| metrics.get("egress_guard_sample_seconds_count").unwrap_or(0);
        let before = samples(&self.scrape()?);
        eventually("a new sample", Duration::from_secs(10), || {
            let metrics = self.scrape()?;
            // The sample that is being taken may have begun before: the one after it has not.
            ensure!(samples(&metrics) >= before + 2, "still sample {before}");
            Ok(metrics)
        })
    }

    /// How many containers were attached to, as of now.
    pub fn attached(&self) -> Result<u64> {
        Ok(self.scrape()?.get("egress_guard_attach_seconds_count").unwrap_or(0))
    }

    /// The metrics as they are.
    pub fn scrape(&self) -> Result<Metrics> {
        Metrics::parse(&self.get("/metrics")?)
    }

    /// What `guard-agent list --json` says.
    pub fn list(&self) -> Result<Vec<snapshot::Container>> {
        Ok(serde_json::from_str(&self.run_list(&["--json"])?)?)
    }

    /// What `guard-agent list` shows.
    pub fn table(&self) -> Result<String> {
        self.run_list(&[])
    }

    fn run_list(&self, arguments: &[&str]) -> Result<String> {
        self.verb(&[&["list"], arguments].concat())
    }

    /// What a verb of `guard-agent` prints that goes through the socket.
    pub fn verb(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(sibling("guard-agent")?);
        let output = command.args(arguments).arg("--socket").arg(&self.socket).output()?;
        ensure!(output.status.success(), "{arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The breaches that the socket tells of, the newest first.
    pub fn breaches(&self) -> Result<Vec<serde_json::Value>> {
        Ok(serde_json::from_str(&self.ask("/breaches")?)?)
    }

    /// `GET`s a path of the socket.
    pub fn ask(&self, path: &str) -> Result<String> {
        ask(&self.socket, path)
    }

    /// Waits until a container has its meter.
    pub fn wait_for(&self, container: &Container) -> Result<()> {
        eventually("the container is metered", Duration::from_secs(5), || {
            let metrics = self.scrape()?;
            let label = format!("container=\"{}\"", container.label());
            ensure!(metrics.0.keys().any(|series| series.contains(&label)), "no series with {label}");
            Ok(())
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Does something while the agent is stopped (SIGSTOP).
    pub fn stop_and_continue(&self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        kill(self.pid(), libc::SIGSTOP);
        let result = meanwhile();
        kill(self.pid(), libc::SIGCONT);
        result
    }

    /// The unix socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How many lines of [`Self::log`] have this text.
    pub fn said(&self, text: &str) -> Result<usize> {
        Ok(self.log()?.lines().filter(|line| line.contains(text)).count())
    }

    /// Waits until it has said this.
    pub fn hear(&self, text: &str, limit: Duration) -> Result<()> {
        eventually(&format!("the agent says {text:?}"), limit, || {
            ensure!(self.said(text)? > 0, "{}", self.log()?);
            Ok(())
        })
    }

    /// The value of a container's series, as of now.
    pub fn gauge(&self, name: &str, container: &Container) -> Result<u64> {
        let series = format!("{name}{{container=\"{}\",", container.label());
        let metrics = self.scrape()?.0;
        let found = metrics.iter().find(|(found, _)| found.starts_with(&series));
        Ok(*found.with_context(|| format!("no {series}"))?.1 as u64)
    }

    /// Waits until [`Self::gauge`] is this.
    pub fn wait_for_gauge(&self, name: &str, container: &Container, value: u64) -> Result<()> {
        eventually(&format!("{name} of {} is {value}", container.label()), Duration::from_secs(15), || {
            let found = self.gauge(name, container)?;
            ensure!(found == value, "it is {found}");
            Ok(())
        })
    }

    /// What it logged, and its predecessors with the same setup.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// Ends it with a signal; returns its exit code (none for SIGKILL) and how long it took.
    pub fn signal(mut self, signal: i32) -> Result<(Option<i32>, Duration)> {
        let start = Instant::now();
        kill(self.pid(), signal);
        let status = wait(&mut self.child, Duration::from_secs(10))?;
        Ok((status.code(), start.elapsed()))
    }
}

/// `GET`s a path of an agent's socket.
pub fn ask(socket: &Path, path: &str) -> Result<String> {
    let mut socket = UnixStream::connect(socket)?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: agent\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let body = answer.strip_prefix("HTTP/1.1 200 OK\r\n").and_then(|answer| answer.split_once("\r\n\r\n"));
    Ok(body.with_context(|| format!("the socket answers {answer}"))?.1.to_owned())
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log().unwrap_or_default());
        }
    }
}

/// Keeps Ctrl-C of a terminal from the agent, and ends it with its parent.
#[expect(unsafe_code, reason = "what runs between fork and exec")]
pub fn alone(command: &mut Command) {
    command.process_group(0);
    // SAFETY: one system call with constants.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}
