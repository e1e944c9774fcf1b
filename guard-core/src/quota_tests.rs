use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
const HOUR: Duration = Duration::from_hours(1);

fn quota(bytes: u64, per: Duration) -> Quota {
    Quota { bytes: Size::new(bytes).expect("not zero"), per }
}

/// What was sent within the last `length` nanoseconds.
fn sent(events: &[(u64, u64)], now: u64, length: u64) -> u64 {
    events.iter().filter(|(at, _)| now - at < length).map(|(_, bytes)| bytes).sum()
}

proptest! {
    #[test]
    fn never_forgets_early_and_never_keeps_more_than_a_part_longer(
        start in 0..u64::MAX / 2,
        per in 1..10_000_u64,
        steps in prop::collection::vec((0..3_000_u64, 0..1_000_000_u64), 1..200),
        idle in 0..3_000_u64,
    ) {
        let mut window = Window::new(quota(1, Duration::from_nanos(per)), start);
        let (mut events, mut now) = (Vec::new(), start);
        for (step, bytes) in steps {
            now += step;
            window.add(now, bytes);
            events.push((now, bytes));
            let later = now + idle;
            let part = per.div_ceil(PARTS as u64);
            let (least, most) = (sent(&events, later, per), sent(&events, later, part * PARTS as u64 + part));
            let sum = window.sum(later);
            prop_assert!((least..=most).contains(&sum), "{sum} is not within {least}..={most}");
            prop_assert_eq!(window.over(later), sum > 1);
        }
    }

    #[test]
    fn another_window_never_holds_more_than_was_counted_and_a_longer_one_holds_all(
        start in 0..u64::MAX / 2,
        pers in (1..10_000_u64, 1..10_000_u64),
        steps in prop::collection::vec((0..100_u64, 0..u64::MAX), 1..100),
    ) {
        let mut window = Window::new(quota(1, Duration::from_nanos(pers.0)), start);
        let mut now = start;
        for (step, bytes) in steps {
            now += step;
            window.add(now, bytes >> 8);
        }
        let before = window.sum(now);
        window.set(quota(7, Duration::from_nanos(pers.1)), now);
        prop_assert!(window.sum(now) <= before, "{} of {before}", window.sum(now));
        // All that is kept is younger than 61 old parts.
        if part(Duration::from_nanos(pers.1)) * 59 > part(Duration::from_nanos(pers.0)) * KEPT as u64 {
            prop_assert_eq!(window.sum(now), before);
        }
        prop_assert_eq!(window.sum(now), total(&window.parts));
        prop_assert_eq!(window.quota(), quota(7, Duration::from_nanos(pers.1)));
    }

    #[test]
    fn whatever_is_read_back_can_be_used(
        saved in (any::<u64>(), any::<u64>(), any::<u64>(), prop::collection::vec(any::<u64>(), 0..70)),
        now in any::<u64>(),
        per in any::<u64>(),
    ) {
        let (bytes, length, head, parts) = saved;
        let kept = total(&parts);
        let fits = bytes > 0 && parts.len() <= KEPT;
        let read = Window::try_from(Saved { bytes, per: length, head, parts });
        prop_assert_eq!(read.is_ok(), fits);
        let Ok(mut window) = read else { return Ok(()) };
        prop_assert!(window.sum(now) <= kept);
        window.set(quota(1, Duration::new(per, 0)), now);
        window.add(now, u64::MAX);
        prop_assert_eq!(window.sum(now), u64::MAX);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = serde_json::from_slice::<Window>(&bytes);
    }
}

#[test]
fn what_was_kept_is_what_is_read_back() {
    let mut window = Window::new(quota(20_000, HOUR), 0);
    for minute in 0..90 {
        window.add(minute * 60 * SECOND, minute);
    }
    let json = serde_json::to_string(&window).expect("json");
    assert_eq!(serde_json::from_str::<Window>(&json).expect("a window"), window, "{json}");
    let empty = serde_json::to_string(&Window::new(quota(20_000, HOUR), 0)).expect("json");
    assert_eq!(empty, r#"{"bytes":20000,"per":3600000000000,"head":0,"parts":[]}"#);
}

#[test]
fn a_clock_that_starts_afresh_forgets_nothing() {
    let mut window = Window::new(quota(100, HOUR), 0);
    window.add(1_000_000 * SECOND, 101);
    assert!(window.over(SECOND), "another boot, a second after its start");
    window.add(SECOND, 0);
    assert!(window.over(3599 * SECOND));
    assert!(!window.over(3721 * SECOND), "and holds it no longer than a window and a part");
}

#[test]
fn a_shorter_window_takes_its_share_of_a_part() {
    let mut window = Window::new(quota(1, 60 * HOUR), 0);
    // In the second half of an old part: 30 minutes of it have passed.
    window.add(89 * 60 * SECOND + 59 * SECOND, 3000);
    window.set(quota(1, HOUR / 4), 90 * 60 * SECOND - 1);
    let sum = window.sum(90 * 60 * SECOND - 1);
    assert!((1500..=1525).contains(&sum), "{sum}: 15 minutes of 30, and at most a part more");
}
