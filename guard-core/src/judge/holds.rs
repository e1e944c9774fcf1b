//! Which policy holds for whom, with what the pods' annotations change.

use std::collections::BTreeMap;

use super::{Judge, Known, attempts::Unit, told::Effect};
use crate::{
    breach::{Breach, ContainerId},
    overrides::{self, Bad, Resolved},
};

/// How long it is remembered what was said of a pod that has no container any more, in nanoseconds: the containers of one
/// that fails at once come back.
const KEEP: u64 = 3600 * 1_000_000_000;

/// What holds for a time only, and what was said of annotations.
#[derive(Clone, Debug, Default)]
pub(super) struct Holds {
    /// From when on another policy holds for a container, in seconds since 1970.
    changes: BTreeMap<ContainerId, i64>,
    /// Bad annotations of containers.
    bad: BTreeMap<ContainerId, Vec<Bad>>,
    /// Those that were said, and when that was.
    said: BTreeMap<Unit, (u64, Vec<Bad>)>,
}

impl Judge {
    /// Gives a container the policy that holds for it now.
    pub(super) fn assign(&mut self, now: u64, id: ContainerId) -> Vec<Effect> {
        self.assign_each(now, vec![id])
    }

    /// Gives all of them the policies that hold now.
    pub(super) fn assign_all(&mut self, now: u64) -> Vec<Effect> {
        let ids: Vec<ContainerId> = self.containers.keys().copied().collect();
        self.assign_each(now, ids)
    }

    /// Gives those another policy for which another one holds by now.
    pub(super) fn assign_changed(&mut self, now: u64) -> Vec<Effect> {
        if self.holds.changes.is_empty() {
            return vec![];
        }
        let wall = self.wall_seconds(now);
        let due = self.holds.changes.iter().filter(|(_, at)| **at <= wall).map(|(id, _)| *id).collect();
        self.assign_each(now, due)
    }

    fn assign_each(&mut self, now: u64, ids: Vec<ContainerId>) -> Vec<Effect> {
        let mut said: Vec<Effect> = ids.into_iter().flat_map(|id| self.hold(now, id)).collect();
        let mut effects = self.unlimited(now);
        effects.append(&mut said);
        effects
    }

    fn hold(&mut self, now: u64, id: ContainerId) -> Vec<Effect> {
        let wall = self.wall_seconds(now);
        let Some(Known { about, facts }) = self.containers.get_mut(&id) else { return vec![] };
        let policy = self.settings.policies.of(&about.subject);
        let Resolved { policy, exempt_until: _, bad, changes_at } =
            overrides::resolve(policy, &about.subject, &self.settings.overrides, wall);
        self.detector.assign(now, id, &about.series, policy.as_ref());
        facts.policy = policy;
        match changes_at {
            Some(at) => drop(self.holds.changes.insert(id, at)),
            None => drop(self.holds.changes.remove(&id)),
        }
        let unit = facts.whole();
        self.say(now, id, unit, bad)
    }

    /// What of a container's bad annotations was not said of its pod yet.
    fn say(&mut self, now: u64, id: ContainerId, unit: Unit, bad: Vec<Bad>) -> Vec<Effect> {
        let Holds { bad: all, said, .. } = &mut self.holds;
        if bad.is_empty() && !said.contains_key(&unit) {
            return vec![];
        }
        all.insert(id, bad.clone());
        let containers = &self.containers;
        let of_unit = |id: &ContainerId| containers.get(id).is_some_and(|known| known.facts.whole() == unit);
        let before = said.remove(&unit).map(|(_, before)| before).unwrap_or_default();
        // What is no longer there is said again when it comes back.
        let there = |bad: &Bad| all.iter().any(|(id, all)| of_unit(id) && all.contains(bad));
        let mut kept: Vec<Bad> = before.into_iter().filter(there).collect();
        let mut effects = Vec::new();
        for bad in bad {
            if !kept.contains(&bad) {
                kept.push(bad.clone());
                effects.push(Effect::BadAnnotation { container: id, bad });
            }
        }
        let is_there = |unit: &Unit| match unit {
            Unit::Pod(uid) => self.pods.contains_key(uid),
            Unit::Container(id) => containers.contains_key(id),
        };
        said.retain(|unit, (at, _)| is_there(unit) || now.saturating_sub(*at) <= KEEP);
        if !kept.is_empty() {
            said.insert(unit, (now, kept));
        }
        effects
    }

    /// Forgets a container.
    pub(super) fn holds_no_more(&mut self, id: ContainerId) {
        self.holds.changes.remove(&id);
        self.holds.bad.remove(&id);
    }

    /// Breaches of limits that are no longer there are over.
    fn unlimited(&mut self, now: u64) -> Vec<Effect> {
        let limits = |known: &Known, limit| known.facts.policy.as_ref().is_some_and(|policy| policy.limits(limit));
        // What an earlier agent left open of a container that this one has not seen yet stays so until it is settled.
        let limited =
            |breach: &Breach| self.containers.get(&breach.container).is_none_or(|known| limits(known, breach.limit));
        self.watch.reloaded(now, limited).into_iter().map(Effect::Closed).collect()
    }
}
