use proptest::prelude::*;

use super::*;
use crate::{
    policy::{Count, EgressLimits, Matcher, OnBreach, RateLimit},
    units::{Rate, Size},
};

const S: u64 = 1_000_000_000;
const A: ContainerId = ContainerId(1);
const B: ContainerId = ContainerId(2);
const OVER: Over = Over { figure: 9.0, allowed: 3.0 };

type End<'a> = &'a dyn Fn(&mut Watch) -> Vec<Closed>;

fn breach(container: ContainerId, limit: Limit, since: u64) -> Breach {
    Breach { container, limit, since, figure: 9.0, allowed: 3.0 }
}

fn nothing(container: ContainerId) -> Found {
    Found { container, quota: None, baseline: None, sending: false, pressing: false }
}

/// What is open after a sample of `found` at a second, with a breach of each limit of egress open since second 0.
fn kept(found: Found) -> Vec<Limit> {
    let mut watch = Watch::default();
    for limit in [Limit::Rate, Limit::Quota, Limit::Baseline] {
        watch.crossed(0, A, limit, OVER).expect("a breach");
    }
    watch.sample(9 * S, [found]);
    watch.sample(11 * S, []);
    watch.of(A).map(|open| open.breach.limit).collect()
}

#[test]
fn a_breach_is_said_once_and_kept_alive_by_each_sign() {
    let mut watch = Watch::default();
    assert_eq!(watch.crossed(S, A, Limit::Rate, OVER), Some(breach(A, Limit::Rate, S)));
    for second in 2..40 {
        assert_eq!(watch.crossed(second * S, A, Limit::Rate, OVER), None, "second {second}");
        assert_eq!(watch.sample(second * S, [nothing(A)]), Changes::default(), "second {second}");
    }
    // Events and samples come from two clocks' readings: an older one takes nothing back.
    assert_eq!(watch.crossed(20 * S, A, Limit::Rate, OVER), None);
    assert_eq!(watch.sample(49 * S - 1, [nothing(A)]), Changes::default());
    let closed = Closed { breach: breach(A, Limit::Rate, S), at: 49 * S, why: Closing::Clear };
    assert_eq!(watch.sample(49 * S, [nothing(A)]).closed, [closed]);
    assert_eq!(watch.sample(50 * S, [nothing(A)]), Changes::default());
    assert_eq!(watch.crossed(51 * S, A, Limit::Rate, OVER), Some(breach(A, Limit::Rate, 51 * S)));
}

#[test]
fn each_container_has_one_breach_for_each_limit() {
    let mut watch = Watch::default();
    for container in [A, B] {
        for limit in Limit::ALL {
            assert!(watch.crossed(S, container, limit, OVER).is_some(), "{container:?} {limit}");
            assert!(watch.crossed(S, container, limit, OVER).is_none(), "{container:?} {limit}");
        }
        assert_eq!(watch.of(container).map(|open| open.breach.limit).collect::<Vec<_>>(), Limit::ALL);
    }
    assert_eq!(watch.all().count(), 2 * Limit::ALL.len());
}

#[test]
fn a_sample_opens_what_it_finds() {
    let mut watch = Watch::default();
    let found = Found { quota: Some(OVER), baseline: Some(OVER), sending: true, ..nothing(A) };
    let changes = watch.sample(S, [found, nothing(B)]);
    assert_eq!(changes.opened, [breach(A, Limit::Quota, S), breach(A, Limit::Baseline, S)]);
    assert_eq!(watch.sample(2 * S, [found, nothing(B)]), Changes::default());
}

#[test]
fn a_used_up_quota_of_one_that_keeps_still_is_no_breach() {
    let mut watch = Watch::default();
    let idle = Found { quota: Some(OVER), ..nothing(A) };
    assert_eq!(watch.sample(S, [idle]), Changes::default());
    assert_eq!(watch.sample(2 * S, [Found { pressing: true, ..idle }]).opened, [breach(A, Limit::Quota, 2 * S)]);
    assert_eq!(watch.sample(12 * S, [idle]).closed.len(), 1);
}

#[test]
fn what_keeps_which_breach_alive() {
    let all = Found { quota: Some(OVER), baseline: Some(OVER), sending: true, pressing: true, ..nothing(A) };
    let cases = [
        (nothing(A), vec![]),
        (Found { sending: true, ..nothing(A) }, vec![]),
        (Found { pressing: true, ..nothing(A) }, vec![Limit::Rate, Limit::Baseline]),
        (Found { quota: Some(OVER), ..nothing(A) }, vec![]),
        (Found { quota: Some(OVER), sending: true, ..nothing(A) }, vec![Limit::Quota]),
        (Found { quota: Some(OVER), pressing: true, ..nothing(A) }, vec![Limit::Rate, Limit::Quota, Limit::Baseline]),
        (Found { baseline: Some(OVER), ..nothing(A) }, vec![Limit::Baseline]),
        (all, vec![Limit::Rate, Limit::Quota, Limit::Baseline]),
        (Found { container: B, ..all }, vec![]),
    ];
    for (found, expected) in cases {
        assert_eq!(kept(found), expected, "{found:?}");
    }
}

