use super::*;

#[test]
fn a_restarted_agent_goes_on_with_the_breaches_of_all_containers_that_are_there() {
    let mut earlier = Judge::new(settings(|text| text.replace("onBreach", "# onBreach")), Means::default());
    let [c, d] = [3, 4].map(ContainerId);
    for (id, pod) in [(A, "a"), (B, "b"), (c, "a"), (d, "b")] {
        appear(&mut earlier, 0, id, pod);
        assert!(cross(&mut earlier, 5, id).contains(&Effect::Opened(rate(id, 5))));
    }
    let mut judge = restart(&earlier, 8);
    // One after the other; one is another now, without a limit; one is no longer there.
    assert_eq!(appear(&mut judge, 9, A, "a"), []);
    assert_eq!(appear(&mut judge, 9, B, "b"), []);
    assert_eq!(appear(&mut judge, 9, c, "free"), [closed(rate(c, 5), 9, Closing::Unlimited)]);
    assert_eq!(judge.settled(9 * S), [closed(rate(d, 5), 9, Closing::Gone)]);
    assert_eq!(judge.open().map(|breach| breach.container).collect::<Vec<_>>(), [A, B]);
}

#[test]
fn a_containment_that_ended_while_no_agent_was_there_was_that_breach_s() {
    let mut earlier = judge();
    cross(&mut earlier, 1, A);
    let again = |mut judge: Judge, told| {
        appear(&mut judge, 6, A, "a");
        let effects = judge.contained(6 * S, A, told);
        judge.settled(6 * S);
        (effects, cross(&mut judge, 6, A))
    };
    assert_eq!(again(restart(&earlier, 5), Some(held(1))), (vec![], vec![]), "it is in force");
    let fresh = vec![Effect::Opened(rate(A, 6)), contain(rate(A, 6))];
    let over = vec![closed(rate(A, 1), 6, Closing::LetGo)];
    assert_eq!(again(restart(&earlier, 5), None), (over, fresh), "it lapsed");
    // How it is held is kept too, for whoever is not told.
    earlier.reload(3 * S, settings(|text| text.replace("block: true", "throttle: 1MB/s")));
    for how in [Containment::Block, Containment::Throttle("7B/s".parse().expect("a rate"))] {
        earlier.contained(4 * S, A, Some(Contained { how, ..held(1) }));
        let mut judge = restart(&restart(&earlier, 5), 5);
        appear(&mut judge, 6, A, "a");
        assert_eq!(judge.contained_now(A), Some(Contained { how, ..held(1) }));
    }
}

#[test]
fn an_eviction_whose_agent_died_is_neither_repeated_nor_forgotten() {
    // How it ended, when the first agent dies, and when there is another one: grace and a minute after it began.
    let cases =
        [(None, Some(31 + 65)), (Some(Evicted::Done), None), (Some(Evicted::Broken { retry_at: 50 * S }), Some(50))];
    for (how, expected) in cases {
        let mut judge = judge_with(|text| text.replace("for: 1m", "for: 1h"));
        cross(&mut judge, 1, A);
        assert_eq!(press(&mut judge, 2..=31, A), [evict(rate(A, 1))]);
        if let Some(how) = how {
            judge.evicted(34 * S, A, how);
        }
        let mut judge = restart(&restart(&judge, 33), 33);
        appear(&mut judge, 34, A, "a");
        judge.contained(34 * S, A, Some(Contained { until: u64::MAX, ..held(1) }));
        judge.settled(34 * S);
        // It was paid for.
        let spent = judge.budgets.clone().spend(34 * S, &"a".into());
        assert_eq!(spent.map(|_| ()), Err(Refused::Workload), "{how:?}");
        let more = settings(|text| text.replace("evictions: 1", "evictions: 2").replace("for: 1m", "for: 1h"));
        assert_eq!(judge.reload(34 * S, more), []);
        // Nobody is left to tell how it ended.
        judge.evicted(34 * S, A, Evicted::Untouched { retry_at: 0 });
        let again = (35..200).find(|&now| press(&mut judge, now..=now, A) == [evict(rate(A, 1))]);
        assert_eq!(again, expected, "{how:?}");
    }
}

#[test]
fn after_a_reboot_and_of_what_cannot_be_used_nothing_is_taken_over() {
    let mut earlier = judge();
    cross(&mut earlier, 1, A);
    assert_eq!(press(&mut earlier, 2..=40, A), [evict(rate(A, 1))]);
    let mut rebooted = Judge::new(settings(|text| text), Means::default());
    assert_eq!(rebooted.restore(2 * S, earlier.save(), false), [""; 0]);
    appear(&mut rebooted, 2, A, "a");
    assert_eq!((rebooted.open().count(), rebooted.contained_now(A)), (0, None));
    assert!(rebooted.budgets.spend(3 * S, &"a".into()).is_ok());
    // Instants that are yet to come.
    let mut judge = Judge::new(settings(|text| text), Means::default());
    let lost = judge.restore(2 * S, earlier.save(), true);
    let begin = lost.iter().map(|lost| lost.split(':').next().expect("a text")).collect::<Vec<_>>();
    assert_eq!(begin, ["the open breaches", "the evictions that were", "the evictions that were underway"]);
    // What nobody asked for until all have appeared is forgotten.
    let mut judge = restart(&earlier, 41);
    judge.settled(41 * S);
    appear(&mut judge, 42, A, "a");
    assert_eq!((judge.open().count(), judge.contained_now(A)), (0, None));
}
