//! Whose each slot is, and what that makes of the counts.
//!
//! A slot's counters only ever grow. Its record says how much of that is whose: `base` is where the owner began,
//! `carry` what earlier containers of the same series had counted, `foreign` what never was the pods'. So one record
//! written in one step is all that changes when a slot changes hands, and an agent that dies in between leaves sums
//! that add up.

mod record;

use std::collections::{BTreeMap, HashSet};

use guard_common::{Tally, Totals};

pub use self::record::{NODE, Owner, Record, Slot};
use crate::{identity::Labels, usage::Rates};

/// How long the series of a container that is gone is kept, in nanoseconds.
pub const KEEP: u64 = 300 * 1_000_000_000;

/// All containers with the same labels, one after the other.
#[derive(Debug, Default)]
struct Series {
    slots: Vec<usize>,
    /// Counts of containers whose slots went to others while no record of this series was left to carry them.
    lost: Totals,
    last_gone: u64,
}

/// A slot that was given away, and the records that have to be written for it, in this order.
#[derive(Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The new owner's.
    pub slot: Slot,
    /// Records that changed; the slot's own is the last.
    pub changed: Vec<Slot>,
}

/// The books.
#[derive(Debug)]
pub struct Ledger {
    records: Vec<Record>,
    raw: Vec<Totals>,
    /// What the last sample brought.
    moved: Vec<Totals>,
    rates: Vec<Rates>,
    sampled_at: u64,
    series: BTreeMap<Labels, Series>,
    unattributed: Tally,
}

impl Ledger {
    /// Books for `meters` containers and the node.
    pub fn new(meters: u32) -> Self {
        let slots = meters as usize + 1;
        Self {
            records: vec![Record::default(); slots],
            raw: vec![Totals::default(); slots],
            moved: vec![Totals::default(); slots],
            rates: vec![Rates::default(); slots],
            sampled_at: 0,
            series: BTreeMap::new(),
            unattributed: Tally::default(),
        }
    }

    /// Takes over the records and counts that an earlier agent left. Returns the records that have to be written.
    ///
    /// # Panics
    ///
    /// If there are not as many records as slots.
    pub fn restore(&mut self, records: Vec<Record>, raw: &[Totals], now: u64) -> Vec<Slot> {
        assert_eq!(records.len(), self.records.len(), "the pinned records fit the books");
        self.raw.copy_from_slice(raw);
        self.sampled_at = now;
        self.records = records;
        let before = self.records[0].carry.egress;
        let absorbed: HashSet<u64> = self.records.iter().map(|r| r.absorbed).filter(|&since| since != 0).collect();
        let mut changed = Vec::new();
        for index in 1..self.records.len() {
            let Some(owner) = &self.records[index].owner else { continue };
            if owner.gone.is_some() && absorbed.contains(&owner.since) {
                self.free(index);
                changed.push(Slot(index as u32));
                continue;
            }
            let series = self.series.entry(owner.labels.clone()).or_default();
            series.slots.push(index);
            series.last_gone = series.last_gone.max(owner.gone.unwrap_or(0));
        }
        self.unattributed = self.records[0].carry.egress;
        self.count_unattributed();
        if self.unattributed != before {
            changed.push(NODE);
        }
        changed
    }

    /// Gives a slot to a cgroup: a free one, else the one whose owner is gone for longest. `None`: every slot's owner
    /// is still there.
    pub fn assign(&mut self, owner: Owner) -> Option<Assignment> {
        let index = self.pick()?;
        let mut changed = Vec::new();
        let mut carry = Totals::default();
        if let Some(old) = self.records[index].owner.clone() {
            let counted = self.records[index].carry + self.own_of(index);
            let siblings = self.series.entry(old.labels.clone()).or_default();
            let heir = siblings.slots.iter().copied().find(|&slot| slot != index);
            if old.labels != owner.labels
                && let Some(heir) = heir
            {
                self.bequeath(index, heir);
                changed.push(Slot(heir as u32));
            } else {
                siblings.slots.retain(|&slot| slot != index);
                if old.labels == owner.labels {
                    carry = counted;
                } else {
                    siblings.lost += counted;
                }
            }
            if old.extra {
                let own = self.own_of(index);
                self.records[index].foreign += own;
            }
        }
        let series = self.series.entry(owner.labels.clone()).or_default();
        carry += std::mem::take(&mut series.lost);
        series.slots.push(index);
        let foreign = self.records[index].foreign;
        self.records[index] = Record { owner: Some(owner), base: self.raw[index], carry, foreign, absorbed: 0 };
        self.rates[index] = Rates::default();
        self.moved[index] = Totals::default();
        let slot = Slot(index as u32);
        changed.push(slot);
        Some(Assignment { slot, changed })
    }

