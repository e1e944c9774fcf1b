//! Atomic additions on map memory.
//!
//! `core::sync::atomic` offers no read-modify-write for this target, the intrinsics do. LLVM 22's BPF backend drops
//! the fetch from a relaxed fetch-add whose result is used and hands back the operand: everything here throws the
//! result away. Whoever needs a result uses `SeqCst`.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

/// Adds `value` to `*counter`.
///
/// # Safety
///
/// `counter` points to an aligned `u64` in map memory.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, value: u64) {
    // SAFETY: the caller's promise; map memory outlives the program run.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, value) };
}
