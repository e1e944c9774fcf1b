//! The slow path: what happens when a CPU's credit is used up, and to a meter that is contained.

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_boot_ns, bpf_ktime_get_ns},
    programs::SkBuffContext,
};
use guard_common::{
    BUCKET_EPOCH, BreachEvent, CONTAINED, Containment, Control, EVIDENCE_EPOCH, INGRESS, Lane, Limit, SOURCES, State,
    containment_kind, event_kind, parameter::DROPPED_MARK,
};

use crate::{
    atomic::{add, load, replace, store},
    maps::{CONTROLS, COUNTERS, EVENTS, EVENTS_LOST, EVIDENCE, KILL_SWITCH},
    meter::{Direction, Handover, PASS, charge},
    packet, parameter,
    tokens::{Spend, Spent, spend},
};

/// The sender gets `EPERM`.
const REFUSE: i32 = 0;
/// The packet is dropped as a full queue would drop it: TCP slows down.
const DROP: i32 = 2;

/// How much of a throttle's tokens may be saved up: what a TCP connection of which every packet was dropped needs to
/// go on at its rate after the 200 ms of its timer.
const THROTTLE_DEPTH: u64 = 250_000_000;

/// The least time between two events of one bucket.
const TELL_AGAIN: u64 = 1_000_000_000;

/// More than any packet has; what is spent at once stays below it, so that its time fits a word.
const MOST: u64 = 1 << 32;

/// Whether a packet that is sent is one for [`egress`]: its meter is contained, its limits are new, or its CPU's credit is
/// used up.
///
/// # Safety
///
/// The pointers are the maps' values.
#[inline(always)]
pub(crate) unsafe fn stops_egress(lane: *const Lane, control: *const Control, class: usize, bytes: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { load(&raw const (*lane).seen) != load(&raw const (*control).gate) || used_up(lane, class, bytes) }
}

/// Whether this CPU's credit does not cover a packet.
///
/// # Safety
///
/// The pointer is the map's value.
#[inline(always)]
pub(crate) unsafe fn used_up(lane: *const Lane, class: usize, bytes: u64) -> bool {
    // SAFETY: the caller's promise; a class is 0 or 1.
    unsafe {
        let counted = load((&raw const (*lane).tally.bytes).cast::<u64>().add(class));
        counted + bytes > load((&raw const (*lane).mark).cast::<u64>().add(class))
    }
}

/// A packet, and the meter that it belongs to.
struct Case {
    skb: *const __sk_buff,
    lane: *mut Lane,
    control: *mut Control,
    class: usize,
    bytes: u64,
    packets: u64,
    now: u64,
}

impl Case {
    /// Takes a packet over from its meter's program.
    #[inline(always)]
    fn open(ctx: &SkBuffContext, direction: Direction) -> Option<Self> {
        let skb: *const __sk_buff = ctx.as_ptr().cast();
        let Handover { slot, class, bytes, packets } = Handover::read(skb);
        let (counters, control) = (COUNTERS.get_ptr_mut(slot)?, CONTROLS.get_ptr_mut(slot)?);
        // SAFETY: the map's value of this slot and CPU, not null; the helper takes no arguments.
        let (lane, now): (*mut Lane, u64) = unsafe {
            let lane = match direction {
                Direction::Egress => &raw mut (*counters).egress,
                Direction::Ingress => &raw mut (*counters).ingress,
            };
            (lane, bpf_ktime_get_boot_ns())
        };
        let (class, bytes, packets) = ((class & 1) as usize, bytes.into(), packets.into());
        Some(Self { skb, lane, control, class, bytes, packets, now })
    }

    /// Counts the packet and lets it go.
    #[inline(always)]
    fn pass(&self) -> i32 {
        // SAFETY: the map's value.
        unsafe { charge(self.lane, self.class, self.bytes, self.packets) };
        PASS
    }

