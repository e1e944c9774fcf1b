use super::*;
use crate::{
    books::{Count, Series},
    wire::Stack,
};

const SOAK: Soak = Soak { seed: 7, minutes: 10 };
const ALLOWED: Allowed = Allowed {
    node: 1,
    workload: 1,
    per: Duration::from_secs(100),
    late: Duration::ZERO,
    on_its_way: Duration::ZERO,
    engages: Duration::ZERO,
    lasts: Duration::ZERO,
};
const LIFE: Life = Life { pid: 7, started: 1 };

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn labels(pod: &str) -> Labels {
    Labels { namespace: "soak".into(), pod: pod.into(), container: "main".into() }
}

/// A world in which pods send datagrams of 1000 bytes, and all of it is counted.
#[derive(Clone, Default)]
struct World {
    sent: BTreeMap<Labels, u64>,
    gone: u64,
    unattributed: u64,
}

impl World {
    fn of(pods: &[(&str, u64)]) -> Self {
        Self { sent: pods.iter().map(|(pod, count)| (labels(pod), *count)).collect(), ..Self::default() }
    }

    fn count(datagrams: u64) -> Count {
        Count { bytes: 1028 * datagrams, packets: datagrams }
    }

    fn all(&self) -> u64 {
        self.sent.values().sum::<u64>() + self.gone + self.unattributed
    }

    fn books(&self) -> Books {
        let series = |sent: &u64| Series { egress: [Count::default(), Self::count(*sent)], ..Series::default() };
        Books {
            node: [0, Self::count(self.all()).bytes],
            unattributed: [0, Self::count(self.unattributed).bytes],
            containers: self.sent.iter().map(|(labels, sent)| (labels.clone(), series(sent))).collect(),
            ..Books::default()
        }
    }

    fn checkpoint(&self) -> Checkpoint {
        let wire = |sent| Wire { sent: Self::count(sent), ..Wire::default() };
        let pods = self.sent.iter().map(|(labels, sent)| Pod {
            namespace: labels.namespace.clone(),
            name: labels.pod.clone(),
            wire: wire(*sent),
        });
        let held = Held {
            rss: 14_000,
            anon: 6_000,
            fds: 50,
            programs: 8,
            links: 6,
            pins: 12,
            slots: 2,
            containers: 2,
            recent: 0,
        };
        Checkpoint { life: LIFE, books: self.books(), pods: pods.collect(), world: wire(self.all()), held }
    }
}

fn checker() -> Checker {
    Checker::new(SOAK, ALLOWED, Bounds::default())
}

fn broken(violations: Vec<Violation>) -> Vec<Broken> {
    violations.into_iter().map(|violation| violation.broken).collect()
}

/// A checker that has seen two pods at rest, and what may be changed about the next checkpoint.
fn rested() -> (Checker, Checkpoint) {
    let mut checker = checker();
    assert_eq!(checker.checkpoint(at(60), &World::of(&[("a", 10), ("b", 20)]).checkpoint()), []);
    (checker, World::of(&[("a", 100), ("b", 200)]).checkpoint())
}

#[test]
fn what_holds_is_not_reported() {
    let (mut checker, next) = rested();
    assert_eq!(checker.scraped(at(70), LIFE, &World::of(&[("a", 50), ("b", 20)]).books()), []);
    assert_eq!(checker.checkpoint(at(120), &next), []);
    let compared = checker.compared();
    let expected = Compared { checkpoints: 2, scrapes: 1, pods: 2, bytes: 270 * 1028, lives: 1, ..Compared::default() };
    assert_eq!(compared, expected);
}

#[test]
fn a_byte_that_is_nobodys_breaks_the_sum() {
    let (mut checker, mut next) = rested();
    next.books.node[1] += 1;
    next.world.sent.bytes += 1;
    let found = broken(checker.checkpoint(at(120), &next));
    assert!(matches!(found[..], [Broken::Sum { class: "external", .. }]), "{found:?}");
    let (mut checker, mut next) = rested();
    next.books.node[1] -= 1;
    next.world.sent.bytes -= 1;
    let found = broken(checker.checkpoint(at(120), &next));
    assert!(matches!(found[..], [Broken::Sum { class: "external", .. }]), "{found:?}");
}

