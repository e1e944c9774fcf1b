//! The start: what an earlier agent left in the kernel is taken over.

use tracing::info;

use super::{Guard, GuardError, Meter, State};
use crate::{
    clock,
    core::ledger::{Owner, Slot},
    kernel::meters::{Links, MeterError},
};

impl Guard {
    pub(super) fn restore(&mut self, max: u32) -> Result<(), GuardError> {
        let mut records = self.kernel.records()?;
        // Before anything is made of them: a series that is shown under its name stays so.
        for owner in records.iter_mut().filter_map(|record| record.owner.as_mut()) {
            owner.labels = self.labels_of(&owner.identity, owner.extra, &owner.path);
        }
        let raw = self.kernel.read(0, max + 1)?;
        let changed = self.ledger.restore(records, &raw, clock::boottime());
        self.write(&changed)?;
        self.find_pods_root()?;
        let owners: Vec<(Slot, Owner)> = self.ledger.metered().map(|(slot, owner, ..)| (slot, owner.clone())).collect();
        let mut adopted = 0;
        for (slot, owner) in owners {
            let there = self.watched.id(&owner.path)? == Some(owner.cgroup_id);
            let Some(links) = self.links_of(slot, &owner, there)? else {
                // Released: nothing can count any more.
                let raw = self.kernel.read(slot.0, 1)?[0];
                self.ledger.gone(slot, raw, clock::boottime());
                self.write(&[slot])?;
                continue;
            };
            adopted += 1;
            if there {
                self.introduce(slot, &owner, true);
            }
            let wanted = self.watched.classify(&owner.path, self.pods_root_path());
            let wanted = wanted.is_some_and(|found| found.extra == owner.extra);
            let Owner { cgroup_id, path, .. } = owner;
            let state = if there { State::Attached(links) } else { State::Draining(links, clock::boottime()) };
            self.meters.insert(slot, Meter { cgroup_id, path: path.clone(), state, held: None });
            if there && wanted {
                self.by_path.insert(path, slot);
            } else if there {
                info!(cgroup = path, "no longer one of those to be metered");
                self.close(slot)?;
            }
        }
        if adopted > 0 {
            info!(meters = adopted, "took over the meters of an earlier agent");
        }
        Ok(())
    }

    /// The links of a slot's owner: the pinned ones, or new ones if an agent died between the record and the links.
    /// `None`: the cgroup is gone.
    fn links_of(&mut self, slot: Slot, owner: &Owner, there: bool) -> Result<Option<Links>, GuardError> {
        let pinned = self.kernel.adopt(slot, owner.cgroup_id)?;
        if pinned.is_some() || !there {
            return Ok(pinned);
        }
        match self.watched.open(&owner.path)? {
            Some((dir, id)) if id == owner.cgroup_id => match self.kernel.attach(slot, &dir) {
                Ok(links) => Ok(Some(links)),
                Err(error) if MeterError::cgroup_gone(&error) => Ok(None),
                Err(error) => Err(error.into()),
            },
            _ => Ok(None),
        }
    }
}
