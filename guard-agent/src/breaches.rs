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
        self.update(cgroup_id, limit, |report| report.done.push(done))
    }

    /// Notes why the eviction that was begun last for a container did not take place. Its breach may be over by now: the
    /// kill switch ends the containment, and with it the breach. `None`: none of it is kept any more.
    pub fn not_evicted(&self, cgroup_id: u64, why: &str) -> Option<Report> {
        let mut reports = self.lock();
        let evicted = |done: &Done| matches!(done, Done::Evicted { .. });
        let is_it = |report: &&mut Report| report.cgroup_id == cgroup_id && report.done.iter().any(evicted);
        let report = reports.iter_mut().rev().find(is_it)?;
        report.done.push(Done::Nothing { why: format!("not evicted: {why}") });
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
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::sync::watch;

    use super::*;
    use crate::{
        client,
        core::units::Rate,
        http::{self, Shared, Socket},
    };

    #[test]
    fn a_report_is_told_with_all_that_is_known() {
        let breaches = Breaches::default();
        breaches.open(example(7));
        let opened = example(7).opened.0;
        let how = Containment::Throttle(Rate::new(1 << 20).expect("a rate")).into();
        let until = Time(opened + Duration::from_mins(10));
        breaches.done(7, Limit::Rate, Done::Contained { how, until });
        breaches.done(7, Limit::Rate, Done::Evicted { at: Time(opened + Duration::from_secs(30)) });
        breaches.close(7, Limit::Rate, opened + Duration::from_secs(31));
        let told = serde_json::to_value(breaches.newest_first()).expect("JSON");
        let expected = json!([{
            "state": "closed",
            "opened": "2026-09-21T14:13:20.250Z",
            "closed": "2026-09-21T14:13:51.250Z",
            "limit": "rate",
            "namespace": "batch-1",
            "pod": "load-7",
            "container": "worker",
            "container_id": "3f1d",
            "cgroup_id": 7,
            "cgroup_path": "/kubepods.slice/x.scope",
            "figure": 104_857_600.0,
            "allowed": 52_428_800.0,
            "policy": "loaders",
            "done": [
                {"action": "contained", "how": {"throttle": 1_048_576}, "until": "2026-09-21T14:23:20.250Z"},
                {"action": "evicted", "at": "2026-09-21T14:13:50.250Z"},
            ],
            "destinations":
                [{"address": "203.0.113.7", "port": 25, "protocol": "tcp", "bytes": 9_000_000, "share": 0.9}],
        }]);
        assert_eq!(told, expected);
    }

    #[test]
    fn a_name_that_becomes_known_is_the_name_of_all_its_breaches() {
        let breaches = Breaches::default();
        breaches.open(example(7));
        breaches.close(7, Limit::Rate, example(7).opened.0);
        breaches.open(example(7));
        breaches.open(example(8));
        let labels = Labels { namespace: "shop".into(), pod: "web-0".into(), container: "main".into() };
        let renamed = breaches.rename(7, &labels);
        let states: Vec<_> = renamed.iter().map(|(before, now)| (before.labels.clone(), now.labels.clone())).collect();
        assert_eq!(states, [(example(7).labels, labels.clone())], "of the one that is open");
        let names: Vec<_> = breaches.newest_first().into_iter().map(|report| report.labels).collect();
        assert_eq!(names, [example(8).labels, labels.clone(), labels.clone()]);
        assert_eq!(breaches.rename(7, &labels), []);
    }

    #[tokio::test]
    async fn they_are_served_on_the_socket() {
        let (_sender, snapshots) = watch::channel(Arc::default());
        let shared = Shared::ready(snapshots, Duration::ZERO);
        let breaches = shared.breaches.clone();
        let path = std::env::temp_dir().join(format!("egtest-{}-breaches", std::process::id())).join("socket");
        let mut socket = Socket::open(&path).expect("a socket");
        tokio::spawn(http::serve(socket.take().expect("a listener"), http::private(shared)));
        breaches.open(example(7));
        breaches.open(example(8));
        let told = client::get(&path, "/breaches").await;
        drop(socket);
        std::fs::remove_dir(path.parent().expect("a folder")).expect("an empty folder");
        let told: Vec<serde_json::Value> = serde_json::from_slice(&told.expect("an answer")).expect("JSON");
        let ids: Vec<u64> = told.iter().filter_map(|report| report["cgroup_id"].as_u64()).collect();
        assert_eq!(ids, [8, 7]);
    }

    #[test]
    fn only_the_open_breach_of_the_same_limit_changes() {
        let breaches = Breaches::default();
        breaches.open(example(7));
        breaches.open(Report { limit: Limit::Quota, ..example(7) });
        assert!(breaches.close(7, Limit::Rate, SystemTime::UNIX_EPOCH).is_some());
        assert_eq!(breaches.close(7, Limit::Rate, SystemTime::now()), None, "it is closed already");
        assert_eq!(breaches.close(8, Limit::Quota, SystemTime::now()), None, "there is no such container");
        breaches.open(example(7));
        let again = breaches.done(7, Limit::Rate, Done::Nothing { why: "observe".into() }).expect("open again");
        assert_eq!((again.state, again.done.len()), (State::Open, 1));
        let states: Vec<_> = breaches.newest_first().iter().map(|r| (r.limit, r.state, r.done.len())).collect();
        let expected = [(Limit::Rate, State::Open, 1), (Limit::Quota, State::Open, 0), (Limit::Rate, State::Closed, 0)];
        assert_eq!(states, expected);
    }

    #[test]
    fn what_became_of_an_eviction_is_noted_where_it_was_begun() {
        let breaches = Breaches::default();
        breaches.open(example(7));
        assert_eq!(breaches.not_evicted(7, "no"), None, "none was begun");
        breaches.done(7, Limit::Rate, Done::Evicted { at: Time(SystemTime::UNIX_EPOCH) });
        breaches.close(7, Limit::Rate, SystemTime::now());
        breaches.open(example(7));
        breaches.open(example(8));
        let told = breaches.not_evicted(7, "no").expect("it was begun");
        assert_eq!((told.state, told.done.len()), (State::Closed, 2));
        assert_eq!(told.done[1], Done::Nothing { why: "not evicted: no".into() });
        assert_eq!(breaches.newest_first().iter().map(|report| report.done.len()).collect::<Vec<_>>(), [0, 0, 2]);
    }

    #[test]
    fn the_last_thousand_are_kept_newest_first() {
        let breaches = Breaches::default();
        (0..1003).for_each(|id| breaches.open(example(id)));
        let ids: Vec<u64> = breaches.newest_first().iter().map(|report| report.cgroup_id).collect();
        assert_eq!(ids, (3..1003).rev().collect::<Vec<_>>());
    }
}
