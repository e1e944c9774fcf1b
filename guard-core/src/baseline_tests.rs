use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::units::Rate;

const HOUR: u64 = 60 * MINUTE;
const MB: f64 = 1e6;

fn limit(factor: f64, floor: u64, learn: u64) -> BaselineLimit {
    BaselineLimit { factor, floor: Rate::new(floor).expect("not zero"), learn: Duration::from_nanos(learn) }
}

fn usual() -> BaselineLimit {
    limit(100.0, 1 << 20, HOUR)
}

/// A workload, one of its containers, and the time.
struct World {
    baseline: Baseline,
    streak: Streak,
    now: u64,
    limit: BaselineLimit,
}

impl World {
    fn new(limit: BaselineLimit) -> Self {
        Self { baseline: Baseline::new(), streak: Streak::default(), now: 40 * DAY, limit }
    }

    /// One that has sent at this rate for so long.
    fn known(limit: BaselineLimit, rate: f64, length: u64) -> Self {
        let mut world = Self::new(limit);
        world.send(rate, length);
        world
    }

    fn sample(&mut self, rate: f64, step: u64) -> Reading {
        self.now += step;
        self.baseline.observe(&mut self.streak, self.now, rate, &self.limit, false)
    }

    /// A sample each second. Returns the last reading.
    fn send(&mut self, rate: f64, length: u64) -> Reading {
        (0..=length / SECOND).map(|_| self.sample(rate, SECOND)).last().expect("a sample")
    }
}

#[test]
fn there_is_no_limit_before_it_is_learned() {
    let mut world = World::new(usual());
    let unknown = Reading { over: false, allowed: None, normal: None };
    assert_eq!(world.send(MB, HOUR - 60 * SECOND), unknown);
    let reading = world.send(MB, 2 * MINUTE);
    let normal = reading.normal.expect("a normal");
    assert!((normal - MB).abs() < 0.1 * MB, "{normal} is not about {MB}");
    assert_eq!(reading.allowed, Some(80.0 * normal));
    world.limit.learn = Duration::from_hours(24);
    assert_eq!(world.sample(MB, SECOND), unknown, "the policy wants more now");
}

#[test]
fn however_short_it_learns_it_wants_ten_parts() {
    let mut world = World::new(limit(100.0, 1, 1));
    // The first sample of a container only says where the first part begins.
    for sample in 0..=LEAST_PARTS {
        assert_eq!(world.sample(MB, SECOND).normal, None, "sample {sample}");
    }
    assert!(world.sample(MB, SECOND).normal.is_some());
}

