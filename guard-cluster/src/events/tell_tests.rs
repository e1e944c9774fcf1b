use super::*;

fn tell(container: &str, what: What) -> Tell {
    let pod = Pod { namespace: "shop".into(), name: "web-1".into(), uid: "u1".into(), ..Pod::default() };
    Tell { pod: Arc::new(pod), container: container.into(), what }
}

fn exceeded(limit: Limit, said: &str, destinations: Vec<String>) -> What {
    What::LimitExceeded { limit, said: said.into(), destinations }
}

fn refused(cause: &str, budget: Option<&str>) -> What {
    What::EvictionRefused { cause: cause.into(), budget: budget.map(Into::into), why: "why".into() }
}

#[test]
fn each_has_its_reason_action_and_type() {
    let why = || "why".to_owned();
    let annotation = |key: &str| What::BadAnnotation { key: key.into(), value: "x".into(), why: why() };
    let cases = [
        (exceeded(Limit::Rate, "s", vec![]), "EgressLimitExceeded", "CheckRate", true),
        (exceeded(Limit::Quota, "s", vec![]), "EgressLimitExceeded", "CheckQuota", true),
        (exceeded(Limit::Baseline, "s", vec![]), "EgressLimitExceeded", "CheckBaseline", true),
        (exceeded(Limit::Ingress, "s", vec![]), "IngressLimitExceeded", "CheckIngress", true),
        (What::Contained { block: false, how: why() }, "EgressContained", "Throttle", true),
        (What::Contained { block: true, how: why() }, "EgressContained", "Block", true),
        (What::Released { cause: "kill_switch".into(), why: why() }, "EgressReleased", "ReleaseKillSwitch", false),
        (What::Evicted { why: why() }, "EgressEvicted", "Evict", true),
        (refused("node_budget", None), "EgressEvictionRefused", "EvictNodeBudget", true),
        (What::Replaced { how: why() }, "EgressReplaced", "AwaitReplacement", false),
        (What::RestartDidNotCure { why: why() }, "EgressRestartDidNotCure", "Evict", true),
        (annotation("egress-guard.dev/baseline-factor"), "EgressBadAnnotation", "ReadBaselineFactor", true),
    ];
    for (what, reason, action, warning) in cases {
        assert!(What::REASONS.contains(&what.reason()), "{reason} has no metric");
        let event = tell("main", what).event();
        let type_ = if warning { EventType::Warning } else { EventType::Normal };
        assert_eq!((event.reason.as_str(), event.action.as_str(), event.type_), (reason, action, type_));
        assert!(event.note.is_some_and(|note| !note.is_empty()), "{reason} says nothing");
    }
}

#[test]
fn a_note_is_never_too_long_and_names_as_many_destinations_as_fit() {
    let destination = "203.0.113.7:25 tcp: 9.0 MB (90 %)".to_owned();
    let note = |what| tell("", what).event().note.expect("a note");
    let few = note(exceeded(Limit::Rate, "too much", vec![destination.clone(); 2]));
    assert_eq!(few, format!("too much; most went to {destination}, {destination}"));
    let many = note(exceeded(Limit::Rate, "too much", vec![destination.clone(); 100]));
    assert!((NOTE - 40..=NOTE).contains(&many.len()), "{} bytes", many.len());
    assert!(many.ends_with(&destination), "{many}");
    let long = "ü".repeat(2 * NOTE);
    let bad = |value: &str, why: &str| What::BadAnnotation {
        key: "egress-guard.dev/rate".into(),
        value: value.into(),
        why: why.into(),
    };
    let all = [
        exceeded(Limit::Rate, &long, vec![destination]),
        What::Contained { block: true, how: long.clone() },
        What::Released { cause: String::new(), why: long.clone() },
        What::Evicted { why: long.clone() },
        What::EvictionRefused { cause: "failed".into(), budget: None, why: long.clone() },
        What::Replaced { how: long.clone() },
        What::RestartDidNotCure { why: long.clone() },
        bad(&long, &long),
    ];
    for what in all {
        let note = note(what);
        assert!((NOTE - 4..=NOTE).contains(&note.len()) && note.ends_with("..."), "{} bytes: {note}", note.len());
    }
    let value = note(bad(&"\n".repeat(500), "a rate is expected"));
    assert!(value.len() < 400 && value.ends_with(": a rate is expected") && !value.contains('\n'), "{value}");
}

#[test]
fn what_is_another_event_is_told_as_another() {
    let key = |container, what| tell(container, what).key();
    let rate = || exceeded(Limit::Rate, "s", vec![]);
    // Another figure is not.
    assert_eq!(key("main", rate()), key("main", exceeded(Limit::Rate, "t", vec!["x".into()])));
    assert_ne!(key("main", rate()), key("side", rate()));
    assert_ne!(key("main", rate()), key("main", exceeded(Limit::Quota, "s", vec![])));
    assert_ne!(key("main", refused("blocked", Some("a"))), key("main", refused("blocked", Some("b"))));
    assert_ne!(key("main", refused("blocked", None)), key("main", refused("overloaded", None)));
    assert_ne!(key("main", rate()), Key::flag(&tell("", rate()).pod));
}
