use super::*;
use crate::identity::Identity;

fn owner(cgroup_id: u64, name: &str, extra: bool) -> Owner {
    let labels = Labels { container: name.into(), ..Labels::default() };
    Owner {
        cgroup_id,
        path: name.into(),
        extra,
        since: cgroup_id * 1000,
        gone: None,
        identity: Identity::default(),
        labels,
    }
}

fn sent(bytes: u64) -> Totals {
    let mut totals = Totals::default();
    totals.egress.bytes[1] = bytes;
    totals
}

fn total(ledger: &Ledger, name: &str) -> Option<u64> {
    ledger.series().find(|(labels, _)| labels.container == name).map(|(_, totals)| totals.egress.bytes[1])
}

fn assign(ledger: &mut Ledger, owner: Owner) -> Slot {
    ledger.assign(owner).expect("a slot").slot
}

/// What a new agent makes of the pinned records and counters.
fn restart(ledger: &Ledger, now: u64) -> Ledger {
    let mut new = Ledger::new(ledger.records.len() as u32 - 1);
    new.restore(ledger.records.clone(), &ledger.raw, now);
    new
}

#[test]
fn a_slot_with_a_new_owner_starts_at_nothing() {
    let mut ledger = Ledger::new(1);
    let slot = assign(&mut ledger, owner(10, "a", false));
    ledger.sample(&[sent(100), sent(100)], 1);
    ledger.gone(slot, sent(120), 2);
    assert_eq!(assign(&mut ledger, owner(11, "b", false)), slot);
    ledger.sample(&[sent(127), sent(127)], 3);
    assert_eq!((total(&ledger, "a"), total(&ledger, "b")), (Some(120), Some(7)));
    assert_eq!(ledger.unattributed(), Tally::default());
}

#[test]
fn a_restarted_container_adds_to_its_series_also_across_an_agents_death() {
    for meters in [1, 2, 3] {
        let mut ledger = Ledger::new(meters);
        let first = assign(&mut ledger, owner(10, "a", true));
        ledger.gone(first, sent(50), 1);
        let second = assign(&mut ledger, owner(11, "a", true));
        let mut raw = ledger.raw.clone();
        raw[second.0 as usize] += sent(5);
        ledger.sample(&raw, 2);
        assert_eq!(total(&ledger, "a"), Some(55), "{meters} meters");
        assert_eq!(total(&restart(&ledger, 3), "a"), Some(55), "{meters} meters, after a restart");
    }
}

#[test]
fn a_slot_taken_from_a_series_that_lives_on_takes_nothing_from_it() {
    let mut ledger = Ledger::new(2);
    let first = assign(&mut ledger, owner(10, "a", false));
    let second = assign(&mut ledger, owner(11, "a", false));
    ledger.sample(&[sent(30), sent(10), sent(20)], 1);
    ledger.gone(first, sent(10), 2);
    let taken = ledger.assign(owner(12, "b", false)).expect("the gone one's slot");
    assert_eq!(taken, Assignment { slot: first, changed: vec![second, first] });
    assert_eq!((total(&ledger, "a"), total(&ledger, "b")), (Some(30), Some(0)));
    let again = restart(&ledger, 3);
    assert_eq!((total(&again, "a"), total(&again, "b")), (Some(30), Some(0)));

    // An agent that dies between the two writes must not count the absorbed container twice.
    let mut half = ledger.records.clone();
    half[first.0 as usize] =
        Record { owner: Some(Owner { gone: Some(2), ..owner(10, "a", false) }), ..Record::default() };
    let mut again = Ledger::new(2);
    assert_eq!(again.restore(half, &ledger.raw, 3), vec![first]);
    assert_eq!(total(&again, "a"), Some(30));
}

#[test]
fn a_series_that_lost_its_slot_keeps_its_total() {
    let mut ledger = Ledger::new(1);
    let slot = assign(&mut ledger, owner(10, "a", false));
    ledger.gone(slot, sent(10), 1);
    assign(&mut ledger, owner(11, "b", false));
    ledger.gone(slot, sent(13), 2);
    assert_eq!((total(&ledger, "a"), total(&ledger, "b")), (Some(10), Some(3)));
    assign(&mut ledger, owner(12, "a", false));
    ledger.sample(&[sent(14), sent(14)], 3);
    assert_eq!((total(&ledger, "a"), total(&ledger, "b")), (Some(11), Some(3)));
    assert_eq!(total(&restart(&ledger, 4), "a"), Some(11), "the new record carries what was lost");
}

