//! What pods send past their meters: their interfaces, as the node sees them, against what is metered.

mod unit;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::Arc,
};

use guard_common::Totals;
use tracing::warn;

use self::unit::{State, Unit, Unwatched};
use super::Guard;
use crate::{
    clock,
    core::{
        breach::ContainerId,
        bypass::Uplink,
        identity::{self, Labels},
        ledger::Owner,
    },
    node::uplinks::{Place, Uplinks},
    snapshot::Bypassed,
};

/// The time between two looks at who has which interface, in nanoseconds.
const LOOK: u64 = 10_000_000_000;
/// The least time, when somebody is new, or could not be looked at.
const LOOK_NEW: u64 = 500_000_000;
/// How long somebody may get further interfaces, in nanoseconds.
const NEW: u64 = 30_000_000_000;
/// How long a container without a meter keeps its pod from being watched, in nanoseconds: longer than from one attempt to meter
/// it to the next.
const UNMETERED: u64 = 40_000_000_000;

/// A pod, by its UID; what is in no pod, by its cgroup's path.
type Key = Arc<str>;

/// What is known of the pods' interfaces.
#[derive(Debug)]
pub(super) struct Bypass {
    uplinks: Option<Uplinks>,
    units: BTreeMap<Key, Unit>,
    looked: u64,
    /// Since when units are known to have containers without a meter.
    unmetered: HashMap<Key, u64>,
    /// When the last walk that read the whole tree began: it says again who has no meter.
    pub(super) walked: u64,
    /// What was said of all of them.
    said: BTreeSet<String>,
}

/// The interfaces, read before the meters.
#[derive(Debug)]
pub(super) struct Interfaces {
    before: u64,
    counted: HashMap<String, Uplink>,
}

impl Bypass {
    /// `node`: a process in the node's network namespace.
    pub(super) fn new(node: u32) -> Self {
        let uplinks =
            Uplinks::open(node).inspect_err(|error| warn!("bypass is not watched: no netlink socket: {error}"));
        let (units, unmetered) = (BTreeMap::new(), HashMap::new());
        Self { uplinks: uplinks.ok(), units, looked: 0, unmetered, walked: 0, said: BTreeSet::new() }
    }

    fn say(&mut self, text: String) {
        if !self.said.contains(&text) {
            warn!("what passes by the meters (AF_PACKET) is not watched: {text}");
            self.said.insert(text);
        }
    }

    /// Reads the interfaces: to be done before the meters are read.
    pub(super) fn read(&mut self) -> Option<Interfaces> {
        let before = clock::boottime();
        // Nobody to compare with: a node may have thousands of interfaces.
        let is_watched = self.units.values().any(|unit| matches!(unit.state, State::Watched { .. }));
        let uplinks = self.uplinks.as_ref().filter(|_| is_watched)?;
        match uplinks.read() {
            Ok(counted) => Some(Interfaces { before, counted }),
            Err(error) => {
                self.say(format!("the node's interfaces cannot be read: {error}"));
                None
            }
        }
    }

    /// A container has no meter: what it sends is not told from what bypasses.
    pub(super) fn unmetered(&mut self, path: &str) {
        let key = key(path);
        // At once: what it has sent by the next sample is in no meter.
        if let Some(unit) = self.units.get_mut(&key) {
            unit.leave(Unwatched::Unmetered);
        }
        self.unmetered.insert(key, clock::boottime());
    }

    /// A container has got its meter some time after it was made. What it sent until then bypassed nothing.
    pub(super) fn late(&mut self, path: &str) {
        if let Some(Unit { state: State::Watched { gap, .. }, .. }) = self.units.get_mut(&key(path)) {
            *gap = None;
        }
    }

    /// Takes over who there is. Returns what the meters of each say.
    fn know<'a>(
        &mut self,
        now: u64,
        all: impl Iterator<Item = (&'a Owner, Totals)>,
    ) -> BTreeMap<Key, HashMap<u64, (Totals, bool)>> {
        let mut meters: BTreeMap<Key, HashMap<u64, (Totals, bool)>> = BTreeMap::new();
        self.units.values_mut().for_each(|unit| unit.attached.clear());
        for (owner, totals) in all {
            let key = if owner.extra { owner.path.as_str() } else { owner.identity.pod_uid.as_str() };
            let gone = owner.gone.is_some();
            if !meters.contains_key(key) {
                meters.insert(key.into(), HashMap::new());
            }
            if let Some(of) = meters.get_mut(key) {
                of.insert(owner.cgroup_id, (totals, gone));
            }
            if !self.units.contains_key(key) {
                self.units.insert(key.into(), Unit::new(labels(owner), now));
            }
            if let Some(unit) = self.units.get_mut(key).filter(|_| !gone) {
                if (&unit.labels.namespace, &unit.labels.pod) != (&owner.labels.namespace, &owner.labels.pod) {
                    unit.labels = labels(owner);
                }
                unit.attached.insert(owner.cgroup_id, owner.path.clone());
            }
        }
        // An interface of that name may be another pod's before the last meters are read.
        let over = |unit: &&mut Unit| unit.attached.is_empty() && matches!(unit.state, State::Watched { .. });
        self.units.values_mut().filter(over).for_each(|unit| unit.leave(Unwatched::New));
        self.forget(&meters);
        meters
    }

