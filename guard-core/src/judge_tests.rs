use std::path::Path;

use guard_common::Class;

use super::*;
use crate::{
    budget::{Alarm, QUIET, Refused},
    config::Config,
    identity::Labels,
    policy::{Containment, Subject},
    safety::Leave,
    verdict::{Action, Declined, Protection, Refusal, Release},
    watch::{CLEAR, Closed, Closing},
};

#[path = "judge/attempts_tests.rs"]
mod attempts;
#[path = "judge/bypass_tests.rs"]
mod bypass;
#[path = "judge/pod_tests.rs"]
mod pods;
#[path = "judge/restart_tests.rs"]
mod restarts;

const S: u64 = 1_000_000_000;
const A: ContainerId = ContainerId(1);
const B: ContainerId = ContainerId(2);

/// What a policy says of pods `a`, `b` and `c`; pod `in` has a limit of what it receives, others have none.
const CONFIG: &str = "
mode: evict
budgets: {node: {evictions: 2, per: 1h}, workload: {evictions: 1, per: 1h}}
storm: {workloads: 3, per: 1m}
policies:
  - name: full
    match: {pods: [a, b, c]}
    egress: {rate: 1MB/s, quota: {bytes: 1GB, per: 1m}}
    ingress: {rate: 2MB/s}
    onBreach: {contain: {block: true, for: 1m}, evict: {after: 30s, grace: 5s}}
  - name: in
    match: {pods: [in]}
    ingress: {rate: 2MB/s}
";

fn settings(change: impl Fn(String) -> String) -> Settings {
    Settings::from(&Config::parse(&change(CONFIG.to_owned()), Path::new("test.yaml")).expect("a config"))
}

/// A container of pod `a`.
fn judge() -> Judge {
    judge_with(|text| text)
}

fn judge_with(change: impl Fn(String) -> String) -> Judge {
    let mut judge = Judge::new(settings(change), Means::default());
    assert_eq!(appear(&mut judge, 0, A, "a"), []);
    judge
}

fn appear(judge: &mut Judge, now: u64, id: ContainerId, pod: &str) -> Vec<Effect> {
    let names = Labels { pod: pod.to_owned(), ..Labels::default() };
    judge.appeared(now * S, id, About::on_its_own(Subject { names, ..Subject::default() }, pod.into()))
}

fn cross(judge: &mut Judge, now: u64, id: ContainerId) -> Vec<Effect> {
    judge.crossed(now * S, id, Limit::Rate, 5e6)
}

/// Samples in which it would send more, second by second.
fn press(judge: &mut Judge, seconds: std::ops::RangeInclusive<u64>, id: ContainerId) -> Vec<Effect> {
    let mut dropped = Totals::default();
    dropped.egress.other = 1;
    seconds.flat_map(|now| judge.sample(now * S, S, [(id, dropped)])).collect()
}

/// Another agent, from what this one saved.
fn restart(judge: &Judge, now: u64) -> Judge {
    let text = serde_json::to_string(&judge.save()).expect("JSON");
    let mut fresh = Judge::new(judge.settings.clone(), judge.means.clone());
    assert_eq!(fresh.restore(now * S, serde_json::from_str(&text).expect("what was saved"), true), [""; 0]);
    fresh
}

fn rate(id: ContainerId, since: u64) -> Breach {
    Breach { container: id, limit: Limit::Rate, since: since * S, figure: 5e6, allowed: 1e6 }
}

fn closed(breach: Breach, at: u64, why: Closing) -> Effect {
    Effect::Closed(Closed { breach, at: at * S, why })
}

fn contain(reason: Breach) -> Effect {
    Effect::Act(Action::Contain { how: Containment::Block, until: reason.since + 60 * S, reason })
}

fn held(since: u64) -> Contained {
    Contained { how: Containment::Block, since: since * S, until: (since + 60) * S }
}

fn release(since: u64, why: Release) -> Effect {
    Effect::Act(Action::Release { container: A, contained: held(since), why })
}

fn evict(reason: Breach) -> Effect {
    let grace = Some(std::time::Duration::from_secs(5));
    Effect::Act(Action::Evict { grace, leave: Leave::default(), dry_run: false, reason })
}

fn declined(what: Mode, why: Refusal) -> Effect {
    Effect::Declined(Declined { what, reason: rate(A, 1), why })
}

