//! What a configuration means, in words: for all containers, or for one.

use std::fmt::{self, Write as _};

use crate::{
    config::Config,
    core::{
        overrides::Overrides,
        policy::{Globs, Matcher, Mode, Policy, Subject},
    },
};

/// Mode, kill switch and all policies in their order.
pub fn summary(config: &Config) -> String {
    let mut said = match config.policies.mode {
        Mode::Observe => "mode observe: breaches are reported, nothing is contained or evicted\n".to_owned(),
        Mode::Contain => "mode contain: containers are contained, none is evicted\n".to_owned(),
        Mode::Evict => "mode evict: containers are contained and evicted\n".to_owned(),
    };
    if config.kill_switch {
        said.push_str("killSwitch is true: nothing is contained or evicted, whatever the mode\n");
    }
    if config.dry_run {
        said.push_str("dryRun is true: evictions are only asked for as a dry run, nothing is evicted\n");
    }
    said.push_str(match config.policies.policies.as_slice() {
        [] => "no policies: nothing is limited\n",
        _ => "policies, of which the first that matches a container holds:\n",
    });
    for (index, policy) in config.policies.policies.iter().enumerate() {
        push(&mut said, format_args!("{}. {:?} for {}\n", index + 1, policy.name, policy.matcher));
        said.push_str(&details(policy, config));
    }
    said
}

/// Which policy holds for a container. Without its name: for each container of its pod.
pub fn answer(config: &Config, subject: &Subject) -> String {
    let names = &subject.names;
    let pod = if names.pod.is_empty() { String::new() } else { format!("{}/{}", names.namespace, names.pod) };
    let mut said = String::new();
    for policy in &config.policies.policies {
        let Some(containers) = matches(policy, subject) else { continue };
        let who = match containers {
            Containers::This if pod.is_empty() => names.container.clone(),
            Containers::This => format!("{pod}, container {}", names.container),
            Containers::All if said.is_empty() => pod.clone(),
            Containers::All => format!("{pod}, all other containers"),
            Containers::Some(globs) if said.is_empty() => format!("{pod}, containers {globs}"),
            Containers::Some(globs) => format!("{pod}, other containers {globs}"),
        };
        push(&mut said, format_args!("{who}: policy {:?} holds\n", policy.name));
        said.push_str(&details(policy, config));
        said.push_str(&loosen(config, subject));
        if !matches!(containers, Containers::Some(_)) {
            return said;
        }
    }
    let who = match (names.container.as_str(), said.is_empty()) {
        ("", true) => pod,
        ("", false) => format!("{pod}, all other containers"),
        (container, _) if pod.is_empty() => container.to_owned(),
        (container, _) => format!("{pod}, container {container}"),
    };
    push(&mut said, format_args!("{who}: no policy holds, nothing is limited\n"));
    said
}

/// Which containers of a pod a policy matches.
enum Containers<'a> {
    /// The one that was named.
    This,
    /// All, for none was named.
    All,
    /// Those with such names, for none was named.
    Some(&'a Globs),
}

/// `None`: the policy does not match, whatever the container's name.
fn matches<'a>(policy: &'a Policy, subject: &Subject) -> Option<Containers<'a>> {
    if !subject.names.container.is_empty() {
        return policy.matcher.is_match(subject).then_some(Containers::This);
    }
    let any = Matcher { containers: None, ..policy.matcher.clone() };
    any.is_match(subject).then_some(match &policy.matcher.containers {
        Some(globs) if !globs.match_all() => Containers::Some(globs),
        _ => Containers::All,
    })
}

/// What the pod's annotations may loosen of it.
fn loosen(config: &Config, subject: &Subject) -> String {
    let Overrides { allow, namespaces, .. } = &config.overrides;
    let here = namespaces.as_ref().is_none_or(|globs| globs.is_match(&subject.names.namespace));
    if allow.is_empty() || !here || subject.names.pod.is_empty() {
        return String::new();
    }
    format!("     annotations may loosen {}\n", config.overrides)
}

/// A policy's limits, and its actions as far as the mode lets it take them.
fn details(policy: &Policy, config: &Config) -> String {
    let Policy { name: _, matcher: _, count, egress, ingress, on_breach } = policy;
    let limits = [
        ("egress.rate", egress.rate.map(|limit| limit.to_string())),
        ("egress.quota", egress.quota.map(|limit| limit.to_string())),
        ("egress.baseline", egress.baseline.map(|limit| limit.to_string())),
        ("egress.bypass", egress.bypass.map(|limit| format!("{limit}; no containment holds it"))),
        ("ingress", ingress.map(|limit| format!("{limit}; alert only"))),
    ];
    let limits: Vec<(&str, String)> = limits.into_iter().filter_map(|(key, limit)| Some((key, limit?))).collect();
    if limits.is_empty() {
        return "     no limit\n".to_owned();
    }
    let mut said = String::new();
    let mut line = |key: &str, value: &dyn fmt::Display| push(&mut said, format_args!("     {key:<17} {value}\n"));
    line("count", count);
    for (key, limit) in &limits {
        line(key, limit);
    }
    let actions = [
        ("onBreach.contain", Mode::Contain, on_breach.contain.map(|contain| contain.to_string())),
        ("onBreach.evict", Mode::Evict, on_breach.evict.map(|evict| evict.to_string())),
    ];
    for (key, needs, action) in actions {
        match action {
            Some(action) if config.kill_switch => line(key, &format_args!("not while killSwitch is true: {action}")),
            Some(action) if config.policies.mode < needs => {
                line(key, &format_args!("not in mode {}: {action}", config.policies.mode));
            }
            Some(action) => line(key, &action),
            None => {}
        }
    }
    said
}

