//! Token buckets, each kept in one word.

use guard_common::BUCKET_EPOCH;

use crate::atomic::{load, replace};

/// How often a CPU tries to get tokens while others take some, at most.
const TRIES: u32 = 16;

const SECOND: u64 = 1_000_000_000;

/// Which packets get tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spend {
    /// Those for which there are enough.
    Within,
    /// Those that find any.
    Owing,
}

/// What became of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spent {
    Done,
    Empty,
    /// Others were quicker, again and again.
    Contended,
}

/// Spends tokens of a bucket that is kept as the time up to which they are spent.
///
/// # Safety
///
/// `spent` points to a word in map memory.
#[inline(always)]
pub(crate) unsafe fn spend(spent: *mut u64, rate: u64, depth: u64, bytes: u64, now: u64, how: Spend) -> Spent {
    let time = bytes * SECOND / rate.max(1);
    let now = now + BUCKET_EPOCH;
    let full = now - depth.min(BUCKET_EPOCH);
    for _ in 0..TRIES {
        // SAFETY: the caller's promise.
        unsafe {
            let was = load(spent);
            let from = was.max(full);
            let limit = if how == Spend::Owing { from } else { from + time };
            if limit > now {
                return Spent::Empty;
            }
            if replace(spent, was, from + time) {
                return Spent::Done;
            }
        }
    }
    Spent::Contended
}
