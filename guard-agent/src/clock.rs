//! The clocks that the kernel side and the books go by.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

fn nanos(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Nanoseconds since boot, asleep or awake: steps of the wall clock do not move it, and it outlives the agent as pins
/// do.
pub fn boottime() -> u64 {
    nanos(ClockId::Boottime)
}

/// The clock of `bpf_ktime_get_ns`.
pub fn monotonic() -> u64 {
    nanos(ClockId::Monotonic)
}

/// The wall-clock time of an instant of [`boottime`].
pub fn wall(boottime_nanos: u64) -> SystemTime {
    let now = boottime();
    let ahead = Duration::from_nanos(boottime_nanos.saturating_sub(now));
    // What is too far ahead for a clock is never.
    let then = SystemTime::now().checked_add(ahead).unwrap_or_else(SystemTime::now);
    then - Duration::from_nanos(now.saturating_sub(boottime_nanos))
}

/// So many nanoseconds the wall clock (since 1970) is ahead of [`boottime`].
pub fn wall_ahead() -> u64 {
    // A clock before 1970 is one that nobody set.
    let since = wall(0).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
