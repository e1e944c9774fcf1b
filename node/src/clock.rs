//! The guest's clock, on the host's.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};

use crate::Node;

/// By how much the guest's clock is ahead of the host's.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    ahead: SignedDuration,
    /// It is not known better than this.
    pub error: Duration,
}

impl Clock {
    /// Compares the two, a few times.
    pub fn of(node: &Node) -> Result<Self> {
        let mut best: Option<Self> = None;
        for _ in 0..5 {
            let before = Timestamp::try_from(SystemTime::now())?;
            let said = node.run("date +%s%N")?;
            let after = Timestamp::try_from(SystemTime::now())?;
            let guest = Timestamp::from_nanosecond(said.trim().parse().context("the guest's time")?)?;
            let span = after.duration_since(before);
            let ahead = guest.duration_since(before.checked_add(span / 2)?);
            let error = Duration::try_from(span)? / 2;
            if best.is_none_or(|best| error < best.error) {
                best = Some(Self { ahead, error });
            }
        }
        best.context("it was compared")
    }

    /// A time of the guest's as the host would tell it.
    pub fn on_host(&self, guest: Timestamp) -> Result<Timestamp> {
        Ok(guest.checked_sub(self.ahead)?)
    }
}
