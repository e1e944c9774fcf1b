//! What containers are called, as the API server tells of their pods.

use std::{collections::BTreeMap, sync::Arc};

use tracing::{debug, warn};

use super::Guard;
use crate::{
    clock,
    core::{
        breach::ContainerId,
        identity::{Identity, Labels},
        inventory::Inventory,
        judge::About,
        ledger::{Owner, Slot},
        policy::Subject,
    },
    kernel::meters::MeterError,
    webhook::Alert,
};

/// Names that are new are kept so soon, in nanoseconds, and no sooner after the last time: nothing that is pinned has any.
const KEEP_NAMES: u64 = 1_000_000_000;

/// Whether names are to be kept.
#[derive(Debug, Default)]
pub(super) struct NewNames {
    some: bool,
    kept_at: u64,
}

impl Guard {
    /// What a cgroup's series is called.
    pub(super) fn labels_of(&self, identity: &Identity, extra: bool, path: &str) -> Labels {
        let roster = self.roster.as_ref().filter(|_| !extra);
        let known = roster.and_then(|roster| roster.labels(identity, None));
        known.unwrap_or_else(|| Labels::of(identity, extra, path))
    }

    /// What the judge is told of a container.
    pub(super) fn about(&self, owner: &Owner) -> About {
        let (names, uid) = (owner.labels.clone(), owner.identity.pod_uid.as_str());
        let Some(roster) = self.roster.as_ref().filter(|_| !uid.is_empty()) else {
            let own: Arc<str> = names.workload().into();
            return About::on_its_own(Subject { names, ..Subject::default() }, own);
        };
        About::in_pod(names, uid, roster.pod(uid))
    }

    /// The API server tells of the node's pods: series go on under the names that become known, and the judge hears of
    /// what has changed.
    pub fn on_pods(&mut self, told: Arc<Inventory>) -> Result<(), MeterError> {
        let Some(roster) = &mut self.roster else { return Ok(()) };
        let first = !roster.is_told();
        let changed = roster.tell(told);
        let concerned = |owner: &&Owner| !owner.extra && changed.contains(&owner.identity.pod_uid);
        let renamed: BTreeMap<Labels, Labels> = self
            .ledger
            .owners()
            .filter(concerned)
            .filter_map(|owner| {
                let labels = roster.labels(&owner.identity, Some(&owner.labels))?;
                (labels != owner.labels).then(|| (owner.labels.clone(), labels))
            })
            .collect();
        for (old, new) in &renamed {
            debug!(container = %new, before = %old, "its name is known");
            let slots = self.ledger.rename(old, new);
            self.write(&slots)?;
        }
        self.new_names.some |= !renamed.is_empty();
        for slot in self.attached().map(|(slot, _)| slot).collect::<Vec<Slot>>() {
            let owner = self.ledger.record(slot).owner.as_ref();
            if let Some(owner) = owner.filter(concerned).cloned() {
                self.known_better(&owner);
            }
        }
        if let Some(roster) = &mut self.roster {
            roster.forget(self.ledger.owners().map(|owner| &owner.identity));
        }
        if first {
            self.say_if_strangers();
        }
        Ok(())
    }

    /// More, or something else, is known of a container that is there.
    fn known_better(&mut self, owner: &Owner) {
        let id = ContainerId(owner.cgroup_id);
        let now = clock::boottime();
        // To whoever is told of alerts another name is another alert.
        for (before, report) in self.voice.breaches.rename(id.0, &owner.labels) {
            self.voice.alert(|node| Alert::of(&before, node).resolved(clock::wall(now)));
            self.voice.alert(|node| Alert::of(&report, node));
            self.tell_breach(&report);
        }
        let about = self.about(owner);
        let effects = self.judge.appeared(now, id, about);
        self.carry_out(effects);
        self.order(id);
    }

    /// Whether there are containers of pods that nothing is known of.
    pub fn has_strangers(&self) -> bool {
        self.roster.is_some() && self.strangers().next().is_some()
    }

    fn strangers(&self) -> impl Iterator<Item = &Owner> {
        let owners = self.attached().filter_map(|(slot, _)| self.ledger.record(slot).owner.as_ref());
        owners.filter(|owner| {
            let uid = &owner.identity.pod_uid;
            !uid.is_empty() && self.roster.as_ref().is_none_or(|roster| roster.pod(uid).is_none())
        })
    }

    /// A wrong node name looks like a node without names.
    fn say_if_strangers(&self) {
        let (strangers, all) = (self.strangers().count(), self.attached().count());
        if strangers > 0 && strangers == all {
            warn!(
                node = self.voice.node,
                containers = all,
                "the API server knows no pod of the containers that run here: is this the node's name (--node-name, \
                 NODE_NAME)?"
            );
        }
    }

    /// A container has its meter: its name is to be kept.
    pub(super) fn note_name(&mut self, labels: &Labels) {
        self.new_names.some |= !labels.namespace.is_empty();
    }

    /// Has new names written, so that the next agent shows every series under its name, whether the API server is there or
    /// not.
    pub(super) fn keep_names(&mut self, now: u64) {
        if self.new_names.some && now.saturating_sub(self.new_names.kept_at) >= KEEP_NAMES {
            self.new_names = NewNames { some: false, kept_at: now };
            drop(self.keep_now());
        }
    }
}
