//! All maps.

use aya_ebpf::{
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use guard_common::{Counters, MeterRecord};

/// A meter's counters, by slot. The agent sets its size, pins it and never resets a value.
#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Whose each slot is, by slot. For the agent only.
#[map]
pub static METERS: Array<MeterRecord> = Array::with_max_entries(1, 0);

/// [`guard_common::CgroupEvent`]s for the agent. Room for about 1,000.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

/// How many events found no room in [`EVENTS`].
#[map]
pub static EVENTS_LOST: Array<u64> = Array::with_max_entries(1, 0);
