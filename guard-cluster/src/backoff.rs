//! How long to wait before what failed is tried again.

use std::time::Duration;

/// Doubles with every failure, up to a most. Half of it is left to chance, so that a fleet does not come back at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    least: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) const fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, failures: 0 }
    }

    /// It failed once more.
    pub(crate) fn next(&mut self) -> Duration {
        let whole = self.least.saturating_mul(2u32.saturating_pow(self.failures)).min(self.most);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It did not fail.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_its_most_and_leaves_half_to_chance() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            let whole = Duration::from_secs(expected);
            let delay = backoff.next();
            assert!(delay >= whole / 2 && delay <= whole, "{delay:?} of {whole:?}");
        }
        (0..100).for_each(|_| assert!(backoff.next() <= Duration::from_secs(30)));
        backoff.reset();
        assert!(backoff.next() <= Duration::from_secs(1));
        let delays: std::collections::BTreeSet<Duration> =
            (0..20).map(|_| Backoff::new(Duration::from_secs(1), Duration::from_secs(30)).next()).collect();
        assert!(delays.len() > 10, "always the same: {delays:?}");
    }
}
