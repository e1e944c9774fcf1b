//! Configurations: whatever an operator, or a half-written file, says.
#![no_main]

use std::{fmt::Debug, path::Path, str::FromStr, sync::Arc};

use guard_core::{
    config::Config,
    identity::Labels,
    overrides::{Resolved, resolve},
    policy::{Containment, Policy, RateLimit, Subject},
    units::{Rate, Size},
};
use libfuzzer_sys::fuzz_target;

const ANNOTATIONS: [(&str, &str); 4] =
    [("rate", "10MB/s"), ("burst", "1MB"), ("quota", "1GB"), ("exempt-until", "1970-01-01T00:02:00+00:01")];

/// Where errors say that they are.
const FILE: &str = "config.yaml";

fuzz_target!(|text: &str| {
    match Config::parse(text, Path::new(FILE)) {
        Ok(config) => check(&config),
        Err(error) => {
            let said = error.to_string();
            assert!(said.starts_with(FILE) && !said.contains('\n'), "{said}");
        }
    }
});

fn check(config: &Config) {
    assert_eq!(config.needs_restart(config), [""; 0], "it differs from itself");
    for policy in &config.policies.policies {
        said(policy);
    }
    for subject in subjects() {
        let first = config.policies.policies.iter().find(|policy| policy.matcher.is_match(&subject));
        let holds = config.policies.of(&subject);
        assert_eq!(holds.map(Arc::as_ptr), first.map(Arc::as_ptr), "another than the first holds for {subject:?}");
        let Resolved { bad, exempt_until, .. } = resolve(holds, &subject, &config.overrides, 0);
        assert!(bad.iter().all(|bad| !bad.why.to_string().is_empty()));
        assert!(exempt_until.is_none() || bad.is_empty() && !config.overrides.allow.is_empty());
    }
}

/// What `check-config` prints of a policy. A figure that is shown is read as what it was.
fn said(policy: &Policy) {
    let Policy { name, matcher, count, egress, ingress, on_breach } = policy;
    assert!(!format!("{name} {matcher} {count}").is_empty());
    for RateLimit { rate, burst } in egress.rate.iter().chain(ingress) {
        reads_back::<Rate>(rate);
        reads_back::<Size>(burst);
    }
    if let Some(quota) = &egress.quota {
        assert!(!quota.to_string().is_empty());
        reads_back::<Size>(&quota.bytes);
    }
    if let Some(baseline) = &egress.baseline {
        assert!(!baseline.to_string().is_empty());
        reads_back::<Rate>(&baseline.floor);
    }
    if let Some(contain) = &on_breach.contain {
        assert!(!contain.to_string().is_empty());
        if let Containment::Throttle(rate) = &contain.how {
            reads_back::<Rate>(rate);
        }
    }
    assert!(on_breach.evict.is_none_or(|evict| !evict.to_string().is_empty()));
}

fn reads_back<T: FromStr<Err: Debug> + ToString + PartialEq + Debug>(figure: &T) {
    let shown = figure.to_string();
    assert_eq!(&shown.parse::<T>().expect("what is shown can be read"), figure, "{shown}");
}

/// In a cluster, outside of one, and with nothing known.
fn subjects() -> [Subject; 3] {
    let subject = |[namespace, pod, container]: [&str; 3], labels: &[(&str, &str)]| Subject {
        names: Labels { namespace: namespace.into(), pod: pod.into(), container: container.into() },
        labels: labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        annotations: ANNOTATIONS.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
    };
    [
        subject(["batch-eu", "load-7", "main"], &[("app", "loader"), ("tier", "")]),
        subject(["", "", "system.slice/docker-1f2e.scope"], &[]),
        subject(["", "", ""], &[]),
    ]
}