    /// Charges the packet's peer with bytes.
    ///
    /// # Safety
    ///
    /// The case holds the maps' values.
    #[inline(always)]
    unsafe fn note(&self, direction: Direction, bytes: u64) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut destination = packet::destination(self.skb, direction);
            destination.owner = load(&raw const (*self.control).owner);
            destination.epoch = (self.now >> EVIDENCE_EPOCH) as u32;
            destination.class = self.class as u8 | if matches!(direction, Direction::Ingress) { INGRESS } else { 0 };
            if let Some(noted) = EVIDENCE.get_ptr_mut(destination) {
                add(noted, bytes);
            } else {
                // Two CPUs at once: the sample of one is lost.
                let _full = EVIDENCE.insert(destination, bytes, 0);
            }
        }
    }

    /// Charges the destination of a packet that is held, now and then: what it tries to send is evidence, and there is no
    /// credit whose end would say when.
    ///
    /// # Safety
    ///
    /// The case holds the maps' values.
    #[inline(always)]
    unsafe fn note_some(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            let quantum = load(&raw const (*self.control).egress.quantum) & 0xffff_ffff | 1;
            if (random() * quantum) >> 32 < self.bytes {
                self.note(Direction::Egress, quantum.max(self.bytes));
            }
        }
    }

    /// Counts the packet as dropped.
    #[inline(always)]
    fn drop(&self, verdict: i32) -> i32 {
        let mark = parameter!(DROPPED_MARK) as u32;
        // SAFETY: the map's value; the context of a cgroup_skb program.
        unsafe {
            add(&raw mut (*self.lane).tally.other, self.bytes);
            // The node's program runs too, and must not count it.
            (*self.skb.cast_mut()).mark = mark;
        }
        verdict
    }
}

/// What becomes of a packet that is sent: a verdict of an egress program.
#[inline(always)]
pub fn egress(ctx: &SkBuffContext) -> i32 {
    let Some(case) = Case::open(ctx, Direction::Egress) else { return PASS };
    let Case { lane, control, now, .. } = case;
    // SAFETY: the maps' values of this slot and CPU, not null.
    unsafe {
        let mut gate = load(&raw const (*control).gate);
        let off = kill_switch();
        if gate & CONTAINED != 0 {
            if now >= load(&raw const (*control).containment.until) {
                // Nobody renewed it. A new generation, for what passed meanwhile took no credit.
                let open = (gate & !CONTAINED) + 1;
                replace(&raw mut (*control).gate, gate, open);
                gate = open;
            } else if !off {
                return contained(&case);
            }
        }
        // With the kill switch engaged a contained meter goes on as if it were not: that is a generation too.
        if load(&raw const (*lane).seen) != gate {
            // What the CPU was given under other limits is void.
            for class in 0..2 {
                let counted = load((&raw const (*lane).tally.bytes).cast::<u64>().add(class));
                store((&raw mut (*lane).mark).cast::<u64>().add(class), counted);
            }
            store(&raw mut (*lane).seen, gate);
        }
        if used_up(lane, case.class, case.bytes) {
            let bucket = Bucket { limit: &raw const (*control).egress, state: &raw mut (*control).egress_state };
            let credit = bucket.credit(&case);
            if credit.empty {
                bucket.tell(&case, event_kind::EGRESS);
                if !off && gate & CONTAINED == 0 && contain(&case, gate) {
                    return contained(&case);
                }
            }
            credit.give(&case, Direction::Egress);
        }
    }
    case.pass()
}

/// Takes account of a packet that was received.
#[inline(always)]
pub fn ingress(ctx: &SkBuffContext) -> i32 {
    let Some(case) = Case::open(ctx, Direction::Ingress) else { return PASS };
    let control = case.control;
    // SAFETY: the map's value of this slot, not null.
    unsafe {
        let bucket = Bucket { limit: &raw const (*control).ingress, state: &raw mut (*control).ingress_state };
        let credit = bucket.credit(&case);
        if credit.empty {
            bucket.tell(&case, event_kind::INGRESS);
        }
        // Where it comes from matters to a breach only: a busy server's clients would crowd out what matters.
        if load(&raw const (*control).ingress.rate) == 0 {
            add((&raw mut (*case.lane).mark).cast::<u64>().add(case.class), credit.bytes);
        } else {
            credit.give(&case, Direction::Ingress);
        }
    }
    case.pass()
}

#[inline(always)]
fn kill_switch() -> bool {
    (0..SOURCES).any(|source| {
        // SAFETY: the map's value.
        KILL_SWITCH.get_ptr(source).is_some_and(|by| unsafe { load(&raw const (*by).since) != 0 })
    })
}

/// What becomes of a packet of a contained meter.
///
/// # Safety
///
/// The case holds the maps' values.
#[inline(always)]
unsafe fn contained(case: &Case) -> i32 {
    let control = case.control;
    // SAFETY: the caller's promise.
    unsafe {
        if load(&raw const (*control).egress.classes) >> case.class & 1 == 0 {
            return case.pass();
        }
        case.note_some();
        match load(&raw const (*control).containment.kind) {
            containment_kind::THROTTLE => {
                let rate = load(&raw const (*control).containment.rate);
                let spent = &raw mut (*control).throttle_spent;
                // A packet may be larger than the bucket: it passes if there are tokens at all, and what it takes beyond
                // is owed.
                if spend(spent, rate, THROTTLE_DEPTH, case.bytes, case.now, Spend::Owing) == Spent::Done {
                    case.pass()
                } else {
                    case.drop(DROP)
                }
            }
            containment_kind::BLOCK => case.drop(REFUSE),
            _ => case.pass(),
        }
    }
}

