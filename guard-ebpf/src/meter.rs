//! The packet path: what runs for every packet of a metered cgroup.

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::SkBuffContext};
use guard_common::{LOOPBACK_IFINDEX, Tally, parameter::SLOT};

use crate::{atomic, maps::COUNTERS, packet, parameter};

/// The packet goes on its way.
pub const PASS: i32 = 1;

/// Which way a packet goes, as the socket sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Sent by the cgroup's socket; the peer is the destination.
    Egress,
    /// Received by it; the peer is the source.
    Ingress,
}

/// The slot of the meter that this copy of the program belongs to.
#[inline(always)]
#[must_use]
pub fn own_slot() -> u32 {
    parameter!(SLOT) as u32
}

/// Counts the packet into the meter's slot and lets it pass.
#[inline(always)]
#[must_use]
pub fn count(ctx: &SkBuffContext, direction: Direction, slot: impl FnOnce() -> u32) -> i32 {
    let skb: *const __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context of a cgroup_skb program.
    if unsafe { (*skb).ifindex } == LOOPBACK_IFINDEX {
        return PASS;
    }
    let Some(counters) = COUNTERS.get_ptr_mut(slot()) else {
        return PASS;
    };
    // In this order: the class is a constant to the verifier, which would go through all behind it once for each.
    let (bytes, packets) = packet::wire(skb, direction);
    let class = packet::class(skb, direction) as usize;
    // SAFETY: the map's value of this slot and CPU, not null.
    unsafe {
        let tally: *mut Tally = match direction {
            Direction::Egress => &raw mut (*counters).egress.tally,
            Direction::Ingress => &raw mut (*counters).ingress.tally,
        };
        atomic::add((&raw mut (*tally).bytes).cast::<u64>().add(class), bytes);
        atomic::add((&raw mut (*tally).packets).cast::<u64>().add(class), packets);
    }
    PASS
}