#[test]
fn a_container_has_the_policy_that_its_subject_matches_as_soon_as_that_is_known() {
    let mut judge = judge();
    cross(&mut judge, 1, A);
    for (pod, policy, closing) in [
        ("b", Some("full"), vec![]),
        ("in", Some("in"), vec![closed(rate(A, 1), 2, Closing::Unlimited)]),
        ("other", None, vec![]),
    ] {
        assert_eq!(appear(&mut judge, 2, A, pod), closing, "{pod}");
        assert_eq!(judge.policy(A).map(|policy| policy.name.as_str()), policy);
    }
    assert_eq!(judge.ids().collect::<Vec<_>>(), [A]);
    // No policy contains it now: it is let go with the next verdict.
    assert_eq!(judge.sample(3 * S, S, []), [release(1, Release::Policy)]);
}

#[test]
fn what_is_gone_has_no_breach() {
    let mut judge = judge();
    cross(&mut judge, 1, A);
    let ingress = judge.crossed(2 * S, A, Limit::Ingress, 3e6);
    let [Effect::Opened(ingress)] = ingress[..] else { panic!("{ingress:?}") };
    let both = [rate(A, 1), ingress].map(|breach| closed(breach, 3, Closing::Gone));
    assert_eq!(judge.gone(3 * S, A), both);
    assert_eq!(judge.gone(4 * S, A), [], "once");
    assert_eq!((judge.ids().count(), judge.open().count()), (0, 0));
}

#[test]
fn a_bucket_that_is_empty_is_a_breach_of_what_the_policy_limits() {
    let opened = |limit, allowed| Effect::Opened(Breach { limit, allowed, ..rate(A, 1) });
    let cases = [
        ("a", A, Limit::Rate, vec![opened(Limit::Rate, 1e6), contain(rate(A, 1))]),
        ("a", A, Limit::Ingress, vec![opened(Limit::Ingress, 2e6)]),
        ("a", A, Limit::Quota, vec![]),
        ("a", A, Limit::Baseline, vec![]),
        ("a", A, Limit::Bypass, vec![]),
        ("a", B, Limit::Rate, vec![]),
        ("in", A, Limit::Rate, vec![]),
        ("in", A, Limit::Ingress, vec![opened(Limit::Ingress, 2e6)]),
        ("other", A, Limit::Ingress, vec![]),
    ];
    for (pod, id, limit, effects) in cases {
        let mut judge = judge();
        appear(&mut judge, 0, A, pod);
        assert_eq!(judge.crossed(S, id, limit, 5e6), effects, "{limit} of {pod}");
        assert_eq!(judge.crossed(2 * S, id, limit, 6e6), [], "{limit} of {pod} is said once");
    }
}

#[test]
fn samples_open_breaches_and_close_them_and_see_evictions_due() {
    let mut judge = judge();
    let mut much = Totals::default();
    much.egress.bytes[Class::External as usize] = 2_000_000_000;
    let quota = Breach { limit: Limit::Quota, figure: 2e9, allowed: 1e9, ..rate(A, 1) };
    assert_eq!(judge.sample(S, S, [(A, much), (B, much)]), [Effect::Opened(quota), contain(quota)]);
    assert_eq!(press(&mut judge, 2..=30, A), []);
    assert_eq!(press(&mut judge, 31..=60, A), [evict(quota)], "after half a minute, once");
    let over = [release(1, Release::Over), closed(quota, 61, Closing::LetGo)];
    assert_eq!(judge.sample(61 * S, S, []), over);
    cross(&mut judge, 62, A);
    assert_eq!(judge.sample(62 * S + CLEAR - 1, S, []), []);
    assert_eq!(judge.sample(62 * S + CLEAR, S, []), [closed(rate(A, 62), 72, Closing::Clear)]);
}

#[test]
fn the_kill_switch_lifts_all_and_lets_nothing_begin() {
    let mut judge = judge();
    cross(&mut judge, 1, A);
    let lifted = [release(1, Release::KillSwitch), closed(rate(A, 1), 2, Closing::LetGo)];
    assert_eq!(judge.kill_switch(2 * S, true), lifted);
    assert_eq!(judge.orders(A).arm, None);
    let why = || Refusal::KillSwitch;
    let reason = rate(A, 3);
    let said = vec![Effect::Opened(reason), Effect::Declined(Declined { what: Mode::Contain, reason, why: why() })];
    assert_eq!(cross(&mut judge, 3, A), said);
    let mut effects = Vec::new();
    for now in 4..40 {
        cross(&mut judge, now, A);
        effects.extend(judge.sample(now * S, S, []));
    }
    assert_eq!(effects, [Effect::Declined(Declined { what: Mode::Evict, reason, why: why() })], "each is said once");
    let until = 100 * S;
    let begun = [Effect::Act(Action::Contain { how: Containment::Block, until, reason }), evict(reason)];
    assert_eq!(judge.kill_switch(40 * S, false), begun, "it is as it was");
}