proptest! {
    #[test]
    fn a_jump_by_the_factor_is_found_within_five_samples_and_six_tenths_of_it_never(
        rate in 1e3..1e9_f64,
        factor in 10.0..1000.0_f64,
        step in SECOND / 10..10 * SECOND,
    ) {
        let mut world = World::new(limit(factor, 1, 10 * MINUTE));
        while world.now < 40 * DAY + 20 * MINUTE {
            prop_assert!(!world.sample(rate, step).over);
        }
        for _ in 0..100 {
            prop_assert!(!world.sample(0.6 * factor * rate, step).over);
        }
        let found = (1..=5).find(|_| world.sample(factor * rate, step).over);
        prop_assert!(found.is_some(), "allowed {:?}, sent {}", world.baseline.read(&world.limit), factor * rate);
    }

    #[test]
    fn nothing_teaches_it_in_a_day_to_accept_the_factor(
        shares in prop::collection::vec(0.0..1.0_f64, 24),
        start in 1.1e4..1e7_f64,
    ) {
        let mut world = World::known(usual(), start, HOUR + MINUTE);
        let before = world.baseline.normal.expect("a normal");
        for share in shares {
            for _ in 0..240 {
                let allowed = world.baseline.read(&world.limit).allowed.expect("a limit");
                prop_assert!(!world.sample(share * 0.999 * allowed, 15 * SECOND).over);
            }
        }
        let after = world.baseline.normal.expect("a normal");
        prop_assert!(after <= 1.2 * before, "from {before} to {after}");
        prop_assert!(world.send(100.0 * before, 4 * SECOND).over);
    }

    #[test]
    fn whatever_is_read_back_can_be_used(
        saved in (any::<u64>(), any::<u64>(), any::<u32>(), any::<Option<f64>>()),
        bins in prop::collection::vec((0..300_u16, any::<f32>()), 0..20),
        samples in prop::collection::vec((any::<u64>(), any::<f64>()), 0..20),
        factor in 1.0..1e9_f64,
    ) {
        let (at, watched, parts, normal) = saved;
        let Ok(mut baseline) = Baseline::try_from(Saved { at, watched, parts, normal, bins }) else { return Ok(()) };
        let (mut streak, limit) = (Streak::default(), limit(factor, 1, 1));
        for (now, rate) in samples {
            let reading = baseline.observe(&mut streak, now, rate, &limit, false);
            prop_assert!(reading.allowed.is_none_or(f64::is_finite), "{reading:?}");
            prop_assert!(reading.normal.is_none_or(|normal| normal >= 0.0), "{reading:?}");
        }
        let again = serde_json::to_string(&baseline).expect("json");
        prop_assert!(serde_json::from_str::<Baseline>(&again).is_ok(), "{again}");
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = serde_json::from_slice::<Baseline>(&bytes);
    }
}

#[test]
fn two_seconds_are_no_breach_and_three_are() {
    for high in [200.0 * MB, 1e12] {
        let mut world = World::known(usual(), MB, 2 * HOUR);
        for _ in 0..20 {
            assert!(!world.sample(high, SECOND).over && !world.sample(high, SECOND).over, "{high} for two seconds");
            assert!(!world.send(MB, 5 * SECOND).over);
        }
        world.send(high, SECOND);
        assert!(world.sample(high, SECOND).over, "{high} for three seconds");
        world.send(MB, 2 * SECOND);
        assert!(!world.sample(MB, SECOND).over, "and then it is over");
    }
}

#[test]
fn nothing_is_learned_above_the_limit_or_during_a_breach() {
    let mut world = World::known(usual(), MB, 2 * HOUR);
    let before = world.baseline.clone();
    world.send(200.0 * MB, DAY / 4);
    assert_eq!(world.baseline, before, "above the limit");
    for _ in 0..1000 {
        world.now += SECOND;
        world.baseline.observe(&mut world.streak, world.now, 70.0 * MB, &world.limit, true);
    }
    assert_eq!(world.baseline, before, "in breach of another limit");
    world.send(70.0 * MB, 2 * MINUTE);
    assert_ne!(world.baseline, before, "within the limit and in no breach");
}

#[test]
fn what_was_never_active_may_send_the_floor() {
    let mut world = World::known(usual(), 0.0, 2 * HOUR);
    let floor = world.limit.floor.bytes_per_second() as f64;
    let reading = world.send(0.99 * floor, 59 * SECOND);
    assert_eq!((reading.over, reading.allowed), (false, Some(floor)));
    assert!(world.send(floor, 4 * SECOND).over);
}

#[test]
fn idle_time_teaches_nothing_about_a_job() {
    let mut world = World::new(usual());
    for _ in 0..20 {
        world.send(50.0 * MB, 5 * MINUTE);
        world.send(100.0, DAY - 5 * MINUTE);
    }
    let normal = world.baseline.normal.expect("a normal");
    assert!((normal - 50.0 * MB).abs() < 5.0 * MB, "{normal}");
}

