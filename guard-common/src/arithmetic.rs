//! Sums and differences of counts.

use core::ops::{Add, AddAssign, Sub};

use crate::{Tally, Totals};

fn each(a: [u64; 2], b: [u64; 2], f: fn(u64, u64) -> u64) -> [u64; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

impl Tally {
    fn each(self, with: Self, f: fn(u64, u64) -> u64) -> Self {
        let Self { bytes, packets, other } = self;
        Self { bytes: each(bytes, with.bytes, f), packets: each(packets, with.packets, f), other: f(other, with.other) }
    }
}

impl Totals {
    fn each(self, other: Self, f: fn(u64, u64) -> u64) -> Self {
        Self { egress: self.egress.each(other.egress, f), ingress: self.ingress.each(other.ingress, f) }
    }

    /// The larger of both, count by count.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.each(other, u64::max)
    }
}

impl Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.each(other, u64::wrapping_add)
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// What came since `other`; never less than nothing.
impl Sub for Totals {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.each(other, u64::saturating_sub)
    }
}
