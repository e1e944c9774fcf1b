//! The one task that changes anything in the kernel: it gives cgroups their meters, reads them and takes them back.

mod act;
pub mod commands;
mod enforce;
pub mod hammer;
pub mod keep;
mod orders;
mod restore;
mod sample;
mod settle;
pub mod voice;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    path::Path,
    sync::Arc,
};

use guard_common::RECORD_PATH;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::{
    clock,
    config::Config,
    core::{
        event::{CgroupChange, DecodeError, Event},
        identity::{self, Labels},
        judge::{Judge, Settings},
        ledger::{Ledger, NODE, Owner, Slot},
    },
    kernel::{
        evidence::Sample,
        kill_switch::KillSwitchError,
        meters::{Links, MeterError, Meters},
    },
    kill_switch::View,
    metrics::Metrics,
    node::tree::{Found, Watched},
    snapshot::Snapshot,
    webhook::Webhook,
};

use self::{
    enforce::Seen,
    hammer::Hammer,
    keep::{Keeper, Remembered},
    voice::Voice,
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
    /// The cgroup was removed at this instant of boot time; sockets of it may still send.
    Draining(Links, u64),
    /// Detached at this instant of boot time, to be read a last time after [`GRACE`].
    Closing(u64),
}

#[derive(Debug)]
struct Meter {
    cgroup_id: u64,
    path: String,
    state: State,
}

impl Meter {
    /// Whether its programs are attached.
    fn counts(&self) -> bool {
        !matches!(self.state, State::Closing(_))
    }
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
    /// Programs could not be loaded ahead; not tried again before the next walk.
    spare_failed: bool,
    metrics: Arc<Metrics>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// What is decided.
    judge: Judge,
    /// What was told of each slot's buckets.
    seen: HashMap<Slot, Seen>,
    /// When the evidence was read last, and what it was.
    evidence: (u64, Arc<Vec<Sample>>),
    /// Containments need no agent to last.
    outlive_agent: bool,
    kill_switch: View,
    voice: Voice,
    hammer: Hammer,
    keeper: Keeper,
}

/// What the guard works with.
#[derive(Debug)]
pub struct Parts {
    /// The kernel.
    pub kernel: Meters,
    /// The cgroup tree.
    pub watched: Watched,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Where samples go.
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    /// The kill switch.
    pub kill_switch: View,
    /// Who is told.
    pub voice: Voice,
    /// Who evicts.
    pub hammer: Hammer,
    /// The state file.
    pub keeper: Keeper,
    /// What was in it.
    pub remembered: Option<Remembered>,
}

