//! The packet path: what runs for every packet of a metered cgroup.

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, maps::ProgramArray, programs::SkBuffContext};
use guard_common::{
    LOOPBACK_IFINDEX, Lane, NODE_SLOT,
    parameter::{DROPPED_MARK, SLOT},
};

use crate::{
    atomic,
    maps::{CONTROLS, COUNTERS},
    packet, parameter, police,
};

/// The packet goes on its way.
pub const PASS: i32 = 1;

/// `__sk_buff::pkt_type` of what this host sent to many and hands to its own sockets, too (`include/uapi/linux/if_packet.h`).
const PACKET_LOOPBACK: u32 = 5;

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

/// Counts the packet into the meter's slot and lets it pass, unless the meter is contained.
///
/// The limits cost a packet three loads: the CPU's credit is what its counter may still grow by, so that counting spends
/// it. Where that is not enough, the one program for all meters in `police` goes on ([`crate::police`]); while there is
/// none, the packet passes.
#[inline(always)]
#[must_use]
pub fn count(ctx: &SkBuffContext, direction: Direction, slot: impl FnOnce() -> u32, police: &ProgramArray) -> i32 {
    let skb: *const __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context of a cgroup_skb program.
    let (ifindex, kind) = unsafe { ((*skb).ifindex, (*skb).pkt_type) };
    // A multicast's or broadcast's copy bears its interface's name and never came by it.
    if ifindex == LOOPBACK_IFINDEX || matches!(direction, Direction::Ingress) && kind == PACKET_LOOPBACK {
        return PASS;
    }
    let slot = slot();
    let Some(counters) = COUNTERS.get_ptr_mut(slot) else {
        return PASS;
    };
    // In this order: the class is a constant to the verifier, which would go through all behind it once for each.
    let (bytes, packets) = packet::wire(skb, direction);
    let class = packet::class(skb, direction) as usize;
    let dropped = parameter!(DROPPED_MARK) as u32;
    // SAFETY: the map's values of this slot and CPU, not null.
    unsafe {
        let lane: *mut Lane = match direction {
            Direction::Egress => &raw mut (*counters).egress,
            Direction::Ingress => &raw mut (*counters).ingress,
        };
        if matches!(direction, Direction::Ingress) && packet::is_copy(skb) {
            atomic::add(&raw mut (*lane).tally.other, bytes);
        }
        if slot != NODE_SLOT {
            let stops = match direction {
                Direction::Egress => {
                    let Some(control) = CONTROLS.get_ptr_mut(slot) else {
                        return PASS;
                    };
                    police::stops_egress(lane, control, class, bytes)
                }
                Direction::Ingress => police::used_up(lane, class, bytes),
            };
            if stops {
                Handover { slot, class: class as u32, bytes: bytes as u32, packets: packets as u32 }
                    .write(skb.cast_mut());
                // It does not come back, but for a place that is empty.
                police.tail_call(ctx, 0);
            }
        } else if matches!(direction, Direction::Egress) && (*skb).mark == dropped {
            return PASS;
        }
        charge(lane, class, bytes, packets);
    }
    PASS
}

/// Counts a packet that goes its way.
///
/// # Safety
///
/// The pointer is the map's value; a class is 0 or 1.
#[inline(always)]
pub(crate) unsafe fn charge(lane: *mut Lane, class: usize, bytes: u64, packets: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        atomic::add((&raw mut (*lane).tally.bytes).cast::<u64>().add(class), bytes);
        atomic::add((&raw mut (*lane).tally.packets).cast::<u64>().add(class), packets);
    }
}

/// What a meter's program found out of a packet, in the packet's control buffer, which the kernel clears for a program and
/// restores after it.
pub(crate) struct Handover {
    pub(crate) slot: u32,
    pub(crate) class: u32,
    pub(crate) bytes: u32,
    pub(crate) packets: u32,
}

impl Handover {
    #[inline(always)]
    fn write(self, skb: *mut __sk_buff) {
        let Self { slot, class, bytes, packets } = self;
        // SAFETY: the context of a cgroup_skb program, word by word, as the verifier wants it.
        unsafe {
            (*skb).cb[0] = slot;
            (*skb).cb[1] = class;
            (*skb).cb[2] = bytes;
            (*skb).cb[3] = packets;
        }
    }

    #[inline(always)]
    pub(crate) fn read(skb: *const __sk_buff) -> Self {
        // SAFETY: as above.
        unsafe { Self { slot: (*skb).cb[0], class: (*skb).cb[1], bytes: (*skb).cb[2], packets: (*skb).cb[3] } }
    }
}