    /// Forgets those of whom no meter tells any more. A successor of the same name goes on with their series.
    fn forget(&mut self, meters: &BTreeMap<Key, HashMap<u64, (Totals, bool)>>) {
        let is_over = |key: &Key, _: &mut Unit| !meters.contains_key(key);
        let over: Vec<(Key, Unit)> = self.units.extract_if(.., is_over).collect();
        for (_, Unit { labels, bytes, .. }) in over {
            let successor = self.units.values_mut().find(|unit| unit.labels == labels);
            if let (Some(bytes), Some(unit)) = (bytes, successor) {
                *unit.bytes.get_or_insert(0) += bytes;
            }
        }
    }

    /// Finds out who has which interface, if it is time.
    fn look(&mut self, root: &std::path::Path, now: u64) {
        // Walks may fail, and the node may have been suspended: time alone gives nobody a meter.
        self.unmetered.retain(|_, since| now.saturating_sub(*since) < UNMETERED || *since >= self.walked);
        for key in self.unmetered.keys() {
            // One that was not known then.
            if let Some(unit) = self.units.get_mut(key) {
                unit.leave(Unwatched::Unmetered);
            }
        }
        let since = now.saturating_sub(self.looked);
        let is_due = |unit: &Unit| unit.is_due(self.looked, since);
        if self.uplinks.is_none() || (since < LOOK && !self.units.values().any(is_due)) {
            return;
        }
        self.looked = now;
        match self.find(root, now) {
            // What changed while it was listed is listed again soon.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.looked = now.saturating_sub(LOOK - LOOK_NEW),
            Err(error) => self.say(format!(
                "the node's interfaces cannot be listed: {error}. It takes CAP_NET_ADMIN, and the node's process ids (hostPID: \
                 true in a pod)"
            )),
            Ok(()) => {}
        }
    }

    fn find(&mut self, root: &std::path::Path, now: u64) -> io::Result<()> {
        let Some(uplinks) = &mut self.uplinks else { return Ok(()) };
        let (node, links) = uplinks.links()?;
        let mut places = BTreeMap::new();
        for (key, unit) in &mut self.units {
            if self.unmetered.contains_key(key) || unit.attached.is_empty() || unit.is_past() {
                continue;
            }
            let is_there = |(index, name): &(i32, String)| links.iter().any(|l| l.index == *index && l.name == *name);
            let place = match &unit.state {
                // Whose an interface is stays so for as long as it is there, wherever its processes go.
                State::Watched { netns, links, .. } if links.iter().all(is_there) => Place::In(*netns),
                _ => {
                    // The oldest first: in a pod that is the sandbox.
                    let mut place = Place::Nowhere;
                    for path in unit.attached.values() {
                        match uplinks.place(node, &root.join(path))? {
                            Place::Nowhere => {}
                            found @ (Place::Node | Place::In(_)) => {
                                place = found;
                                break;
                            }
                            // Another container may be where the pod is.
                            found @ (Place::Unseen | Place::Apart) => place = found,
                        }
                    }
                    place
                }
            };
            places.insert(Arc::clone(key), place);
        }
        let mut failed = Ok(());
        for (key, place) in &places {
            let others = places.values().filter(|other| matches!(place, Place::In(_)) && *other == place).count();
            let Some(unit) = self.units.get_mut(key) else { continue };
            if let Place::In(netns) = *place
                && others == 1
            {
                let own: Vec<_> = links.iter().filter(|link| link.peer == Some(netns)).collect();
                // A runtime may give it further interfaces once it is there.
                if now.saturating_sub(unit.since) >= NEW && unit.is_watched_by(netns, &own) {
                    continue;
                }
                match uplinks.links_of(netns) {
                    Ok(Some(inside)) => unit.watch(netns, &own, node, &inside),
                    Ok(None) => unit.leave(Unwatched::New),
                    Err(error) => {
                        unit.leave(Unwatched::New);
                        failed = Err(error);
                    }
                }
            } else {
                unit.stay_out(*place);
            }
        }
        if !places.is_empty() && places.values().all(|place| matches!(place, Place::Unseen)) {
            self.say("the agent does not see the containers' processes: set hostPID: true in its pod".to_owned());
        }
        failed
    }
}

/// Whose a cgroup is.
fn key(path: &str) -> Key {
    identity::container(path).map_or_else(|| path.into(), |identity| identity.pod_uid.into())
}

fn labels(owner: &Owner) -> Labels {
    let Labels { namespace, pod, container } = owner.labels.clone();
    Labels { namespace, pod, container: if owner.extra { container } else { String::new() } }
}

impl Guard {
    /// Compares the interfaces with what the meters have just said, and decides. `before`: when they were compared last.
    pub(super) fn compare(&mut self, read: Option<&Interfaces>, before: u64, now: u64) {
        let meters = self.bypass.know(now, self.ledger.counted());
        let mut found: Vec<(u64, Vec<ContainerId>)> = Vec::new();
        if let Some(read) = read {
            for (key, meters) in &meters {
                let Some(unit) = self.bypass.units.get_mut(key) else { continue };
                if let Some(bytes) = unit.take(read, now, meters) {
                    found.push((bytes, unit.attached.keys().copied().map(ContainerId).collect()));
                }
            }
        }
        for (bytes, containers) in found {
            let effects = self.judge.bypassed(before, now, &containers, bytes);
            self.carry_out(effects);
        }
        let root = self.watched.root.clone();
        self.bypass.look(&root, now);
    }

    /// What passed by the meters of each unit.
    pub(super) fn bypassed(&self) -> Vec<Bypassed> {
        let told = self.bypass.units.values().map(|unit| Bypassed {
            labels: unit.labels.clone(),
            watched: matches!(unit.state, State::Watched { .. }),
            is_there: !unit.attached.is_empty(),
            bytes: unit.bytes,
        });
        told.collect()
    }
}

#[cfg(test)]
#[path = "bypass_tests.rs"]
mod tests;
