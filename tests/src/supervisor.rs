//! Plays systemd for a service: when its processes have ended, it is started afresh (`Restart=always`).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use guard_agent::snapshot;

use crate::{agent::ask, eventually, net::Namespace, pods::Container, process::Traffic, world::World};

/// Keeps a service running; stopped when dropped, its process too.
#[derive(Debug)]
pub struct Supervisor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    starts: AtomicU64,
}

/// What the supervisor's thread knows.
struct Unit {
    service: Container,
    namespace: Namespace,
    process: String,
    socket: PathBuf,
    shared: Arc<Shared>,
}

impl Supervisor {
    /// Starts the generator with these arguments in a metered service, and again whenever all processes in it are gone.
    pub fn start(world: &World, service: &Container, process: &str) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let unit = Unit {
            service: service.clone(),
            namespace: world.wires.node.clone(),
            process: process.into(),
            socket: world.agent().socket().into(),
            shared: Arc::clone(&shared),
        };
        let supervisor = Self { shared, thread: Some(thread::spawn(move || unit.supervise())) };
        supervisor.started(1)?;
        Ok(supervisor)
    }

    /// Waits until the service's process was started so often.
    pub fn started(&self, times: u64) -> Result<()> {
        eventually(&format!("the supervisor's start no. {times}"), Duration::from_secs(20), || {
            let starts = self.starts();
            ensure!(starts >= times, "{starts} so far");
            Ok(())
        })
    }

    /// How often the service's process was started.
    pub fn starts(&self) -> u64 {
        self.shared.starts.load(Ordering::SeqCst)
    }
}

impl Unit {
    fn supervise(self) -> Result<()> {
        loop {
            let _main = Traffic::start(&self.namespace, Some(&self.service), &self.process)?;
            self.shared.starts.fetch_add(1, Ordering::SeqCst);
            while is_populated(&self.service.path)? {
                if self.shared.stop.load(Ordering::SeqCst) {
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(5));
            }
            self.service.remove()?;
            fs::create_dir(&self.service.path)?;
            self.metered()?;
        }
    }

    /// Waits until the fresh cgroup has its meter, so that the test can compare with the wire: what is sent before that
    /// is in no container's figures. An agent that is restarted meanwhile has its time.
    fn metered(&self) -> Result<()> {
        let id = self.service.cgroup_id()?;
        eventually("the fresh service is metered", Duration::from_secs(30), || {
            let containers: Vec<snapshot::Container> = serde_json::from_str(&ask(&self.socket, "/containers")?)?;
            ensure!(containers.iter().any(|container| container.cgroup_id == id), "it is not listed");
            Ok(())
        })
    }
}

fn is_populated(cgroup: &Path) -> Result<bool> {
    let events = fs::read_to_string(cgroup.join("cgroup.events"))
        .with_context(|| format!("somebody else removed {}", cgroup.display()))?;
    match events.lines().next() {
        Some("populated 0") => Ok(false),
        Some("populated 1") => Ok(true),
        other => bail!("cgroup.events begins with {other:?}"),
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        match self.thread.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => {}
            Some(other) => eprintln!("the supervisor failed: {other:?}"),
        }
    }
}
