//! A quota's rolling window: 60 parts, so that it is small enough to keep and never forgets early.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{policy::Quota, units::Size};

/// How many parts a window has.
pub const PARTS: usize = 60;

/// The part that is being filled comes on top: so the parts cover the window at any moment, and at most one part more.
const KEPT: usize = PARTS + 1;

/// What a container sent within its quota's window, to the part.
///
/// It can be kept across restarts: what is read back is checked, and a clock that starts afresh (a reboot) only makes
/// it forget later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Saved", into = "Saved")]
pub struct Window {
    quota: Quota,
    /// The number of the part that is being filled, counted from time 0.
    head: u64,
    /// Bytes of each part, that one first.
    parts: [u64; KEPT],
    /// Of all parts.
    sum: u64,
}

impl Window {
    /// An empty window.
    #[must_use]
    pub fn new(quota: Quota, now: u64) -> Self {
        Self { quota, head: now / part(quota.per), parts: [0; KEPT], sum: 0 }
    }

    /// The quota that it is for.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Counts what was sent since the last call, as sent `now`: it is never forgotten early.
    pub fn add(&mut self, now: u64, bytes: u64) {
        self.roll(now);
        self.parts[0] = self.parts[0].saturating_add(bytes);
        self.sum = self.sum.saturating_add(bytes);
    }

    /// Bytes within the window that ends `now`: never too few, and at most what one part more has.
    #[must_use]
    pub fn sum(&self, now: u64) -> u64 {
        match self.passed(now) {
            0 => self.sum,
            passed => total(&self.parts[..KEPT - passed]),
        }
    }

    /// More than the quota was sent within its window.
    #[must_use]
    pub fn over(&self, now: u64) -> bool {
        self.sum(now) > self.quota.bytes.bytes()
    }

    /// Another quota holds. What was counted stays so; for a window of another length it is spread over the new parts
    /// as if it had been sent evenly within each old one.
    pub fn set(&mut self, quota: Quota, now: u64) {
        self.roll(now);
        let (before, after) = (part(self.quota.per), part(quota.per));
        self.quota = quota;
        if before == after {
            return;
        }
        self.head = now / after;
        let counted = std::mem::replace(&mut self.parts, [0; KEPT]);
        for (index, &bytes) in counted.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
            let (from, to) = ages(index, before, now);
            // What of it is younger than an age: exact at both ends, so nothing is lost or made up between parts.
            let younger = |age: u128| {
                u64::try_from(u128::from(bytes) * (age.clamp(from, to) - from) / (to - from)).unwrap_or(bytes)
            };
            for (index, part) in self.parts.iter_mut().enumerate() {
                let (from, to) = ages(index, after, now);
                *part = part.saturating_add(younger(to) - younger(from));
            }
        }
        self.sum = total(&self.parts);
    }

    /// Lets the parts that have passed since move on. A clock that went back is another boot's: what is kept counts as
    /// just sent.
    fn roll(&mut self, now: u64) {
        let passed = self.passed(now);
        self.head = now / part(self.quota.per);
        if passed > 0 {
            self.parts.copy_within(..KEPT - passed, passed);
            self.parts[..passed].fill(0);
            self.sum = total(&self.parts);
        }
    }

    fn passed(&self, now: u64) -> usize {
        let passed = (now / part(self.quota.per)).saturating_sub(self.head);
        usize::try_from(passed).map_or(KEPT, |passed| passed.min(KEPT))
    }
}

/// The length of a part in nanoseconds, at least one.
fn part(per: Duration) -> u64 {
    nanos(per).div_ceil(PARTS as u64).max(1)
}

fn nanos(per: Duration) -> u64 {
    u64::try_from(per.as_nanos()).unwrap_or(u64::MAX)
}

/// From which age on and up to which a part is, `now`, in nanoseconds. The one being filled has begun: it is not empty.
fn ages(index: usize, part: u64, now: u64) -> (u128, u128) {
    let newest = u128::from(now % part) + 1;
    let from = |index: usize| if index == 0 { 0 } else { newest + (index as u128 - 1) * u128::from(part) };
    (from(index), from(index + 1))
}

fn total(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |sum, &part| sum.saturating_add(part))
}

/// A window as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// The quota's bytes.
    bytes: u64,
    /// The window's length in nanoseconds.
    per: u64,
    head: u64,
    /// The newest first; those at the end that are zero are left out.
    parts: Vec<u64>,
}

impl From<Window> for Saved {
    fn from(window: Window) -> Self {
        let used = window.parts.iter().rposition(|&bytes| bytes > 0).map_or(0, |last| last + 1);
        let Quota { bytes, per } = window.quota;
        Self { bytes: bytes.bytes(), per: nanos(per), head: window.head, parts: window.parts[..used].to_vec() }
    }
}

impl TryFrom<Saved> for Window {
    type Error = &'static str;

    fn try_from(saved: Saved) -> Result<Self, Self::Error> {
        let bytes = Size::new(saved.bytes).ok_or("a quota of no bytes")?;
        let mut parts = [0; KEPT];
        let filled = parts.get_mut(..saved.parts.len()).ok_or("a window of too many parts")?;
        filled.copy_from_slice(&saved.parts);
        let quota = Quota { bytes, per: Duration::from_nanos(saved.per) };
        Ok(Self { quota, head: saved.head, sum: total(&parts), parts })
    }
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;