#[test]
fn an_agent_that_ends_by_itself_is_told_and_one_that_is_killed_is_not() {
    let (next, third) = (Life { pid: 9, started: 3 }, Life { pid: 11, started: 5 });
    let (mut checker, seen) = rested();
    assert_eq!(broken(checker.agent_is_away(at(65))), [Broken::Died(7)]);
    assert_eq!(broken(checker.scraped(at(70), next, &seen.books)), [Broken::Died(7)]);
    checker.agent_killed();
    checker.agent_killed();
    assert_eq!(checker.agent_is_away(at(75)), []);
    assert_eq!(checker.scraped(at(80), third, &seen.books), []);
    assert_eq!(
        broken(checker.scraped(at(90), next, &seen.books)),
        [Broken::Died(11)],
        "both kills were of those before"
    );
}

#[test]
fn an_agent_that_is_told_to_end_may_take_its_time() {
    let (next, third) = (Life { pid: 9, started: 3 }, Life { pid: 11, started: 5 });
    let (mut checker, seen) = rested();
    checker.agent_ends(at(65));
    assert_eq!(checker.scraped(at(240), LIFE, &seen.books), []);
    let mut clone = checker.clone();
    assert_eq!(checker.agent_is_away(at(245)), []);
    assert_eq!(checker.scraped(at(250), next, &seen.books), []);
    assert_eq!(broken(checker.scraped(at(251), third, &seen.books)), [Broken::Died(9)], "that was another end");
    // A kill, and then the rollout.
    clone.agent_killed();
    assert_eq!(clone.scraped(at(242), next, &seen.books), []);
    assert_eq!(clone.scraped(at(250), third, &seen.books), []);
    let (mut checker, seen) = rested();
    checker.agent_ends(at(10));
    assert_eq!(checker.scraped(at(191), LIFE, &seen.books), []);
    assert_eq!(broken(checker.scraped(at(200), next, &seen.books)), [Broken::Died(7)], "it has survived that");
}

#[test]
fn slots_that_are_not_those_of_the_containers_are_told_although_it_is_no_rest() {
    let (mut checker, Checkpoint { books, held, .. }) = rested();
    assert_eq!(checker.restless(at(70), LIFE, &books, None), []);
    assert_eq!(checker.restless(at(70), LIFE, &books, Some(held)), []);
    let found = broken(checker.restless(at(70), LIFE, &books, Some(Held { slots: 3, ..held })));
    assert_eq!(found, [Broken::Leak(Leak::Slots { slots: 3, containers: 2 })]);
}

#[test]
fn in_mid_traffic_the_containers_may_be_ahead_and_the_node_not() {
    let (mut checker, next) = rested();
    let mut books = next.books.clone();
    books.node[1] -= 5000;
    assert_eq!(checker.scraped(at(70), LIFE, &books), []);
    books.node[1] += 5001;
    let found = broken(checker.scraped(at(80), LIFE, &books));
    assert!(matches!(found[..], [Broken::Sum { .. }]), "{found:?}");
}

#[test]
fn the_agents_own_words_with_the_api_server_may_be_under_way() {
    let (mut checker, mut next) = rested();
    let agent = Labels { namespace: "egress-guard".into(), ..labels("agent") };
    let series = |bytes| Series { egress: [Count { bytes, packets: 9 }, Count::default()], ..Series::default() };
    next.books.containers.insert(agent.clone(), series(UNDER_WAY));
    assert_eq!(checker.checkpoint(at(120), &next), []);
    next.books.containers.insert(agent, series(UNDER_WAY + 1));
    let found = broken(checker.checkpoint(at(180), &next));
    assert!(matches!(found[..], [Broken::Sum { class: "cluster", .. }]), "{found:?}");
}

