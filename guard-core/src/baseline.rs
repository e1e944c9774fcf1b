//! How much a workload sends normally, and whether a container sends many times that.
//!
//! Normal is the median over the minutes in which the workload was active, of about the last ten days. docs/baseline.md
//! says why, and how well it does.

use serde::{Deserialize, Serialize};

use crate::policy::BaselineLimit;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const DAY: u64 = 24 * 60 * MINUTE;

/// After this time what was learned weighs half.
const HALF_LIFE: u64 = 7 * DAY;

/// Normal may double in this time, and no faster. In a day that is a fifth more, and so, with [`MARGIN`], nothing can
/// be taught in a day to accept `factor` times what was normal.
const DOUBLING: u64 = 4 * DAY;

/// The limit is this share of `factor * normal`: an attack of exactly `factor` times is as noisy as the normal it is a
/// multiple of, and would be below as often as above.
const MARGIN: f64 = 0.8;

/// A breach: the mean of a container's last samples is at the limit or above, where each counts for at most [`MOST`]
/// times the limit. So three that are far above are one, two never are, and noise below the limit evens out.
const LAST: usize = 5;
const MOST: f32 = 5.0 / 3.0;

/// A part that took longer was not watched: the node slept.
const LONGEST_PART: u64 = 60 * MINUTE;

/// The least parts that make a normal, however short `learn` is.
const LEAST_PARTS: u32 = 10;

/// Bins are eighths of an octave, from `2^LEAST_EXPONENT` bytes/s on. What is less is not worth a bin: it is nothing.
const LEAST_EXPONENT: u64 = 6;
const OCTAVES: usize = 34;
const BINS: usize = OCTAVES * 8;

/// The bits of the least bin's lower edge: of an f64, exponent and the first three bits of the mantissa are the bin.
const BIN_SHIFT: u32 = 49;
const LEAST_BITS: u64 = (1023 + LEAST_EXPONENT) << 3;

/// What is added weighs ever more, instead of all else ever less. From here on all weights are brought down.
const HEAVY: f64 = (1_u64 << 30) as f64;

/// What weighs less, in seconds, is not kept in a file; what weighs more was never written by us.
const LEAST_KEPT: f64 = 1e-3;
const MOST_KEPT: f64 = 1e15;

/// What is normal for a workload: one for all its containers, fed by each with its own samples. A little over 1 KiB.
///
/// It can be kept across restarts: what is read back is checked, and times of another boot do no harm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Saved", into = "Saved")]
pub struct Baseline {
    /// Seconds, by the rate they were sent at; each times what a second weighed when it was added.
    bins: Box<[f32; BINS]>,
    /// What a second weighs that is added at `at`.
    weight: f64,
    /// When something was learned last.
    at: u64,
    /// For how long, in nanoseconds.
    watched: u64,
    /// How many parts.
    parts: u32,
    /// Bytes per second, once there is a limit.
    normal: Option<f64>,
}

/// The last samples of one container: those that decide whether it is a breach, and those not learned yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Streak {
    /// The last samples as multiples of the limit; the oldest is at `next`.
    last: [f32; LAST],
    next: usize,
    /// Since when samples are summed up. `None`: not one was seen.
    since: Option<u64>,
    sum: f64,
    samples: u32,
}

/// What a sample means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// The container is in breach.
    pub over: bool,
    /// The limit, in bytes per second. `None`: too little was learned for a limit.
    pub allowed: Option<f64>,
    /// Bytes per second that are normal. `None`: as above. Zero: the workload was never active.
    pub normal: Option<f64>,
}

impl Default for Baseline {
    fn default() -> Self {
        Self { bins: Box::new([0.0; BINS]), weight: 1.0, at: 0, watched: 0, parts: 0, normal: None }
    }
}

impl Baseline {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a sample of one container: its rate, in bytes per second, since its last sample.
    ///
    /// `breached`: some limit of the container is breached now. Then nothing is learned from it.
    pub fn observe(
        &mut self,
        streak: &mut Streak,
        now: u64,
        rate: f64,
        limit: &BaselineLimit,
        breached: bool,
    ) -> Reading {
        let rate = rate.max(0.0);
        let reading = self.read(limit);
        let times = reading.allowed.map_or(0.0, |allowed| rate / allowed);
        let over = streak.decide(times as f32);
        if over || times >= 1.0 || breached {
            streak.begin(now);
        } else if let Some((mean, length)) = streak.sum_up(now, rate, self.part()) {
            self.learn(now, mean, length, limit);
        }
        Reading { over, ..reading }
    }

    /// What is known now.
    fn read(&self, limit: &BaselineLimit) -> Reading {
        let normal = self.normal.filter(|_| self.learned(limit));
        let floor = limit.floor.bytes_per_second() as f64;
        let allowed = normal.map(|normal| (MARGIN * limit.factor * normal).max(floor));
        Reading { over: false, allowed, normal }
    }

    /// How long a part is of which the mean is learned: a minute, so that what goes on every few seconds is even. While
    /// less than an hour was watched, a sixtieth of that.
    fn part(&self) -> u64 {
        (self.watched / 60).min(MINUTE)
    }