#[test]
fn pressing_alone_opens_nothing() {
    assert_eq!(Watch::default().sample(S, [Found { pressing: true, ..nothing(A) }]), Changes::default());
}

#[test]
fn what_ends_ends_at_once_and_for_that_container_only() {
    let policy = Policy {
        name: String::new(),
        matcher: Matcher::default(),
        count: Count::All,
        egress: EgressLimits {
            rate: Some(RateLimit { rate: Rate::new(1).expect("a rate"), burst: Size::new(1).expect("a size") }),
            ..EgressLimits::default()
        },
        ingress: None,
        on_breach: OnBreach::default(),
    };
    let rest = [Limit::Quota, Limit::Baseline, Limit::Ingress, Limit::Bypass];
    let cases: [(&str, End<'_>, Closing, &[Limit]); 5] = [
        ("gone", &|watch| watch.gone(S, A), Closing::Gone, &Limit::ALL),
        ("let go", &|watch| watch.let_go(S, A, None), Closing::LetGo, &Limit::ALL[..3]),
        ("released, and nothing since", &|watch| watch.let_go(S, A, Some(0)), Closing::LetGo, &[]),
        ("no policy", &|watch| watch.reloaded(S, |breach| breach.container == B), Closing::Unlimited, &Limit::ALL),
        ("a rate only", &|watch| watch.reloaded(S, |breach| policy.limits(breach.limit)), Closing::Unlimited, &rest),
    ];
    for (name, end, why, limits) in cases {
        let mut watch = Watch::default();
        for limit in Limit::ALL {
            watch.crossed(0, A, limit, OVER);
        }
        watch.crossed(0, B, Limit::Rate, OVER);
        let expected: Vec<Closed> =
            limits.iter().map(|limit| Closed { breach: breach(A, *limit, 0), at: S, why }).collect();
        assert_eq!(end(&mut watch), expected, "{name}");
        assert_eq!(watch.of(A).count(), Limit::ALL.len() - limits.len(), "{name}");
        assert_eq!(watch.of(B).count(), 1, "{name}");
    }
}

#[test]
fn a_restart_changes_nothing() {
    let mut watch = Watch::default();
    for limit in Limit::ALL {
        watch.crossed(S, A, limit, OVER);
    }
    watch.crossed(3 * S, A, Limit::Rate, OVER);
    let text = serde_json::to_string(&watch.save()).expect("JSON");
    let saved = serde_json::from_str(&text).expect("what was saved");
    assert_eq!(Watch::restore(3 * S, saved), Ok(watch));
}

#[test]
fn what_we_cannot_have_saved_is_refused() {
    let entry = |limit: &str, since: u64, last: u64| {
        format!(r#"{{"container":1,"limit":"{limit}","since":{since},"last":{last},"figure":9.0,"allowed":3.0}}"#)
    };
    let restore = |text: &str| Watch::restore(10, serde_json::from_str(text).expect("the form")).map(|_| ());
    let time = |since, last| Err(RestoreError::Time { container: 1, limit: Limit::Rate, since, last, now: 10 });
    let cases = [
        ("[]".to_owned(), Ok(())),
        (format!("[{}]", entry("rate", 10, 10)), Ok(())),
        (format!("[{}]", entry("speed", 1, 1)), Err(RestoreError::Limit("speed".into()))),
        (format!("[{}]", entry("rate", 1, 11)), time(1, 11)),
        (format!("[{}]", entry("rate", 5, 4)), time(5, 4)),
        (format!("[{0},{0}]", entry("rate", 1, 1)), Err(RestoreError::Twice(1, Limit::Rate))),
    ];
    for (text, expected) in cases {
        assert_eq!(restore(&text), expected, "{text}");
    }
    for text in ["", "{}", "[1]", "[{}]", "null", r#"[{"container":-1}]"#] {
        assert!(serde_json::from_str::<Saved>(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn no_bytes_of_a_state_file_make_it_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..60),
        entries in prop::collection::vec((0u64..3, 0usize..4, any::<[u64; 2]>(), any::<f64>()), 0..5),
        now in any::<u64>(),
    ) {
        let saved = entries.into_iter().map(|(container, limit, [since, last], figure)| {
            let limit = Limit::ALL[limit].name().to_owned();
            SavedOpen { container, limit, since: since.min(last), last, figure, allowed: figure }
        });
        let parsed = serde_json::from_slice::<Saved>(&bytes);
        for saved in parsed.into_iter().chain([Saved(saved.collect())]) {
            for now in [now, u64::MAX] {
                let Ok(mut watch) = Watch::restore(now, saved.clone()) else { continue };
                watch.sample(now, [nothing(A)]);
                watch.crossed(0, A, Limit::Rate, OVER);
            }
        }
    }
}