    /// The free slots, in the order in which they are given away.
    pub fn free_slots(&self) -> impl Iterator<Item = Slot> {
        let meters = self.records.iter().enumerate().skip(1);
        meters.filter(|(_, record)| record.owner.is_none()).map(|(index, _)| Slot(index as u32))
    }

    fn pick(&self) -> Option<usize> {
        let meters = || self.records.iter().enumerate().skip(1);
        let free = self.free_slots().next().map(|slot| slot.0 as usize);
        free.or_else(|| {
            let gone = meters().filter_map(|(index, record)| Some((record.owner.as_ref()?.gone?, index)));
            gone.min().map(|(_, index)| index)
        })
    }

    /// The slot's owner is gone, and `raw` is the last that its counters will ever say. Its record has to be written.
    pub fn gone(&mut self, slot: Slot, raw: Totals, now: u64) {
        let index = slot.0 as usize;
        self.raw[index] = raw;
        self.rates[index] = Rates::default();
        if let Some(owner) = &mut self.records[index].owner {
            owner.gone = Some(now);
            if let Some(series) = self.series.get_mut(&owner.labels) {
                series.last_gone = series.last_gone.max(now);
            }
        }
        self.count_unattributed();
    }

    /// Takes a slot back that was assigned but could not be attached to. Its record has to be written.
    pub fn unassign(&mut self, slot: Slot) {
        let index = slot.0 as usize;
        if let Some(owner) = &self.records[index].owner
            && let Some(series) = self.series.get_mut(&owner.labels)
        {
            series.slots.retain(|&slot| slot != index);
            series.lost += self.records[index].carry;
            if series.slots.is_empty() && series.lost == Totals::default() {
                self.series.remove(&owner.labels.clone());
            }
        }
        self.free(index);
    }

    /// The series of these labels is known by other ones from now on, and goes on in the series that has them, if there is
    /// one: what both counted is added up. Returns the records that have to be written.
    pub fn rename(&mut self, old: &Labels, new: &Labels) -> Vec<Slot> {
        if old == new {
            return vec![];
        }
        let Some(Series { slots, lost, last_gone }) = self.series.remove(old) else { return vec![] };
        for &index in &slots {
            if let Some(owner) = &mut self.records[index].owner {
                owner.labels = new.clone();
            }
        }
        let series = self.series.entry(new.clone()).or_default();
        series.slots.extend(slots);
        series.lost += lost;
        series.last_gone = series.last_gone.max(last_gone);
        // No labels are pinned: what a record carries finds its way into the series by its owner's name. What no record
        // carries an agent that dies would take along.
        match series.slots.first() {
            Some(&heir) if series.lost != Totals::default() => {
                self.records[heir].carry += std::mem::take(&mut series.lost);
                vec![Slot(heir as u32)]
            }
            _ => vec![],
        }
    }

