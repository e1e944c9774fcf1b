//! Tells the agent which cgroups are made and removed.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel_str_bytes},
    programs::RawTracePointContext,
};
use aya_log_ebpf::{debug, warn};
use guard_common::CgroupEvent;

use crate::{
    atomic,
    maps::{EVENTS, EVENTS_LOST},
};

/// Sends the event with the cgroup's path, the second argument of both tracepoints
/// (`include/trace/events/cgroup.h`).
#[inline(always)]
pub fn notify(ctx: &RawTracePointContext, kind: u32) {
    let Some(mut entry) = EVENTS.reserve::<CgroupEvent>(0) else {
        if let Some(lost) = EVENTS_LOST.get_ptr_mut(0) {
            // SAFETY: the map's only value, not null.
            unsafe { atomic::add(lost, 1) };
        }
        warn!(ctx, "the ring buffer is full: a cgroup event is lost");
        return;
    };
    // SAFETY: the entry is reserved memory of the event's size, and every field is written before it is submitted.
    // The path is a kernel string, as the tracepoint passes it.
    unsafe {
        let event = entry.as_mut_ptr();
        let path = *ctx.as_ptr().cast::<*const u8>().add(1);
        (*event).at = bpf_ktime_get_ns();
        (*event).kind = kind;
        // The helper cuts a path that does not fit; one that fills the room may have been cut.
        let room = (*event).path.len() - 1;
        let len = match bpf_probe_read_kernel_str_bytes(path, &mut (*event).path) {
            Ok(path) if path.len() < room => path.len(),
            Ok(_) | Err(_) => 0,
        };
        (*event).path_len = len as u32;
        debug!(ctx, "cgroup event {} with a path of {} bytes", kind, len);
    }
    entry.submit(0);
}
