//! A clock for measurements beside other work.

use std::{fs, time::Duration};

/// How long this process had a CPU: other processes' work is not in it, as it would be in a clock's time.
pub(crate) fn on_cpu() -> Duration {
    let schedstat = fs::read_to_string("/proc/self/schedstat").expect("Linux");
    let nanos = schedstat.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("nanoseconds first"))
}
