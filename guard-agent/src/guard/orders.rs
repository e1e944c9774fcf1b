//! What the judge decides about limits, as the kernel programs understand it.

use std::time::Duration;

use guard_common::{Class, Containment as KernelContainment, Limit, containment_kind};

use crate::{
    core::{
        judge,
        policy::{Contain, Containment, Count, RateLimit},
        units::Rate,
        verdict::Contained,
    },
    kernel::controls::Orders,
};

/// After this time a containment lapses that nobody renews.
pub(super) const LAPSE: Duration = Duration::from_secs(10);

/// The credit that a CPU takes at once is what the limit lets through in this part of a second: so the slow path runs at
/// most so often each second for a container that keeps to its limit, and evidence has as many samples.
const QUANTA: u64 = 1000;
/// But never more credit than this, nor, where no limit asks for it, less than [`LEAST_QUANTUM`].
const MOST_QUANTUM: u64 = 64 << 10;
const LEAST_QUANTUM: u64 = 1 << 10;
/// All CPUs together hold no more than this part of a burst as credit.
const BURST_PART: u64 = 8;

/// The programs reckon in nanoseconds: more per second is no limit.
const MOST_RATE: u64 = 1 << 40;

/// The credit for a limit of so many bytes per second.
pub(super) fn quantum(rate: f64) -> u64 {
    (rate as u64 / QUANTA).clamp(LEAST_QUANTUM, MOST_QUANTUM)
}

fn limit(limit: Option<RateLimit>, count: Count, cpus: u64) -> Limit {
    let classes = match count {
        Count::External => 1 << Class::External as u64,
        Count::All => 1 << Class::External as u64 | 1 << Class::Cluster as u64,
    };
    let limit = limit.map(|RateLimit { rate, burst }| (rate.bytes_per_second(), burst.bytes()));
    let Some((rate, burst)) = limit.filter(|(rate, _)| *rate <= MOST_RATE) else {
        return Limit { rate: 0, depth: 0, quantum: MOST_QUANTUM, classes };
    };
    let depth = u128::from(burst) * 1_000_000_000 / u128::from(rate);
    let quantum = quantum(rate as f64).min(burst / (BURST_PART * cpus)).max(1);
    Limit { rate, depth: u64::try_from(depth).unwrap_or(u64::MAX), quantum, classes }
}

/// The judge's orders for the programs. `outlive`: a containment does not need an agent to last.
pub(super) fn orders(orders: judge::Orders, cpus: usize, outlive: bool) -> Orders {
    let judge::Orders { count, egress, ingress, arm } = orders;
    let on_breach = arm.map(|Contain { how, length }| {
        let (kind, rate) = kernel(how);
        let lapse = if outlive { length } else { length.min(LAPSE) };
        KernelContainment { kind, rate, until: lapse.as_nanos() as u64, since: 0 }
    });
    Orders {
        egress: limit(egress, count, cpus as u64),
        // All that comes in counts, wherever it is from.
        ingress: limit(ingress, Count::All, cpus as u64),
        on_breach: on_breach.unwrap_or_default(),
    }
}

/// A containment in the programs' words.
pub(super) fn kernel(how: Containment) -> (u64, u64) {
    match how {
        Containment::Throttle(rate) => (containment_kind::THROTTLE, rate.bytes_per_second().min(MOST_RATE)),
        Containment::Block => (containment_kind::BLOCK, 0),
    }
}

/// A containment in force, as the programs tell it. Its end is the policy's to say.
pub(super) fn told(KernelContainment { kind, rate, until: _, since }: KernelContainment) -> Contained {
    let throttle = Rate::new(rate).filter(|_| kind == containment_kind::THROTTLE).map(Containment::Throttle);
    Contained { how: throttle.unwrap_or(Containment::Block), since, until: u64::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::units::Size;

    fn rate_limit(rate: u64, burst: u64) -> RateLimit {
        RateLimit { rate: Rate::new(rate).expect("a rate"), burst: Size::new(burst).expect("a size") }
    }

    #[test]
    fn a_limit_becomes_a_bucket() {
        let bucket = limit(Some(rate_limit(50 << 20, 500 << 20)), Count::External, 4);
        assert_eq!(bucket, Limit { rate: 50 << 20, depth: 10_000_000_000, quantum: 52_428, classes: 2 });
        let all = limit(Some(rate_limit(1000, 64 << 10)), Count::All, 64);
        // A small burst is not given away as credit that other CPUs do not see.
        assert_eq!((all.quantum, all.classes), ((64 << 10) / 512, 3));
        assert_eq!(limit(None, Count::All, 4).rate, 0);
        assert_eq!(limit(Some(rate_limit(u64::MAX, 1)), Count::All, 4).rate, 0, "more than any wire carries");
        assert_eq!(limit(Some(rate_limit(1, u64::MAX)), Count::All, 1).depth, u64::MAX);
    }

    #[test]
    fn a_containment_lapses_without_an_agent_unless_it_is_to_outlive_it() {
        let how = Containment::Throttle(Rate::new(1 << 20).expect("a rate"));
        let arm = |length| judge::Orders { arm: Some(Contain { how, length }), ..judge::Orders::default() };
        let until = |length, outlive| orders(arm(length), 1, outlive).on_breach.until;
        assert_eq!(until(Duration::from_mins(10), false), 10_000_000_000);
        assert_eq!(until(Duration::from_mins(10), true), 600_000_000_000);
        assert_eq!(until(Duration::from_secs(3), false), 3_000_000_000);
        assert_eq!(orders(judge::Orders::default(), 1, true).on_breach.kind, containment_kind::NONE);
    }

    #[test]
    fn what_the_programs_tell_is_what_they_were_told() {
        for how in [Containment::Throttle(Rate::new(7).expect("a rate")), Containment::Block] {
            let (kind, rate) = kernel(how);
            assert_eq!(told(KernelContainment { kind, rate, until: 9, since: 5 }).how, how);
        }
    }
}