#[test]
fn one_container_of_many_is_found_and_does_not_teach_the_others() {
    let mut world = World::new(usual());
    let mut streaks = vec![Streak::default(); 20];
    let mut over = [0; 20];
    for second in 0..2 * 3600 {
        world.now += SECOND;
        for (index, streak) in streaks.iter_mut().enumerate() {
            let attacked = index == 7 && second >= 3700;
            let rate = if attacked { 100.0 * MB } else { MB };
            let reading = world.baseline.observe(streak, world.now, rate, &world.limit, over[index] > 0);
            over[index] += u32::from(reading.over);
        }
    }
    assert!(over[7] > 3490, "{over:?}");
    assert_eq!(over.iter().filter(|&&over| over > 0).count(), 1, "{over:?}");
    let normal = world.baseline.normal.expect("a normal");
    assert!((normal - MB).abs() < 0.1 * MB, "{normal}");
    let watched = world.baseline.watched;
    assert!(watched <= 2 * HOUR, "{watched}: twenty containers do not make an hour of three minutes");
}

#[test]
fn a_restart_forgets_nothing() {
    let mut world = World::new(usual());
    for hour in 0..48 {
        world.send(MB * f64::from(1 + hour % 7), HOUR);
    }
    let json = serde_json::to_string(&world.baseline).expect("json");
    assert!(json.len() < 5000, "{} bytes", json.len());
    let mut other = World {
        baseline: serde_json::from_str(&json).expect("a baseline"),
        streak: Streak::default(),
        now: world.now,
        limit: world.limit,
    };
    assert_eq!(other.baseline.read(&other.limit), world.baseline.read(&world.limit));
    for rate in [MB, 3.0 * MB] {
        let (a, b) = (world.send(rate, HOUR), other.send(rate, HOUR));
        let (a, b) = (a.normal.expect("a normal"), b.normal.expect("a normal"));
        assert!((a - b).abs() < 0.01 * a, "{a} and {b}");
    }
}

#[test]
fn another_boot_forgets_nothing() {
    let mut world = World::known(usual(), MB, 2 * HOUR);
    let before = world.baseline.normal;
    (world.now, world.streak) = (0, Streak::default());
    let reading = world.send(MB, HOUR);
    assert_eq!(reading.normal.map(f64::round), before.map(f64::round));
    assert!(world.send(100.0 * MB, 5 * SECOND).over);
}

#[test]
fn after_a_year_the_old_weighs_nothing_whenever_that_is() {
    let mut world = World::known(usual(), MB, 2 * HOUR);
    for year in 0..300 {
        world.now += 365 * DAY;
        // It is slow to go up, so this goes down.
        let rate = MB * 0.5_f64.powi(1 + year / 50);
        let normal = world.send(rate, 10 * MINUTE).normal.expect("a normal");
        assert!((normal - rate).abs() < 0.1 * rate, "{normal} in year {year}, not {rate}");
    }
}

#[test]
fn files_of_others_are_refused() {
    let cases = [
        r#"{"at":1,"watched":1,"parts":1,"normal":-1.0,"bins":[]}"#,
        r#"{"at":1,"watched":1,"parts":1,"normal":1e300,"bins":[]}"#,
        r#"{"at":1,"watched":1,"parts":1,"normal":null,"bins":[[272,1.0]]}"#,
        r#"{"at":1,"watched":1,"parts":1,"normal":null,"bins":[[0,-1.0]]}"#,
        r#"{"at":1,"watched":1,"parts":1,"normal":null,"bins":[[0,1e30]]}"#,
        r#"{"at":1,"watched":1,"parts":1,"normal":null,"bins":[],"more":1}"#,
        r#"{"at":1,"watched":1,"parts":1,"normal":null,"bi"#,
    ];
    for case in cases {
        assert!(serde_json::from_str::<Baseline>(case).is_err(), "{case}");
    }
    assert!(serde_json::from_str::<Baseline>(r#"{"at":1,"watched":1,"parts":1,"normal":null,"bins":[]}"#).is_ok());
}

#[test]
fn a_workload_takes_little_memory() {
    assert!(size_of::<Baseline>() + size_of::<[f32; BINS]>() < 1200);
    assert!(size_of::<Streak>() <= 64);
}
