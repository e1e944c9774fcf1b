//! What the benchmark compares the meter with. Never part of the agent.

#![no_std]
#![no_main]
#![expect(missing_docs, reason = "aya's macros make entry points of their own, without any")]
#![expect(deprecated, reason = "the map type that the variant is about")]

use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_skb_cgroup_id,
    macros::{cgroup_skb, map},
    maps::{Array, CgroupStorage, PerCpuHashMap, ProgramArray},
    programs::SkBuffContext,
};
use guard_ebpf::{
    atomic,
    maps::{POLICE_EGRESS, POLICE_INGRESS},
    meter::{Direction, PASS, count, own_slot},
    police,
};

/// Bytes and packets of a cgroup, as a simple tool would keep them.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Usage {
    bytes: u64,
    packets: u64,
}

#[map]
static SLOT: CgroupStorage<u32> = CgroupStorage::new();
#[map]
static USAGE: PerCpuHashMap<u64, Usage> = PerCpuHashMap::with_max_entries(4096, 0);
#[map]
static ACCOUNTING: Array<u64> = Array::with_max_entries(2, 0);

/// Empty: programs of one array have the same storages.
#[map]
static POLICE_STORAGE: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The floor: what it costs to run any program at all.
#[cgroup_skb(egress)]
pub fn empty(_: SkBuffContext) -> i32 {
    PASS
}

/// The agent's own program.
#[cgroup_skb(egress)]
pub fn meter_egress(ctx: SkBuffContext) -> i32 {
    count(&ctx, Direction::Egress, own_slot, &POLICE_EGRESS)
}

/// The agent's own program.
#[cgroup_skb(ingress)]
pub fn meter_ingress(ctx: SkBuffContext) -> i32 {
    count(&ctx, Direction::Ingress, own_slot, &POLICE_INGRESS)
}

/// The agent's own program.
#[cgroup_skb(egress)]
pub fn police_egress(ctx: SkBuffContext) -> i32 {
    police::egress(&ctx)
}

/// The agent's own program.
#[cgroup_skb(ingress)]
pub fn police_ingress(ctx: SkBuffContext) -> i32 {
    police::ingress(&ctx)
}

/// The same meter as one program for all cgroups, with the slot in cgroup storage. Storage holds slot + 1, but a test
/// run gets fresh storage that holds 0; the comparison is made and comes out the other way, so that the whole path
/// runs and the node's slot moves.
#[cgroup_skb(egress)]
pub fn storage(ctx: SkBuffContext) -> i32 {
    // SAFETY: the storage of this cgroup, which the kernel hands out for every run.
    let slot = unsafe { *SLOT.get_ptr_mut() };
    if slot == u32::MAX {
        return PASS;
    }
    count(&ctx, Direction::Egress, || slot, &POLICE_STORAGE)
}

/// A per-CPU hash keyed by the cgroup's id: what most tools do.
#[cgroup_skb(egress)]
pub fn hash(ctx: SkBuffContext) -> i32 {
    // SAFETY: the context of a cgroup_skb program; the values are this CPU's.
    unsafe {
        let id = bpf_skb_cgroup_id(ctx.as_ptr().cast());
        if let Some(usage) = USAGE.get_ptr_mut(id) {
            (*usage).bytes += u64::from(ctx.len());
            (*usage).packets += 1;
        } else {
            let first = Usage { bytes: u64::from(ctx.len()), packets: 1 };
            let _full = USAGE.insert(id, first, 0);
        }
    }
    PASS
}

/// Two shared counters with atomics: what systemd's IP accounting does.
#[cgroup_skb(egress)]
pub fn accounting(ctx: SkBuffContext) -> i32 {
    // SAFETY: map values, not null.
    unsafe {
        if let Some(packets) = ACCOUNTING.get_ptr_mut(0) {
            atomic::add(packets, 1);
        }
        if let Some(bytes) = ACCOUNTING.get_ptr_mut(1) {
            atomic::add(bytes, u64::from(ctx.len()));
        }
    }
    PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
