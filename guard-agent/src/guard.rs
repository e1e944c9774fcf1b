//! The one task that changes anything in the kernel: it gives cgroups their meters, reads them and takes them back.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io, mem,
    sync::Arc,
};

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::{
    clock,
    core::{
        identity::{self, Labels},
        ledger::{Ledger, NODE, Owner, Slot},
    },
    kernel::{
        events::{CgroupChange, DecodeError},
        meters::{self, Links, MeterError, Meters},
    },
    metrics::Metrics,
    node::tree::{Found, Watched},
    snapshot::Snapshot,
};

/// How long after a meter was detached its last packet is waited for. The kernel lets go of a program within a grace
/// period, some 10 ms.
const GRACE: u64 = 1_000_000_000;

/// For how many containers to come the programs are loaded ahead: as many as a node starts in a burst.
const SPARE: usize = 16;

/// What a slot's links are at.
#[derive(Debug)]
enum State {
    /// The cgroup is there.
    Attached(Links),
    /// The cgroup was removed; sockets of it may still send.
    Draining(Links),
    /// Detached at this instant of boot time, to be read a last time after [`GRACE`].
    Closing(u64),
}

#[derive(Debug)]
struct Meter {
    cgroup_id: u64,
    path: String,
    state: State,
}

/// The meters of a node.
#[derive(Debug)]
pub struct Guard {
    kernel: Meters,
    watched: Watched,
    ledger: Ledger,
    meters: HashMap<Slot, Meter>,
    by_path: HashMap<String, Slot>,
    pods_root: Option<(String, u64)>,
    node: Option<Links>,
    /// The node meter's links to pods' roots that were removed.
    old_nodes: Vec<Links>,
    /// Cgroups that found no slot, by their id.
    refused: HashMap<u64, String>,
    events_lost: u64,
    metrics: Arc<Metrics>,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

impl Guard {
    /// Takes over what an earlier agent left in the kernel.
    pub fn new(
        kernel: Meters,
        watched: Watched,
        max: u32,
        metrics: Arc<Metrics>,
        snapshots: watch::Sender<Arc<Snapshot>>,
    ) -> Result<Self, MeterError> {
        let mut guard = Self {
            kernel,
            watched,
            ledger: Ledger::new(max),
            meters: HashMap::new(),
            by_path: HashMap::new(),
            pods_root: None,
            node: None,
            old_nodes: Vec::new(),
            refused: HashMap::new(),
            events_lost: 0,
            metrics,
            snapshots,
        };
        guard.restore(max)?;
        Ok(guard)
    }

    fn restore(&mut self, max: u32) -> Result<(), MeterError> {
        let records = self.kernel.records()?;
        let raw = self.kernel.read(max + 1)?;
        let changed = self.ledger.restore(records, &raw, clock::boottime());
        self.write(&changed)?;
        self.find_pods_root()?;
        let owners: Vec<(Slot, Owner)> = self.ledger.metered().map(|(slot, owner, ..)| (slot, owner.clone())).collect();
        let mut adopted = 0;
        for (slot, owner) in owners {
            let there = self.watched.id(&owner.path) == Some(owner.cgroup_id);
            let links = match self.kernel.adopt(slot, owner.cgroup_id)? {
                Some(links) => links,
                // An agent died between the record and the links; else the cgroup is gone.
                None if there => match self.watched.open(&owner.path) {
                    Ok(Some((dir, id))) if id == owner.cgroup_id => self.kernel.attach(slot, &dir)?,
                    _ => continue,
                },
                None => {
                    // Released: nothing can count any more, and what was read above is the last.
                    let raw = self.kernel.read(slot.0 + 1)?[slot.0 as usize];
                    self.ledger.gone(slot, raw, clock::boottime());
                    self.write(&[slot])?;
                    continue;
                }
            };
            adopted += 1;
            let wanted = self.watched.classify(&owner.path, self.pods_root_path());
            let state = if !there {
                State::Draining(links)
            } else if wanted.is_some_and(|found| found.extra == owner.extra) {
                self.by_path.insert(owner.path.clone(), slot);
                State::Attached(links)
            } else {
                info!(cgroup = owner.path, "the configuration no longer asks for this meter");
                self.kernel.detach(slot, &links)?;
                State::Closing(clock::boottime())
            };
            self.meters.insert(slot, Meter { cgroup_id: owner.cgroup_id, path: owner.path, state });
        }
        if adopted > 0 {
            info!(meters = adopted, "took over the meters of an earlier agent");
        }
        Ok(())
    }

    fn pods_root_path(&self) -> Option<&str> {
        self.pods_root.as_ref().map(|(path, _)| path.as_str())
    }

    fn write(&mut self, slots: &[Slot]) -> Result<(), MeterError> {
        slots.iter().try_for_each(|&slot| self.kernel.write_record(slot, self.ledger.record(slot)))
    }

