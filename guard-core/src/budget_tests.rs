use std::num::NonZeroU64;

use proptest::prelude::*;

use super::*;
use crate::units::Percent;

const S: u64 = 1_000_000_000;

fn budget(evictions: u64, seconds: u64) -> Budget {
    Budget { evictions: NonZeroU64::new(evictions).expect("not zero"), per: Duration::from_secs(seconds) }
}

fn allowance(node: Budget, workload: Budget) -> Allowance {
    let pods = Percent::new(30).expect("a part");
    let storm = Storm { workloads: NonZeroU64::new(3).expect("not zero"), pods, per: Duration::from_mins(1) };
    let Budget { evictions, per } = workload;
    let workload = WorkloadBudget { evictions, per, ..crate::policy::Budgets::default().workload };
    Allowance { node, workload, cluster: node, storm }
}

fn workload(name: &str) -> Arc<str> {
    Arc::from(name)
}

/// One pod of each workload breaches, on a node with a hundred.
fn breach(budgets: &mut Budgets, now: u64, workloads: &[Arc<str>]) -> Option<Alarm> {
    budgets.breaching(now, 100, workloads.iter().map(|workload| Breaching { workload, pod: workload }))
}

fn spend(budgets: &mut Budgets, now: u64, name: &str) -> Result<(), Refused> {
    budgets.spend(now, &workload(name)).map(|_| ())
}

#[test]
fn a_budget_is_spent_and_comes_back_after_its_window() {
    let mut budgets = Budgets::new(allowance(budget(3, 100), budget(2, 1000)));
    let cases = [
        (0, "a", Ok(())),
        (1, "a", Ok(())),
        (2, "a", Err(Refused::Workload)),
        (2, "b", Ok(())),
        (3, "c", Err(Refused::Node)),
        // The window's both ends belong to it.
        (100, "c", Err(Refused::Node)),
        (101, "c", Ok(())),
        (101, "c", Err(Refused::Node)),
        (900, "a", Err(Refused::Workload)),
        (1000, "a", Err(Refused::Workload)),
        (1001, "a", Ok(())),
    ];
    for (second, name, expected) in cases {
        assert_eq!(spend(&mut budgets, second * S, name), expected, "second {second}, workload {name}");
    }
}

#[test]
fn what_did_not_take_place_is_given_back() {
    let (a, b) = (workload("a"), workload("b"));
    let mut budgets = Budgets::new(allowance(budget(1, 100), budget(1, 100)));
    let spent = budgets.spend(S, &a).expect("the first");
    budgets.refund(&Spent { at: 2 * S, ..spent.clone() });
    budgets.refund(&Spent { workload: b.clone(), ..spent.clone() });
    assert_eq!(budgets.spend(3 * S, &b), Err(Refused::Node));
    budgets.refund(&spent);
    assert!(budgets.spend(3 * S, &b).is_ok());
}

#[test]
fn of_all_attempts_at_one_eviction_the_last_one_counts() {
    let (a, b) = (workload("a"), workload("b"));
    let mut budgets = Budgets::new(allowance(budget(3, 100), budget(1, 100)));
    let first = budgets.spend(S, &a).expect("the first");
    let again = budgets.spend_again(50 * S, &a, &first).expect("in the place of the first");
    assert_eq!(again.at, 50 * S);
    budgets.spend(60 * S, &b).expect("one of two that are left");
    assert_eq!(budgets.spend(149 * S, &a), Err(Refused::Workload), "it counts from its last attempt on");
    budgets.spend(149 * S, &workload("c")).expect("the last one");
    assert_eq!(budgets.spend(149 * S, &workload("d")), Err(Refused::Node));
    // One that is not in the books any more is no leave.
    assert_eq!(budgets.spend_again(149 * S, &a, &first), Err(Refused::Node));
    let storm = ["x", "y", "z"].map(workload);
    assert!(breach(&mut budgets, 150 * S, &storm).is_some());
    assert_eq!(budgets.spend_again(151 * S, &a, &again), Err(Refused::Storm));
}

