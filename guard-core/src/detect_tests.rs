use std::time::Duration;

use super::*;
use crate::{
    policy::{BaselineLimit, EgressLimits, Matcher, OnBreach},
    units::{Rate, Size},
};

const SECOND: u64 = 1_000_000_000;
const ID: ContainerId = ContainerId(7);

fn policy(count: Count, quota: Option<u64>, baseline: bool) -> Arc<Policy> {
    let quota = quota.map(|bytes| Quota { bytes: Size::new(bytes).expect("a size"), per: Duration::from_mins(1) });
    let limit = BaselineLimit { factor: 100.0, floor: Rate::new(1000).expect("a rate"), learn: Duration::from_mins(1) };
    Arc::new(Policy {
        name: "test".into(),
        matcher: Matcher::default(),
        count,
        egress: EgressLimits { rate: None, quota, baseline: baseline.then_some(limit), bypass: None },
        ingress: None,
        on_breach: OnBreach::default(),
    })
}

fn moved(cluster: u64, external: u64, dropped: u64, contained: bool) -> Moved {
    let mut counted = Totals::default();
    counted.egress.bytes = [cluster, external];
    counted.egress.other = dropped;
    Moved { counted, nanos: SECOND, breached: false, contained }
}

fn workload() -> Arc<str> {
    "shop/web".into()
}

#[test]
fn what_a_policy_counts_is_what_its_quota_counts() {
    for (count, over) in [(Count::External, false), (Count::All, true)] {
        let mut detector = Detector::default();
        detector.assign(0, ID, &workload(), Some(&policy(count, Some(1000), false)));
        let found = detector.sample(SECOND, ID, moved(900, 101, 0, false)).expect("it has a policy");
        let expected = over.then_some(Over { figure: 1001.0, allowed: 1000.0 });
        assert_eq!((found.quota, found.baseline), (expected, None), "{count:?}");
        assert!(found.sending && !found.pressing);
    }
}

#[test]
fn it_presses_while_its_containment_drops() {
    let mut detector = Detector::default();
    detector.assign(0, ID, &workload(), Some(&policy(Count::External, None, false)));
    for (dropped, contained, pressing) in [(10, true, true), (0, true, false), (10, false, false)] {
        let found = detector.sample(SECOND, ID, moved(0, 0, dropped, contained)).expect("it has a policy");
        assert_eq!((found.pressing, found.sending), (pressing, false));
    }
}

#[test]
fn a_quota_outlives_reload_and_restart_but_not_the_boot() {
    let mut detector = Detector::default();
    detector.assign(0, ID, &workload(), Some(&policy(Count::External, Some(1000), false)));
    detector.sample(SECOND, ID, moved(0, 900, 0, false));
    detector.assign(SECOND, ID, &workload(), Some(&policy(Count::External, Some(2000), false)));
    for (same_boot, sum) in [(true, Some(2001.0)), (false, None)] {
        let mut restarted = Detector::restore(detector.save(), same_boot);
        // Not seen yet, and saved once more: nothing is lost. Nor is it when no policy is known to hold at first.
        let mut restarted = Detector::restore(std::mem::take(&mut restarted).save(), same_boot);
        restarted.assign(SECOND, ID, &workload(), None);
        restarted.assign(2 * SECOND, ID, &workload(), Some(&policy(Count::External, Some(2000), false)));
        restarted.settled();
        let found = restarted.sample(2 * SECOND, ID, moved(0, 1101, 0, false)).expect("it has a policy");
        assert_eq!(found.quota.map(|over| over.figure), sum, "same boot: {same_boot}");
    }
}

