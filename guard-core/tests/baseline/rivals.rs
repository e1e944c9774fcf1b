//! Other ideas of what is normal, under the same rules: same margin, floor, learning time and mean of five samples; and
//! nothing is learned from samples above the limit or during a breach.

use guard_core::{
    baseline::{Baseline, Streak},
    policy::BaselineLimit,
};

const DAY: f64 = 86_400.0;

/// Who decides whether a sample makes a breach.
pub(crate) enum Detector {
    /// The one that is used.
    Ours(Baseline, Streak),
    /// Another idea.
    Rival(Box<Rival>),
}

/// What else could be normal.
#[derive(Clone, Copy)]
pub(crate) enum Statistic {
    /// The mean with exponentially less weight of the past, of a half-life in seconds.
    Mean(f64),
    /// A quantile of samples, with a half-life in seconds.
    Quantile { q: f64, half_life: f64, idle: bool },
}

pub(crate) struct Rival {
    statistic: Statistic,
    mean: f64,
    /// Seconds by eighths of octaves; the first are the idle ones.
    bins: Vec<f64>,
    weight: f64,
    watched: f64,
    normal: f64,
    refreshed: f64,
    last: [f64; 5],
}

impl Detector {
    /// All of them, in the table's order.
    pub(crate) fn all() -> Vec<Self> {
        let rival = |statistic| {
            Self::Rival(Box::new(Rival {
                statistic,
                mean: 0.0,
                bins: vec![0.0; 400],
                weight: 1.0,
                watched: 0.0,
                normal: 0.0,
                refreshed: f64::MIN,
                last: [0.0; 5],
            }))
        };
        vec![
            Self::Ours(Baseline::new(), Streak::default()),
            rival(Statistic::Mean(DAY)),
            rival(Statistic::Quantile { q: 0.5, half_life: 7.0 * DAY, idle: true }),
            rival(Statistic::Quantile { q: 0.5, half_life: 7.0 * DAY, idle: false }),
            rival(Statistic::Quantile { q: 0.99, half_life: DAY, idle: true }),
        ]
    }

    /// Whether it is a breach now. `step`: seconds since the last sample.
    pub(crate) fn observe(&mut self, now: f64, step: f64, rate: f64, limit: &BaselineLimit, breached: bool) -> bool {
        match self {
            Self::Ours(baseline, streak) => baseline.observe(streak, (now * 1e9) as u64, rate, limit, breached).over,
            Self::Rival(rival) => rival.observe(now, step, rate, limit, breached),
        }
    }

    /// The container is gone, and the agent starts afresh from what it has written.
    pub(crate) fn restart(&mut self) {
        match self {
            Self::Ours(baseline, streak) => {
                let kept = serde_json::to_string(baseline).expect("json");
                *baseline = serde_json::from_str(&kept).expect("a baseline");
                *streak = Streak::default();
            }
            Self::Rival(rival) => rival.last = [0.0; 5],
        }
    }
}

impl Rival {
    fn observe(&mut self, now: f64, step: f64, rate: f64, limit: &BaselineLimit, breached: bool) -> bool {
        let floor = limit.floor.bytes_per_second() as f64;
        let learned = self.watched >= limit.learn.as_secs_f64();
        let times = if learned { rate / (0.8 * limit.factor * self.normal).max(floor) } else { 0.0 };
        self.last.rotate_right(1);
        self.last[0] = times.min(5.0 / 3.0);
        if times < 1.0 && !breached {
            self.watched += step;
            self.learn(now, step, rate, floor / limit.factor);
        }
        self.last.iter().sum::<f64>() >= 4.995
    }

    fn learn(&mut self, now: f64, step: f64, rate: f64, least: f64) {
        match self.statistic {
            Statistic::Mean(half_life) => {
                // Of the first half-life, the plain mean.
                let share = (step / self.watched).max(1.0 - (-step / half_life).exp2());
                self.mean += (rate - self.mean) * share;
                self.normal = self.mean;
            }
            Statistic::Quantile { q, half_life, idle } => {
                let bin = (rate.max(1.0).log2() * 8.0) as usize;
                if idle || rate >= least {
                    self.bins[bin] += self.weight * step;
                }
                self.weight *= (step / half_life).exp2();
                if now - self.refreshed >= 60.0 {
                    self.refreshed = now;
                    self.normal = self.quantile(q);
                }
            }
        }
    }

    fn quantile(&self, q: f64) -> f64 {
        let mut rest = self.bins.iter().sum::<f64>() * q;
        for (bin, weight) in self.bins.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            if rest <= *weight {
                return ((bin as f64 + rest / weight) / 8.0).exp2();
            }
            rest -= weight;
        }
        0.0
    }
}