    /// The owners of all slots, those that are gone among them.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.records.iter().filter_map(|record| record.owner.as_ref())
    }

    /// Forgets the series whose last container is gone for [`KEEP`], and frees the slots of containers that are gone for
    /// as long from series that go on: one of each series at a time, for a record names one that it has absorbed. Returns
    /// the records that have to be written, in this order.
    pub fn expire(&mut self, now: u64) -> Vec<Slot> {
        let records = &self.records;
        let alive = |slot: &usize| records[*slot].owner.as_ref().is_some_and(|owner| owner.gone.is_none());
        let over = |series: &Series| series.last_gone + KEEP <= now && !series.slots.iter().any(alive);
        let slots: Vec<usize> =
            self.series.values().filter(|series| over(series)).flat_map(|series| series.slots.clone()).collect();
        self.series.retain(|_, series| !over(series));
        let outlived: Vec<_> = self.series.values().filter_map(|series| self.outlived(series, now)).collect();
        for &index in &slots {
            self.free(index);
        }
        let mut changed: Vec<Slot> = slots.into_iter().map(|index| Slot(index as u32)).collect();
        for (index, heir) in outlived {
            self.bequeath(index, heir);
            self.free(index);
            changed.extend([Slot(heir as u32), Slot(index as u32)]);
        }
        changed
    }

    /// The slot of the series whose owner is gone for longest, if that is [`KEEP`], and the one that outlives it.
    fn outlived(&self, series: &Series, now: u64) -> Option<(usize, usize)> {
        let gone = |index: usize| self.records[index].owner.as_ref().and_then(|owner| owner.gone).unwrap_or(u64::MAX);
        let oldest = *series.slots.iter().min_by_key(|&&index| gone(index))?;
        let heir = *series.slots.iter().max_by_key(|&&index| gone(index))?;
        (oldest != heir && gone(oldest).saturating_add(KEEP) <= now).then_some((oldest, heir))
    }

    /// What the slot's series counted in it goes on in another slot of that series. That one's record has to be written
    /// before this one's, which is to be given away or freed.
    fn bequeath(&mut self, index: usize, heir: usize) {
        let Some(owner) = &self.records[index].owner else { return };
        let since = owner.since;
        if let Some(series) = self.series.get_mut(&owner.labels) {
            series.slots.retain(|&slot| slot != index);
        }
        let counted = self.records[index].carry + self.own_of(index);
        self.records[heir].carry += counted;
        self.records[heir].absorbed = since;
    }

    fn free(&mut self, index: usize) {
        let own = self.own_of(index);
        let record = &self.records[index];
        let extra = record.owner.as_ref().is_some_and(|owner| owner.extra);
        let foreign = if extra { record.foreign + own } else { record.foreign };
        self.records[index] = Record { base: self.raw[index], foreign, ..Record::default() };
    }

    /// Takes a new sample: the counters of the first slots, read in the order of their index (the node's first, so
    /// that no packet is in the node's sum and not yet in its container's).
    ///
    /// Returns whether more is unattributed than before: then the node's record has to be written.
    pub fn sample(&mut self, raw: &[Totals], now: u64) -> bool {
        let before = self.unattributed;
        let nanos = now.saturating_sub(self.sampled_at);
        for (index, &raw) in raw.iter().enumerate() {
            self.moved[index] = raw - self.raw[index];
            self.rates[index] = Rates::over(self.moved[index], nanos);
            self.raw[index] = raw;
        }
        self.sampled_at = now;
        self.count_unattributed();
        self.unattributed != before
    }

    fn count_unattributed(&mut self) {
        let attributed = (1..self.records.len()).map(|index| self.of_pods(index)).fold(Totals::default(), |a, b| a + b);
        let now = Totals { egress: self.raw[0].egress, ingress: Tally::default() } - attributed;
        let before = Totals { egress: self.unattributed, ingress: Tally::default() };
        self.unattributed = before.max(now).egress;
        // Kept with the records: what was shown once is not taken back by the next agent.
        self.records[0].carry.egress = self.unattributed;
    }

    /// What the slot's present owner counted, up to the last sample.
    pub fn own(&self, slot: Slot) -> Totals {
        self.own_of(slot.0 as usize)
    }

    fn own_of(&self, index: usize) -> Totals {
        self.raw[index] - self.records[index].base
    }

    /// What the slot counted for cgroups beneath the pods' root, ever.
    fn of_pods(&self, index: usize) -> Totals {
        let record = &self.records[index];
        let pods = self.raw[index] - record.foreign;
        if record.owner.as_ref().is_some_and(|owner| owner.extra) { pods - self.own_of(index) } else { pods }
    }

    /// The record of a slot.
    pub fn record(&self, slot: Slot) -> &Record {
        &self.records[slot.0 as usize]
    }

    /// The slots whose owners are still there, with what each counted and at which rates.
    pub fn metered(&self) -> impl Iterator<Item = (Slot, &Owner, Totals, Rates)> {
        self.records.iter().enumerate().skip(1).filter_map(|(index, record)| {
            let owner = record.owner.as_ref().filter(|owner| owner.gone.is_none())?;
            Some((Slot(index as u32), owner, self.own_of(index), self.rates[index]))
        })
    }

    /// All owners, those that are gone among them, with what each counted up to the last sample.
    pub fn counted(&self) -> impl Iterator<Item = (&Owner, Totals)> {
        let all = self.records.iter().enumerate().skip(1);
        all.filter_map(|(index, record)| Some((record.owner.as_ref()?, self.own_of(index))))
    }

    /// What the slot's owner counted between the last two samples.
    pub fn moved(&self, slot: Slot) -> Totals {
        self.moved[slot.0 as usize]
    }

    /// The rates of the last sample.
    pub fn rates(&self, slot: Slot) -> Rates {
        self.rates[slot.0 as usize]
    }

    /// What the slot had counted at the last sample.
    pub fn raw(&self, slot: Slot) -> Totals {
        self.raw[slot.0 as usize]
    }

    /// All series with their totals.
    pub fn series(&self) -> impl Iterator<Item = (&Labels, Totals)> {
        self.series.iter().map(|(labels, series)| {
            let slots = series.slots.iter().map(|&index| self.records[index].carry + self.own_of(index));
            (labels, slots.fold(series.lost, |a, b| a + b))
        })
    }

    /// How many slots a sample has to read to see every owner that is still there.
    pub fn in_use(&self) -> u32 {
        self.metered().last().map_or(1, |(slot, ..)| slot.0 + 1)
    }

    /// What all pods together counted.
    pub fn node(&self) -> Totals {
        self.raw[0]
    }

    /// What all pods together sent and no container's meter saw. Never goes down.
    pub fn unattributed(&self) -> Tally {
        self.unattributed
    }

    /// `CLOCK_BOOTTIME` of the last sample, in nanoseconds.
    pub fn sampled_at(&self) -> u64 {
        self.sampled_at
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;

#[cfg(test)]
mod rename_tests;
