//! A rate limit's token bucket, as the kernel keeps it: for a replay, and to test the kernel's against.

use crate::policy::RateLimit;

const SECOND: i128 = 1_000_000_000;

/// A bucket, full at first. What is in it is kept as the instant since which the rate would have filled in just that
/// much (the "theoretical arrival time" of GCRA): nothing has to be refilled, and another limit holds from the next
/// bytes on.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Nanoseconds. Signed, and wide: a burst may be worth more time than the node has been up.
    tat: i128,
}

/// What became of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// They were in the bucket.
    Within,
    /// They were not. The bucket is empty now; what it did not have is not owed, or a long breach would hold for as long
    /// again as the rate takes to make up for it.
    Over,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub const fn full() -> Self {
        Self { tat: i128::MIN }
    }

    /// Takes bytes that were sent at `now`, nanoseconds of `CLOCK_BOOTTIME`.
    pub fn take(&mut self, now: u64, bytes: u64, limit: RateLimit) -> Taken {
        self.take_evenly(now, now, bytes, limit)
    }

    /// Takes bytes that were sent evenly between `from` and `now`: the bucket fills while it is drawn from.
    pub fn take_evenly(&mut self, from: u64, now: u64, bytes: u64, limit: RateLimit) -> Taken {
        let time = |bytes: u64| i128::from(bytes) * SECOND / i128::from(limit.rate.bytes_per_second());
        let (from, now) = (i128::from(from), i128::from(now));
        let tat = self.tat.max(from - time(limit.burst.bytes())).saturating_add(time(bytes));
        self.tat = tat.min(now);
        if tat > now { Taken::Over } else { Taken::Within }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::{Rate, Size};

    fn limit(rate: u64, burst: u64) -> RateLimit {
        RateLimit { rate: Rate::new(rate).expect("a rate"), burst: Size::new(burst).expect("a size") }
    }

    #[test]
    fn the_burst_and_what_the_rate_refills_may_pass_and_not_a_byte_more() {
        const S: u64 = 1_000_000_000;
        let limit = limit(1000, 5000);
        // Long after the start, and sooner than the burst is worth.
        for start in [0, S, 1_000_000 * S] {
            let mut bucket = Bucket::full();
            let steps = [
                (0, 5000, Taken::Within),
                (0, 1, Taken::Over),
                (1, 999, Taken::Within),
                (2, 1000, Taken::Within),
                (2, 0, Taken::Within),
                (2, 3000, Taken::Over),
                (4, 2000, Taken::Within),
                (4, 1, Taken::Over),
                (5, 1000, Taken::Within),
                (5, 1, Taken::Over),
                // Never fuller than the burst, however long it rests.
                (1000, 5000, Taken::Within),
                (1000, 1, Taken::Over),
            ];
            for (second, bytes, expected) in steps {
                let taken = bucket.take(start + second * S, bytes, limit);
                assert_eq!(taken, expected, "start {start}, second {second}, {bytes} bytes");
            }
        }
    }

    #[test]
    fn what_is_sent_evenly_has_what_flows_in_meanwhile() {
        const S: u64 = 1_000_000_000;
        let limit = limit(1000, 10);
        let mut bucket = Bucket::full();
        // Far more than the burst, and yet never faster than the rate and what is left of the burst.
        assert_eq!(bucket.take_evenly(0, 5 * S, 5010, limit), Taken::Within);
        assert_eq!(bucket.take_evenly(5 * S, 6 * S, 1001, limit), Taken::Over);
        // A rest does not fill it beyond the burst.
        assert_eq!(bucket.take_evenly(60 * S, 61 * S, 1010, limit), Taken::Within);
        assert_eq!(bucket.take_evenly(100 * S, 101 * S, 1011, limit), Taken::Over);
    }

    #[test]
    fn a_changed_limit_holds_from_the_next_bytes_on() {
        let mut bucket = Bucket::full();
        assert_eq!(bucket.take(0, 3000, limit(1000, 5000)), Taken::Within);
        // Three seconds' worth is gone, two are left, whatever a second is worth; the burst is their bound.
        assert_eq!(bucket.take(0, 2000, limit(2000, 50_000)), Taken::Within);
        assert_eq!(bucket.take(0, 501, limit(1000, 500)), Taken::Over);
        assert_eq!(bucket.take(9_000_000_000, 8000, limit(1000, 50_000)), Taken::Within);
    }

    #[test]
    fn no_figure_is_too_big() {
        let mut bucket = Bucket::full();
        for now in [0, u64::MAX, 1] {
            assert_eq!(bucket.take(now, u64::MAX, limit(1, 1)), Taken::Over);
        }
        assert_eq!(Bucket::full().take(0, u64::MAX, limit(1, u64::MAX)), Taken::Within);
    }

    proptest! {
        /// Against the definition: over as soon as more than `burst + rate * t` was sent in some time up to now. Seen up to
        /// the first time, after which what was too much is not owed.
        #[test]
        fn it_is_over_when_some_window_had_too_much(
            rate in 1u64..5000,
            burst in 1u64..20_000,
            packets in prop::collection::vec((0u64..20, 0u64..3000), 1..40),
        ) {
            // Whole seconds, so that nothing is rounded in the definition; the bucket rounds each by under a
            // nanosecond, which is far from a byte.
            let mut bucket = Bucket::full();
            let mut sent: Vec<(u64, u64)> = Vec::new();
            let mut second = 0;
            for (wait, bytes) in packets {
                second += wait;
                sent.push((second, bytes));
                let over = (0..sent.len()).any(|first| {
                    let bytes: u64 = sent[first..].iter().map(|(_, bytes)| bytes).sum();
                    bytes > burst + rate * (second - sent[first].0)
                });
                let taken = bucket.take(second * 1_000_000_000, bytes, limit(rate, burst));
                prop_assert_eq!(taken == Taken::Over, over, "second {}, {:?}", second, sent);
                if over {
                    break;
                }
            }
        }
    }
}