#[test]
fn whom_the_operator_lets_go_is_left_alone_until_its_breach_is_over() {
    let mut judge = judge();
    assert_eq!(judge.release(S, B), None);
    assert_eq!(judge.release(S / 2, A), Some(vec![]), "nothing is to be released");
    assert_eq!(cross(&mut judge, 1, A)[1..], [contain(rate(A, 1))], "nor is it excused from what comes");
    assert_eq!(judge.release(2 * S, A), Some(vec![release(1, Release::Operator)]));
    // A meter that contained it meanwhile is told to let go, and its breach stays as it is.
    judge.contained(3 * S, A, Some(held(1)));
    assert_eq!(judge.sample(3 * S, S, []), [release(1, Release::Operator)]);
    let mut judge = restart(&judge, 4);
    appear(&mut judge, 4, A, "a");
    assert_eq!((judge.contained(4 * S, A, None), judge.settled(4 * S)), (vec![], vec![]));
    for now in 5..50 {
        assert_eq!((cross(&mut judge, now, A), judge.sample(now * S, S, [])), (vec![], vec![]), "in second {now}");
        assert_eq!(judge.orders(A).arm, None);
    }
    assert_eq!(judge.sample(60 * S, S, []), [closed(rate(A, 1), 60, Closing::Clear)]);
    assert!(judge.orders(A).arm.is_some());
    assert_eq!(cross(&mut judge, 61, A)[1..], [contain(rate(A, 61))]);
}

#[test]
fn what_the_kernel_says_of_a_containment() {
    let forever = |since| Some(Contained { until: u64::MAX, ..held(since) });
    let over = || vec![closed(rate(A, 1), 9, Closing::LetGo)];
    // What was known, what is told, what follows and what is known then: it ends when the policy says.
    let cases = [
        (None, forever(2), vec![], Some(held(2))),
        (None, None, vec![], None),
        (Some(held(2)), forever(2), vec![], Some(held(2))),
        (Some(held(2)), None, over(), None),
        (Some(held(2)), forever(3), over(), Some(held(3))),
    ];
    for (known, told, effects, then) in cases {
        let mut judge = judge();
        judge.watch.crossed(S, A, Limit::Rate, Over { figure: 5e6, allowed: 1e6 });
        assert_eq!(judge.contained(2 * S, A, known), []);
        assert_eq!(judge.contained(9 * S, A, told), effects, "{known:?}, then {told:?}");
        assert_eq!(judge.contained_now(A), then);
    }
    let mut judge = judge();
    assert_eq!(judge.contained(S, B, Some(held(1))), []);
    assert_eq!(judge.contained_now(B), None, "nobody knows it");
}

#[test]
fn how_an_eviction_ended_says_whether_there_may_be_another_one() {
    let retry_at = 70 * S;
    // How, when it is tried again, and whether the budget has its part back.
    let cases = [
        (Evicted::Done, None, false),
        (Evicted::Untouched { retry_at }, Some(70), true),
        (Evicted::Broken { retry_at }, Some(70), false),
    ];
    for (how, again, refunded) in cases {
        let two = |text: String| text.replace("evictions: 1", "evictions: 2").replace("for: 1m", "for: 1h");
        let mut judge = judge_with(two);
        judge.evicted(0, A, Evicted::Done);
        cross(&mut judge, 1, A);
        judge.evicted(0, A, Evicted::Done);
        assert_eq!(press(&mut judge, 2..=40, A), [evict(rate(A, 1))], "what was not begun did not end");
        judge.evicted(0, A, how);
        judge.evicted(0, A, Evicted::Untouched { retry_at: 0 });
        let other = "a".into();
        let mut budgets = judge.budgets.clone();
        let left = (0..3).take_while(|_| budgets.spend(41 * S, &other).is_ok()).count();
        assert_eq!(left, 1 + usize::from(refunded), "{how:?}");
        assert_eq!(press(&mut judge, 41..=69, A), [], "{how:?}");
        let expected: Vec<Effect> = again.map(|_| evict(rate(A, 1))).into_iter().collect();
        assert_eq!(press(&mut judge, 70..=90, A), expected, "{how:?}");
        judge.gone(91 * S, A);
        judge.evicted(0, A, Evicted::Done);
    }
}

