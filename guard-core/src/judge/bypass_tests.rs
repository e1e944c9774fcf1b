use super::*;

const ALSO: ContainerId = ContainerId(3);

/// Containers of one pod, of which `limited` have a limit of what bypasses; evicted after ten seconds.
fn pod(limited: &[ContainerId]) -> Judge {
    pod_of(|id| if limited.contains(&id) { "l" } else { "o" })
}

fn pod_of(name: impl Fn(ContainerId) -> &'static str) -> Judge {
    let text = "mode: evict
policies:
  - {name: l, match: {containers: [l]}, egress: {rate: 1MB/s, bypass: 1MB/s}, onBreach: {contain: {block: true, for: 1m}, evict: {after: 10s}}}
  - {name: loose, match: {containers: [loose]}, egress: {bypass: 5MB/s}}";
    let mut judge = Judge::new(settings(|_| text.to_owned()), Means::default());
    for id in [A, B, ALSO] {
        let names = Labels { container: name(id).to_owned(), ..Labels::default() };
        assert_eq!(judge.appeared(0, id, About::in_pod(names, "uid", None)), []);
    }
    judge
}

/// Ten megabytes in each of these seconds.
fn bypass(judge: &mut Judge, seconds: std::ops::RangeInclusive<u64>) -> Vec<Effect> {
    let mut second = |now: u64| {
        let mut effects = judge.bypassed((now - 1) * S, now * S, &[A, B, ALSO], 10_000_000);
        effects.extend(judge.sample(now * S, S, []));
        effects
    };
    seconds.flat_map(&mut second).collect()
}

fn breach(id: ContainerId) -> Breach {
    Breach { container: id, limit: Limit::Bypass, since: 2 * S, figure: 1e7, allowed: 1e6 }
}

#[test]
fn what_bypasses_is_a_breach_of_one_container_that_no_containment_holds_and_an_eviction_ends() {
    let mut judge = pod(&[B, ALSO]);
    // What the rate lets through in ten seconds may pass at once.
    assert_eq!(bypass(&mut judge, 1..=1), []);
    let not_held = Declined { what: Mode::Contain, reason: breach(B), why: Refusal::Bypass };
    assert_eq!(bypass(&mut judge, 2..=11), [Effect::Opened(breach(B)), Effect::Declined(not_held)]);
    let evict = bypass(&mut judge, 12..=30);
    let [Effect::Act(Action::Evict { reason, .. })] = evict[..] else { panic!("{evict:?}") };
    assert_eq!(reason, breach(B));
}

#[test]
fn of_several_limits_the_loosest_holds_whichever_container_came_first() {
    for (a, b) in [("l", "loose"), ("loose", "l")] {
        let mut judge = pod_of(|id| if id == A { a } else { b });
        let Some(Effect::Opened(breach)) = bypass(&mut judge, 1..=60).into_iter().next() else { panic!("no breach") };
        let loose = if a == "loose" { A } else { B };
        assert_eq!((breach.container, breach.allowed), (loose, 5e6));
    }
}

#[test]
fn where_no_policy_limits_it_nothing_is_said() {
    assert_eq!(bypass(&mut pod(&[]), 1..=60), []);
}

#[test]
fn a_containment_for_something_else_neither_holds_it_nor_ends_it() {
    let mut judge = pod(&[B]);
    bypass(&mut judge, 1..=2);
    let rate = judge.crossed(3 * S, B, Limit::Rate, 5e6);
    let [Effect::Opened(rate), Effect::Act(Action::Contain { reason, .. })] = rate[..] else { panic!("{rate:?}") };
    assert_eq!(reason, rate, "it is held for its rate");
    let effects = judge.contained(4 * S, B, None);
    assert_eq!(effects, [Effect::Closed(Closed { breach: rate, at: 4 * S, why: Closing::LetGo })]);
    assert_eq!(judge.open().copied().collect::<Vec<_>>(), [breach(B)]);
    // The other way round, what is held for its rate stays so.
    assert_eq!(judge.orders(B).arm.map(|contain| contain.how), Some(Containment::Block));
}

#[test]
fn a_breach_of_it_is_known_to_the_next_agent_and_to_nobody_before_it() {
    let mut judge = pod(&[B]);
    bypass(&mut judge, 1..=2);
    let saved = serde_json::to_string(&judge.save()).expect("JSON");
    assert!(saved.contains(r#""limit":"bypass""#), "{saved}");
    assert_eq!(restart(&judge, 3).open().copied().collect::<Vec<_>>(), [breach(B)]);
}
