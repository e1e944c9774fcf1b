//! Limits and containments: what the judge orders goes to the kernel, what the kernel finds goes to the judge.

use guard_common::Containment;
use tracing::{info, warn};

use super::{
    Guard,
    orders::{self, LAPSE},
};
use crate::{
    clock,
    core::{
        breach::{ContainerId, Limit},
        event::Crossing,
        ledger::{Owner, Slot},
        policy::Count,
        usage::Rates,
        verdict::Contained,
        watch::CLEAR,
    },
    kernel::{
        controls::{Orders, Report},
        meters::MeterError,
    },
};

/// Rates over less than this many nanoseconds say little.
const SHORT: u64 = 50_000_000;

/// Until when each bucket's signs are known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    egress: u64,
    ingress: u64,
}

impl From<Report> for Seen {
    fn from(report: Report) -> Self {
        Self { egress: report.egress_empty, ingress: report.ingress_empty }
    }
}

impl Guard {
    /// A container has a slot: the judge hears of it, and the slot's programs of its limits. `adopted`: they know them
    /// from an earlier agent.
    pub(super) fn introduce(&mut self, slot: Slot, owner: &Owner, adopted: bool) {
        let (now, id) = (clock::boottime(), ContainerId(owner.cgroup_id));
        let mut effects = self.judge.appeared(now, id, self.about(owner));
        self.note_name(&owner.labels);
        // An agent that died before it said whose the slot is has left another's orders there.
        let mut seen = Seen::default();
        if adopted && self.kernel.controls.owner(slot) == owner.cgroup_id {
            let contained = self.in_force(slot, now);
            // Signs of breaches that have long been over are not news; what its containment began with is.
            let over = now.saturating_sub(CLEAR);
            let egress = contained.map_or(over, |contained| contained.since.saturating_sub(1));
            seen = Seen { egress, ingress: over };
            let sent = self.ledger.own(slot).egress;
            self.judge.catch_up(now, id, &sent);
            effects.extend(self.judge.contained(now, id, contained));
            self.kernel.controls.order(slot, self.orders_of(id));
        } else {
            self.kernel.controls.assign(slot, owner.cgroup_id, self.orders_of(id));
        }
        self.seen.insert(slot, seen);
        self.kernel.controls.arm(slot, self.lapse());
        self.carry_out(effects);
    }

    /// The containment that the programs keep to.
    fn in_force(&self, slot: Slot, now: u64) -> Option<Contained> {
        let contained = self.kernel.controls.report(slot).contained;
        // One that lapsed while no packet came is still there, and nothing.
        contained.filter(|contained| contained.until > now).map(orders::told)
    }

    /// A container is gone.
    pub(super) fn farewell(&mut self, cgroup_id: u64) {
        let effects = self.judge.gone(clock::boottime(), ContainerId(cgroup_id));
        self.carry_out(effects);
    }

    fn orders_of(&self, id: ContainerId) -> Orders {
        let mut orders = orders::orders(self.judge.orders(id), self.kernel.cpus(), self.outlive_agent);
        if orders.egress.rate == 0
            && let Some(allowed) = self.judge.allowed(id)
        {
            orders.egress.quantum = orders::quantum(allowed);
        }
        orders
    }

    /// Tells the programs what the judge orders for one container, or for all. What is as it was costs a few reads of
    /// memory. A container that is gone leaves its orders to the sockets that outlive it.
    pub(super) fn order(&self, id: ContainerId) {
        if let Some(slot) = self.slot_of(id) {
            self.kernel.controls.order(slot, self.orders_of(id));
        }
    }

    /// As [`Self::order`], for all containers.
    pub(super) fn order_all(&self) {
        for (slot, id) in self.attached() {
            self.kernel.controls.order(slot, self.orders_of(id));
        }
    }

    /// Other settings hold: what was ordered for containers that are gone may not be what anybody wants now.
    pub(super) fn disarm_removed(&mut self) {
        for (slot, meter) in self.meters.iter_mut().filter(|(_, meter)| !meter.is_attached()) {
            meter.held = None;
            self.kernel.controls.disarm(*slot);
        }
    }

