use std::num::NonZeroU64;

use super::*;
use crate::{
    overrides::{Key, Max},
    policy::{Budget, WorkloadBudget},
    safety::NAMESPACES,
    units::Percent,
};

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("config.yaml")).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_means_the_defaults() {
    for text in ["", "# nothing\n", "{}", "meters:\n  # max: 7\nsample:\n"] {
        let config = parse(text).expect("a config");
        assert_eq!(config.destinations.cluster.len(), CLUSTER.len());
        assert_eq!((config.meters.max, config.sample.interval), (1024, Duration::from_secs(1)));
    }
}

#[test]
fn the_example_says_the_defaults() {
    let example = parse(include_str!("../../deploy/config.yaml")).expect("a config");
    let Config {
        kill_switch,
        destinations,
        meters,
        sample,
        policies,
        alerts,
        containment,
        budgets,
        storm,
        protect,
        dry_run,
        flag,
        overrides,
    } = Config::default();
    assert_eq!(example.destinations.cluster, IpNet::aggregate(&destinations.cluster));
    assert_eq!((example.meters.max, example.sample.interval), (meters.max, sample.interval));
    assert!(example.meters.extra.is_empty());
    assert_eq!((example.kill_switch, example.policies.mode), (kill_switch, policies.mode));
    assert!(example.policies.policies.is_empty() && policies.policies.is_empty());
    assert_eq!((example.alerts.webhook, example.containment), (alerts.webhook, containment));
    assert_eq!((example.budgets, example.storm), (budgets, storm));
    assert_eq!(example.protect.namespaces.to_string(), protect.namespaces.to_string());
    assert_eq!((example.dry_run, example.flag), (dry_run, flag));
    assert_eq!((example.overrides.allow, example.overrides.max), (overrides.allow, overrides.max));
    assert!(example.overrides.namespaces.is_none() && overrides.namespaces.is_none());
}

#[test]
fn every_key_is_read() {
    let config = parse(
        "destinations:\n  cluster: [10.0.0.0/8, 10.1.0.0/16, 'fd00::/8']\n\
         meters: {extra: ['system.slice/*.service'], max: 64}\nsample: {interval: 250ms}\n",
    );
    let config = config.expect("a config");
    let cidrs: Vec<String> = config.destinations.cluster.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.0.0.0/8", "fd00::/8"]);
    assert!(config.meters.extra.is_match("system.slice/ssh.service"));
    assert_eq!((config.meters.max, config.sample.interval), (64, Duration::from_millis(250)));
    assert_eq!(parse("destinations: {cluster: []}").map(|c| c.destinations.cluster.len()), Ok(0));
}

