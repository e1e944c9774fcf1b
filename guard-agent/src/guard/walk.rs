//! What the tree says, and meters for it.

use std::{collections::HashSet, fs::File};

use guard_common::RECORD_PATH;
use tracing::{debug, error, info, warn};

use super::{Guard, GuardError, Meter, State, UntilWalk};
use crate::{
    clock,
    core::{
        event::CgroupChange,
        identity,
        ledger::{NODE, Owner, Slot},
    },
    kernel::meters::MeterError,
    node::tree::Found,
};

/// For how many containers to come the programs are loaded ahead: as many as a node starts in a burst.
const SPARE: usize = 16;

/// A meter that is there so soon after its cgroup's mkdir, in nanoseconds, was there before a runtime started a process in it.
const LATE: u64 = 10_000_000;

impl Guard {
    /// Keeps the node meter on the pods' root, or puts it on a new one.
    pub(super) fn find_pods_root(&mut self) -> Result<(), GuardError> {
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

    pub(super) fn on_change(&mut self, change: CgroupChange) -> Result<(), MeterError> {
        let Some(path) = change.path else {
            // Soon, and once for all of these: any container that may make cgroups can make as many as it likes.
            self.until_walk.is_wanted = true;
            return Ok(());
        };
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

    /// What is looked at several times a second: the kill switch, and the tree if events could not say what happened.
    pub fn look(&mut self) -> Result<(), MeterError> {
        self.look_at_kill_switch();
        if self.until_walk.is_wanted { self.walk() } else { Ok(()) }
    }

    /// As [`Self::walk`], but says if the tree cannot be read.
    pub fn try_walk(&mut self) -> Result<(), GuardError> {
        let began = clock::boottime();
        self.until_walk = UntilWalk::default();
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
        self.bypass.walked = began;
        self.mend()
    }

    /// Makes the meter of one path what the tree says. `made_at`: the instant of its mkdir, if that is the reason.
    pub(super) fn reconcile(&mut self, path: &str, made_at: Option<u64>) -> Result<(), MeterError> {
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
        let labels = self.labels_of(&identity, extra, &path);
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
        let took = made_at.map(|made_at| clock::monotonic().saturating_sub(made_at));
        if let Some(nanos) = took {
            self.metrics.attach_seconds.observe(nanos as f64 / 1e9);
        }
        if took.is_none_or(|nanos| nanos > LATE) {
            self.bypass.late(&path);
        }
        debug!(cgroup = path, slot = slot.0, "metered");
        self.refused.remove(&cgroup_id);
        self.by_path.insert(path.clone(), slot);
        self.meters.insert(slot, Meter { cgroup_id, path, state: State::Attached(links), held: None });
        Ok(())
    }

    pub(super) fn attach_failed(&mut self, path: &str, error: impl Into<anyhow::Error>) {
        self.metrics.attach_failures.inc();
        self.bypass.unmetered(path);
        let error = error.into();
        error!(
            cgroup = path,
            "not metered: {error:#}; its traffic is in no container's figures; it is tried again every 30 s"
        );
    }

    /// Forgets those that were refused and are no more.
    pub(super) fn forget_refused(&mut self) {
        let watched = &self.watched;
        self.refused.retain(|id, path| watched.id(path).is_ok_and(|found| found == Some(*id)));
    }

    fn refuse(&mut self, cgroup_id: u64, path: String) {
        self.bypass.unmetered(&path);
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
        if self.until_walk.spare_failed {
            return None;
        }
        self.ledger.free_slots().take(SPARE).find(|slot| !self.kernel.is_loaded(*slot))
    }

    /// Loads the programs of a free slot, so that the next container has its meter at once.
    pub fn load_spare(&mut self, slot: Slot) {
        if let Err(error) = self.kernel.load_programs(slot) {
            // Whoever needs the slot tries again, and says it if that fails.
            self.until_walk.spare_failed = true;
            warn!("cannot load programs ahead: {:#}", anyhow::Error::from(error));
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("its path is longer than the {RECORD_PATH} bytes that are kept of one")]
struct PathTooLong;