    /// A packet found a bucket empty.
    pub(super) fn on_crossing(&mut self, crossing: Crossing) -> Result<(), MeterError> {
        let Crossing { at, limit, slot, owner } = crossing;
        if self.slot_of(owner) != Some(slot) {
            return Ok(());
        }
        let raw = self.kernel.read(slot.0, 1)?[0];
        // Just after a sample the time since then says little.
        let since = clock::boottime().saturating_sub(self.ledger.sampled_at()).max(SHORT);
        let rates = Rates::over(raw - self.ledger.raw(slot), since);
        let report = self.hear(slot, owner);
        self.seen.insert(slot, report.into());
        self.crossed(owner, limit, &rates);
        self.metrics.breach_seconds.observe(clock::monotonic().saturating_sub(at) as f64 / 1e9);
        Ok(())
    }

    fn crossed(&mut self, id: ContainerId, limit: Limit, rates: &Rates) {
        let figure = match limit {
            Limit::Ingress => rates.ingress.cluster + rates.ingress.external,
            _ if self.judge.orders(id).count == Count::External => rates.egress.external,
            _ => rates.egress.cluster + rates.egress.external,
        };
        let effects = self.judge.crossed(clock::boottime(), id, limit, figure);
        self.carry_out(effects);
    }

    /// What the kernel says of a slot's containment goes to the judge.
    pub(super) fn hear(&mut self, slot: Slot, id: ContainerId) -> Report {
        let report = self.kernel.controls.report(slot);
        let now = clock::boottime();
        match (self.in_force(slot, now), self.judge.contained_now(id)) {
            (Some(told), known) if known.is_none_or(|known| known.since != told.since) => {
                let effects = self.judge.contained(now, id, Some(told));
                info!(
                    container = self.name(id),
                    how = %told.how,
                    "contained by its meter, from the packet that crossed its limit on"
                );
                self.contained_by_meter(id);
                self.carry_out(effects);
            }
            // At its end the judge lifts it.
            (None, Some(known)) if known.until > now => {
                warn!(container = self.name(id), "its containment lapsed: nobody renewed it for {LAPSE:?}");
                let effects = self.judge.contained(now, id, None);
                self.carry_out(effects);
            }
            _ => {}
        }
        report
    }

    /// What the programs found since the last sample, for which there may have been no event.
    pub(super) fn listen(&mut self) {
        for (slot, id) in self.attached().collect::<Vec<_>>() {
            let report = self.hear(slot, id);
            let before = self.seen.insert(slot, report.into()).unwrap_or_default();
            let rates = self.ledger.rates(slot);
            if report.egress_empty > before.egress {
                self.crossed(id, Limit::Rate, &rates);
            }
            if report.ingress_empty > before.ingress {
                self.crossed(id, Limit::Ingress, &rates);
            }
        }
    }

    /// Puts a containment in force.
    pub(super) fn contain(&self, id: ContainerId, contained: Contained) {
        let Some(slot) = self.slot_of(id) else { return };
        let (kind, rate) = orders::kernel(contained.how);
        let until = contained.until.min(self.lapse());
        self.kernel.controls.contain(slot, Containment { kind, rate, until, since: contained.since });
    }

    /// Lifts a containment.
    pub(super) fn let_go(&self, id: ContainerId) {
        let Some(slot) = self.slot_of(id) else { return };
        // Disarmed first: a packet that finds the bucket empty meanwhile must not contain it again.
        self.kernel.controls.order(slot, self.orders_of(id));
        self.kernel.controls.release(slot);
    }

    /// Renews what lasts only as long as there is an agent: containments in force, and the leave to begin one.
    pub fn renew(&self) {
        for (slot, meter) in &self.meters {
            self.kernel.controls.arm(*slot, self.lapse());
            let contained = self.judge.contained_now(ContainerId(meter.cgroup_id)).filter(|_| meter.is_attached());
            if let Some(until) = contained.map(|contained| contained.until).or(meter.held) {
                self.kernel.controls.renew(*slot, until.min(self.lapse()));
            }
        }
    }

    /// Until when things last that nobody renews.
    fn lapse(&self) -> u64 {
        if self.outlive_agent { u64::MAX } else { clock::boottime() + LAPSE.as_nanos() as u64 }
    }

    /// The slot of a container that is there.
    pub(super) fn slot_of(&self, id: ContainerId) -> Option<Slot> {
        self.attached().find(|(_, attached)| *attached == id).map(|(slot, _)| slot)
    }
}
