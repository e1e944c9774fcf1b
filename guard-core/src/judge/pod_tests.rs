use std::path::Path;

use super::*;
use crate::{
    inventory::{Controller, Pod},
    overrides::Why,
    safety::Unsafe,
};

/// Of a Unix clock.
const AHEAD: u64 = 1_700_000_000 * S;

/// Where only pods are evicted.
fn judge_of_pods(change: impl Fn(String) -> String) -> Judge {
    let mut judge = Judge::new(settings(change), Means { only_pods: true, nothing: None });
    judge.wall_clock(AHEAD);
    judge
}

/// A pod of a ReplicaSet that has been there for long.
fn pod() -> Pod {
    let controller = Some(Controller { kind: "ReplicaSet".into(), ..Controller::default() });
    Pod { uid: "u".into(), namespace: "shop".into(), controller, ..Pod::default() }
}

/// A container of pod `u`, which the policies know as `a`.
fn about(pod: Option<Pod>) -> About {
    let names = Labels { pod: "a".to_owned(), namespace: "shop".to_owned(), ..Labels::default() };
    let annotations = pod.as_ref().map(|pod| pod.annotations.clone()).unwrap_or_default();
    let subject = Subject { names, annotations, ..Subject::default() };
    About { unit: Some("u".into()), pod: pod.map(Arc::new), ..About::on_its_own(subject, "shop/Deployment/a".into()) }
}

fn annotated(key: &str, value: &str) -> About {
    about(Some(Pod { annotations: [(key.to_owned(), value.to_owned())].into(), ..pod() }))
}

fn why_not(effects: &[Effect]) -> Vec<&Refusal> {
    let why = |effect: &Effect| matches!(effect, Effect::Declined(_));
    effects
        .iter()
        .filter(|effect| why(effect))
        .map(|effect| match effect {
            Effect::Declined(Declined { why, .. }) => why,
            _ => unreachable!("filtered"),
        })
        .collect()
}

#[test]
fn a_pod_is_evicted_once_whichever_of_its_containers_breaches() {
    let mut judge = judge_of_pods(|text| text.replace("evictions: 1", "evictions: 9").replace("for: 1m", "for: 1h"));
    for id in [A, B] {
        assert_eq!(judge.appeared(0, id, about(Some(pod()))), []);
        cross(&mut judge, 1, id);
    }
    let mut evictions = Vec::new();
    for now in 2..=200 {
        let both = [press(&mut judge, now..=now, A), press(&mut judge, now..=now, B)].concat();
        evictions.extend(both);
        if now == 60 {
            assert_eq!(judge.evicted(60 * S, A, Evicted::Done), []);
            judge.gone(60 * S, A);
        }
    }
    evictions.retain(|effect| !matches!(effect, Effect::Closed(_)));
    assert_eq!(evictions, [evict(rate(A, 1))], "neither at the same time nor after it");
}

#[test]
fn a_pod_that_must_not_be_evicted_is_not_for_as_long_as_it_is_so() {
    let made = |seconds: i64| Pod { created: 1_700_000_000 + seconds, ..pod() };
    let cases = [
        (None, Protection::UnknownPod),
        (Some(Pod { controller: None, ..pod() }), Protection::Pod(Unsafe::Unmanaged)),
        (
            Some(Pod { namespace: "kube-system".into(), ..pod() }),
            Protection::Pod(Unsafe::Namespace("kube-system".into())),
        ),
        (
            Some(made(20)),
            Protection::Pod(Unsafe::TooYoung {
                age: std::time::Duration::from_secs(11),
                least: std::time::Duration::from_mins(1),
            }),
        ),
    ];
    for (known, expected) in cases {
        let mut judge = judge_of_pods(|text| text.replace("for: 1m", "for: 1h"));
        judge.appeared(0, A, about(known));
        cross(&mut judge, 1, A);
        let said = press(&mut judge, 2..=40, A);
        assert_eq!(why_not(&said), [&Refusal::Protected(expected)], "said once");
        assert!(judge.contained_now(A).is_some());
        judge.appeared(41 * S, A, about(Some(pod())));
        assert_eq!(press(&mut judge, 42..=43, A), [evict(rate(A, 1))]);
    }
    // Its age comes by itself.
    let mut judge = judge_of_pods(|text| text.replace("for: 1m", "for: 1h"));
    judge.appeared(0, A, about(Some(made(20))));
    cross(&mut judge, 1, A);
    let at = (2..200).find(|&now| press(&mut judge, now..=now, A) == [evict(rate(A, 1))]);
    assert_eq!(at, Some(80));
    // What is in no pod is nobody's to evict.
    let mut judge = judge_of_pods(|text| text);
    appear(&mut judge, 0, A, "a");
    cross(&mut judge, 1, A);
    assert_eq!(why_not(&press(&mut judge, 2..=40, A)), [&Refusal::Protected(Protection::NoPod)]);
    // And without any orchestrator there may be one later.
    judge.appeared(41 * S, B, about(Some(pod())));
    judge.protect(41 * S, Some("the ConfigMap is missing".into()));
    cross(&mut judge, 42, B);
    let nothing = Refusal::Protected(Protection::Nothing("the ConfigMap is missing".into()));
    assert_eq!(why_not(&press(&mut judge, 43..=80, B)), [&nothing]);
    assert_eq!(judge.protect(81 * S, None), [evict(rate(B, 42))]);
}