/// Puts the containment in force that the agent has laid ready. `false`: it has not.
///
/// # Safety
///
/// The case holds the maps' values.
#[inline(always)]
unsafe fn contain(case: &Case, gate: u64) -> bool {
    let Case { control, now, .. } = *case;
    // SAFETY: the caller's promise.
    unsafe {
        let ready: *const Containment = &raw const (*control).on_breach;
        let kind = load(&raw const (*ready).kind);
        if kind == containment_kind::NONE || now >= load(&raw const (*ready).since) {
            return false;
        }
        let force: *mut Containment = &raw mut (*control).containment;
        store(&raw mut (*force).rate, load(&raw const (*ready).rate));
        store(&raw mut (*force).until, now + load(&raw const (*ready).until));
        store(&raw mut (*force).since, now);
        store(&raw mut (*force).kind, kind);
        store(&raw mut (*control).throttle_spent, now + BUCKET_EPOCH);
        // Another CPU may have been as quick.
        replace(&raw mut (*control).gate, gate, gate | CONTAINED);
        true
    }
}

#[derive(Clone, Copy)]
struct Bucket {
    limit: *const Limit,
    state: *mut State,
}

struct Credit {
    /// What this CPU may count beyond its mark.
    bytes: u64,
    /// The bucket did not have it.
    empty: bool,
}

impl Bucket {
    /// Takes credit for at least this packet from the bucket, if the class is limited.
    ///
    /// The amounts vary around the quantum: were they all the same, traffic that repeats itself could have its samples
    /// fall on the same destination again and again.
    #[inline(always)]
    unsafe fn credit(self, case: &Case) -> Credit {
        let Case { lane, class, bytes, now, .. } = *case;
        // SAFETY: the maps' values.
        unsafe {
            let counted = load((&raw const (*lane).tally.bytes).cast::<u64>().add(class));
            let mark = load((&raw const (*lane).mark).cast::<u64>().add(class));
            let needed = (counted + bytes).saturating_sub(mark).min(MOST);
            let quantum = load(&raw const (*self.limit).quantum) & 0xffff_ffff | 1;
            let mut much = needed / quantum * quantum + quantum / 2 + ((random() * quantum) >> 32);
            if much < needed {
                much += quantum;
            }
            let rate = load(&raw const (*self.limit).rate);
            if rate == 0 || load(&raw const (*self.limit).classes) >> class & 1 == 0 {
                return Credit { bytes: much, empty: false };
            }
            let depth = load(&raw const (*self.limit).depth);
            let spent = &raw mut (*self.state).spent;
            if spend(spent, rate, depth, much, now, Spend::Within) == Spent::Done {
                return Credit { bytes: much, empty: false };
            }
            // The last tokens are for whoever needs no more; who did not get through to them is not over the limit.
            if spend(spent, rate, depth, needed, now, Spend::Within) != Spent::Empty {
                return Credit { bytes: needed, empty: false };
            }
            store(&raw mut (*self.state).empty, now);
            Credit { bytes: much, empty: true }
        }
    }

    /// Tells the agent that the bucket is empty, unless it was told a moment ago.
    #[inline(always)]
    unsafe fn tell(self, case: &Case, kind: u32) {
        let Case { control, now, .. } = *case;
        // SAFETY: the maps' values.
        unsafe {
            let told = load(&raw const (*self.state).told);
            if now < told + TELL_AGAIN || !replace(&raw mut (*self.state).told, told, now) {
                return;
            }
            let Some(mut entry) = EVENTS.reserve::<BreachEvent>(0) else {
                if let Some(lost) = EVENTS_LOST.get_ptr_mut(0) {
                    add(lost, 1);
                }
                return;
            };
            let owner = load(&raw const (*control).owner);
            let slot = Handover::read(case.skb).slot;
            entry.write(BreachEvent { at: bpf_ktime_get_ns(), kind, slot, owner });
            entry.submit(0);
        }
    }
}

impl Credit {
    /// Raises the mark, and charges the packet's peer with all that its CPU takes now.
    ///
    /// # Safety
    ///
    /// The case holds the maps' values.
    #[inline(always)]
    unsafe fn give(self, case: &Case, direction: Direction) {
        // SAFETY: the caller's promise.
        unsafe {
            add((&raw mut (*case.lane).mark).cast::<u64>().add(case.class), self.bytes);
            case.note(direction, self.bytes);
        }
    }
}

fn random() -> u64 {
    // SAFETY: no arguments.
    u64::from(unsafe { bpf_get_prandom_u32() })
}
