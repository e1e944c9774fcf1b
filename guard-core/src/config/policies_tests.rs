use std::{path::Path, sync::Arc, time::Duration};

use crate::{
    config::Config,
    identity::Labels,
    policy::{
        BaselineLimit, Contain, Containment, Count, EgressLimits, Evict, Mode, OnBreach, Policy, Quota, RateLimit,
        Subject,
    },
    safety::Leave,
    units::{Rate, Size},
};

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("f")).map_err(|error| error.to_string())
}

fn policy(rest: &str) -> Arc<Policy> {
    let config = parse(&format!("policies: [{{name: a, match: {{}}{rest}}}]")).expect(rest);
    Arc::clone(&config.policies.policies[0])
}

fn rate(bytes_per_second: u64) -> Rate {
    Rate::new(bytes_per_second).expect("a rate")
}

fn size(bytes: u64) -> Size {
    Size::new(bytes).expect("a size")
}

#[test]
fn the_example_is_read_to_the_last_key() {
    let config = parse(include_str!("../../../deploy/policies.example.yaml")).expect("a config");
    assert_eq!(config.policies.mode, Mode::Observe);
    let names: Vec<&str> = config.policies.policies.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["backups", "loaders", "outside", "default"]);

    let Policy { name: _, matcher: _, count, egress, ingress, on_breach } = &*config.policies.policies[1];
    let learn = Duration::from_hours(1);
    let limits = EgressLimits {
        rate: Some(RateLimit { rate: rate(50 << 20), burst: size(500 << 20) }),
        quota: Some(Quota { bytes: size(20 << 30), per: Duration::from_hours(1) }),
        baseline: Some(BaselineLimit { factor: 100.0, floor: rate(1 << 20), learn }),
        bypass: Some(RateLimit { rate: rate(1 << 20), burst: size(10 << 20) }),
    };
    let actions = OnBreach {
        contain: Some(Contain { how: Containment::Throttle(rate(1 << 20)), length: Duration::from_mins(10) }),
        evict: Some(Evict {
            after: Duration::from_secs(30),
            grace: Some(Duration::from_secs(10)),
            leave: Leave::default(),
        }),
    };
    assert_eq!((*count, egress, on_breach), (Count::External, &limits, &actions));
    assert_eq!(*ingress, Some(RateLimit { rate: rate(200 << 20), burst: size(2000 << 20) }));

    let holds = |namespace: &str, pod: &str, container: &str, label: (&str, &str)| {
        let names = Labels { namespace: namespace.into(), pod: pod.into(), container: container.into() };
        let labels = [(label.0.to_owned(), label.1.to_owned())].into();
        config
            .policies
            .of(&Subject { names, labels, ..Subject::default() })
            .map(|policy| policy.name.clone())
            .expect("the default at least")
    };
    assert_eq!(holds("batch-eu", "load-7", "main", ("app", "loader")), "loaders");
    assert_eq!(holds("batch-eu", "load-7", "main", ("app", "other")), "default");
    assert_eq!(holds("backup", "nightly", "main", ("app", "restic")), "backups");
    assert_eq!(holds("", "", "system.slice/docker-12.scope", ("", "")), "outside");
}

#[test]
fn what_is_left_out_has_its_default() {
    assert_eq!(policy("").count, Count::External);
    assert_eq!(policy(", count: all").count, Count::All);
    assert_eq!((policy("").egress.clone(), policy("").ingress), (EgressLimits::default(), None));
    let evict = policy(", egress: {rate: 1MB/s}, onBreach: {evict: {after: 0s}}").on_breach.evict;
    assert_eq!(evict, Some(Evict { after: Duration::ZERO, grace: None, leave: Leave::default() }));
    let contain = policy(", egress: {rate: 1MB/s}, onBreach: {contain: {block: true, for: 90s}}").on_breach.contain;
    assert_eq!(contain, Some(Contain { how: Containment::Block, length: Duration::from_secs(90) }));
    // What the rate lets through in 10 s, but never less than a super-packet.
    for (rate, burst) in [("1MB/s", 10_000_000), ("1KB/s", 64 << 10), ("16000000TiB/s", u64::MAX)] {
        let burst = Some(size(burst));
        assert_eq!(policy(&format!(", egress: {{rate: {rate}}}")).egress.rate.map(|limit| limit.burst), burst);
        assert_eq!(policy(&format!(", ingress: {{rate: {rate}}}")).ingress.map(|limit| limit.burst), burst);
    }
}

