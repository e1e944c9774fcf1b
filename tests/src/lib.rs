//! What the whole-system tests, the demo and the benchmark stand on: network namespaces, cgroups, real traffic and a
//! real agent. Everything that is made is removed when it is dropped.

pub mod agent;
pub mod api;
pub mod guarded;
pub mod hostile;
pub mod leftovers;
pub mod limits;
pub mod meter;
pub mod metrics;
pub mod net;
pub mod pods;
pub mod process;
pub mod random;
pub mod receiver;
pub mod release;
pub mod statistics;
pub mod supervisor;
pub mod world;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

pub use leftovers::unique;

/// A program of this project, built beside the one that runs.
pub fn sibling(name: &str) -> Result<PathBuf> {
    if let (Ok(agent), "guard-agent") = (std::env::var("EGRESS_GUARD_AGENT_BIN"), name) {
        return Ok(agent.into());
    }
    let exe = std::env::current_exe().context("the path of this program")?;
    let found = exe.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.exists());
    found.with_context(|| format!("there is no {name} beside {}: run it through `cargo xtask`", exe.display()))
}

/// Fails with a clear message unless this is root.
pub fn require_root() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().nth(1));
    if uid != Some("0") {
        bail!("this makes network namespaces, cgroups and eBPF programs: run it as root");
    }
    Ok(())
}

/// Tries until it holds, for at most `limit`; the error says what was seen last.
pub fn eventually<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > end => return Err(error.context(format!("not within {limit:?}: {what}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
