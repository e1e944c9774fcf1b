//! The programs that the agent loads.

#![no_std]
#![no_main]
#![expect(missing_docs, reason = "aya's macros make entry points of their own, without any")]

use aya_ebpf::{
    macros::{cgroup_skb, raw_tracepoint},
    programs::{RawTracePointContext, SkBuffContext},
};
use guard_common::event_kind;
use guard_ebpf::{
    cgroup,
    maps::{POLICE_EGRESS, POLICE_INGRESS},
    meter::{Direction, count, own_slot},
    police,
};

/// Attached to every metered cgroup, one copy each.
#[cgroup_skb(egress)]
pub fn meter_egress(ctx: SkBuffContext) -> i32 {
    count(&ctx, Direction::Egress, own_slot, &POLICE_EGRESS)
}

/// Attached to every metered cgroup, one copy each.
#[cgroup_skb(ingress)]
pub fn meter_ingress(ctx: SkBuffContext) -> i32 {
    count(&ctx, Direction::Ingress, own_slot, &POLICE_INGRESS)
}

/// Takes over from all meters' egress programs.
#[cgroup_skb(egress)]
pub fn police_egress(ctx: SkBuffContext) -> i32 {
    police::egress(&ctx)
}

/// Takes over from all meters' ingress programs.
#[cgroup_skb(ingress)]
pub fn police_ingress(ctx: SkBuffContext) -> i32 {
    police::ingress(&ctx)
}

/// A cgroup was made.
#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: RawTracePointContext) -> i32 {
    cgroup::notify(&ctx, event_kind::MKDIR);
    0
}

/// A cgroup was removed.
#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
pub fn cgroup_rmdir(ctx: RawTracePointContext) -> i32 {
    cgroup::notify(&ctx, event_kind::RMDIR);
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lends its helpers to programs under a GPL-compatible license.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