/// The whole message for what stands after `{name: a, match: {}`.
#[test]
fn what_a_policy_cannot_say_is_refused() {
    let cases = [
        (", count: both", "1:40: policies[0].count: \"both\" is not external or all"),
        (", egress: ", "1:39: policies[0].egress: expected mapping start"),
        (
            ", egres: {}",
            "1:33: policies[0].egres: unknown field `egres`, expected one of name, match, count, egress, \
                         ingress, onBreach",
        ),
        (
            ", egress: {burst: 1MB}",
            "1:41: policies[0].egress: burst is of no use without rate: add rate, or remove \
                                    burst",
        ),
        (
            ", egress: {rate: 1MB}",
            "1:48: policies[0].egress.rate: \"1MB\" is not a rate like 50MiB/s, 50MB/s or \
                                   400Mbit/s: add /s",
        ),
        (", egress: {rate: }", "1:46: policies[0].egress.rate: expected a rate like 50MiB/s, 50MB/s or 400Mbit/s"),
        (
            ", egress: {rate: 1MB/s, burst: 63KiB}",
            "1:62: policies[0].egress.burst: it must be at least 64KiB, the size \
                                                   of the largest packet that the kernel hands over at once",
        ),
        (", egress: {quota: }", "1:47: policies[0].egress.quota: expected mapping start"),
        (", egress: {quota: {per: 1h}}", "1:50: policies[0].egress.quota: missing field `bytes`"),
        (", egress: {quota: {bytes: 1GB}}", "1:50: policies[0].egress.quota: missing field `per`"),
        (
            ", egress: {quota: {bytes: 1, per: 1h}}",
            "1:57: policies[0].egress.quota.bytes: \"1\" is not a size like \
                                                    500MiB, 20GB or 1Gi: say the unit, B for bytes",
        ),
        (
            ", egress: {quota: {bytes: [1], per: 1h}}",
            "1:57: policies[0].egress.quota.bytes: expected a size like \
                                                      500MiB, 20GB or 1Gi",
        ),
        (", egress: {quota: {bytes: 1GB, per: 59s}}", "1:67: policies[0].egress.quota.per: it must be at least 1m"),
        (
            ", egress: {quota: {bytes: 1GB, per: x}}",
            "1:67: policies[0].egress.quota.per: \"x\" is not a duration like \
                                                     500ms, 30s, 10m, 1h or 1d (at most 365d)",
        ),
        (
            ", egress: {baseline: {factor: 1, floor: 1MB/s, learn: 1h}}",
            "1:61: policies[0].egress.baseline.factor: \
                                                                        \"1\" is not a number above 1, like 100",
        ),
        (
            ", egress: {baseline: {factor: NaN, floor: 1MB/s, learn: 1h}}",
            "1:61: policies[0].egress.baseline.factor: \
                                                                          \"NaN\" is not a number above 1, like 100",
        ),
        (", egress: {baseline: {factor: 2, learn: 1h}}", "1:64: policies[0].egress.baseline: missing field `floor`"),
        (
            ", egress: {baseline: {factor: 2, floor: 1MB/s, learn: 0s}}",
            "1:85: policies[0].egress.baseline.learn: it \
                                                                        must be at least 1s",
        ),
        (", ingress: {burst: 1MB}", "1:43: policies[0].ingress: missing field `rate`"),
        (
            ", ingress: {rate: 1MB/s, quota: x}",
            "1:56: policies[0].ingress.quota: unknown field `quota`, expected one \
                                                of rate, burst",
        ),
        (
            ", onBreach: {evict: {after: 1s}}",
            "1:12: policies[0]: \"a\" has onBreach but no egress limit that could be \
                                              crossed: add one, or remove onBreach",
        ),
        (
            ", onBreach: {alert: x}",
            "1:44: policies[0].onBreach.alert: unknown field `alert`, expected one of contain, \
                                    evict",
        ),
        (", onBreach: {evict: {}}", "1:51: policies[0].onBreach.evict: missing field `after`"),
        (", onBreach: {contain: {block: true}}", "1:54: policies[0].onBreach.contain: missing field `for`"),
        (
            ", onBreach: {contain: {block: true, for: 0s}}",
            "1:72: policies[0].onBreach.contain.for: it must be at least \
                                                           1s",
        ),
        (
            ", onBreach: {contain: {block: 7, for: 1m}}",
            "1:61: policies[0].onBreach.contain.block: expected true or \
                                                        false",
        ),
    ];
    for (rest, expected) in cases {
        let error = parse(&format!("policies: [{{name: a, match: {{}}{rest}}}]")).expect_err(rest);
        assert_eq!(error, format!("f:{expected}"), "{rest}");
    }
    for how in ["", "block: false, ", "block: true, throttle: 1MB/s, "] {
        let text = format!("policies: [{{name: a, match: {{}}, onBreach: {{contain: {{{how}for: 1m}}}}}}]");
        let expected = "f:1:53: policies[0].onBreach.contain: say how: either throttle with a rate like 1MiB/s, or \
                        block: true";
        assert_eq!(parse(&text).expect_err(how), expected);
    }
}