#[test]
fn a_pod_whose_wire_has_more_or_less_is_found() {
    for change in [-1028_i64, -1, 1, 1028] {
        let (mut checker, mut next) = rested();
        let bytes = &mut next.pods[0].wire.sent.bytes;
        *bytes = bytes.checked_add_signed(change).expect("it stays a figure");
        let found = broken(checker.checkpoint(at(120), &next));
        assert!(matches!(&found[..], [Broken::Pod { pod, .. }] if pod == "soak/a"), "{change}: {found:?}");
    }
    let (mut checker, mut next) = rested();
    next.pods[1].wire.received = Count { bytes: 52, packets: 1 };
    let found = broken(checker.checkpoint(at(120), &next));
    assert!(matches!(&found[..], [Broken::Pod { pod, .. }] if pod == "soak/b"), "{found:?}");
}

#[test]
fn last_acks_are_known_by_the_connections() {
    let (mut checker, mut next) = rested();
    let more = Count { bytes: 52, packets: 1 };
    let stack = Stack { connections: 1, ..Stack::default() };
    (next.pods[0].wire.sent, next.pods[0].wire.stack) = (next.pods[0].wire.sent + more, stack);
    (next.world.sent, next.world.stack) = (next.world.sent + more, stack);
    assert_eq!(checker.checkpoint(at(120), &next), []);
    assert_eq!(checker.compared().unmetered, 52);
}

#[test]
fn the_wire_to_the_world_has_what_pods_sent_that_are_gone() {
    let (mut checker, _) = rested();
    let mut world = World::of(&[("a", 100), ("b", 200), ("job", 5)]);
    assert_eq!(checker.scraped(at(70), LIFE, &world.books()), []);
    world.sent.remove(&labels("job"));
    world.gone = 5;
    assert_eq!(checker.checkpoint(at(120), &world.checkpoint()), []);
    let mut missing = world.checkpoint();
    missing.world.sent = missing.world.sent - World::count(1);
    let found = broken(checker.checkpoint(at(180), &missing));
    assert!(matches!(found[..], [Broken::World(_)]), "{found:?}");
}

#[test]
fn a_series_that_goes_and_takes_bytes_of_the_node_along_is_found() {
    let (mut checker, _) = rested();
    let world = World::of(&[("a", 100)]);
    let found = broken(checker.checkpoint(at(120), &world.checkpoint()));
    assert!(matches!(found[..], [Broken::Sum { .. }]), "the 20 of b are in no total any more: {found:?}");
}

#[test]
fn no_counter_goes_down_also_in_another_agent() {
    let (mut checker, next) = rested();
    assert_eq!(checker.checkpoint(at(120), &next), []);
    let second = Life { pid: 8, started: 2 };
    let mut books = next.books.clone();
    if let Some(series) = books.containers.get_mut(&labels("a")) {
        series.ingress[1].packets = 5;
    }
    checker.agent_killed();
    assert_eq!(checker.scraped(at(130), second, &books), []);
    checker.agent_killed();
    let found = broken(checker.scraped(at(140), LIFE, &next.books));
    let [Broken::Down { of, what, before: 5, now: 0 }] = &found[..] else { panic!("{found:?}") };
    assert_eq!((of.as_str(), what.as_str()), ("soak/a/main", "ingress packets, external"));
    assert_eq!(checker.compared().lives, 3);
    let mut books = next.books;
    books.node_ingress[0] = 1;
    assert_eq!(checker.scraped(at(150), LIFE, &books), []);
    books.node_ingress[0] = 0;
    let found = broken(checker.scraped(at(160), LIFE, &books));
    assert!(matches!(found[..], [Broken::Down { .. }]), "{found:?}");
}