    /// Puts the node meter on the pods' root, if that is new.
    fn find_pods_root(&mut self) -> Result<(), MeterError> {
        let found = self.watched.find_pods_root();
        let opened = found.and_then(|path| Some((self.watched.open(&path).ok()??, path)));
        let Some(((dir, id), path)) = opened else {
            if let Some((path, _)) = self.pods_root.take() {
                info!(cgroup = path, "the pods' root is gone; waiting for another");
                self.old_nodes.extend(self.node.take());
            }
            return Ok(());
        };
        if self.pods_root.as_ref().is_some_and(|(_, known)| *known == id) {
            return Ok(());
        }
        self.old_nodes.extend(self.node.take());
        let links = match self.kernel.adopt(NODE, id)? {
            Some(links) => links,
            None => match self.kernel.attach(NODE, &dir) {
                Err(error) if error.cgroup_gone() => return Ok(()),
                attached => attached?,
            },
        };
        self.node = Some(links);
        info!(cgroup = path, "metering the node's pods");
        self.pods_root = Some((path, id));
        Ok(())
    }

    /// The kernel said that a cgroup was made or removed.
    pub fn on_change(&mut self, change: Result<CgroupChange, DecodeError>) -> Result<(), MeterError> {
        let change = match change {
            Ok(change) => change,
            Err(error) => {
                error!("{error}; walking the tree instead");
                return self.walk();
            }
        };
        let Some(path) = change.path else { return self.walk() };
        if self.watched.may_be_pods_root(&path) {
            return self.walk();
        }
        self.reconcile(&path, change.made.then_some(change.at))
    }

    /// Compares the tree with the meters and repairs what differs.
    pub fn walk(&mut self) -> Result<(), MeterError> {
        self.find_pods_root()?;
        let found = self.watched.walk(self.pods_root_path());
        let there: HashSet<&str> = found.iter().map(|found| found.path.as_str()).collect();
        let vanished: Vec<String> =
            self.by_path.keys().filter(|path| !there.contains(path.as_str())).cloned().collect();
        for path in vanished {
            self.reconcile(&path, None)?;
        }
        for found in &found {
            self.reconcile(&found.path, None)?;
        }
        Ok(())
    }

    /// Makes the meter of one path what the tree says. `made_at`: the instant of its mkdir, if that is the reason.
    fn reconcile(&mut self, path: &str, made_at: Option<u64>) -> Result<(), MeterError> {
        let found = self.watched.classify(path, self.pods_root_path());
        let opened = match self.watched.open(path) {
            Ok(opened) => opened.filter(|_| found.is_some()),
            Err(error) => {
                self.attach_failed(path, error);
                return Ok(());
            }
        };
        let known = self.by_path.get(path).and_then(|slot| Some((*slot, self.meters.get(slot)?.cgroup_id)));
        let id = opened.as_ref().map(|(_, id)| *id);
        if let Some((slot, known)) = known {
            if id == Some(known) {
                return Ok(());
            }
            self.by_path.remove(path);
            self.drain(slot);
        }
        match (found, opened) {
            (Some(found), Some((dir, id))) => self.meter(found, &dir, id, made_at),
            _ => Ok(()),
        }
    }

    /// Gives a cgroup a meter.
    fn meter(&mut self, found: Found, dir: &File, cgroup_id: u64, made_at: Option<u64>) -> Result<(), MeterError> {
        let Found { path, extra } = found;
        let identity =
            if extra { identity::extra_container(&path) } else { identity::container(&path).unwrap_or_default() };
        let labels = Labels::of(&identity, extra, &path);
        let since = clock::boottime();
        let owner = Owner { cgroup_id, path: path.clone(), extra, since, gone: None, identity, labels };
        let Some(assignment) = self.ledger.assign(owner) else {
            self.refuse(cgroup_id, path);
            return self.reclaim();
        };
        self.write(&assignment.changed)?;
        let slot = assignment.slot;
        let links = match self.kernel.attach(slot, dir) {
            Ok(links) => links,
            Err(error) => {
                if !error.cgroup_gone() {
                    self.attach_failed(&path, error);
                }
                self.ledger.unassign(slot);
                return self.write(&[slot]);
            }
        };
        if let Some(made_at) = made_at {
            let nanos = clock::monotonic().saturating_sub(made_at);
            self.metrics.attach_seconds.observe(nanos as f64 / 1e9);
        }
        debug!(cgroup = path, slot = slot.0, "metered");
        self.refused.remove(&cgroup_id);
        self.by_path.insert(path.clone(), slot);
        self.meters.insert(slot, Meter { cgroup_id, path, state: State::Attached(links) });
        Ok(())
    }