#[test]
fn whom_a_policy_is_for_must_be_said() {
    let cases = [
        ("name: a", "12: policies[0]: \"a\" does not say whom it is for: add match, with {} for all containers"),
        (
            "name: a, match: ",
            "12: policies[0]: \"a\" does not say whom it is for: add match, with {} for all containers",
        ),
        ("match: {}", "13: policies[0]: missing field `name`"),
        (
            "name: a b, match: {}",
            "19: policies[0].name: \"a b\" is not a name of 1 to 63 letters, digits, \"-\", \"_\" \
                                  and \".\"",
        ),
        (
            "name: a, match: {namespace: [x]}",
            "30: policies[0].match.namespace: unknown field `namespace`, expected one \
                                              of namespaces, pods, containers, labels",
        ),
        (
            "name: a, match: {pods: []}",
            "36: policies[0].match.pods: an empty list matches nothing: leave the key out to \
                                        match everything",
        ),
        ("name: a, match: {pods: }", "34: policies[0].match.pods: expected sequence start"),
        (
            "name: a, match: {pods: ['']}",
            "37: policies[0].match.pods[0]: \"\" is not a pattern like batch-*, load-[0-9] \
                                          or {one,two}",
        ),
        (
            "name: a, match: {pods: [x, 'a[']}",
            "40: policies[0].match.pods[1]: \"a[\" is not a pattern like batch-*, \
                                               load-[0-9] or {one,two}",
        ),
        (
            "name: a, match: {labels: {app: }}",
            "42: policies[0].match.labels.app: expected the label's value, \"\" if \
                                               that is empty",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(&format!("policies: [{{{text}}}]")).expect_err(text), format!("f:1:{expected}"));
    }
}

#[test]
fn two_policies_that_cannot_both_be_meant_are_named_with_their_lines() {
    let text = "policies:\n  - name: all\n    match: {pods: ['*']}\n\n  - {name: one, match: {pods: [x]}}\n";
    let expected = "f:5:5: policies[1].match: \"one\" can never hold, for \"all\" in line 2 comes first and matches all \
                    that it matches: move it above that one, or remove it";
    assert_eq!(parse(text).expect_err(text), expected);
    let text = "policies:\n  - {name: a, match: {pods: [x]}}\n  - {name: a, match: {}}\n";
    let expected = "f:3:5: policies[1].name: \"a\" is the name of the policy in line 2 too: give it another";
    assert_eq!(parse(text).expect_err(text), expected);
}