#[test]
fn series_are_kept_for_five_minutes_and_then_begin_anew() {
    let mut ledger = Ledger::new(4);
    let slot = assign(&mut ledger, owner(10, "a", false));
    ledger.gone(slot, sent(10), 7);
    assert_eq!(ledger.expire(7 + KEEP - 1), vec![]);
    assert_eq!(total(&ledger, "a"), Some(10));
    assert_eq!(ledger.expire(7 + KEEP), vec![slot]);
    assert_eq!(total(&ledger, "a"), None);
    assert_eq!(assign(&mut ledger, owner(11, "a", false)), slot);
    assert_eq!(total(&ledger, "a"), Some(0));
    assert_eq!(total(&restart(&ledger, 8 + KEEP), "a"), Some(0), "what was forgotten does not come back");
}

#[test]
fn the_slots_of_a_container_that_restarts_again_and_again_come_free() {
    let mut ledger = Ledger::new(8);
    let slots: Vec<Slot> = (0..4).map(|id| assign(&mut ledger, owner(10 + id, "a", false))).collect();
    let raw = [sent(31), sent(1), sent(2), sent(4), sent(8)];
    ledger.sample(&raw, 1);
    for (at, index) in [(2, 2), (3, 0), (4, 1)] {
        ledger.gone(slots[index], raw[index + 1], at);
    }
    assert_eq!(ledger.expire(1 + KEEP), [], "each is kept as long as a series would be");
    let [first, second, third, last] = [slots[0], slots[1], slots[2], slots[3]];
    // One at a time, the one that went first first.
    for (now, gone) in [(9, third), (9, first), (9, second)] {
        let before = ledger.records.clone();
        assert_eq!(ledger.expire(now + KEEP), [last, gone]);
        assert_eq!(total(&ledger, "a"), Some(15));
        assert_eq!(ledger.record(gone).owner, None);
        assert_eq!(total(&restart(&ledger, 10 + KEEP), "a"), Some(15));
        // An agent that dies between the two writes counts nothing twice.
        let mut half = before;
        half[last.0 as usize] = ledger.record(last).clone();
        let mut again = Ledger::new(8);
        assert_eq!(again.restore(half, &ledger.raw, 10 + KEEP), [gone]);
        assert_eq!(total(&again, "a"), Some(15));
        assert_eq!(again.unattributed(), ledger.unattributed());
    }
    assert_eq!(ledger.expire(20 + KEEP), [], "the one that is there stays");
    assert_eq!(ledger.unattributed().bytes, [0, 16]);
    assert_eq!(ledger.free_slots().next(), Some(first));
}

#[test]
fn a_cgroup_that_had_a_slot_before_is_not_taken_for_what_was_absorbed() {
    let mut ledger = Ledger::new(4);
    // It was not to be metered for a while.
    let first = assign(&mut ledger, owner(10, "a", false));
    ledger.gone(first, sent(5), 1);
    let second = assign(&mut ledger, Owner { since: 77, ..owner(10, "a", false) });
    assert_eq!(ledger.expire(1 + KEEP), [second, first]);
    let raw = [sent(12), sent(5), sent(7)];
    ledger.gone(second, raw[2], 2 + KEEP);
    assign(&mut ledger, owner(11, "a", false));
    assert_eq!(total(&ledger, "a"), Some(12));
    assert_eq!(total(&restart(&ledger, 3 + KEEP), "a"), Some(12));
}

#[test]
fn a_series_that_ends_again_and_again_keeps_one_slot() {
    let mut ledger = Ledger::new(8);
    let first = assign(&mut ledger, owner(10, "a", true));
    ledger.gone(first, sent(5), 1);
    let second = assign(&mut ledger, owner(11, "a", true));
    ledger.gone(second, sent(7), 1 + KEEP);
    assert_eq!(ledger.expire(1 + KEEP), [second, first]);
    assert_eq!(total(&ledger, "a"), Some(12));
    assert_eq!(ledger.unattributed(), Tally::default(), "cgroups outside the pods' root are none of the node's");
    assert_eq!(ledger.expire(1 + 2 * KEEP), [second]);
    assert_eq!(total(&ledger, "a"), None);
}

