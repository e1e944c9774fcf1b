//! The controls' map, in the agent's memory: limits and containments take hold with a store.

use std::{
    mem::offset_of,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use guard_common::{BUCKET_EPOCH, CONTAINED, Containment, Control, Limit, NODE_SLOT, containment_kind};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::core::ledger::Slot;

const WORDS: usize = size_of::<Control>() / 8;

/// What a meter's programs check and do by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// Limit of what is sent. Its classes are also those that a containment is about.
    pub egress: Limit,
    /// Limit of what is received.
    pub ingress: Limit,
    /// The containment that the egress limit's breach leads to; `until` says for how many nanoseconds.
    pub on_breach: Containment,
}

/// What the programs say of a meter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The containment, if one is in force.
    pub contained: Option<Containment>,
    /// `CLOCK_BOOTTIME` in nanoseconds when the egress bucket was last found empty. 0: never.
    pub egress_empty: u64,
    /// The same of the ingress bucket.
    pub ingress_empty: u64,
}

/// The map.
#[derive(Debug)]
pub struct Controls {
    base: NonNull<[AtomicU64; WORDS]>,
    slots: usize,
}

// SAFETY: shared memory that is only used through atomics.
unsafe impl Send for Controls {}

impl Controls {
    /// Maps the map, which has room for `slots` meters.
    pub fn open(map: BorrowedFd<'_>, slots: u32) -> std::io::Result<Self> {
        let slots = slots as usize;
        let len = slots * size_of::<Control>();
        // SAFETY: a new mapping, of the map's length, wherever there is room.
        let base =
            unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, map, 0) };
        let base = NonNull::new(base?.cast()).ok_or(std::io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, slots })
    }

    fn word(&self, slot: Slot, offset: usize) -> &AtomicU64 {
        let slot = slot.0 as usize;
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        // SAFETY: within the mapping, which lives as long as self; aligned, for a mapping begins with a page.
        let words = unsafe { self.base.add(slot).as_ref() };
        &words[offset / 8]
    }

    fn get(&self, slot: Slot, offset: usize) -> u64 {
        self.word(slot, offset).load(SeqCst)
    }

    fn set(&self, slot: Slot, offset: usize, value: u64) {
        self.word(slot, offset).store(value, SeqCst);
    }

    fn limit(&self, slot: Slot, offset: usize, limit: Limit) {
        let Limit { rate, depth, quantum, classes } = limit;
        self.set(slot, offset + offset_of!(Limit, depth), depth);
        self.set(slot, offset + offset_of!(Limit, quantum), quantum);
        self.set(slot, offset + offset_of!(Limit, classes), classes);
        self.set(slot, offset + offset_of!(Limit, rate), rate);
    }

    /// A new limit is a full bucket, and no CPU may use up what it got under the old one.
    fn limit_egress(&self, slot: Slot, limit: Limit) {
        self.limit(slot, offset_of!(Control, egress), limit);
        self.set(slot, offset_of!(Control, egress_state.spent), 0);
        self.word(slot, offset_of!(Control, gate)).fetch_add(1, SeqCst);
    }

    /// A new limit is a full bucket. What was received before it came is not watched so closely.
    fn limit_ingress(&self, slot: Slot, limit: Limit) {
        self.limit(slot, offset_of!(Control, ingress), limit);
        self.set(slot, offset_of!(Control, ingress_state.spent), 0);
    }

    /// The slot has a new owner: nothing of the last one's holds for it.
    pub fn assign(&self, slot: Slot, owner: u64, orders: Orders) {
        self.disarm(slot);
        for offset in [
            offset_of!(Control, egress_state.empty),
            offset_of!(Control, egress_state.told),
            offset_of!(Control, ingress_state.empty),
            offset_of!(Control, ingress_state.told),
        ] {
            self.set(slot, offset, 0);
        }
        self.set(slot, offset_of!(Control, owner), owner);
        self.limit_egress(slot, orders.egress);
        self.limit_ingress(slot, orders.ingress);
        self.on_breach(slot, orders.on_breach);
    }

    /// The slot's owner gets orders. Those that are as they were touch nothing, whoever gave them.
    pub fn order(&self, slot: Slot, orders: Orders) {
        let before = self.orders(slot);
        // How much credit a CPU takes at once is not what the limit is.
        let differs = |before: Limit, limit: Limit| Limit { quantum: limit.quantum, ..before } != limit;
        if differs(before.egress, orders.egress) {
            self.limit_egress(slot, orders.egress);
        } else if before.egress.quantum != orders.egress.quantum {
            self.set(slot, offset_of!(Control, egress.quantum), orders.egress.quantum);
        }
        if differs(before.ingress, orders.ingress) {
            self.limit_ingress(slot, orders.ingress);
        } else if before.ingress.quantum != orders.ingress.quantum {
            self.set(slot, offset_of!(Control, ingress.quantum), orders.ingress.quantum);
        }
        if before.on_breach != orders.on_breach {
            self.on_breach(slot, orders.on_breach);
        }
    }

    fn orders(&self, slot: Slot) -> Orders {
        let limit = |offset: usize| Limit {
            rate: self.get(slot, offset + offset_of!(Limit, rate)),
            depth: self.get(slot, offset + offset_of!(Limit, depth)),
            quantum: self.get(slot, offset + offset_of!(Limit, quantum)),
            classes: self.get(slot, offset + offset_of!(Limit, classes)),
        };
        Orders {
            egress: limit(offset_of!(Control, egress)),
            ingress: limit(offset_of!(Control, ingress)),
            on_breach: Containment {
                kind: self.get(slot, offset_of!(Control, on_breach.kind)),
                rate: self.get(slot, offset_of!(Control, on_breach.rate)),
                until: self.get(slot, offset_of!(Control, on_breach.until)),
                since: 0,
            },
        }
    }

    /// The slot's owner, by its cgroup id.
    pub fn owner(&self, slot: Slot) -> u64 {
        self.get(slot, offset_of!(Control, owner))
    }

    fn on_breach(&self, slot: Slot, Containment { kind, rate, until, since: _ }: Containment) {
        self.set(slot, offset_of!(Control, on_breach.kind), containment_kind::NONE);
        self.set(slot, offset_of!(Control, on_breach.rate), rate);
        self.set(slot, offset_of!(Control, on_breach.until), until);
        self.set(slot, offset_of!(Control, on_breach.kind), kind);
    }

    /// Puts a containment in force.
    pub fn contain(&self, slot: Slot, containment: Containment) {
        let Containment { kind, rate, until, since } = containment;
        self.set(slot, offset_of!(Control, containment.rate), rate);
        self.set(slot, offset_of!(Control, containment.until), until);
        self.set(slot, offset_of!(Control, containment.since), since);
        self.set(slot, offset_of!(Control, containment.kind), kind);
        self.set(slot, offset_of!(Control, throttle_spent), since + BUCKET_EPOCH);
        self.word(slot, offset_of!(Control, gate)).fetch_or(CONTAINED, SeqCst);
    }

    /// Sets when the containment in force lapses by itself.
    pub fn renew(&self, slot: Slot, until: u64) {
        self.set(slot, offset_of!(Control, containment.until), until);
    }

    /// Lifts the containment, and lets the programs begin none.
    pub fn disarm(&self, slot: Slot) {
        self.set(slot, offset_of!(Control, on_breach.kind), containment_kind::NONE);
        self.release(slot);
    }

    /// Lets the programs contain by themselves until then.
    pub fn arm(&self, slot: Slot, until: u64) {
        self.set(slot, offset_of!(Control, on_breach.since), until);
    }

    /// Lifts the containment, if there is one.
    pub fn release(&self, slot: Slot) {
        self.set(slot, offset_of!(Control, containment.kind), containment_kind::NONE);
        // A new generation: what passed meanwhile took no credit.
        let open = |gate: u64| if gate & CONTAINED == 0 { gate } else { (gate & !CONTAINED) + 1 };
        self.word(slot, offset_of!(Control, gate)).update(SeqCst, SeqCst, open);
    }

    /// What the programs say.
    pub fn report(&self, slot: Slot) -> Report {
        let contained = self.get(slot, offset_of!(Control, gate)) & CONTAINED != 0;
        let contained = contained.then(|| Containment {
            kind: self.get(slot, offset_of!(Control, containment.kind)),
            rate: self.get(slot, offset_of!(Control, containment.rate)),
            until: self.get(slot, offset_of!(Control, containment.until)),
            since: self.get(slot, offset_of!(Control, containment.since)),
        });
        Report {
            contained: contained.filter(|containment| containment.kind != containment_kind::NONE),
            egress_empty: self.get(slot, offset_of!(Control, egress_state.empty)),
            ingress_empty: self.get(slot, offset_of!(Control, ingress_state.empty)),
        }
    }

    /// The mark of packets that are dropped: chosen once, for the programs of all agents.
    pub fn dropped_mark(&self) -> u32 {
        let word = self.word(Slot(NODE_SLOT), offset_of!(Control, dropped_mark));
        let chosen = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), "the mark of dropped packets");
        match word.compare_exchange(0, u64::from(chosen as u32 | 1), SeqCst, SeqCst) {
            Ok(_) => chosen as u32 | 1,
            Err(there) => there as u32,
        }
    }
}

impl Drop for Controls {
    fn drop(&mut self) {
        // SAFETY: the mapping of `open`, of which nothing is borrowed any more.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.slots * size_of::<Control>()) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own");
    }
}
