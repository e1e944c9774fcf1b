//! The last breaches, as the outside sees them.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize, Serializer};

use crate::{
    client::bytes,
    core::{breach::Limit, identity::Labels, policy::Containment},
};

/// How many are kept.
const KEPT: usize = 1000;

/// How much of what was done about one of them is kept: an eviction that is refused is tried again for as long as it lasts.
const DONE: usize = 50;

/// A breach with its evidence, as `GET /breaches` tells it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Open or closed.
    pub state: State,
    /// When the limit was crossed.
    pub opened: Time,
    /// When it was kept again, or the container was gone.
    pub closed: Option<Time>,
    /// Which limit.
    #[serde(serialize_with = "name")]
    pub limit: Limit,
    /// Namespace, pod and container.
    #[serde(flatten)]
    pub labels: Labels,
    /// The container's id. Empty for a cgroup that is no container.
    pub container_id: String,
    /// The cgroup's id: its directory's inode number.
    pub cgroup_id: u64,
    /// Its path from the root of the hierarchy.
    pub cgroup_path: String,
    /// What was measured: bytes per second; for a quota bytes.
    pub figure: f64,
    /// What would have been within the limit, in the same unit.
    pub allowed: f64,
    /// The policy whose limit it is.
    pub policy: String,
    /// What was done about it, in order.
    pub done: Vec<Done>,
    /// Where the bytes went, most bytes first.
    pub destinations: Vec<Destination>,
}

/// Whether a breach still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It holds.
    Open,
    /// It is over.
    Closed,
}

/// Something that was done about a breach, or why nothing was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Done {
    /// The container's egress is held.
    Contained {
        /// How.
        how: Held,
        /// When the hold ends by itself.
        until: Time,
    },
    /// The container was made to start afresh.
    Evicted {
        /// When.
        at: Time,
    },
    /// Nothing.
    Nothing {
        /// Why: the mode, the kill switch, a budget, what a refusal said, ...
        why: String,
    },
}

/// How a container's egress is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// So many bytes per second pass.
    Throttle(u64),
    /// Nothing passes.
    Block,
}

/// A destination of what a container sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Destination {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 where the protocol has none.
    pub port: u16,
    /// `tcp`, `udp`, ..., or the protocol's number.
    pub protocol: String,
    /// Estimated bytes.
    pub bytes: u64,
    /// The part of all bytes that went there, from 0 to 1.
    pub share: f64,
}

/// A wall-clock time; RFC 3339 with milliseconds outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub SystemTime);

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        humantime::format_rfc3339_millis(self.0).fmt(f)
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, port, protocol, bytes: sent, share } = self;
        let socket = std::net::SocketAddr::new(*address, *port);
        write!(f, "{socket} {protocol}: {} ({:.0} %)", bytes(*sent as f64), share * 100.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, json: S) -> Result<S::Ok, S::Error> {
        json.collect_str(self)
    }
}

