//! Counts and rates as the outside sees them.

use guard_common::{Class, Tally, Totals};
use serde::{Deserialize, Serialize};

/// A figure for each destination class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PerClass<T> {
    /// Inside the configured CIDRs.
    pub cluster: T,
    /// All else.
    pub external: T,
}

/// Wire bytes (from the IP header on) and packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// Bytes per second over the last sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Sent.
    pub egress: PerClass<f64>,
    /// Received.
    pub ingress: PerClass<f64>,
}

impl From<Tally> for PerClass<Traffic> {
    fn from(tally: Tally) -> Self {
        let traffic =
            |class: Class| Traffic { bytes: tally.bytes[class as usize], packets: tally.packets[class as usize] };
        Self { cluster: traffic(Class::Cluster), external: traffic(Class::External) }
    }
}

impl Rates {
    /// The rates of what was counted within `nanos`.
    pub fn over(counted: Totals, nanos: u64) -> Self {
        if nanos == 0 {
            return Self::default();
        }
        let rate = |bytes: u64| bytes as f64 * 1e9 / nanos as f64;
        let rates = |tally: Tally| PerClass {
            cluster: rate(tally.bytes[Class::Cluster as usize]),
            external: rate(tally.bytes[Class::External as usize]),
        };
        Self { egress: rates(counted.egress), ingress: rates(counted.ingress) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_whatever_the_interval() {
        let mut counted = Totals::default();
        counted.egress.bytes = [250, 1000];
        let rates = Rates::over(counted, 500_000_000);
        assert_eq!((rates.egress.cluster, rates.egress.external), (500.0, 2000.0));
        assert_eq!(Rates::over(counted, 0), Rates::default());
    }
}
