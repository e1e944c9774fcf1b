//! What is kept of a slot.

use guard_common::{NODE_SLOT, Totals};

use crate::identity::{Identity, Labels};

/// Index of a meter's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// The slot of the node meter.
pub const NODE: Slot = Slot(NODE_SLOT);

/// The cgroup that a slot belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cgroup's id: its directory's inode number.
    pub cgroup_id: u64,
    /// Its path from the root of the hierarchy, without the leading slash.
    pub path: String,
    /// It lies outside the pods' root.
    pub extra: bool,
    /// `CLOCK_BOOTTIME` nanoseconds since when it is metered.
    pub since: u64,
    /// `CLOCK_BOOTTIME` nanoseconds since when it is gone.
    pub gone: Option<u64>,
    /// Which container it is.
    pub identity: Identity,
    /// Its series.
    pub labels: Labels,
}

/// What is kept of a slot, here and in the pinned map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Whose it is. `None`: free.
    pub owner: Option<Owner>,
    /// What the slot had counted before its owner.
    pub base: Totals,
    /// What earlier containers of the series had counted that no other record tells.
    pub carry: Totals,
    /// What cgroups outside the pods' root had counted before the owner.
    pub foreign: Totals,
    /// [`Owner::since`] of the last one whose counts went into `carry`, before its slot was free or went to another.
    pub absorbed: u64,
}