impl Guard {
    /// Takes over what an earlier agent left in the kernel and in the state file.
    pub fn new(parts: Parts, config: &Config) -> Result<Self, GuardError> {
        let Parts { kernel, watched, metrics, snapshots, kill_switch, voice, hammer, keeper, remembered } = parts;
        let max = config.meters.max;
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
            spare_failed: false,
            metrics,
            snapshots,
            judge: Judge::new(Settings::from(config), hammer.protection()),
            seen: HashMap::new(),
            evidence: Default::default(),
            outlive_agent: config.containment.outlive_agent,
            kill_switch,
            voice,
            hammer,
            keeper,
        };
        if let Some(remembered) = remembered {
            guard.remember(remembered);
        }
        guard.look_at_kill_switch();
        guard.restore(max)?;
        Ok(guard)
    }

    /// All that an earlier agent knew has been found again, or is gone.
    pub fn settled_in(&mut self) {
        let effects = self.judge.settled(clock::boottime());
        self.carry_out(effects);
        self.order_all();
    }

    /// Another configuration holds, but for what takes a restart.
    pub fn reload(&mut self, config: &Config) {
        self.outlive_agent = config.containment.outlive_agent;
        let effects = self.judge.reload(clock::boottime(), Settings::from(config));
        self.carry_out(effects);
        self.order_all();
        self.keep_now();
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whom alerts go to from now on.
    pub fn tell(&mut self, webhook: Option<Webhook>) {
        self.voice.webhook = webhook;
    }

    /// Takes over what the configuration's file says of the kill switch.
    pub fn kill_switch_in_file(&mut self, engaged: bool, path: &Path) -> Result<(), KillSwitchError> {
        self.kill_switch.set_file(engaged, path)?;
        self.look_at_kill_switch();
        Ok(())
    }

    fn pods_root_path(&self) -> Option<&str> {
        self.pods_root.as_ref().map(|(path, _)| path.as_str())
    }

    fn write(&mut self, slots: &[Slot]) -> Result<(), MeterError> {
        slots.iter().try_for_each(|&slot| self.kernel.write_record(slot, self.ledger.record(slot)))
    }

    /// Keeps the node meter on the pods' root, or puts it on a new one.
    fn find_pods_root(&mut self) -> Result<(), GuardError> {
        if let Some((path, known)) = &self.pods_root {
            if self.watched.id(path)? == Some(*known) {
                return Ok(());
            }
            info!(cgroup = path, "the pods' root is gone; waiting for another");
            self.pods_root = None;
            self.old_nodes.extend(self.node.take());
        }
        let Some(path) = self.watched.find_pods_root()? else { return Ok(()) };
        let Some((dir, id)) = self.watched.open(&path)? else { return Ok(()) };
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

    /// Says it if there are no pods to be metered: a wrong flag looks like a quiet node.
    pub fn say_if_idle(&self) {
        if self.pods_root.is_none() {
            warn!(
                "no pods' root ({}) beneath {}: only meters.extra are metered until it appears; --pods-root names it",
                self.watched.pods_root.as_deref().unwrap_or("kubepods, kubepods.slice or *-kubepods.slice"),
                self.watched.root.display(),
            );
        }
    }

    /// The kernel said that something happened.
    pub fn on_event(&mut self, event: Result<Event, DecodeError>) -> Result<(), MeterError> {
        match event {
            Ok(Event::Cgroup(change)) => self.on_change(change),
            Ok(Event::Crossed(crossing)) => self.on_crossing(crossing),
            Err(error) => {
                error!("{error}; walking the tree instead");
                self.walk()
            }
        }
    }

    fn on_change(&mut self, change: CgroupChange) -> Result<(), MeterError> {
        let Some(path) = change.path else { return self.walk() };
        if self.watched.may_be_pods_root(&path) {
            return self.walk();
        }
        self.reconcile(&path, change.made.then_some(change.at))
    }

    /// Compares the tree with the meters and repairs what differs. A tree that cannot be read is left as it was known,
    /// until the next walk.
    pub fn walk(&mut self) -> Result<(), MeterError> {
        match self.try_walk() {
            Err(GuardError::Tree(error)) => {
                self.metrics.walk_failures.inc();
                error!("cannot read the cgroup tree: {error}; what is metered stays so, the next walk is in 30 s");
                Ok(())
            }
            Err(GuardError::Meter(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    /// As [`Self::walk`], but says if the tree cannot be read.
    pub fn try_walk(&mut self) -> Result<(), GuardError> {
        self.spare_failed = false;
        self.find_pods_root()?;
        let found = self.watched.walk(self.pods_root_path())?;
        let there: HashSet<&str> = found.iter().map(|found| found.path.as_str()).collect();
        let vanished = self.by_path.keys().filter(|path| !there.contains(path.as_str()));
        let vanished: Vec<String> = vanished.cloned().collect();
        for path in vanished {
            self.reconcile(&path, None)?;
        }
        for found in &found {
            self.reconcile(&found.path, None)?;
        }
        self.forget_refused();
        Ok(())
    }

    /// Makes the meter of one path what the tree says. `made_at`: the instant of its mkdir, if that is the reason.
    fn reconcile(&mut self, path: &str, made_at: Option<u64>) -> Result<(), MeterError> {
        let found = self.watched.classify(path, self.pods_root_path());
        let known = self.by_path.get(path).and_then(|slot| Some((*slot, self.meters.get(slot)?.cgroup_id)));
        if found.is_none() && known.is_none() {
            return Ok(());
        }
        let opened = match self.watched.open(path) {
            Ok(opened) => opened,
            Err(error) => {
                self.attach_failed(path, error);
                return Ok(());
            }
        };
        if let Some((slot, known)) = known {
            match &opened {
                Some((_, id)) if *id == known && found.is_some() => return Ok(()),
                Some((_, id)) if *id == known => {
                    info!(cgroup = path, "no longer one of those to be metered");
                    self.close(slot)?;
                }
                _ => self.drain(slot),
            }
            self.by_path.remove(path);
        }
        match (found, opened) {
            (Some(found), Some((dir, id))) => self.meter(found, &dir, id, made_at),
            _ => Ok(()),
        }
    }

    /// Gives a cgroup a meter.
    fn meter(&mut self, found: Found, dir: &File, cgroup_id: u64, made_at: Option<u64>) -> Result<(), MeterError> {
        let Found { path, extra } = found;
        // Two meters on one cgroup would count it twice.
        if self.meters.values().any(|meter| meter.cgroup_id == cgroup_id && meter.counts()) {
            return Ok(());
        }
        if path.len() > RECORD_PATH {
            self.attach_failed(&path, PathTooLong);
            return Ok(());
        }
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
        // Before the programs run for it.
        if let Some(owner) = self.ledger.record(slot).owner.clone() {
            self.introduce(slot, &owner, false);
        }
        let links = match self.kernel.attach(slot, dir) {
            Ok(links) => links,
            Err(error) => {
                if !error.cgroup_gone() {
                    self.attach_failed(&path, error);
                }
                self.farewell(cgroup_id);
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
        error!(
            cgroup = path,
            "not metered: {error:#}; its traffic is in no container's figures; it is tried again every 30 s"
        );
    }

    /// Forgets those that were refused and are no more.
    fn forget_refused(&mut self) {
        let watched = &self.watched;
        self.refused.retain(|id, path| watched.id(path).is_ok_and(|found| found == Some(*id)));
    }

    fn refuse(&mut self, cgroup_id: u64, path: String) {
        if self.refused.is_empty() {
            warn!(
                cgroup = path,
                "all {} meters are in use: the traffic of this container, and of further ones, is in no container's \
                 figures. Raise meters.max",
                self.meters.len()
            );
        }
        if self.refused.insert(cgroup_id, path).is_none() {
            self.metrics.refused.inc();
        }
    }

    /// A free slot whose programs are not loaded yet, among the next [`SPARE`].
    pub fn missing_spare(&self) -> Option<Slot> {
        if self.spare_failed {
            return None;
        }
        self.ledger.free_slots().take(SPARE).find(|slot| !self.kernel.is_loaded(*slot))
    }

    /// Loads the programs of a free slot, so that the next container has its meter at once.
    pub fn load_spare(&mut self, slot: Slot) {
        if let Err(error) = self.kernel.load_programs(slot) {
            // Whoever needs the slot tries again, and says it if that fails.
            self.spare_failed = true;
            warn!("cannot load programs ahead: {:#}", anyhow::Error::from(error));
        }
    }
}

/// Why the guard could not do something.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The kernel said no to something that must work: the agent ends.
    #[error(transparent)]
    Meter(#[from] MeterError),
    /// The cgroup tree cannot be read.
    #[error("cannot read the cgroup tree: {0}")]
    Tree(io::Error),
}

impl From<io::Error> for GuardError {
    fn from(error: io::Error) -> Self {
        Self::Tree(error)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("its path is longer than the {RECORD_PATH} bytes that are kept of one")]
struct PathTooLong;
