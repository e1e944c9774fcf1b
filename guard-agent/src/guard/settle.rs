//! The end of a meter: it lingers while sockets of its cgroup do, is read a last time, and its slot is free.

use std::mem;

use tracing::debug;

use super::{GRACE, Guard, State};
use crate::{
    clock,
    core::{breach::ContainerId, ledger::Slot},
    kernel::meters::MeterError,
};

impl Guard {
    /// Detaches the meter of the cgroup that was removed first and lingers, so that a new one can have its slot soon.
    pub(super) fn reclaim(&mut self) -> Result<(), MeterError> {
        // One for each that waits is enough.
        if self.meters.values().filter(|meter| !meter.counts()).count() >= self.refused.len() {
            return Ok(());
        }
        let lingering = self.meters.iter().filter_map(|(slot, meter)| match &meter.state {
            State::Draining(_, since) => Some((*since, *slot)),
            State::Attached(_) | State::Closing(_) => None,
        });
        lingering.min().map_or(Ok(()), |(_, slot)| self.close(slot))
    }

    /// Detaches a meter, to be read a last time a little later.
    pub(super) fn close(&mut self, slot: Slot) -> Result<(), MeterError> {
        let Some(cgroup_id) = self.meters.get(&slot).map(|meter| meter.cgroup_id) else { return Ok(()) };
        self.farewell(cgroup_id);
        let Some(meter) = self.meters.get_mut(&slot) else { return Ok(()) };
        // It may go on to send.
        self.bypass.unmetered(&meter.path);
        match mem::replace(&mut meter.state, State::Closing(clock::boottime())) {
            State::Attached(links) | State::Draining(links, _) => self.kernel.detach(slot, &links)?,
            State::Closing(since) => meter.state = State::Closing(since),
        }
        Ok(())
    }

    /// The cgroup of a meter was removed.
    pub(super) fn drain(&mut self, slot: Slot) {
        let Some(cgroup_id) = self.meters.get(&slot).map(|meter| meter.cgroup_id) else { return };
        let held = self.judge.contained_now(ContainerId(cgroup_id)).map(|contained| contained.until);
        self.farewell(cgroup_id);
        if let Some(meter) = self.meters.get_mut(&slot) {
            let now = clock::boottime();
            meter.held = held;
            meter.state = match mem::replace(&mut meter.state, State::Closing(now)) {
                State::Attached(links) => State::Draining(links, now),
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
                State::Draining(links, _) => self.kernel.released(links)?,
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
        let raw = self.kernel.read(0, self.ledger.in_use())?;
        for &slot in &settled {
            self.ledger.gone(slot, raw[slot.0 as usize], now);
            self.kernel.unpin(slot)?;
            self.seen.remove(&slot);
            if let Some(meter) = self.meters.remove(&slot) {
                debug!(cgroup = meter.path, slot = slot.0, "read a last time");
            }
        }
        self.write(&settled)?;
        let refused: Vec<String> = self.refused.values().cloned().collect();
        for path in refused {
            self.reconcile(&path, None)?;
        }
        self.forget_refused();
        Ok(())
    }
}