    fn learned(&self, limit: &BaselineLimit) -> bool {
        u128::from(self.watched) >= limit.learn.as_nanos() && self.parts >= LEAST_PARTS
    }

    fn learn(&mut self, now: u64, mean: f64, length: u64, limit: &BaselineLimit) {
        let elapsed = now.saturating_sub(self.at);
        self.at = now;
        self.watched = self.watched.saturating_add(elapsed.min(length));
        self.parts = self.parts.saturating_add(1);
        self.weight *= (elapsed.min(30 * HALF_LIFE) as f64 / HALF_LIFE as f64).exp2();
        if let Some(bin) = bin(mean) {
            self.bins[bin] += (self.weight * length as f64 / SECOND as f64) as f32;
        }
        if self.weight > HEAVY {
            let light = (1.0 / self.weight) as f32;
            self.bins.iter_mut().for_each(|bin| *bin *= light);
            self.weight = 1.0;
        }
        self.follow(elapsed, limit);
    }

    /// Normal follows the median: down at once, doubling in [`DOUBLING`] at most. A gap counts as a day at most.
    fn follow(&mut self, elapsed: u64, limit: &BaselineLimit) {
        // A workload whose normal is less has the floor for its limit: it counts as idle then.
        let idle = limit.floor.bytes_per_second() as f64 / limit.factor;
        let median = self.median(idle);
        self.normal = match self.normal {
            _ if !self.learned(limit) => None,
            None => Some(median),
            Some(normal) => {
                let most = normal.max(idle) * (elapsed.min(DAY) as f64 / DOUBLING as f64).exp2();
                Some(median.min(most))
            }
        };
    }

    /// The rate that was exceeded in half of the time that was not `idle`. Zero: there was none.
    fn median(&self, idle: f64) -> f64 {
        let least = bin(idle).unwrap_or(0);
        let active = &self.bins[least..];
        let mut half = active.iter().sum::<f32>() / 2.0;
        for (index, &weight) in active.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            if half <= weight {
                let (from, to) = (edge(least + index), edge(least + index + 1));
                return from + (to - from) * f64::from(half / weight);
            }
            half -= weight;
        }
        0.0
    }
}

impl Streak {
    fn decide(&mut self, times: f32) -> bool {
        self.last[self.next] = times.min(MOST);
        self.next = (self.next + 1) % LAST;
        // Three that are far above add up to it, whatever is lost in rounding.
        self.last.iter().sum::<f32>() >= LAST as f32 * 0.999
    }

    fn begin(&mut self, now: u64) {
        (self.since, self.sum, self.samples) = (Some(now), 0.0, 0);
    }

    /// The mean of the part that this sample completes, and how many nanoseconds it lasted.
    fn sum_up(&mut self, now: u64, rate: f64, part: u64) -> Option<(f64, u64)> {
        let length = self.since.and_then(|since| now.checked_sub(since)).filter(|length| *length <= LONGEST_PART);
        let Some(length) = length else {
            self.begin(now);
            return None;
        };
        self.sum += rate;
        self.samples += 1;
        if length < part {
            return None;
        }
        let mean = self.sum / f64::from(self.samples);
        self.begin(now);
        Some((mean, length))
    }
}

fn bin(rate: f64) -> Option<usize> {
    let bin = (rate.max(0.0).to_bits() >> BIN_SHIFT).checked_sub(LEAST_BITS)?;
    Some((bin as usize).min(BINS - 1))
}

/// The least rate of a bin.
fn edge(bin: usize) -> f64 {
    f64::from_bits((bin as u64 + LEAST_BITS) << BIN_SHIFT)
}

/// A baseline as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    at: u64,
    watched: u64,
    parts: u32,
    normal: Option<f64>,
    /// Bins that are not empty and their weights in seconds.
    bins: Vec<(u16, f32)>,
}

impl From<Baseline> for Saved {
    fn from(baseline: Baseline) -> Self {
        let Baseline { bins, weight, at, watched, parts, normal } = baseline;
        let kept = bins.iter().map(|&bin| f64::from(bin) / weight).enumerate().filter(|(_, bin)| *bin >= LEAST_KEPT);
        Self { at, watched, parts, normal, bins: kept.map(|(index, bin)| (index as u16, bin as f32)).collect() }
    }
}

impl TryFrom<Saved> for Baseline {
    type Error = &'static str;

    fn try_from(saved: Saved) -> Result<Self, Self::Error> {
        let Saved { at, watched, parts, normal, bins } = saved;
        if normal.is_some_and(|normal| !(0.0..=edge(BINS)).contains(&normal)) {
            return Err("a normal that is no rate");
        }
        let mut baseline = Self { at, watched, parts, normal, ..Self::default() };
        for (index, weight) in bins {
            let bin = baseline.bins.get_mut(usize::from(index)).ok_or("a bin that there is not")?;
            if !(0.0..=MOST_KEPT).contains(&f64::from(weight)) {
                return Err("a weight that no bin has");
            }
            *bin = weight;
        }
        Ok(baseline)
    }
}

#[cfg(test)]
#[path = "baseline_tests.rs"]
mod tests;
