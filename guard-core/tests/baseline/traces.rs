//! What containers send, second by second: made up, from a fixed seed, and recorded.

use std::{f64::consts::TAU, time::Duration};

use guard_core::{policy::BaselineLimit, units::Rate};

pub(crate) const MINUTE: f64 = 60.0;
pub(crate) const HOUR: f64 = 3600.0;
pub(crate) const DAY: f64 = 24.0 * HOUR;
const KB: f64 = 1e3;
const MB: f64 = 1e6;
const MIB: u64 = 1 << 20;

/// What an ordinary container here sends, in bytes per second.
const USUAL: f64 = 2.0 * MB;

/// What a web server in a network namespace sent to its clients, for 20 minutes: the file says how.
const RECORDED: &str = include_str!("../data/recorded.csv");

/// The attack in the recording: a download of everything at 90 MB/s, of 30 seconds.
const RECORDED_ATTACK: f64 = 1080.0;

/// A container's story.
pub(crate) struct Trace {
    /// What the table calls it.
    pub(crate) name: &'static str,
    /// Under which limit.
    pub(crate) limit: BaselineLimit,
    /// Seconds between samples.
    pub(crate) step: f64,
    /// Seconds that it lasts.
    pub(crate) length: f64,
    /// The second in which an attack begins. Breaches before it, and all if there is none, are false alarms.
    pub(crate) attack: Option<f64>,
    /// Bytes per second at a time. `None`: no container runs.
    pub(crate) rate: Box<Level>,
}

type Level = dyn FnMut(f64, &mut Random) -> Option<f64>;

/// xorshift64*.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// From 0 to 1.
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Around 1: two thirds of it within a fifth.
    fn noise(&mut self) -> f64 {
        let bell = (0..4).map(|_| self.uniform() - 0.5).sum::<f64>() * 3.0_f64.sqrt();
        (0.2 * bell).exp()
    }
}

impl Trace {
    fn learning(mut self, time: f64) -> Self {
        self.limit.learn = Duration::from_secs_f64(time);
        self
    }

    fn floor(mut self, rate: u64) -> Self {
        self.limit.floor = Rate::new(rate).expect("not zero");
        self
    }

    fn every(mut self, step: f64) -> Self {
        self.step = step;
        self
    }

    fn attacked(mut self, from: f64) -> Self {
        self.attack = Some(from);
        self
    }
}

fn running(name: &'static str, length: f64, rate: impl FnMut(f64, &mut Random) -> Option<f64> + 'static) -> Trace {
    let limit =
        BaselineLimit { factor: 100.0, floor: Rate::new(MIB).expect("not zero"), learn: Duration::from_secs_f64(HOUR) };
    Trace { name, limit, step: 1.0, length, attack: None, rate: Box::new(rate) }
}

/// Noise around a level.
fn noisy(name: &'static str, length: f64, mut level: impl FnMut(f64) -> f64 + 'static) -> Trace {
    running(name, length, move |t, random| Some(level(t) * random.noise()))
}

/// Ten times as much at noon as at midnight, where it begins; around 1.
fn day_and_night(t: f64) -> f64 {
    10.0_f64.powf(-0.5 * (TAU * t / DAY).cos())
}

/// `high` for `length` seconds of each `period`, first after `from`; else 1.
fn burst(t: f64, from: f64, period: f64, length: f64, high: f64) -> f64 {
    if t >= from && (t - from) % period < length { high } else { 1.0 }
}

/// As `burst`, and else nothing.
fn job(t: f64, from: f64, period: f64, length: f64, rate: f64) -> f64 {
    if t >= from && (t - from) % period < length { rate } else { 0.0 }
}

/// From 1 at `from` to `high` after `length`, and so on: the same share in the same time.
fn ramp(t: f64, from: f64, length: f64, high: f64) -> f64 {
    if t < from { 1.0 } else { high.powf((t - from) / length) }
}

fn recorded(name: &'static str, length: f64) -> Trace {
    let rows = RECORDED.lines().filter(|line| !line.starts_with('#'));
    let rate = |row: &str| {
        let (millis, bytes) = row.split_once(',').expect("two columns");
        bytes.parse::<f64>().expect("bytes") * 1000.0 / millis.parse::<f64>().expect("milliseconds")
    };
    let rates: Vec<f64> = rows.map(rate).collect();
    running(name, length, move |t, _| Some(rates[t as usize])).learning(10.0 * MINUTE)
}

