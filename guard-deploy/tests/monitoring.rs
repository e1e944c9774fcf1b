//! Alerts and the dashboard: promtool's tests of the rules, and that every metric that they ask for is one of the
//! agent's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result};
use guard_deploy::{PROMTOOL, objects, path, read, run};
use serde_json::Value;

const ALERTS: &str = "deploy/helm/egress-guard/files/prometheus-operator/alerts.yaml";
const DASHBOARD: &str = "deploy/helm/egress-guard/files/grafana-dashboard/egress-guard.json";
const TESTS: &str = "guard-deploy/tests/alerts_test.yaml";

/// What Prometheus itself and kube-state-metrics know.
const FOREIGN: [&str; 2] = ["up", "kube_daemonset_status_number_unavailable"];

fn rules() -> Result<Vec<Value>> {
    let groups = objects(&read(ALERTS)?)?[0]["spec"]["groups"].clone();
    let groups = groups.as_array().context("no groups")?.iter();
    Ok(groups.flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect())
}

#[test]
fn promtool_finds_every_alert_raised_when_it_should_be() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut spec = objects(&read(ALERTS)?)?[0]["spec"].clone();
    let (alerts, tests) = (folder.path().join("alerts.json"), folder.path().join("tests.yaml"));
    fs::write(&alerts, spec.to_string())?;
    run(PROMTOOL, &["check", "rules", "--lint=all", "--lint-fatal", &alerts.display().to_string()])?;
    for group in spec["groups"].as_array_mut().into_iter().flatten() {
        for rule in group["rules"].as_array_mut().into_iter().flatten() {
            rule["annotations"].as_object_mut().context("no annotations")?.remove("description");
        }
    }
    fs::write(&alerts, spec.to_string())?;
    fs::copy(path(TESTS), &tests)?;
    run(PROMTOOL, &["test", "rules", &tests.display().to_string()])?;
    Ok(())
}

#[test]
fn every_alert_is_tested_both_ways_and_says_what_to_do() -> Result<()> {
    let tests = objects(&read(TESTS)?)?;
    // alert -> whether it is expected, of each test
    let mut tested: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
    for case in tests[0]["tests"].as_array().into_iter().flatten() {
        for check in case["alert_rule_test"].as_array().into_iter().flatten() {
            let name = check["alertname"].as_str().context("no alertname")?.to_owned();
            tested.entry(name).or_default().insert(check["exp_alerts"].is_array());
        }
    }
    for rule in rules()? {
        let name = rule["alert"].as_str().context("a rule without an alert")?;
        assert_eq!(tested.remove(name), Some([false, true].into()), "{name} is not tested both ways");
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap_or_default()), "{name}");
        let text = |key: &str| rule["annotations"][key].as_str().map_or(0, str::len);
        assert!(text("summary") > 20 && text("description") > 100, "{name} does not say what to do");
    }
    assert!(tested.is_empty(), "tested, but not there: {tested:?}");
    Ok(())
}

/// Every metric in an expression: what begins with the prefix or is known to be foreign, and is no label or keyword.
fn metrics(expression: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    // Labels and their values stand in braces, lists of labels in parentheses after these words.
    let mut text = String::new();
    let mut depth = 0;
    for c in expression.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        text.push(if depth > 0 || c == '}' { ' ' } else { c });
    }
    let words = text.split(|c| !is_part(c));
    words.filter(|word| word.starts_with("egress_guard_") || FOREIGN.contains(word)).map(str::to_owned).collect()
}

/// The names in the README's table of metrics; `..._x` stands for the name before it with another end.
fn documented() -> Result<BTreeSet<String>> {
    let readme = read("README.md")?;
    let mut names = BTreeSet::new();
    for row in readme.lines().filter(|line| line.starts_with("| `egress_guard_")) {
        let cells: Vec<_> = row.split('|').collect();
        let mut last = String::new();
        for name in cells[1].split('`').skip(1).step_by(2) {
            let name = match name.strip_prefix("...") {
                Some(end) => {
                    let parts = end.matches('_').count();
                    let kept = last.rsplitn(parts + 1, '_').last().unwrap_or_default();
                    format!("{kept}{end}")
                }
                None => name.to_owned(),
            };
            last.clone_from(&name);
            names.insert(name);
        }
        if cells.get(2).is_some_and(|kind| kind.trim() == "histogram") {
            names.extend(["bucket", "count", "sum"].map(|part| format!("{last}_{part}")));
        }
    }
    Ok(names)
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_are_documented() -> Result<()> {
    let documented = documented()?;
    assert!(documented.contains("egress_guard_container_ingress_packets_total"), "{documented:?}");
    assert!(documented.contains("egress_guard_attach_seconds_bucket"), "{documented:?}");
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut expressions: Vec<String> =
        targets.map(|target| target["expr"].as_str().map(str::to_owned).context("no expr")).collect::<Result<_>>()?;
    assert!(expressions.len() > 20, "{} queries on the dashboard", expressions.len());
    for variable in dashboard["templating"]["list"].as_array().into_iter().flatten() {
        expressions.extend(variable["definition"].as_str().map(str::to_owned));
    }
    for rule in rules()? {
        expressions.push(rule["expr"].as_str().context("no expr")?.to_owned());
    }
    for expression in expressions {
        let asked = metrics(&expression);
        assert!(!asked.is_empty(), "{expression} asks for nothing");
        for metric in asked {
            let known = documented.contains(&metric) || FOREIGN.contains(&metric.as_str());
            assert!(known, "{expression}: no agent has {metric}");
        }
    }
    Ok(())
}

/// The names of metrics in the sources: whole string literals of the prefix, those with a gap as pieces around it.
fn in_sources() -> Result<BTreeSet<(String, String)>> {
    let mut names = BTreeSet::new();
    let mut folders = vec![path("guard-agent/src"), path("guard-cluster/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let file = entry?.path();
            if file.is_dir() {
                folders.push(file);
                continue;
            }
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            if file.extension().is_none_or(|extension| extension != "rs") || stem.ends_with("_tests") {
                continue;
            }
            let text = fs::read_to_string(&file)?;
            // Tests write series, with labels.
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for literal in text.split("\"egress_guard_").skip(1).filter_map(|rest| rest.split('"').next()) {
                let (before, after) = match (literal.find('{'), literal.rfind('}')) {
                    (Some(from), Some(to)) => (&literal[..from], &literal[to + 1..]),
                    _ => (literal, ""),
                };
                names.insert((format!("egress_guard_{before}"), after.to_owned()));
            }
        }
    }
    Ok(names)
}

#[test]
fn the_readme_documents_the_metrics_that_there_are() -> Result<()> {
    let (documented, sources) = (documented()?, in_sources()?);
    let derived = |name: &str| {
        let base = name
            .rsplit_once('_')
            .map_or("", |(base, part)| if ["bucket", "count", "sum"].contains(&part) { base } else { "" });
        documented.contains(base)
    };
    let is = |name: &str, (before, after): &(String, String)| {
        if after.is_empty() {
            name == before
        } else {
            name.starts_with(before.as_str()) && name.ends_with(after.as_str())
        }
    };
    let unknown: Vec<_> =
        documented.iter().filter(|name| !derived(name) && !sources.iter().any(|source| is(name, source))).collect();
    assert!(unknown.is_empty(), "documented, but no source has them: {unknown:?}");
    let missing: Vec<_> = sources.iter().filter(|source| !documented.iter().any(|name| is(name, source))).collect();
    assert!(missing.is_empty(), "in the sources, but not documented: {missing:?}");
    Ok(())
}