#[test]
fn a_storm_is_a_share_of_the_pods_too_if_that_is_more_than_two() {
    let pod = |index: usize| workload(&format!("pod-{index}"));
    // So many pods of one workload breach, of so many that there are.
    for (pods, of, storm) in
        [(2, 2, false), (3, 3, true), (3, 9, true), (3, 10, false), (4, 13, true), (30, 100, false)]
    {
        let mut budgets = Budgets::new(allowance(budget(9, 1), budget(9, 1)));
        let (one, all) = (workload("a"), (0..pods).map(pod).collect::<Vec<_>>());
        let said = budgets.breaching(S, of, all.iter().map(|pod| Breaching { workload: &one, pod }));
        assert_eq!(said, storm.then_some(Alarm::Storm { workloads: 1, pods, of }), "{pods} of {of}");
    }
}

#[test]
fn who_breaches_when_the_operator_ends_a_storm_is_part_of_no_other_until_it_is_quiet() {
    let mut budgets = Budgets::new(allowance(budget(9, 1), budget(9, 1)));
    let mut at = |second: u64, names: &str| {
        let names: Vec<_> = names.split(' ').map(workload).collect();
        if second == 0 {
            assert_eq!(budgets.resume(), None, "there is none");
        }
        let said = breach(&mut budgets, second * S, &names);
        if second == 0 {
            assert_eq!((budgets.resume(), budgets.storm()), (Some(Alarm::Calm), false));
        }
        said
    };
    assert!(at(0, "a b c").is_some());
    for second in 1..200 {
        assert_eq!(at(second, "a b c"), None, "{second}");
    }
    // Others are not excused.
    assert_eq!(at(200, "a d e"), None);
    // c was quiet for a minute; a was not.
    assert_eq!(at(230, "a b d"), None);
    assert_eq!(at(260, "a c d e"), Some(Alarm::Storm { workloads: 3, pods: 3, of: 100 }));
}

#[test]
fn a_longer_window_finds_what_was_spent_before() {
    let mut budgets = Budgets::new(allowance(budget(1, 1), budget(1, 1)));
    spend(&mut budgets, 0, "a").expect("the first");
    spend(&mut budgets, 10 * S, "b").expect("the second");
    budgets.allow(allowance(budget(2, 3600), budget(1, 1)));
    assert_eq!(spend(&mut budgets, 3600 * S, "c"), Err(Refused::Node));
    assert_eq!(spend(&mut budgets, 3600 * S + 1, "c"), Ok(()));
}

#[test]
fn a_storm_is_said_once_and_ends_after_ten_quiet_minutes() {
    let storm = |workloads| Some(Alarm::Storm { workloads, pods: workloads, of: 100 });
    let cases: [(u64, &[&str], Option<Alarm>, bool); 10] = [
        (0, &["a", "b", "a"], None, false),
        // Neither does a workload count twice nor one that breached longer ago than a minute.
        (61, &["b", "c"], None, false),
        (62, &["b"], None, false),
        (121, &["d"], storm(3), true),
        (122, &["e"], None, true),
        // c's minute ends, with b's.
        (123, &[], None, true),
        (400, &["a", "b", "c"], None, true),
        (400 + 60, &[], None, true),
        (400 + 60 + 599, &["a", "b"], None, true),
        (400 + 60 + 600, &["a"], Some(Alarm::Calm), false),
    ];
    let mut budgets = Budgets::new(allowance(budget(9, 1), budget(9, 1)));
    for (second, names, alarm, storm) in cases {
        let names: Vec<_> = names.iter().map(|name| workload(name)).collect();
        assert_eq!(breach(&mut budgets, second * S, &names), alarm, "second {second}");
        assert_eq!(budgets.storm(), storm, "second {second}");
        let refused = spend(&mut budgets, second * S, "x") == Err(Refused::Storm);
        assert_eq!(refused, storm, "second {second}");
    }
}

#[test]
fn a_restart_gives_nothing_back() {
    let mut budgets = Budgets::new(allowance(budget(1, 100), budget(1, 100)));
    spend(&mut budgets, S, "a").expect("the first");
    let restart = |budgets: &Budgets, now| {
        let text = serde_json::to_string(&budgets.save()).expect("JSON");
        Budgets::restore(now, serde_json::from_str(&text).expect("what was saved"), budgets.allowance)
    };
    let mut budgets = restart(&budgets, S).expect("restored");
    assert_eq!(spend(&mut budgets, 2 * S, "b"), Err(Refused::Node));
    assert!(breach(&mut budgets, 2 * S, &["a", "b", "c"].map(workload)).is_some());
    let mut budgets = restart(&budgets, 2 * S).expect("restored");
    assert_eq!(breach(&mut budgets, 3 * S, &["a"].map(workload)), None, "it is the same storm");
    assert_eq!(spend(&mut budgets, 200 * S, "b"), Err(Refused::Storm));
    assert!(budgets.resume().is_some());
    let mut after = restart(&budgets, 200 * S).expect("restored");
    assert_eq!(breach(&mut after, 3 * S, &["a", "b", "c"].map(workload)), None, "they are excused");
    assert_eq!(restart(&budgets, S).map(|_| ()), Err(RestoreError::Future { at: 3 * S, now: S }));
}