/// What is left of the workload's budget, of so many.
fn left(judge: &Judge, now: u64) -> usize {
    let mut budgets = judge.budgets.clone();
    (0..9).take_while(|_| budgets.spend(now * S, &"shop/Deployment/a".into()).is_ok()).count()
}

#[test]
fn another_attempt_at_the_same_pod_costs_nothing() {
    let retry_at = 70 * S;
    let three = |text: String| text.replace("evictions: 2", "evictions: 9").replace("for: 1m", "for: 1h");
    let three = |text: String| three(text).replace("evictions: 1", "evictions: 3");
    let cases = [(Evicted::Untouched { retry_at }, 3), (Evicted::Broken { retry_at }, 2), (Evicted::Done, 2)];
    for (how, expected) in cases {
        let mut judge = judge_of_pods(three);
        judge.appeared(0, A, about(Some(pod())));
        cross(&mut judge, 1, A);
        assert_eq!(press(&mut judge, 2..=40, A), [evict(rate(A, 1))]);
        judge.evicted(41 * S, A, how);
        assert_eq!(left(&judge, 41), expected, "{how:?}");
        let again = if how == Evicted::Done { vec![] } else { vec![evict(rate(A, 1))] };
        assert_eq!(press(&mut judge, 41..=80, A), again);
        assert_eq!(left(&judge, 81), 2, "{how:?}");
        // Nobody knows whether the first took place: then it is not given back for the second.
        judge.evicted(81 * S, A, Evicted::Untouched { retry_at: u64::MAX });
        let sure = matches!(how, Evicted::Untouched { .. });
        assert_eq!(left(&judge, 81), if sure { 3 } else { 2 }, "{how:?}");
    }
    // How it ended is known though the container is gone.
    let mut judge = judge_of_pods(three);
    judge.appeared(0, A, about(Some(pod())));
    cross(&mut judge, 1, A);
    press(&mut judge, 2..=40, A);
    judge.gone(41 * S, A);
    judge.evicted(42 * S, A, Evicted::Untouched { retry_at });
    assert_eq!(left(&judge, 42), 3);
}

#[test]
fn an_eviction_of_a_pod_whose_agent_died_is_tried_again_at_once_and_paid_for_once() {
    let mut judge = judge_of_pods(|text| text.replace("for: 1m", "for: 1h"));
    judge.appeared(0, A, about(Some(pod())));
    cross(&mut judge, 1, A);
    assert_eq!(press(&mut judge, 2..=40, A), [evict(rate(A, 1))]);
    let mut judge = restart(&restart(&judge, 41), 42);
    judge.wall_clock(AHEAD);
    judge.appeared(42 * S, A, about(None));
    judge.contained(42 * S, A, Some(Contained { until: u64::MAX, ..held(1) }));
    assert_eq!(judge.settled(42 * S), []);
    let unknown = press(&mut judge, 43..=43, A);
    assert_eq!(why_not(&unknown), [&Refusal::Protected(Protection::UnknownPod)]);
    judge.appeared(44 * S, A, about(Some(pod())));
    assert_eq!(press(&mut judge, 44..=80, A), [evict(rate(A, 1))], "though the budget of one is spent, for this one");
    assert_eq!(left(&judge, 81), 0);
}