#[test]
fn when_every_owner_is_there_nobody_gets_a_slot() {
    let mut ledger = Ledger::new(2);
    assign(&mut ledger, owner(10, "a", false));
    assign(&mut ledger, owner(11, "b", false));
    assert_eq!(ledger.assign(owner(12, "c", false)), None);
    assert_eq!(total(&ledger, "c"), None);
}

#[test]
fn the_slot_of_the_one_gone_for_longest_is_taken_first() {
    let mut ledger = Ledger::new(2);
    let a = assign(&mut ledger, owner(10, "a", false));
    let b = assign(&mut ledger, owner(11, "b", false));
    ledger.gone(b, sent(1), 1);
    ledger.gone(a, sent(1), 2);
    assert_eq!(assign(&mut ledger, owner(12, "c", false)), b);
}

#[test]
fn unattributed_is_the_node_less_its_containers_whoever_had_the_slots() {
    let mut ledger = Ledger::new(2);
    let a = assign(&mut ledger, owner(10, "a", false));
    let x = assign(&mut ledger, owner(11, "x", true));
    // The node sees the pods only: 100 of a, 5 of nobody. The extra's 1000 are not among them.
    ledger.sample(&[sent(105), sent(100), sent(1000)], 1);
    assert_eq!(ledger.unattributed().bytes, [0, 5]);
    // The slots change hands, both ways.
    ledger.gone(a, sent(100), 2);
    ledger.gone(x, sent(1000), 2);
    assert_eq!(assign(&mut ledger, owner(12, "y", true)), a);
    assert_eq!(assign(&mut ledger, owner(13, "b", false)), x);
    ledger.sample(&[sent(116), sent(100 + 7), sent(1000 + 9)], 3);
    assert_eq!(ledger.unattributed().bytes, [0, 7]);
    assert_eq!(restart(&ledger, 4).unattributed().bytes, [0, 7]);
    ledger.gone(a, sent(107), 4);
    ledger.gone(x, sent(1009), 4);
    ledger.expire(5 + KEEP);
    assert_eq!(ledger.unattributed().bytes, [0, 7]);
    assert_eq!(restart(&ledger, 6 + KEEP).unattributed().bytes, [0, 7]);
}

#[test]
fn unattributed_never_goes_down() {
    let mut ledger = Ledger::new(1);
    assign(&mut ledger, owner(10, "a", false));
    ledger.sample(&[sent(10), sent(4)], 1);
    assert_eq!(ledger.unattributed().bytes, [0, 6]);
    // Packets that are in the container's count and, read earlier, not yet in the node's.
    ledger.sample(&[sent(10), sent(6)], 2);
    assert_eq!(ledger.unattributed().bytes, [0, 6]);
    assert_eq!(restart(&ledger, 3).unattributed().bytes, [0, 6], "nor does the next agent take it back");
}

#[test]
fn what_became_unattributed_while_no_agent_ran_is_kept_at_once() {
    let mut ledger = Ledger::new(1);
    ledger.sample(&[sent(10)], 1);
    let mut next = Ledger::new(1);
    // The node's pods sent 5 more; then the one after finds a node that was read too early.
    assert_eq!(next.restore(ledger.records.clone(), &[sent(15), sent(0)], 2), [NODE]);
    let mut last = Ledger::new(1);
    assert_eq!(last.restore(next.records.clone(), &[sent(14), sent(0)], 3), []);
    assert_eq!(last.unattributed().bytes, [0, 15]);
}

#[test]
fn a_sample_reads_up_to_the_last_slot_in_use() {
    let mut ledger = Ledger::new(8);
    assert_eq!(ledger.in_use(), 1);
    let slots: Vec<Slot> = (0..3).map(|i| assign(&mut ledger, owner(10 + i, &i.to_string(), false))).collect();
    assert_eq!(ledger.in_use(), 4);
    ledger.gone(slots[2], sent(0), 1);
    assert_eq!(ledger.in_use(), 3);
}
