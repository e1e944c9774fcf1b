//! What is done at every sample, and a few times each second.

use std::{mem, sync::Arc};

use guard_common::Totals;
use tracing::{error, warn};

use super::Guard;
use crate::{
    clock,
    core::{
        breach::ContainerId,
        ledger::{NODE, Owner},
    },
    kernel::meters::{self, MeterError},
    snapshot::{Snapshot, Standing},
};

impl Guard {
    /// Reads all counters, decides, and publishes what they say.
    pub fn sample(&mut self) -> Result<(), MeterError> {
        let timer = self.metrics.sample_seconds.start_timer();
        let lost = self.kernel.events_lost()?;
        let overflowed = lost - mem::replace(&mut self.events_lost, lost);
        self.metrics.events_lost.inc_by(overflowed);
        if overflowed > 0 {
            warn!(events = overflowed, "kernel events were lost; walking the tree instead");
            self.until_walk.is_wanted = true;
        }
        // First of all: what somebody sends who has no meter yet would be taken for a bypass.
        if self.until_walk.is_wanted {
            self.walk()?;
        }
        let before = self.ledger.sampled_at();
        let interfaces = self.bypass.read();
        let raw = self.kernel.read(0, self.ledger.in_use())?;
        let now = clock::boottime();
        if self.ledger.sample(&raw, now) {
            self.write(&[NODE])?;
        }
        let expired = self.ledger.expire(now);
        self.write(&expired)?;
        self.compare(interfaces.as_ref(), before, now);
        self.decide(now, now.saturating_sub(before));
        self.keep_names(now);
        let programs = if meters::stats_enabled() { Some(self.kernel.program_stats()?) } else { None };
        let standing = |id: u64| Standing {
            breached: self.judge.open().any(|breach| breach.container.0 == id),
            contained: self.judge.contained_now(ContainerId(id)).is_some(),
        };
        let pod = |owner: &Owner| self.roster.as_ref()?.pod(&owner.identity.pod_uid).map(Arc::clone);
        let snapshot = Snapshot::of(&self.ledger, self.meters.len(), programs, standing, pod).with(self.bypassed());
        self.snapshots.send_replace(Arc::new(snapshot));
        timer.observe_duration();
        Ok(())
    }

    fn decide(&mut self, now: u64, nanos: u64) {
        self.listen();
        let moved: Vec<(ContainerId, Totals)> = self
            .ledger
            .metered()
            .map(|(slot, owner, ..)| (ContainerId(owner.cgroup_id), self.ledger.moved(slot)))
            .collect();
        self.judge.wall_clock(clock::wall_ahead());
        let effects = self.judge.sample(now, nanos, moved);
        self.carry_out(effects);
        self.metrics.storm.set(self.judge.storm().into());
        self.order_all();
    }

    /// Takes over what somebody did to the kill switch.
    pub fn look_at_kill_switch(&mut self) {
        let engaged = match self.kill_switch.poll() {
            Ok(None) if !self.kill_switch_unread => return,
            Ok(change) => {
                self.kill_switch_unread = false;
                if let Some(change) = change {
                    warn!("{change}");
                }
                self.kill_switch.engaged()
            }
            Err(_) if self.kill_switch_unread => return,
            Err(error) => {
                self.kill_switch_unread = true;
                error!("cannot read the kill switch, so it counts as engaged: {error}");
                true
            }
        };
        let effects = self.judge.kill_switch(clock::boottime(), engaged);
        self.carry_out(effects);
        self.order_all();
        drop(self.keep_now());
    }
}