#[test]
fn other_settings_hold_at_once() {
    let cases = [
        ("mode: evict", "mode: observe", vec![release(1, Release::Mode), closed(rate(A, 1), 2, Closing::LetGo)]),
        (
            "contain: {block: true, for: 1m}, ",
            "",
            vec![release(1, Release::Policy), closed(rate(A, 1), 2, Closing::LetGo)],
        ),
        ("rate: 1MB/s, ", "", vec![closed(rate(A, 1), 2, Closing::Unlimited)]),
        ("after: 30s", "after: 0s", vec![evict(rate(A, 1))]),
        ("block: true", "throttle: 1MB/s", vec![]),
    ];
    for (from, to, effects) in cases {
        let mut judge = judge();
        cross(&mut judge, 1, A);
        assert_eq!(judge.reload(2 * S, settings(|text| text.replace(from, to))), effects, "{to:?}");
    }
    // What is spent stays spent, and a greater budget has more.
    let mut judge = judge();
    judge.budgets.spend(S, &"a".into()).expect("one");
    cross(&mut judge, 1, A);
    let spent = declined(Mode::Evict, Refusal::Budget(Refused::Workload));
    assert_eq!(press(&mut judge, 2..=40, A), [spent]);
    let greater = settings(|text| text.replace("evictions: 1", "evictions: 2"));
    assert_eq!(judge.reload(41 * S, greater), [evict(rate(A, 1))]);
}

#[test]
fn the_kernel_is_ordered_what_the_policy_says() {
    let mut judge = judge();
    let full = judge.policy(A).expect("a policy").clone();
    let Policy { count, ingress, .. } = *full;
    let orders = Orders { count, egress: full.egress.rate, ingress, arm: full.on_breach.contain };
    assert_eq!(judge.orders(A), orders);
    assert_eq!(judge.orders(B), Orders::default(), "nobody knows it");
    cross(&mut judge, 1, A);
    assert_eq!(judge.orders(A), orders, "contained or not");
    judge.reload(2 * S, settings(|text| text.replace("mode: evict", "mode: observe")));
    assert_eq!(judge.orders(A), Orders { arm: None, ..orders });
    appear(&mut judge, 3, A, "in");
    assert_eq!(judge.orders(A), Orders { egress: None, arm: None, ..orders });
}

#[test]
fn too_many_breaches_are_said_once_and_so_is_the_calm_after_they_are_gone() {
    let mut judge = judge();
    let all = [(A, "a"), (B, "b"), (ContainerId(3), "c")];
    let opened = all.map(|(id, pod)| {
        appear(&mut judge, 0, id, pod);
        cross(&mut judge, 1, id)
    });
    assert_eq!(opened[2][1], Effect::Alarm(Alarm::Storm { workloads: 3, pods: 3, of: 3 }));
    assert_eq!(
        press(&mut judge, 2..=40, A),
        [
            closed(rate(B, 1), 11, Closing::Clear),
            closed(rate(ContainerId(3), 1), 11, Closing::Clear),
            declined(Mode::Evict, Refusal::Budget(Refused::Storm)),
        ]
    );
    for (id, _) in all {
        judge.gone(41 * S, id);
    }
    // They breached within the last minute until second 71.
    let calm = (42..).find_map(|now| Some((now, judge.sample(now * S, S, []))).filter(|(_, said)| !said.is_empty()));
    let quiet = 40 + QUIET / S;
    let (at, said) = calm.expect("it calms down");
    assert_eq!(said, [Effect::Alarm(Alarm::Calm)]);
    assert!((quiet..quiet + 60).contains(&at), "{at}");
}

#[test]
fn what_is_protected_is_contained_and_not_evicted() {
    let mut judge = Judge::new(settings(|text| text), Means { nothing: Some("nobody can".into()), only_pods: false });
    appear(&mut judge, 0, A, "a");
    assert_eq!(cross(&mut judge, 1, A)[1..], [contain(rate(A, 1))]);
    assert_eq!(
        press(&mut judge, 2..=40, A),
        [declined(Mode::Evict, Refusal::Protected(Protection::Nothing("nobody can".into())))]
    );
}
