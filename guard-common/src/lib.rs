//! Plain data that the kernel programs and the agent share.
//!
//! Everything here is `repr(C)`, has no padding that is not written out, and has its size asserted. A change of
//! any of it is a new [`LAYOUT`].

#![no_std]

mod arithmetic;
mod control;
mod evidence;
mod kill_switch;

pub use control::{BUCKET_EPOCH, CONTAINED, Containment, Control, Limit, State, containment_kind};
pub use evidence::{Destination, EVIDENCE_EPOCH, EVIDENCE_ROOM, INGRESS};
pub use kill_switch::{Engagement, SOURCES, WHO};

/// Version of everything that is pinned: the maps' names, sizes and values, what they mean, and how a meter's program
/// hands packets over to the police programs. It names the folder in bpffs. Whoever tests an upgrade builds the agent before
/// it with `EGRESS_GUARD_LAYOUT` set to another.
pub const LAYOUT: u32 = match option_env!("EGRESS_GUARD_LAYOUT") {
    Some(layout) => match u32::from_str_radix(layout, 10) {
        Ok(layout) => layout,
        Err(_) => panic!("EGRESS_GUARD_LAYOUT is not a whole number"),
    },
    None => 4,
};

/// How many CIDRs of each IP version the kernel programs compare a packet with, at most.
pub const MAX_CIDRS: usize = 16;

/// The node meter's slot: it is attached to the pods' root and counts all pods.
pub const NODE_SLOT: u32 = 0;

/// Interface index of `lo` in every network namespace (`LOOPBACK_IFINDEX` in `include/net/flow.h`).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// Where a packet goes to (egress) or comes from (ingress), seen from the node. Loopback is not counted at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum Class {
    /// Inside one of the configured CIDRs.
    Cluster = 0,
    /// Everything else.
    External = 1,
}

impl Class {
    /// All classes, in the order of their index.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::External];
}

/// Bytes and packets in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// Wire bytes from the IP header on, by [`Class`].
    pub bytes: [u64; 2],
    /// Wire packets (segments, not super-packets), by [`Class`].
    pub packets: [u64; 2],
    /// Bytes that tell more, by direction: [`Totals::dropped`] and [`Totals::copied`].
    pub other: u64,
}

/// Bytes and packets in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Totals {
    /// Sent.
    pub egress: Tally,
    /// Received.
    pub ingress: Tally,
}

impl Totals {
    /// Bytes that were not sent: a containment dropped them. Those of super-packets as they would have been on the wire.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.egress.other
    }

    /// Bytes of [`Self::ingress`] that are copies: what is for a group, and what raw sockets take (`raw(7)`, `ping(8)`'s and
    /// such). The kernel goes on with the packet as if they were not there: it may be received once more, or answered.
    #[must_use]
    pub const fn copied(&self) -> u64 {
        self.ingress.other
    }
}

/// One direction of a meter on one CPU; a cache line of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lane {
    /// What is counted: what went its way.
    pub tally: Tally,
    /// How far `tally.bytes` may go on this CPU before the slow path is asked, by [`Class`]: the CPU's credit.
    pub mark: [u64; 2],
    /// The [`Control::gate`] under which `mark` was given.
    pub seen: u64,
}
const _: () = assert!(size_of::<Lane>() == 64);

/// The value of the counters' map: one per slot and CPU. It only ever grows: a slot that gets another owner keeps it,
/// and the owner's [`MeterRecord::base`] says where the owner began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// What the cgroup's sockets sent.
    pub egress: Lane,
    /// What they received.
    pub ingress: Lane,
}

/// Room for a cgroup's path in a [`MeterRecord`].
pub const RECORD_PATH: usize = 512;

/// Whose a slot is: what an agent that starts must know to go on where the last one stopped. One per slot, pinned,
/// used by the agent only. Every change is one map update, so an agent that dies leaves either the old or the new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MeterRecord {
    /// The owner. 0: the slot is free, and its history is told.
    pub cgroup_id: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds since when the owner is metered.
    pub since: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds since when the owner is gone. 0: it is not.
    pub gone: u64,
    /// `since` of the last owner whose counts were added to `carry`, before its slot was free or went to another. Of one cgroup
    /// there may be two owners, one after the other.
    pub absorbed: u64,
    /// What the slot had counted before the owner.
    pub base: Totals,
    /// What earlier containers of the owner's series had counted that no other record tells.
    pub carry: Totals,
    /// The part of `base` that cgroups outside the pods' root had counted.
    pub foreign: Totals,
    /// 1: the owner lies outside the pods' root (an extra meter).
    pub extra: u32,
    /// Bytes of `path` in use. 0: the path did not fit.
    pub path_len: u32,
    /// The owner's path from the root of the hierarchy.
    pub path: [u8; RECORD_PATH],
}
const _: () = assert!(size_of::<MeterRecord>() == 32 + 3 * 80 + 8 + RECORD_PATH);