/// Stories without an attack.
pub(crate) fn quiet() -> Vec<Trace> {
    vec![
        noisy("steady web service", 3.0 * DAY, |_| USUAL),
        noisy("ten times as much by day as at night, learned at night", 7.0 * DAY, |t| USUAL * day_and_night(t))
            .every(5.0),
        noisy("steady, and a daily batch of 50 times as much for 10 min", 4.0 * DAY, |t| {
            USUAL * burst(t, 5.0 * HOUR, DAY, 10.0 * MINUTE, 50.0)
        }),
        noisy("day and night, and at 3 h a batch of 50 times the median", 5.0 * DAY, |t| {
            USUAL * day_and_night(t).max(burst(t, 3.0 * HOUR, DAY, 10.0 * MINUTE, 50.0) - 1.0)
        })
        .learning(DAY),
        noisy("the same, learned for 1 h at midnight", 5.0 * DAY, |t| {
            USUAL * day_and_night(t).max(burst(t, 3.0 * HOUR, DAY, 10.0 * MINUTE, 50.0) - 1.0)
        }),
        noisy("steady, and a weekly job of 50 times as much for 1 h", 28.0 * DAY, |t| {
            USUAL * burst(t, 2.0 * DAY, 7.0 * DAY, HOUR, 50.0)
        })
        .every(10.0),
        running("a deployment a day: gone for 2 min, then caches fill at 20 times for 30 s", 4.0 * DAY, |t, random| {
            let since = t % DAY;
            (t < DAY || since >= 120.0).then(|| USUAL * random.noise() * burst(t, DAY + 120.0, DAY, 30.0, 20.0))
        }),
        noisy("cold start: nothing for 10 min, then ever more for 2 h", 3.0 * DAY, |t| {
            USUAL * ((t - 10.0 * MINUTE) / (2.0 * HOUR)).clamp(0.0, 1.0)
        }),
        noisy("canary: a hundredth for 2 h, then all of the traffic", 3.0 * DAY, |t| {
            USUAL * if t < 2.0 * HOUR { 0.01 } else { 1.0 }
        }),
        noisy("the same, learned for 1 d", 3.0 * DAY, |t| USUAL * if t < 2.0 * HOUR { 0.01 } else { 1.0 })
            .learning(DAY),
        running("idle, and 3 MB/s for 2 s every 20 min or so", 3.0 * DAY, {
            let mut next = 0.0;
            move |t, random| {
                if t > next + 2.0 {
                    next = t + 40.0 * MINUTE * random.uniform();
                }
                Some(if t >= next { 3.0 * MB } else { 0.0 })
            }
        }),
        noisy("resident daily job: nothing, and 50 MB/s for 5 min", 5.0 * DAY, |t| {
            job(t, 5.0 * HOUR, DAY, 5.0 * MINUTE, 50.0 * MB)
        }),
        noisy("the same, learned for 1 d", 5.0 * DAY, |t| job(t, 5.0 * HOUR, DAY, 5.0 * MINUTE, 50.0 * MB))
            .learning(DAY),
        running("daily CronJob: 50 MB/s for 5 min, and no container else", 14.0 * DAY, |t, random| {
            (t % DAY < 5.0 * MINUTE).then(|| 50.0 * MB * random.noise())
        }),
        noisy("chatter of 20 KB/s, and a daily backup of 50 MB/s for 5 min, learned for 1 d", 5.0 * DAY, |t| {
            20.0 * KB + job(t, 5.0 * HOUR, DAY, 5.0 * MINUTE, 50.0 * MB)
        })
        .learning(DAY),
        noisy("the same with a floor of 5 MiB/s", 5.0 * DAY, |t| {
            20.0 * KB + job(t, 5.0 * HOUR, DAY, 5.0 * MINUTE, 50.0 * MB)
        })
        .learning(DAY)
        .floor(5 * MIB),
        noisy("growing: three times as much within a month", 30.0 * DAY, |t| USUAL * ramp(t, 0.0, 30.0 * DAY, 3.0))
            .every(10.0),
        noisy("flash crowd: 20 times as much for 2 h", 3.0 * DAY, |t| {
            USUAL * burst(t, 2.0 * DAY, DAY, 2.0 * HOUR, 20.0)
        }),
        noisy("flash crowd of 20 times at noon, day and night", 5.0 * DAY, |t| {
            USUAL * day_and_night(t) * burst(t, 4.5 * DAY, DAY, 2.0 * HOUR, 20.0)
        }),
        noisy("log shipper: 20 MB within a second every 30 s", 2.0 * DAY, |t| job(t, 0.0, 30.0, 1.0, 20.0 * MB)),
        recorded("recorded: web server and clients, two loads, a backup; learned for 10 min", RECORDED_ATTACK),
    ]
}