    fn attach_failed(&self, path: &str, error: impl Into<anyhow::Error>) {
        self.metrics.attach_failures.inc();
        let error = error.into();
        error!(cgroup = path, "not metered: {error:#}; its traffic is unattributed, and it is tried again every 30 s");
    }

    fn refuse(&mut self, cgroup_id: u64, path: String) {
        if self.refused.is_empty() {
            warn!(
                cgroup = path,
                "all {} meters are in use: this container's traffic, and that of further ones, is unattributed. \
                 Raise meters.max",
                self.meters.len()
            );
        }
        if self.refused.insert(cgroup_id, path).is_none() {
            self.metrics.refused.inc();
        }
    }

    /// Detaches the meter of a cgroup that was removed but lingers, so that a new one can have its slot soon.
    fn reclaim(&mut self) -> Result<(), MeterError> {
        let lingering = self.meters.iter_mut().find(|(_, meter)| matches!(meter.state, State::Draining(_)));
        if let Some((slot, meter)) = lingering
            && let State::Draining(links) = mem::replace(&mut meter.state, State::Closing(clock::boottime()))
        {
            self.kernel.detach(*slot, &links)?;
        }
        Ok(())
    }

    /// The cgroup of a meter was removed.
    fn drain(&mut self, slot: Slot) {
        if let Some(meter) = self.meters.get_mut(&slot) {
            // The state in between is never seen: nothing is awaited here.
            meter.state = match mem::replace(&mut meter.state, State::Closing(0)) {
                State::Attached(links) => State::Draining(links),
                other => other,
            };
        }
    }

    /// Whether there are meters of removed cgroups to be settled.
    pub fn is_draining(&self) -> bool {
        self.meters.values().any(|meter| !matches!(meter.state, State::Attached(_))) || !self.old_nodes.is_empty()
    }

    /// Reads the meters of removed cgroups a last time once nothing can move them any more, and frees their slots.
    pub fn settle(&mut self) -> Result<(), MeterError> {
        let now = clock::boottime();
        let mut settled = Vec::new();
        for (slot, meter) in &self.meters {
            let done = match &meter.state {
                State::Attached(_) => false,
                State::Draining(links) => self.kernel.released(links)?,
                State::Closing(since) => since + GRACE <= now,
            };
            if done {
                settled.push(*slot);
            }
        }
        let kernel = &self.kernel;
        let mut lingering = Vec::new();
        for links in self.old_nodes.drain(..) {
            if !kernel.released(&links)? {
                lingering.push(links);
            }
        }
        self.old_nodes = lingering;
        if settled.is_empty() {
            return Ok(());
        }
        let raw = self.kernel.read(self.ledger.in_use())?;
        for &slot in &settled {
            self.ledger.gone(slot, raw[slot.0 as usize], now);
            self.kernel.unpin(slot)?;
            if let Some(meter) = self.meters.remove(&slot) {
                debug!(cgroup = meter.path, slot = slot.0, "read a last time");
            }
        }
        self.write(&settled)?;
        let refused: Vec<String> = self.refused.values().cloned().collect();
        for path in refused {
            self.reconcile(&path, None)?;
        }
        let watched = &self.watched;
        self.refused.retain(|id, path| watched.id(path) == Some(*id));
        Ok(())
    }

    /// A free slot whose programs are not loaded yet, among the next [`SPARE`].
    pub fn missing_spare(&self) -> Option<Slot> {
        self.ledger.free_slots().take(SPARE).find(|slot| !self.kernel.is_loaded(*slot))
    }

    /// Loads the programs of a free slot, so that the next container has its meter at once.
    pub fn load_spare(&mut self, slot: Slot) -> Result<(), MeterError> {
        self.kernel.load_programs(slot)
    }

    /// Reads all counters and publishes what they say.
    pub fn sample(&mut self) -> Result<(), MeterError> {
        let timer = self.metrics.sample_seconds.start_timer();
        let raw = self.kernel.read(self.ledger.in_use())?;
        let now = clock::boottime();
        self.ledger.sample(&raw, now);
        let expired = self.ledger.expire(now);
        self.write(&expired)?;
        let lost = self.kernel.events_lost()?;
        let overflowed = lost - mem::replace(&mut self.events_lost, lost);
        self.metrics.events_lost.inc_by(overflowed);
        if overflowed > 0 {
            warn!(events = overflowed, "cgroup events were lost; walking the tree instead");
            self.walk()?;
        }
        let programs = if meters::stats_enabled() { Some(self.kernel.program_stats()?) } else { None };
        self.snapshots.send_replace(Arc::new(Snapshot::of(&self.ledger, self.meters.len(), programs)));
        timer.observe_duration();
        Ok(())
    }
}

/// What ends the agent.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The kernel said no to something that must work.
    #[error(transparent)]
    Meter(#[from] MeterError),
    /// A port, socket or signal handler.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel answered.
        cause: io::Error,
    },
}