/// Writing to a text cannot fail.
fn push(text: &mut String, what: fmt::Arguments<'_>) {
    let _written = text.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::core::identity::Labels;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("config.yaml")).expect("a config")
    }

    fn example(mode: &str) -> Config {
        let text = include_str!("../../deploy/policies.example.yaml");
        config(&text.replace("mode: observe", mode))
    }

    fn subject(namespace: &str, pod: &str, container: &str, label: &str) -> Subject {
        let names = Labels { namespace: namespace.into(), pod: pod.into(), container: container.into() };
        let labels = label.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        Subject { names, labels: labels.into_iter().collect(), ..Subject::default() }
    }

    #[test]
    fn the_summary_says_all_policies_in_order() {
        let expected = "\
mode contain: containers are contained, none is evicted
policies, of which the first that matches a container holds:
1. \"backups\" for namespaces backup; label app=restic
     no limit
2. \"loaders\" for namespaces batch-*; pods load-*; containers *; label app=loader
     count             external
     egress.rate       50MiB/s with a burst of 500MiB
     egress.quota      20GiB in any 1h
     egress.baseline   100 times its normal but never under 1MiB/s, learnt for 1h
     egress.bypass     1MiB/s with a burst of 10MiB; no containment holds it
     ingress           200MiB/s with a burst of 2000MiB; alert only
     onBreach.contain  throttle to 1MiB/s for 10m
     onBreach.evict    not in mode contain: evict after 30s, with 10s to end
3. \"outside\" for containers system.slice/docker-*, machine.slice/libpod-*
     count             external
     egress.rate       12500KB/s with a burst of 125MB
     onBreach.contain  block for 1m
4. \"default\" for all containers
     count             external
     egress.baseline   100 times its normal but never under 1MiB/s, learnt for 1h
";
        assert_eq!(summary(&example("mode: contain")), expected);
        let stopped = summary(&example("mode: evict\nkillSwitch: true"));
        assert!(stopped.contains("whatever the mode\n"), "{stopped}");
        assert!(stopped.contains("onBreach.evict    not while killSwitch is true: evict after 30s"), "{stopped}");
        assert!(summary(&config("")).ends_with("no policies: nothing is limited\n"));
    }

    #[test]
    fn what_annotations_may_loosen_is_said_where_they_may() {
        let text = "policies: [{name: a, match: {}, egress: {rate: 1MB/s}}]\n\
                    overrides: {allow: [rate, exempt-until], max: {rate: 2MB/s}, namespaces: ['batch-*']}";
        let said = |namespace, pod, container| answer(&config(text), &subject(namespace, pod, container, ""));
        let line = "     annotations may loosen rate (up to 2MB/s), exempt-until\n";
        assert!(said("batch-1", "p", "").ends_with(line));
        assert!(!said("shop", "p", "").contains("annotations") && !said("", "", "a.slice").contains("annotations"));
        assert!(summary(&config("dryRun: true")).contains("\ndryRun is true: "));
    }

    #[test]
    fn the_policy_that_holds_is_named() {
        let policies = config(
            "policies:\n\
             - {name: proxy, match: {pods: ['p-*'], containers: [proxy, side-*]}}\n\
             - {name: outside, match: {containers: ['a.slice/*']}}\n\
             - {name: labelled, match: {pods: ['*'], labels: {app: x}}}\n\
             - {name: any, match: {namespaces: [n], containers: ['*']}}\n",
        );
        let cases = [
            (subject("n", "p-1", "proxy", ""), "n/p-1, container proxy: policy \"proxy\" holds"),
            (subject("n", "p-1", "main", ""), "n/p-1, container main: policy \"any\" holds"),
            (subject("m", "p-1", "main", ""), "m/p-1, container main: no policy holds, nothing is limited"),
            (subject("n", "q", "", "app=x"), "n/q, containers a.slice/*: policy \"outside\" holds"),
            (subject("", "", "a.slice/b", ""), "a.slice/b: policy \"outside\" holds"),
            (subject("", "", "b.slice/b", ""), "b.slice/b: no policy holds, nothing is limited"),
        ];
        for (subject, expected) in cases {
            let said = answer(&policies, &subject);
            assert_eq!(said.lines().next(), Some(expected), "{subject:?}");
        }
        let all = answer(&policies, &subject("n", "p-1", "", ""));
        let found: Vec<&str> = all.lines().filter(|line| line.starts_with("n/")).collect();
        assert_eq!(
            found,
            [
                "n/p-1, containers proxy, side-*: policy \"proxy\" holds",
                "n/p-1, other containers a.slice/*: policy \"outside\" holds",
                "n/p-1, all other containers: policy \"any\" holds",
            ]
        );
        let none = answer(&policies, &subject("m", "q", "", ""));
        assert!(none.ends_with("m/q, all other containers: no policy holds, nothing is limited\n"), "{none}");
        let loaders = answer(&example("mode: evict"), &subject("batch-eu", "load-7", "", "app=loader"));
        assert!(loaders.starts_with("batch-eu/load-7: policy \"loaders\" holds\n     count "), "{loaders}");
    }
}