/// A steady service to which something is done after a day.
fn attack(name: &'static str, length: f64, times: impl Fn(f64) -> f64 + 'static) -> Trace {
    noisy(name, DAY + length, move |t| USUAL * if t < DAY { 1.0 } else { times(t - DAY) }).attacked(DAY)
}

/// A service with days and nights to which something is done for 10 min at an hour of its third day.
fn by_day_or_night(name: &'static str, hour: f64, added: f64) -> Trace {
    let from = 2.0 * DAY + hour * HOUR;
    noisy(name, from + 10.0 * MINUTE, move |t| USUAL * (day_and_night(t) + if t < from { 0.0 } else { added }))
        .learning(DAY)
        .attacked(from)
}

/// A steady service that was attacked while it was learned, and is again after a day.
fn taught(name: &'static str, length: f64) -> Trace {
    noisy(name, DAY + 10.0 * MINUTE, move |t| {
        USUAL * if (t > 2.0 * MINUTE && t < 2.0 * MINUTE + length) || t >= DAY { 1000.0 } else { 1.0 }
    })
    .attacked(DAY)
}

/// Stories with one.
pub(crate) fn attacks() -> Vec<Trace> {
    let trough = 10.0_f64.powf(-0.5);
    vec![
        attack("100 times as much, just as noisy", 10.0 * MINUTE, |_| 100.0),
        attack("150 times", 10.0 * MINUTE, |_| 150.0),
        attack("1000 times", 10.0 * MINUTE, |_| 1000.0),
        noisy("100 times, 70 min after the workload was first seen", 80.0 * MINUTE, |t| {
            USUAL * burst(t, 70.0 * MINUTE, DAY, HOUR, 100.0)
        })
        .attacked(70.0 * MINUTE),
        noisy("chatter of 1 KB/s, then 5 MB/s", DAY + 10.0 * MINUTE, |t| if t < DAY { KB } else { 5.0 * MB })
            .attacked(DAY),
        attack("ramp to 1000 times within an hour", 2.0 * HOUR, |t| ramp(t, 0.0, HOUR, 1000.0)),
        attack("ramp to 100 times within a day, and on at that", 2.0 * DAY, |t| ramp(t, 0.0, DAY, 100.0).min(100.0)),
        attack("ramp to 1000 times within a day", 2.0 * DAY, |t| ramp(t, 0.0, DAY, 1000.0)),
        attack("ramp to 1000 times within a week, of a workload known for 1 d", 7.0 * DAY, |t| {
            ramp(t, 0.0, 7.0 * DAY, 1000.0)
        })
        .every(5.0),
        noisy("the same, known for 14 d", 21.0 * DAY, |t| USUAL * ramp(t, 14.0 * DAY, 7.0 * DAY, 1000.0))
            .every(10.0)
            .attacked(14.0 * DAY),
        noisy("ramp within a week from nothing to 100 times the floor", 8.0 * DAY, |t| {
            if t < DAY { 0.0 } else { 20.0 * KB * ramp(t, DAY, 7.0 * DAY, 5000.0) }
        })
        .every(5.0)
        .attacked(DAY),
        by_day_or_night("100 times its normal at the peak of the day", 12.0, 100.0),
        by_day_or_night("100 times its normal in the trough of the night", 0.0, 100.0),
        by_day_or_night("100 times what the night has, which is 32 times its normal", 0.0, 100.0 * trough),
        attack("50 times for a day, below the limit", DAY, |_| 50.0),
        noisy("50 times for 6 h, below the limit, then 150 times", 1.5 * DAY + 10.0 * MINUTE, |t| {
            let since = burst(t, 1.25 * DAY, DAY, DAY, 50.0);
            USUAL * since.max(burst(t, 1.5 * DAY, DAY, DAY, 150.0))
        })
        .attacked(1.5 * DAY),
        attack("150 times for 5 s every minute", 10.0 * MINUTE, |t| burst(t, 0.0, 65.0, 5.0, 150.0)),
        attack("150 times for 2 s every minute", 10.0 * MINUTE, |t| burst(t, 0.0, 62.0, 2.0, 150.0)),
        taught("1000 times for 15 min while it was learned for 1 h, again after 1 d", 15.0 * MINUTE),
        taught("1000 times for 45 min while it was learned for 1 h, again after 1 d", 45.0 * MINUTE),
        noisy("log shipper as above, 100 times its mean", DAY + 10.0 * MINUTE, |t| {
            job(t, 0.0, 30.0, 1.0, 20.0 * MB) + if t < DAY { 0.0 } else { 67.0 * MB }
        })
        .attacked(DAY),
        recorded("recorded: web server as above, a download at 90 MB/s; learned for 10 min", 1200.0)
            .attacked(RECORDED_ATTACK),
    ]
}
