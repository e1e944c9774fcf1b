use std::path::Path;

use super::*;
use crate::{config::Config, identity::Labels};

const NOW: i64 = 1_769_914_800; // 2026-02-01T03:00:00Z

const CONFIG: &str = "
policies:
  - name: full
    match: {pods: [full]}
    egress:
      rate: 10MB/s
      burst: 50MB
      quota: {bytes: 1GB, per: 1h}
      baseline: {factor: 100, floor: 1MB/s, learn: 1h}
    ingress: {rate: 20MB/s}
    onBreach: {contain: {block: true, for: 1m}, evict: {after: 1m}}
  - name: free
    match: {pods: [free]}
overrides:
  allow: [rate, burst, quota, exempt-until]
  max: {rate: 100MB/s, quota: 5GB, exempt: 4h}
  namespaces: ['batch-*']
";

fn resolve_in(namespace: &str, pod: &str, annotations: &[(&str, &str)]) -> Resolved {
    let config = Config::parse(CONFIG, Path::new("f")).expect("a config");
    let names = Labels { namespace: namespace.into(), pod: pod.into(), container: "main".into() };
    let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let subject = Subject { names, annotations, ..Subject::default() };
    resolve(config.policies.of(&subject), &subject, &config.overrides, NOW)
}

/// The limits of a container of pod `full` in a namespace where something may be loosened: rate, burst, quota and factor.
fn limits(annotations: &[(&str, &str)]) -> [String; 4] {
    let resolved = resolve_in("batch-1", "full", annotations);
    assert_eq!(resolved.bad, [], "{annotations:?}");
    let EgressLimits { rate, quota, baseline, bypass: _ } = resolved.policy.expect("a policy").egress.clone();
    let RateLimit { rate, burst } = rate.expect("a rate");
    let (quota, baseline) = (quota.expect("a quota"), baseline.expect("a baseline"));
    [rate.to_string(), burst.to_string(), quota.to_string(), baseline.factor.to_string()]
}

/// Which annotations are bad, and why.
fn bad(namespace: &str, pod: &str, annotations: &[(&str, &str)]) -> Vec<String> {
    let Resolved { policy, exempt_until, bad, .. } = resolve_in(namespace, pod, annotations);
    let Resolved { policy: file, .. } = resolve_in(namespace, pod, &[]);
    assert_eq!(policy.map(|policy| policy.egress.clone()), file.map(|policy| policy.egress.clone()), "it holds whole");
    assert_eq!(exempt_until, None);
    bad.into_iter().map(|Bad { key, value, why }| format!("{key}={value}: {why}")).collect()
}

#[test]
fn annotations_may_tighten_anywhere_and_loosen_what_the_file_allows_where_it_does() {
    let file = ["10MB/s", "50MB", "1GB in any 1h", "100"].map(str::to_owned);
    assert_eq!(limits(&[]), file);
    assert_eq!(limits(&[(FLAGGED, "2026-02-01T03:00:00Z rate")]), file, "the guard's own");
    let tighter = [("rate", "1MB/s"), ("burst", "1MB"), ("quota", " 7MB "), ("baseline-factor", "2.5")];
    assert_eq!(limits(&tighter), ["1MB/s", "1MB", "7MB in any 1h", "2.5"].map(str::to_owned));
    assert!(resolve_in("elsewhere", "full", &tighter).bad.is_empty());
    let looser = [("rate", "100MB/s"), ("burst", "9TB"), ("quota", "5GB")];
    assert_eq!(limits(&looser), ["100MB/s", "9TB", "5GB in any 1h", "100"].map(str::to_owned));
    assert_eq!(limits(&[("rate", "100MB/s")])[1], "50MB", "the burst stays the policy's");

    // Where there was no limit, one more is stricter.
    let Resolved { policy, bad, .. } = resolve_in("elsewhere", "free", &[("rate", "1MB/s")]);
    let burst = policy.expect("a policy").egress.rate.map(|rate| rate.burst.to_string());
    assert_eq!((burst.as_deref(), bad), (Some("10MB"), vec![]), "what passes in ten seconds, as in a file");
    let Resolved { policy, bad, .. } = resolve_in("elsewhere", "free", &[("rate", "1MB/s"), ("burst", "1TB")]);
    let burst = policy.expect("a policy").egress.rate.map(|rate| rate.burst.to_string());
    assert_eq!((burst.as_deref(), bad), (Some("1TB"), vec![]));
}