#[test]
fn what_we_cannot_have_saved_is_refused() {
    for text in [
        "",
        "{}",
        "[]",
        r#"{"evictions":[[-1,"a"]],"breaching":{},"storm":null}"#,
        r#"{"evictions":[1],"breaching":{},"storm":null}"#,
        r#"{"evictions":[],"breaching":{},"storm":null,"more":1}"#,
    ] {
        assert!(serde_json::from_str::<Saved>(text).is_err(), "{text}");
    }
    for text in [
        r#"{"evictions":[[1,"a"],[11,"a"]],"breaching":{},"storm":null}"#,
        r#"{"evictions":[],"breaching":{"a":11},"storm":null}"#,
        r#"{"evictions":[],"breaching":{},"storm":11}"#,
        r#"{"evictions":[],"breaching":{},"pods":{"a":11},"storm":null}"#,
        r#"{"evictions":[],"breaching":{},"excused":{"a":11},"storm":null}"#,
    ] {
        let saved = serde_json::from_str(text).expect("the form");
        let restored = Budgets::restore(10, saved, allowance(budget(1, 1), budget(1, 1)));
        assert_eq!(restored.map(|_| ()), Err(RestoreError::Future { at: 11, now: 10 }), "{text}");
    }
}

proptest! {
    #[test]
    fn never_more_than_the_budget_in_any_window(
        node in (1u64..4, 1u64..50),
        each in (1u64..3, 1u64..50),
        wanted in prop::collection::vec((0u64..20, 0usize..3), 1..60),
    ) {
        let mut budgets = Budgets::new(allowance(budget(node.0, node.1), budget(each.0, each.1)));
        let names = ["a", "b", "c"].map(workload);
        let (mut second, mut begun) = (0, Vec::new());
        let count = |begun: &[(u64, usize)], from: u64, per: u64, of: Option<usize>| {
            begun.iter().filter(|(at, who)| (from..=from + per).contains(at) && of.is_none_or(|of| of == *who)).count()
        };
        for (wait, who) in wanted {
            second += wait;
            let spent = budgets.spend(second * S, &names[who]);
            if spent.is_ok() {
                begun.push((second, who));
                continue;
            }
            // Refused only when it would have been one too many.
            let node_full = count(&begun, second.saturating_sub(node.1), node.1, None) as u64 >= node.0;
            let full = count(&begun, second.saturating_sub(each.1), each.1, Some(who)) as u64 >= each.0;
            let expected = if node_full { Refused::Node } else { Refused::Workload };
            prop_assert!(node_full || full, "refused without need at {}", second);
            prop_assert_eq!(spent.map(|_| ()), Err(expected));
        }
        for from in 0..=second {
            prop_assert!(count(&begun, from, node.1, None) as u64 <= node.0, "node, from {}: {:?}", from, begun);
            for who in 0..names.len() {
                let n = count(&begun, from, each.1, Some(who)) as u64;
                prop_assert!(n <= each.0, "workload {}, from {}: {:?}", who, from, begun);
            }
        }
    }
    #[test]
    fn no_bytes_of_a_state_file_make_it_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..60),
        evictions in prop::collection::vec((any::<u64>(), "[ab]"), 0..5),
        breaching in prop::collection::btree_map("[a-d]", any::<u64>(), 0..5),
        storm in any::<Option<u64>>(),
        now in any::<u64>(),
    ) {
        let parsed = serde_json::from_slice::<Saved>(&bytes);
        for saved in parsed.into_iter().chain([Saved { evictions, pods: breaching.clone(), excused: breaching.clone(), breaching, storm }]) {
            for now in [now, u64::MAX] {
                let allowed = allowance(budget(1, u64::MAX), budget(1, 1));
                let Ok(mut budgets) = Budgets::restore(now, saved.clone(), allowed) else { continue };
                breach(&mut budgets, now, &[workload("a")]);
                // Any answer will do.
                let _answer = spend(&mut budgets, now, "a");
            }
        }
    }
}
