use super::*;

const DAY: u64 = 24 * 3600;

fn dry(text: &str) -> String {
    format!("dryRun: true\n{}", text.replace("for: 1m", "for: 1h"))
}

fn asked(reason: Breach) -> Effect {
    let grace = Some(std::time::Duration::from_secs(5));
    Effect::Act(Action::Evict { grace, leave: Leave::default(), dry_run: true, reason })
}

/// What is left of the budget of workload `a`.
fn left(judge: &Judge, now: u64) -> usize {
    let mut budgets = judge.budgets.clone();
    (0..9).take_while(|_| budgets.spend(now * S, &"a".into()).is_ok()).count()
}

#[test]
fn what_is_asked_for_dry_again_is_paid_for_once() {
    let three = |text: String| text.replace("evictions: 2", "evictions: 9").replace("evictions: 1", "evictions: 3");
    let mut judge = judge_with(|text| dry(&three(text)));
    cross(&mut judge, 1, A);
    assert_eq!(press(&mut judge, 2..=40, A), [asked(rate(A, 1))]);
    // Nobody tells how that ended.
    let mut judge = restart(&judge, 41);
    appear(&mut judge, 42, A, "a");
    judge.contained(42 * S, A, Some(Contained { until: u64::MAX, ..held(1) }));
    judge.settled(42 * S);
    assert_eq!(press(&mut judge, 43..=100, A), [asked(rate(A, 1))]);
    assert_eq!(left(&judge, 100), 2);
    judge.evicted(101 * S, A, Evicted::Done);
    judge.gone(101 * S, A);
    judge.reload(102 * S, settings(three));
    assert_eq!(left(&judge, 102), 3);
}

#[test]
fn what_was_done_is_not_done_again_a_day_later() {
    let nine = |text: String| text.replace("evictions: 2", "evictions: 9").replace("evictions: 1", "evictions: 9");
    let mut judge = judge_with(nine);
    appear(&mut judge, 0, B, "b");
    cross(&mut judge, 1, A);
    assert!(press(&mut judge, 2..=40, A).contains(&evict(rate(A, 1))));
    judge.evicted(41 * S, A, Evicted::Done);
    let evictions = |judge: &mut Judge, id, since| {
        cross(judge, since, id);
        let said = press(judge, since + 1..=since + 40, id);
        said.into_iter().filter(|effect| matches!(effect, Effect::Act(Action::Evict { .. }))).collect::<Vec<_>>()
    };
    assert_eq!(evictions(&mut judge, B, DAY + 100), [evict(rate(B, DAY + 100))]);
    assert_eq!(evictions(&mut judge, A, DAY + 200), [], "it is still there");
}

#[test]
fn what_a_dry_run_was_charged_is_given_back_for_as_long_as_it_counts() {
    let week = |text: String| text.replace("per: 1h", "per: 7d");
    let mut judge = judge_with(|text| dry(&week(text)));
    appear(&mut judge, 0, B, "b");
    for (id, since) in [(A, 1), (B, DAY + 100)] {
        cross(&mut judge, since, id);
        assert_eq!(press(&mut judge, since + 1..=since + 40, id), [asked(rate(id, since))]);
        judge.evicted((since + 41) * S, id, Evicted::Done);
        judge.gone((since + 41) * S, id);
    }
    assert_eq!(left(&judge, DAY + 200), 0);
    judge.reload((DAY + 200) * S, settings(week));
    assert_eq!(left(&judge, DAY + 200), 1);
}