#[test]
fn what_evictions_do_not_cure_is_contained_and_not_evicted_again() {
    let many = |text: String| text.replace("evictions: 2", "evictions: 9").replace("evictions: 1", "evictions: 9");
    let mut judge = judge_of_pods(many);
    let alarm = Effect::Alarm(Alarm::NotCured { workload: "shop/Deployment/a".into() });
    let named = |number: u64| About { unit: Some(format!("u{number}").into()), ..about(Some(pod())) };
    for number in 1..=3 {
        let (id, now) = (ContainerId(number), 100 * number);
        judge.appeared(now * S, id, named(number));
        let mut said = cross(&mut judge, now + 1, id);
        said.extend(press(&mut judge, now + 2..=now + 40, id));
        let cured = number < 3;
        assert_eq!(said.contains(&alarm), !cured, "{number}: {said:?}");
        assert_eq!(said.contains(&evict(rate(id, now + 1))), cured, "{number}: {said:?}");
        assert_eq!(why_not(&said), if cured { vec![] } else { vec![&Refusal::NotCured] });
        assert!(judge.contained_now(id).is_some());
        if cured {
            judge.evicted((now + 41) * S, id, Evicted::Done);
            judge.gone((now + 41) * S, id);
        }
    }
    // It is told by whoever knows of other nodes, too, and given back.
    let mut judge = judge_of_pods(many);
    judge.appeared(0, A, about(Some(pod())));
    cross(&mut judge, 1, A);
    press(&mut judge, 2..=40, A);
    assert_eq!(judge.evicted(41 * S, A, Evicted::NotCured), [alarm]);
    assert_eq!(left(&judge, 41), 9);
    assert_eq!(why_not(&press(&mut judge, 41..=50, A)), [&Refusal::NotCured]);
}

#[test]
fn what_was_done_dry_is_as_if_it_had_not_been() {
    let dry = |text: String| format!("dryRun: true\n{}", text.replace("for: 1m", "for: 1h"));
    let mut judge = judge_of_pods(dry);
    judge.appeared(0, A, about(Some(pod())));
    cross(&mut judge, 1, A);
    let reason = rate(A, 1);
    let grace = Some(std::time::Duration::from_secs(5));
    let asked = Effect::Act(Action::Evict { grace, leave: Leave::default(), dry_run: true, reason });
    assert_eq!(press(&mut judge, 2..=40, A), [asked]);
    judge.evicted(41 * S, A, Evicted::Done);
    assert_eq!((press(&mut judge, 41..=60, A), left(&judge, 60)), (vec![], 0), "once");
    let mut restarted = restart(&judge, 60);
    assert_eq!(left(&restarted, 60), 0);
    let earnest = || settings(|text| text.replace("for: 1m", "for: 1h"));
    restarted.settings = earnest();
    assert_eq!(left(&restart(&restarted, 60), 60), 1, "another agent is in earnest");
    assert_eq!(judge.reload(61 * S, earnest()), [evict(reason)]);
}

#[test]
fn annotations_hold_and_an_exemption_ends_by_itself() {
    let allowing = |text: String| format!("overrides: {{allow: [exempt-until]}}\n{text}");
    let mut judge = judge_of_pods(allowing);
    let tight = about(Some(Pod { annotations: [("rate".to_owned(), "1KB/s".to_owned())].into(), ..pod() }));
    assert_eq!(judge.appeared(0, A, tight), []);
    let ordered = |judge: &Judge| judge.orders(A).egress.map(|limit| limit.rate.to_string());
    assert_eq!(ordered(&judge).as_deref(), Some("1KB/s"));
    cross(&mut judge, 1, A);
    // 1_700_000_000 is 2023-11-14T22:13:20Z.
    let exempt = annotated("exempt-until", "2023-11-14T22:13:40Z");
    let over = Breach { allowed: 1e3, ..rate(A, 1) };
    assert_eq!(judge.appeared(2 * S, A, exempt), [closed(over, 2, Closing::Unlimited)]);
    assert_eq!((ordered(&judge), judge.sample(3 * S, S, [])), (None, vec![release(1, Release::Policy)]));
    judge.sample(19 * S + S - 1, S, []);
    assert_eq!((ordered(&judge), cross(&mut judge, 19, A)), (None, vec![]));
    judge.sample(20 * S, S, []);
    assert_eq!(ordered(&judge).as_deref(), Some("1MB/s"), "from the next sample on");
    // So does it in a file that takes the leave away.
    judge.appeared(21 * S, A, annotated("exempt-until", "2023-11-14T23:00:00Z"));
    assert_eq!(ordered(&judge), None);
    let said = judge.reload(22 * S, settings(|text| text));
    assert!(
        matches!(&said[..], [Effect::BadAnnotation { container: A, bad }] if bad.key == "exempt-until"),
        "{said:?}"
    );
    assert_eq!(ordered(&judge).as_deref(), Some("1MB/s"));
}