#[test]
fn a_series_gets_its_name() {
    let mut world = World::of(&[("a", 10)]);
    let nameless = Labels { namespace: String::new(), pod: "0e3b1a1c".into(), container: "3f1d".into() };
    world.sent.insert(nameless.clone(), 7);
    let mut checker = checker();
    assert_eq!(checker.scraped(at(10), LIFE, &world.books()), []);
    // It gets a series of its own, or becomes part of one that was there.
    for named in ["b", "a"] {
        let (mut checker, mut world) = (checker.clone(), world.clone());
        world.sent.remove(&nameless);
        *world.sent.entry(labels(named)).or_default() += 9;
        assert_eq!(checker.scraped(at(20), LIFE, &world.books()), []);
        assert_eq!(checker.checkpoint(at(30), &world.checkpoint()), []);
        // From here on it is known what became of it.
        let mut books = world.books();
        books.node[1] += 1;
        assert_eq!(checker.scraped(at(40), LIFE, &books).len(), 1);
    }
}

#[test]
fn the_series_of_a_pod_that_runs_stays() {
    let (mut checker, next) = rested();
    assert_eq!(checker.checkpoint(at(120), &next), []);
    let mut lost = next;
    lost.books.containers.remove(&labels("a"));
    let found = broken(checker.checkpoint(at(180), &lost));
    assert!(found.iter().any(|broken| matches!(broken, Broken::Lost { pod, .. } if pod == "soak/a")), "{found:?}");
}

#[test]
fn unattributed_bytes_need_another_agent() {
    let (mut checker, _) = rested();
    let mut world = World::of(&[("a", 100), ("b", 200)]);
    world.unattributed = 3;
    let next = world.checkpoint();
    let mut clone = checker.clone();
    let found = broken(checker.checkpoint(at(120), &next));
    assert_eq!(found, [Broken::Unattributed { class: "external", bytes: 3 * 1028 }]);
    let other = Checkpoint { life: Life { pid: 9, started: 3 }, ..next };
    clone.agent_killed();
    assert_eq!(clone.checkpoint(at(120), &other), []);
}

#[test]
fn a_leak_and_a_wrong_eviction_are_said_with_how_to_repeat_them() {
    let (mut checker, mut next) = rested();
    next.held.slots = 3;
    let violations = checker.checkpoint(at(120), &next);
    let text = violations.iter().map(ToString::to_string).collect::<String>();
    assert!(text.contains("3 slots are in use for 2 containers"), "{text}");
    assert!(text.contains("after 120 s, seed 7") && text.contains("cargo xtask soak --minutes 10 --seed 7"), "{text}");
    let granted = [Granted { at: at(5), pod: "web0-1-2".into() }];
    let deeds = Deeds::default();
    let found = broken(checker.evicted(at(130), &granted, &deeds));
    assert_eq!(found, [Broken::Eviction(Wrong::Innocent("web0-1-2".into()))]);
    assert_eq!(checker.evicted(at(140), &granted, &deeds), [], "it was said");
}

#[test]
fn a_bypass_is_said_once_of_each_agent_and_budgets_are_added_up_over_all() {
    let mut checker = checker();
    let mut books = World::of(&[("a", 1)]).books();
    (books.watched, books.over_budget) = (1, 2);
    assert_eq!(checker.scraped(at(1), LIFE, &books), []);
    books.bypassed.insert(labels("a"), 52);
    let expected = [Broken::Bypassed { pod: "soak/a".into(), bytes: 52 }];
    assert_eq!(broken(checker.scraped(at(2), LIFE, &books)), expected);
    assert_eq!(checker.scraped(at(3), LIFE, &books), []);
    books.over_budget = 5;
    checker.agent_killed();
    let next = Life { pid: 8, started: 2 };
    assert_eq!(broken(checker.scraped(at(4), next, &books)), expected, "another agent says it");
    let Compared { watched, over_budget, lives, .. } = checker.compared();
    assert_eq!((watched, over_budget, lives), (4, 7, 2));
    let first = broken(self::checker().scraped(at(1), LIFE, &books));
    assert_eq!(first, expected);
}