impl From<Containment> for Held {
    fn from(containment: Containment) -> Self {
        match containment {
            Containment::Throttle(rate) => Self::Throttle(rate.bytes_per_second()),
            Containment::Block => Self::Block,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn name<S: Serializer>(limit: &Limit, json: S) -> Result<S::Ok, S::Error> {
    json.serialize_str(limit.name())
}

impl Report {
    /// What was not done goes first when there is too much.
    fn note(&mut self, done: Done) {
        if self.done.len() >= DONE {
            let oldest = self.done.iter().position(|done| matches!(done, Done::Nothing { .. })).unwrap_or(0);
            self.done.remove(oldest);
        }
        self.done.push(done);
    }
}

/// The last 1000 breaches. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Breaches(Arc<Mutex<VecDeque<Report>>>);

impl Breaches {
    /// Adds one; the oldest goes when there are too many.
    pub fn open(&self, report: Report) {
        let mut reports = self.lock();
        if reports.len() == KEPT {
            reports.pop_front();
        }
        reports.push_back(report);
    }

    /// Changes the open breach of a container's limit and returns it as it is now. `None`: there is none.
    pub fn update(&self, cgroup_id: u64, limit: Limit, change: impl FnOnce(&mut Report)) -> Option<Report> {
        let mut reports = self.lock();
        let is_it =
            |report: &&mut Report| (report.cgroup_id, report.limit, report.state) == (cgroup_id, limit, State::Open);
        let report = reports.iter_mut().rev().find(is_it)?;
        change(report);
        Some(report.clone())
    }

    /// Notes that something was done. As [`Self::update`].
    pub fn done(&self, cgroup_id: u64, limit: Limit, done: Done) -> Option<Report> {
        self.update(cgroup_id, limit, |report| report.note(done))
    }

    /// Notes why the eviction that was begun last for a container did not take place. Its breach may be over by now: the
    /// kill switch ends the containment, and with it the breach. `None`: none of it is kept any more.
    pub fn not_evicted(&self, cgroup_id: u64, why: &str) -> Option<Report> {
        let mut reports = self.lock();
        let evicted = |done: &Done| matches!(done, Done::Evicted { .. });
        let is_it = |report: &&mut Report| report.cgroup_id == cgroup_id && report.done.iter().any(evicted);
        let report = reports.iter_mut().rev().find(is_it)?;
        report.note(Done::Nothing { why: format!("not evicted: {why}") });
        Some(report.clone())
    }

    /// Notes what became of an eviction with the last breach of a container, unless that is what it ended with already. Its
    /// breach may be over by now. `None`: none is kept, or there is nothing new.
    pub fn noted(&self, cgroup_id: u64, done: Done) -> Option<Report> {
        let mut reports = self.lock();
        let report = reports.iter_mut().rev().find(|report| report.cgroup_id == cgroup_id)?;
        if report.done.last() == Some(&done) {
            return None;
        }
        report.note(done);
        Some(report.clone())
    }

    /// Closes a breach. As [`Self::update`].
    pub fn close(&self, cgroup_id: u64, limit: Limit, at: SystemTime) -> Option<Report> {
        self.update(cgroup_id, limit, |report| {
            report.state = State::Closed;
            report.closed = Some(Time(at));
        })
    }

    /// A container is called otherwise from now on. Returns its open breaches whose name is another, as they were and as
    /// they are.
    pub fn rename(&self, cgroup_id: u64, labels: &Labels) -> Vec<(Report, Report)> {
        let mut reports = self.lock();
        let of_it = |report: &&mut Report| report.cgroup_id == cgroup_id && report.labels != *labels;
        let renamed = reports.iter_mut().filter(of_it).map(|report| {
            let before = report.clone();
            report.labels.clone_from(labels);
            (before, report.clone())
        });
        renamed.filter(|(_, report)| report.state == State::Open).collect()
    }

    /// All of them.
    pub fn newest_first(&self) -> Vec<Report> {
        self.lock().iter().rev().cloned().collect()
    }

    /// No change of a report can panic halfway in a way that matters to the next reader.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Report>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A breach for the tests of what tells of it.
#[cfg(test)]
pub(crate) fn example(cgroup_id: u64) -> Report {
    use std::time::Duration;

    let names = |text: &str| text.to_owned();
    Report {
        state: State::Open,
        opened: Time(SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_250)),
        closed: None,
        limit: Limit::Rate,
        labels: Labels { namespace: names("batch-1"), pod: names("load-7"), container: names("worker") },
        container_id: names("3f1d"),
        cgroup_id,
        cgroup_path: names("/kubepods.slice/x.scope"),
        figure: 104_857_600.0,
        allowed: 52_428_800.0,
        policy: names("loaders"),
        done: vec![],
        destinations: vec![Destination {
            address: IpAddr::from([203, 0, 113, 7]),
            port: 25,
            protocol: names("tcp"),
            bytes: 9_000_000,
            share: 0.9,
        }],
    }
}

#[cfg(test)]
#[path = "breaches_tests.rs"]
mod tests;
