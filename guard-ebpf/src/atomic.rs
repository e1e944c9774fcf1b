//! Atomic operations on map memory.
//!
//! `core::sync::atomic` offers no read-modify-write for this target, the intrinsics do. LLVM 22's BPF backend drops
//! the fetch from a relaxed fetch-add whose result is used and hands back the operand: what is `Relaxed` here throws
//! the result away, and whatever needs a result is `SeqCst`.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

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

/// Reads a word that others write meanwhile.
///
/// # Safety
///
/// `word` points to an aligned `u64` in map memory.
#[inline(always)]
pub unsafe fn load(word: *const u64) -> u64 {
    // SAFETY: the caller's promise. An aligned word is read whole.
    unsafe { word.read_volatile() }
}

/// Writes a word that others read meanwhile.
///
/// # Safety
///
/// `word` points to an aligned `u64` in map memory.
#[inline(always)]
pub unsafe fn store(word: *mut u64, value: u64) {
    // SAFETY: the caller's promise. An aligned word is written whole.
    unsafe { word.write_volatile(value) };
}

/// Replaces `old` by `new`; `false` if the word was no longer `old`.
///
/// # Safety
///
/// `word` points to an aligned `u64` in map memory.
#[inline(always)]
pub unsafe fn replace(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's promise.
    let (was, _) =
        unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new) };
    was == old
}