/// The constants that the agent writes into the instructions of each meter's programs.
///
/// The programs load each with an `lddw` of its placeholder; the agent puts the value in its place.
pub mod parameter {
    use super::MAX_CIDRS;

    /// The meter's slot.
    pub const SLOT: u64 = 0;
    /// How many IPv4 CIDRs are in use.
    pub const V4_LEN: u64 = 1;
    /// How many IPv6 CIDRs are in use.
    pub const V6_LEN: u64 = 2;
    /// What a program writes into the mark of a packet that it drops, for the node's program, which runs all the same.
    pub const DROPPED_MARK: u64 = 3;
    const V4: u64 = 4;
    const V6: u64 = V4 + MAX_CIDRS as u64 * 2;
    /// How many parameters there are.
    pub const COUNT: u64 = V6 + MAX_CIDRS as u64 * 4;

    /// Of a CIDR: the network address as it stands in a packet, read as native integers; host bits are 0.
    pub const NET: u64 = 0;
    /// Of a CIDR: ones where an address must agree with the network.
    pub const MASK: u64 = 1;

    /// A part of an IPv4 CIDR: [`NET`] or [`MASK`].
    #[must_use]
    pub const fn v4(cidr: u64, part: u64) -> u64 {
        assert!(cidr < MAX_CIDRS as u64 && part < 2);
        V4 + cidr * 2 + part
    }

    /// A part of an IPv6 CIDR, for the upper (`half` 0) or lower (1) 64 bits of the address.
    #[must_use]
    pub const fn v6(cidr: u64, part: u64, half: u64) -> u64 {
        assert!(cidr < MAX_CIDRS as u64 && part < 2 && half < 2);
        V6 + cidr * 4 + part * 2 + half
    }

    const PLACEHOLDERS: u64 = 0x5107_5107_5107_0000;

    /// What stands in the instructions for a parameter.
    #[must_use]
    pub const fn placeholder(index: u64) -> u64 {
        assert!(index < COUNT);
        PLACEHOLDERS + index
    }

    /// The parameter that a constant of an `lddw` stands for, if it is a placeholder.
    #[must_use]
    pub const fn index(constant: u64) -> Option<usize> {
        match constant.checked_sub(PLACEHOLDERS) {
            Some(index) if index < COUNT => Some(index as usize),
            _ => None,
        }
    }
}

/// Room for a cgroup's path in an event.
pub const EVENT_PATH: usize = 488;

/// What a record of the ring buffer tells. Every record begins with the instant and one of these.
pub mod event_kind {
    /// A cgroup was made (`cgroup_mkdir`): a [`CgroupEvent`](super::CgroupEvent).
    pub const MKDIR: u32 = 1;
    /// A cgroup was removed (`cgroup_rmdir`): a [`CgroupEvent`](super::CgroupEvent).
    pub const RMDIR: u32 = 2;
    /// A meter's egress bucket is empty: a [`BreachEvent`](super::BreachEvent).
    pub const EGRESS: u32 = 3;
    /// A meter's ingress bucket is empty: a [`BreachEvent`](super::BreachEvent).
    pub const INGRESS: u32 = 4;
}

/// A record of the ring buffer: a cgroup was made or removed.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CgroupEvent {
    /// `CLOCK_MONOTONIC` at the event, in nanoseconds.
    pub at: u64,
    /// One of [`event_kind`].
    pub kind: u32,
    /// Bytes of `path` in use. 0: the path did not fit, or could not be read.
    pub path_len: u32,
    /// The path from the root of its hierarchy, without a NUL.
    pub path: [u8; EVENT_PATH],
}
const _: () = assert!(size_of::<CgroupEvent>() == 504);

/// A record of the ring buffer: a packet found the bucket of its meter empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BreachEvent {
    /// `CLOCK_MONOTONIC` at the packet, in nanoseconds.
    pub at: u64,
    /// One of [`event_kind`].
    pub kind: u32,
    /// The meter's slot.
    pub slot: u32,
    /// [`Control::owner`] of the slot at that time.
    pub owner: u64,
}
const _: () = assert!(size_of::<BreachEvent>() == 24);