#[test]
fn a_bad_annotation_is_said_with_a_remedy_and_the_file_s_policy_holds() {
    let cases = [
        ("batch-1", "full", ("rate", "100.5MB/s"), "it is more than overrides.max.rate in the file, which is 100MB/s"),
        ("batch-1", "full", ("quota", "6GB"), "it is more than overrides.max.quota in the file, which is 5GB"),
        (
            "batch-1",
            "full",
            ("baseline-factor", "101"),
            "it loosens policy \"full\", which says 100: tighten it, or add baseline-factor to overrides.allow in the file",
        ),
        (
            "shop",
            "full",
            ("rate", "11MB/s"),
            "it loosens policy \"full\", and overrides.namespaces in the file has not \"shop\"",
        ),
        (
            "shop",
            "full",
            ("exempt-until", "2026-02-01T04:00:00Z"),
            "it loosens policy \"full\", and overrides.namespaces in the file has not \"shop\"",
        ),
        (
            "batch-1",
            "full",
            ("exempt-until", "2026-02-01T07:00:01Z"),
            "it is more than overrides.max.exempt in the file, which is 4h ahead of now",
        ),
        (
            "batch-1",
            "full",
            ("exempt-until", "tomorrow"),
            "\"tomorrow\" is not an instant of RFC 3339, like 2026-02-01T03:00:00Z",
        ),
        (
            "batch-1",
            "full",
            ("burst", "63KiB"),
            "\"63KiB\": it must be at least 64KiB, the size of the largest packet that the kernel hands over at once",
        ),
        ("batch-1", "full", ("baseline-factor", "1"), "\"1\" is not a number above 1, like 100"),
        (
            "batch-1",
            "full",
            ("rates", "1MB/s"),
            "there is no such annotation: those are rate, burst, quota, baseline-factor, exempt-until",
        ),
        (
            "batch-1",
            "free",
            ("quota", "1MB"),
            "policy \"free\" has no egress.quota, so there is nothing to change: remove the annotation, or add \
             egress.quota there",
        ),
        (
            "batch-1",
            "free",
            ("burst", "1MB"),
            "policy \"free\" has no egress.rate, so there is nothing to change: remove the annotation, or add egress.rate \
             there",
        ),
        (
            "batch-1",
            "other",
            ("rate", "1MB/s"),
            "no policy of the file holds for it, so there is nothing to change: remove the annotation, or add a policy",
        ),
    ];
    for (namespace, pod, annotation, expected) in cases {
        let (key, value) = annotation;
        assert_eq!(bad(namespace, pod, &[annotation]), [format!("{key}={value}: {expected}")]);
        if key != "rate" && pod == "full" {
            // Nor is the one beside it followed.
            assert_eq!(bad(namespace, pod, &[annotation, ("rate", "1B/s")]).len(), 1, "{key}");
        }
    }
    let long = format!("a\n{}", "9".repeat(200_000));
    for key in ["rate", "burst", "quota", "baseline-factor", "exempt-until", "x", &long] {
        let said = bad("batch-1", "full", &[(key, &long)]);
        assert!(said[0].len() < 600 && !said[0].contains('\n'), "{said:?}");
    }
}

#[test]
fn an_exempt_pod_has_no_limit_until_its_time_is_over() {
    let at = |until| resolve_in("batch-1", "full", &[("exempt-until", until), ("rate", "1MB/s")]);
    let Resolved { policy, exempt_until, bad, changes_at } = at("2026-02-01T07:00:00Z");
    let policy = policy.expect("a policy");
    assert_eq!(
        (&policy.egress, policy.ingress, &policy.on_breach),
        (&EgressLimits::default(), None, &OnBreach::default())
    );
    let end = NOW + 4 * 3600;
    assert_eq!((policy.name.as_str(), exempt_until, bad, changes_at), ("full", Some(end), vec![], Some(end)));
    // Over; what is beside it counts.
    let Resolved { policy, exempt_until, bad, changes_at } = at("2026-02-01T03:00:00Z");
    let rate = policy.and_then(|policy| policy.egress.rate).map(|limit| limit.rate.to_string());
    assert_eq!((rate.as_deref(), exempt_until, bad, changes_at), (Some("1MB/s"), None, vec![], None));
    // Too far ahead; in an hour it is not.
    assert_eq!(at("2026-02-01T08:00:00Z").changes_at, Some(NOW + 3600));
}

#[test]
fn what_a_file_allows_in_words() {
    let config = Config::parse(CONFIG, Path::new("f")).expect("a config");
    let expected = "rate (up to 100MB/s), burst, quota (up to 5GB), exempt-until (at most 4h ahead)";
    assert_eq!(config.overrides.to_string(), expected);
}
