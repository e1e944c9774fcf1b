use super::*;

const S: u64 = 1_000_000_000;
const HOUR: u64 = 3600;

fn workload(name: &str) -> Arc<str> {
    name.into()
}

/// Evicted at these seconds.
fn evicted(seconds: &[u64]) -> Relapses {
    let mut relapses = Relapses::default();
    for second in seconds {
        relapses.evicted(second * S, Spent { at: second * S, workload: workload("a") });
    }
    relapses
}

fn breach(relapses: &mut Relapses, now: u64, name: &str, since: u64) -> Vec<Alarm> {
    relapses.breaching(now * S, [(&workload(name), since * S)])
}

#[test]
fn who_breaches_again_soon_after_enough_evictions_is_not_cured() {
    let cases: [(&[u64], &str, u64, bool); 9] = [
        (&[10, 100], "a", 101, true),
        (&[10, 100], "a", 100 + HOUR, true),
        (&[10, 100], "a", 101 + HOUR, false),
        (&[10, 100], "b", 101, false),
        (&[100], "a", 101, false),
        // It breached before.
        (&[10, 100], "a", 99, false),
        (&[10, 100], "a", 100, false),
        // One a day ago counts, and not one before that.
        (&[1, 24 * HOUR], "a", 1 + 24 * HOUR, true),
        (&[1, 24 * HOUR], "a", 2 + 24 * HOUR, false),
    ];
    for (evictions, name, since, expected) in cases {
        let mut relapses = evicted(evictions);
        let said = breach(&mut relapses, since, name, since);
        let alarm = Alarm::NotCured { workload: workload(name) };
        assert_eq!(said, if expected { vec![alarm] } else { vec![] }, "{name} since {since} after {evictions:?}");
        assert_eq!(relapses.is_not_cured(&workload(name)), expected);
    }
}

#[test]
fn it_is_said_once_and_over_after_an_hour_without_a_breach() {
    let mut relapses = evicted(&[10, 100]);
    assert_eq!(breach(&mut relapses, 200, "a", 200).len(), 1);
    // However long it breaches on.
    for now in (300..3 * HOUR).step_by(600) {
        assert_eq!(breach(&mut relapses, now, "a", now), []);
        assert!(relapses.is_not_cured(&workload("a")), "{now}");
    }
    let last = (300..3 * HOUR).step_by(600).last().expect("one");
    assert_eq!(breach(&mut relapses, last + HOUR, "b", last), []);
    assert!(relapses.is_not_cured(&workload("a")));
    assert_eq!(breach(&mut relapses, last + HOUR + 1, "b", last), []);
    assert!(!relapses.is_not_cured(&workload("a")));
    // What is told from elsewhere is no different.
    assert!(relapses.told(S, &workload("c")).is_some() && relapses.told(S, &workload("c")).is_none());
}

#[test]
fn a_restart_cures_nobody() {
    let restart = |relapses: &Relapses, now: u64| {
        let text = serde_json::to_string(&relapses.save()).expect("JSON");
        Relapses::restore(now * S, serde_json::from_str(&text).expect("what was saved"))
    };
    let mut relapses = restart(&evicted(&[10, 100]), 100).expect("restored");
    assert_eq!(breach(&mut relapses, 200, "a", 200).len(), 1);
    let mut relapses = restart(&relapses, 200).expect("restored");
    assert!(relapses.is_not_cured(&workload("a")));
    assert_eq!(breach(&mut relapses, 201, "a", 200), [], "it was said");
    let error = restart(&relapses, 99).expect_err("of another boot");
    assert!(matches!(error, RestoreError::Future { now, .. } if now == 99 * S), "{error}");
}
