//! All maps.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use guard_common::{Control, Counters, Destination, EVIDENCE_ROOM, Engagement, MeterRecord, SOURCES};

/// A meter's counters, by slot. The agent sets its size, pins it and never resets a value.
#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Limits and containments, by slot. The agent sets its size, pins it and maps it into its memory.
#[map]
pub static CONTROLS: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Whose each slot is, by slot. For the agent only.
#[map]
pub static METERS: Array<MeterRecord> = Array::with_max_entries(1, 0);

/// The program that takes over a packet from a meter's egress program. Pinned: without the agent's hold the kernel
/// would empty it.
#[map]
pub static POLICE_EGRESS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The same for ingress: programs of one array have one attach type.
#[map]
pub static POLICE_INGRESS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Where the bytes went: estimated bytes by destination.
#[map]
pub static EVIDENCE: LruHashMap<Destination, u64> = LruHashMap::with_max_entries(EVIDENCE_ROOM, 0);

/// Who has engaged the kill switch, by source. Pinned on its own.
#[map]
pub static KILL_SWITCH: Array<Engagement> = Array::with_max_entries(SOURCES, 0);

/// [`guard_common::CgroupEvent`]s and [`guard_common::BreachEvent`]s for the agent. Room for about 1,000.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

/// How many events found no room in [`EVENTS`].
#[map]
pub static EVENTS_LOST: Array<u64> = Array::with_max_entries(1, 0);