#[test]
fn errors_name_file_line_and_key() {
    let many: Vec<String> = (0..17).map(|i| format!("10.{}.0.0/16", i * 2)).collect();
    let cases = [
        (
            "destinations:\n  cluster: [10.0.0.0/33]\n",
            "config.yaml:2:13: destinations.cluster[0]: \"10.0.0.0/33\" is not a CIDR",
        ),
        (
            "destinations:\n  cluster: [10.0.0.1/8]\n",
            "config.yaml:2:13: destinations.cluster[0]: \"10.0.0.1/8\" is not a CIDR without host bits",
        ),
        ("destinations:\n  clutser: []\n", "config.yaml:2:3: destinations.clutser: unknown field `clutser`, expected"),
        ("meters:\n  max: lots\n", "config.yaml:2:8: meters.max: \"lots\" is not a whole number from 1 to 65535"),
        ("meters:\n  max: 0\n", "config.yaml:2:8: meters.max: \"0\" is not a whole number"),
        ("meters:\n  max: [1]\n", "config.yaml:2:8: meters.max: expected a whole number"),
        ("meters:\n  extra: x\n", "config.yaml:2:10: meters.extra: expected sequence"),
        ("meters:\n  extra: ['a[']\n", "config.yaml:2:10: meters.extra: not a pattern: error parsing glob 'a['"),
        ("sample: {interval: 1}\n", "config.yaml:1:20: sample.interval: \"1\" is not a duration of at least 10ms"),
        ("sample: {interval: 1ms}\n", "config.yaml:1:20: sample.interval: \"1ms\" is not a duration"),
        ("policy: {}\n", "config.yaml:1:1: policy: unknown field `policy`, expected"),
        ("\"a\\nb\": 1\n", "config.yaml:1:1: a\u{fffd}b: unknown field `a\\nb`, expected"),
        ("[]\n", "config.yaml:1:1: expected mapping"),
        ("meters: {max: 1}\nmeters: {max: 2}\n", "config.yaml:2:1: duplicate mapping key: meters"),
        (
            &format!("destinations: {{cluster: [{}]}}", many.join(", ")),
            "config.yaml:1:25: destinations.cluster: 17 IPv4 CIDRs",
        ),
    ];
    for (text, expected) in cases {
        let error = parse(text).expect_err(text);
        assert!(error.starts_with(expected), "{error}\nshould start with\n{expected}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
}

#[test]
fn the_sections_beside_the_policies_are_read() {
    let config = parse(
        "mode: evict\nkillSwitch: true\nalerts: {webhook: 'https://alerts:9093/api/v2/alerts'}\n\
         containment: {outliveAgent: true}\nbudgets: {node: {evictions: 7, per: 1h}, workload: {evictions: 2, per: 1h, \
         atOnce: 3, share: 50%}, cluster: {evictions: 20, per: 1h}}\nstorm: {workloads: 9, pods: 40 %}\n",
    );
    let config = config.expect("a config");
    assert_eq!((config.policies.mode, config.kill_switch), (Mode::Evict, true));
    assert_eq!(config.alerts.webhook, Some(Uri::from_static("https://alerts:9093/api/v2/alerts")));
    assert!(config.containment.outlive_agent);
    let budget = |evictions, minutes| Budget {
        evictions: NonZeroU64::new(evictions).expect("not zero"),
        per: Duration::from_mins(minutes),
    };
    let Budget { evictions, per } = budget(2, 60);
    let (at_once, share) = (budget(3, 1).evictions, Percent::new(50).expect("a part"));
    let workload = WorkloadBudget { evictions, per, at_once, share };
    assert_eq!(config.budgets, Budgets { node: budget(7, 60), workload, cluster: budget(20, 60) });
    let Storm { workloads, pods, per } = config.storm;
    assert_eq!((workloads.get(), pods, per), (9, Percent::new(40).expect("a part"), Duration::from_mins(1)));
    // What is not said of a workload's budget is as it is without one.
    let config = parse("budgets: {workload: {evictions: 1, per: 10m}}").expect("a config");
    assert_eq!(config.budgets, Budgets::default());
}

#[test]
fn what_is_protected_and_what_annotations_may_do_is_read() {
    let config = parse(
        "protect: {namespaces: [kube-system, 'infra-*']}\ndryRun: true\nflag: {annotation: false}\n\
         overrides:\n  allow: [rate, exempt-until]\n  max: {rate: 100MiB/s, exempt: 4h}\n  namespaces: ['batch-*']\n",
    );
    let config = config.expect("a config");
    let namespaces = &config.protect.namespaces;
    let is_protected = ["kube-system", "infra-1", "kube-public"].map(|name| namespaces.is_match(name));
    assert_eq!(is_protected, [true, true, false], "the list takes the place of the usual one");
    assert_eq!((config.dry_run, config.flag), (true, Flag { annotation: false }));
    let Overrides { allow, max, namespaces } = config.overrides;
    assert_eq!(allow, [Key::Rate, Key::ExemptUntil].into());
    let rate = "100MiB/s".parse().ok();
    assert_eq!(max, Max { rate, exempt: Some(Duration::from_hours(4)), ..Max::default() });
    assert!(namespaces.expect("some").is_match("batch-7"));

    let usual = parse("protect:\noverrides:\nflag:\n").expect("a config");
    assert!(NAMESPACES.iter().all(|name| usual.protect.namespaces.is_match(&name.replace('*', "x"))));
    assert_eq!((usual.flag, usual.overrides.allow), (Flag { annotation: true }, [].into()));
}

#[test]
fn what_annotations_may_do_must_make_sense() {
    let cases = [
        (
            "overrides: {allow: [speed]}",
            "1:21: overrides.allow[0]: \"speed\" is not one of rate, burst, quota, baseline-factor, exempt-until",
        ),
        (
            "overrides: {max: {rate: 1MB/s}}",
            "1:12: overrides: max.rate is of no use, for nothing may loosen that: add rate to allow, or remove max.rate",
        ),
        (
            "overrides: {allow: [rate], max: {exempt: 1h}}",
            "1:12: overrides: max.exempt is of no use, for nothing may loosen that: add exempt-until to allow, or remove \
             max.exempt",
        ),
        (
            "overrides: {namespaces: [a]}",
            "1:12: overrides: namespaces is of no use without allow: add allow, or remove namespaces",
        ),
        ("overrides: {allow: [burst], max: {burst: 1KB}}", "1:42: overrides.max.burst: it must be at least 64KiB"),
        ("overrides: {max: {baselineFactor: 1}}", "1:35: overrides.max.baselineFactor: \"1\" is not a number above 1"),
        ("overrides: {max: {baseline: 2}}", "1:19: overrides.max.baseline: unknown field `baseline`, expected one of"),
        (
            "protect: {namespaces: []}",
            "1:23: protect.namespaces: an empty list protects nothing but the agent's own namespace: name those",
        ),
        ("protect: {namespace: [a]}", "1:11: protect.namespace: unknown field `namespace`, expected one of namespaces"),
        ("dryRun: maybe", "1:9: dryRun: expected true or false"),
        ("flag: {annotation: 1}", "1:20: flag.annotation: expected true or false"),
        ("storm: {pods: 30}", "1:15: storm.pods: \"30\" is not a part from 1% to 100%, like 25%"),
        (
            "budgets: {workload: {evictions: 1, per: 1m, share: 0%}}",
            "1:52: budgets.workload.share: \"0%\" is not a part from 1% to 100%, like 25%",
        ),
    ];
    for (text, expected) in cases {
        let error = parse(text).expect_err(text);
        assert!(error.starts_with(&format!("config.yaml:{expected}")), "{error}\nshould start with\n{expected}");
    }
}

#[test]
fn the_sections_beside_the_policies_refuse_what_they_cannot_mean() {
    const URL: &str = "expected an http or https URL without user and password, like \
                       http://alertmanager:9093/api/v2/alerts";
    let cases = [
        ("mode: enforce", "1:7: mode: \"enforce\" is not observe, contain or evict".to_owned()),
        ("mode: ", "1:5: mode: expected observe, contain or evict".to_owned()),
        ("killSwitch: 5", "1:13: killSwitch: expected true or false".to_owned()),
        ("killSwitch: ", "1:11: killSwitch: expected true or false".to_owned()),
        ("containment: {outliveAgent: 5}", "1:29: containment.outliveAgent: expected true or false".to_owned()),
        ("alerts: {webhook: 'ftp://x/'}", format!("1:19: alerts.webhook: {URL}")),
        ("alerts: {webhook: 'alerts:9093'}", format!("1:19: alerts.webhook: {URL}")),
        ("alerts: {webhook: 'http://me:secret@x/'}", format!("1:19: alerts.webhook: {URL}")),
        (
            "budgets: {node: {evictions: 0, per: 1m}}",
            "1:29: budgets.node.evictions: \"0\" is not a whole number of at least 1".to_owned(),
        ),
        ("budgets: {node: {evictions: 1, per: 0s}}", "1:37: budgets.node.per: it must be at least 1s".to_owned()),
        ("budgets: {node: {evictions: 1}}", "1:18: budgets.node: missing field `per`".to_owned()),
        (
            "budgets: {region: {}}",
            "1:11: budgets.region: unknown field `region`, expected one of node, workload, cluster".to_owned(),
        ),
        ("storm: {workloads: 1}", "1:20: storm.workloads: \"1\" is not a whole number of at least 2".to_owned()),
        (
            "storm: {per: 10}",
            format!("1:14: storm.per: {:?} is not a duration like 500ms, 30s, 10m, 1h or 1d (at most 365d)", "10"),
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(text).expect_err(text), format!("config.yaml:{expected}"));
    }
}

#[test]
fn keys_that_need_a_restart_are_named() {
    let of = |text| parse(text).expect("a config");
    let before = of("");
    let now = of("mode: evict\nkillSwitch: true\npolicies: [{name: a, match: {}}]\nstorm: {workloads: 9}");
    assert_eq!(before.needs_restart(&now), [""; 0]);
    let cases = [
        ("destinations: {cluster: []}", "destinations.cluster"),
        ("meters: {extra: ['a/*']}", "meters.extra"),
        ("meters: {max: 7}", "meters.max"),
        ("sample: {interval: 2s}", "sample.interval"),
    ];
    for (text, key) in cases {
        assert_eq!(before.needs_restart(&of(text)), [key]);
        assert_eq!(of(text).needs_restart(&of(text)), [""; 0]);
    }
}

#[test]
fn a_pattern_on_which_its_compiler_gives_up_is_refused() {
    let nested = |braces: usize| format!("{}a{}", "{".repeat(braces), "}".repeat(braces));
    let policy = |pattern: &str| format!("policies: [{{name: a, match: {{pods: ['{pattern}']}}}}]");
    let extra = |pattern: &str| format!("meters: {{extra: ['{pattern}']}}");
    let good = [nested(100), "?".repeat(4096)];
    for pattern in good {
        for text in [policy(&pattern), extra(&pattern)] {
            assert!(parse(&text).is_ok(), "{} bytes", pattern.len());
        }
    }
    let bad = [nested(101), nested(300), nested(100_000), "?".repeat(4097), "?".repeat(400_000)];
    for pattern in bad {
        for text in [policy(&pattern), extra(&pattern)] {
            let error = parse(&text).expect_err("refused");
            assert!(error.ends_with("has more than 4096 bytes or 100 braces: write several shorter ones"), "{error}");
            assert!(error.len() < 300, "{error}");
        }
    }
}