#[test]
fn what_was_sent_while_no_agent_was_is_in_the_quota_once() {
    let policy = policy(Count::External, Some(10_000), false);
    let mut detector = Detector::default();
    detector.assign(0, ID, &workload(), Some(&policy));
    detector.sample(SECOND, ID, moved(50, 900, 0, false));
    let mut restarted = Detector::restore(detector.save(), true);
    restarted.assign(2 * SECOND, ID, &workload(), Some(&policy));
    // Of 5,000 in all, 900 were told; the cluster's do not count.
    let egress = Tally { bytes: [7000, 5000], ..Tally::default() };
    restarted.catch_up(2 * SECOND, ID, &egress);
    restarted.catch_up(2 * SECOND, ID, &egress);
    let found = restarted.sample(3 * SECOND, ID, moved(0, 5001, 0, false)).expect("it has a policy");
    assert_eq!(found.quota.map(|over| over.figure), Some(10_001.0));
    // A quota that is new counts from now on.
    let mut fresh = Detector::default();
    fresh.assign(SECOND, ID, &workload(), Some(&policy));
    fresh.catch_up(SECOND, ID, &Tally { bytes: [0, 1_000_000], ..Tally::default() });
    assert_eq!(fresh.sample(2 * SECOND, ID, moved(0, 1, 0, false)).and_then(|found| found.quota), None);
}

#[test]
fn a_fresh_container_of_a_workload_has_its_normal_and_an_empty_quota() {
    let policy = policy(Count::External, Some(1_000_000), true);
    let mut detector = Detector::default();
    detector.assign(0, ID, &workload(), Some(&policy));
    for second in 1..=120 {
        let found = detector.sample(second * SECOND, ID, moved(0, 500, 0, false)).expect("it has a policy");
        assert_eq!((found.quota, found.baseline), (None, None));
    }
    detector.gone(ID);
    assert!(detector.sample(121 * SECOND, ID, moved(0, 1, 0, false)).is_none(), "it is gone");
    let mut restarted = Detector::restore(detector.save(), false);
    let fresh = ContainerId(8);
    restarted.assign(122 * SECOND, fresh, &workload(), Some(&policy));
    let over = (123..128).find_map(|second| {
        restarted.sample(second * SECOND, fresh, moved(0, 60_000, 0, false)).and_then(|found| found.baseline)
    });
    let over = over.expect("a jump of 120 times is found within five samples");
    assert!(over.figure > over.allowed && restarted.allowed(fresh) == Some(over.allowed), "{over:?}");
}

#[test]
fn what_was_sent_before_there_was_no_baseline_for_a_while_is_no_breach_after() {
    let (with, without) = (policy(Count::External, None, true), policy(Count::External, None, false));
    for (between, over) in [(&with, true), (&without, false)] {
        let mut detector = Detector::default();
        detector.assign(0, ID, &workload(), Some(&with));
        (1..=120).for_each(|second| {
            detector.sample(second * SECOND, ID, moved(0, 500, 0, false));
        });
        (121..=125).for_each(|second| {
            detector.sample(second * SECOND, ID, moved(0, 60_000_000, 0, false));
        });
        detector.assign(126 * SECOND, ID, &workload(), Some(between));
        detector.assign(999 * SECOND, ID, &workload(), Some(&with));
        let found = detector.sample(1000 * SECOND, ID, moved(0, 0, 0, false)).expect("it has a policy");
        assert_eq!(found.baseline.is_some(), over);
    }
}

#[test]
fn nothing_is_learned_while_contained() {
    let policy = policy(Count::External, None, true);
    let mut detector = Detector::default();
    detector.assign(0, ID, &workload(), Some(&policy));
    (1..=300).for_each(|second| {
        detector.sample(second * SECOND, ID, moved(0, 500, 1, true));
    });
    assert_eq!(detector.allowed(ID), None);
}

#[test]
fn the_normal_of_so_many_workloads_is_kept_and_no_more() {
    let policy = policy(Count::External, None, true);
    let mut detector = Detector::default();
    for index in 0..WORKLOADS as u64 + 3 {
        let id = ContainerId(index);
        detector.assign(index, id, &format!("{index}").into(), Some(&policy));
        detector.sample(index, id, moved(0, 1, 0, false));
        if index != 1 {
            detector.gone(id);
        }
    }
    let kept = detector.save().baselines;
    assert_eq!(kept.len(), WORKLOADS);
    assert!(kept.contains_key("1"), "it still has a container");
    assert!(!kept.contains_key("3") && kept.contains_key("4"), "the oldest are forgotten");
}