#[test]
fn a_bad_annotation_is_said_once_for_its_pod() {
    let mut judge = judge_of_pods(|text| text);
    let fast = || annotated("rate", "5MB/s");
    let said = judge.appeared(0, A, fast());
    let [Effect::BadAnnotation { container: A, bad }] = &said[..] else { panic!("{said:?}") };
    assert!(matches!(bad.why, Why::NotAllowed { .. }), "{bad:?}");
    let same = |label: &str| {
        let mut about = fast();
        about.subject.labels.insert("seen".into(), label.into());
        about
    };
    assert_eq!(judge.appeared(S, B, fast()), [], "of the same pod");
    assert_eq!(judge.appeared(2 * S, A, same("again")), [], "told again");
    // Its containers fail and come back.
    judge.gone(3 * S, A);
    judge.gone(3 * S, B);
    assert_eq!(judge.appeared(4 * S, ContainerId(3), fast()), []);
    assert_eq!(judge.reload(5 * S, settings(|text| text)), []);
    // Another value, and the first one again.
    let id = ContainerId(3);
    assert_eq!(judge.appeared(6 * S, id, annotated("rate", "6MB/s")).len(), 1);
    assert_eq!(judge.appeared(7 * S, id, fast()).len(), 1);
    // Another pod.
    let other = About { unit: Some("v".into()), ..fast() };
    assert_eq!(judge.appeared(8 * S, ContainerId(4), other).len(), 1);
}

#[test]
fn what_an_earlier_version_kept_is_taken_over() {
    let text = r#"{"detector":{"quotas":{},"baselines":{}},"watch":[],
        "budgets":{"evictions":[[1,"a"]],"breaching":{"a":1},"storm":null},
        "containers":{"1":{"released":null,"eviction":"done","contained":null},
                      "2":{"released":null,"eviction":{"failed":{"retry_at":50000000000}},"contained":null}}}"#;
    let mut judge = judge_with(|text| text.replace("evictions: 1", "evictions: 9"));
    let saved = serde_json::from_str(text).expect("it is what agents kept");
    assert_eq!(judge.restore(2 * S, saved, true), [""; 0]);
    for (id, pod, expected) in [(A, "a", None), (B, "b", Some(50))] {
        appear(&mut judge, 2, id, pod);
        cross(&mut judge, 3, id);
        let mut fresh = judge.clone();
        let at = (4..=55).find(|&now| press(&mut fresh, now..=now, id) == [evict(rate(id, 3))]);
        assert_eq!(at, expected, "{pod}");
    }
    let newer = text.replacen("{\"detector\"", "{\"more\":1,\"detector\"", 1);
    assert!(serde_json::from_str::<Saved>(&newer).is_err());
}

#[test]
fn a_storm_ends_when_the_operator_says_so() {
    let mut judge = judge_with(|text| text.replace("for: 1m", "for: 1h"));
    assert_eq!(judge.resume(S), None);
    for (id, pod) in [(A, "a"), (B, "b"), (ContainerId(3), "c")] {
        appear(&mut judge, 0, id, pod);
        cross(&mut judge, 1, id);
    }
    assert!(judge.storm());
    assert_eq!(press(&mut judge, 2..=40, A).last(), Some(&declined(Mode::Evict, Refusal::Budget(Refused::Storm))));
    assert_eq!(judge.resume(41 * S), Some(vec![Effect::Alarm(Alarm::Calm), evict(rate(A, 1))]));
    assert!(!judge.storm());
}

#[test]
fn the_agent_s_own_namespace_is_added_to_what_the_file_protects() {
    let config = Config::parse("protect: {namespaces: [x]}", Path::new("f")).expect("a config");
    let mut settings = Settings::from(&config);
    settings.protect.own_namespace = "guard".into();
    let of = |namespace: &str| Pod { namespace: namespace.into(), ..pod() };
    for (namespace, safe) in [("x", false), ("guard", false), ("kube-system", true)] {
        assert_eq!(crate::safety::never(&of(namespace), &settings.protect).is_ok(), safe, "{namespace}");
    }
}
