//! Both ways to deploy come to the same.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use guard_deploy::{MODES, helm, kustomize, objects};
use serde_json::Value;

/// What a component is called in the chart.
const VALUES: [(&str, &str); 4] = [
    ("hardened", "hardened=true"),
    ("own-node", "ownNode=true"),
    ("prometheus-operator", "podMonitor.enabled=true,prometheusRule.enabled=true"),
    ("grafana-dashboard", "dashboard.enabled=true"),
];

/// The objects by kind and name, without what may differ: the chart's own labels and the form of the texts within.
fn normal(text: &str) -> Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for mut object in objects(text)? {
        let metadata = &mut object["metadata"];
        for label in ["app.kubernetes.io/managed-by", "helm.sh/chart"] {
            metadata["labels"].as_object_mut().context("an object without labels")?.remove(label);
        }
        let key = format!("{} {} {}", object["kind"], object["metadata"]["namespace"], object["metadata"]["name"]);
        if object["kind"] == "ConfigMap" {
            for text in object["data"].as_object_mut().context("a map without data")?.values_mut() {
                let parsed: Value = serde_saphyr::from_str(text.as_str().context("not a text")?)
                    .map_err(|error| anyhow::anyhow!("{key}: {error}"))?;
                *text = parsed;
            }
        }
        // A patch may put a list of named things into another order.
        let containers = object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            for (list, key) in [("volumeMounts", "mountPath"), ("env", "name")] {
                let named = container[list].as_array_mut().with_context(|| format!("a container without {list}"))?;
                named.sort_by_key(|item| item[key].to_string());
            }
        }
        assert!(all.insert(key.clone(), object).is_none(), "{key} is there twice");
    }
    Ok(all)
}

fn assert_equal(mode: &str, components: &[&str]) -> Result<()> {
    let mut kustomized = normal(&kustomize(mode, components)?)?;
    // Helm keeps its own books in the release's namespace, so it must be there before.
    assert!(kustomized.remove(r#""Namespace" null "egress-guard""#).is_some(), "kustomize makes no namespace");
    let mode_value = format!("mode={mode}");
    let mut values = vec![mode_value.as_str()];
    values.extend(VALUES.iter().filter(|(component, _)| components.contains(component)).map(|(_, value)| *value));
    let charted = normal(&helm(&values)?)?;
    let names = |of: &BTreeMap<String, Value>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&kustomized), names(&charted), "{mode} with {components:?}: objects");
    for (name, object) in &kustomized {
        let other = &charted[name];
        assert!(object == other, "{mode} with {components:?}: {name} is by kustomize\n{object:#}\nby Helm\n{other:#}");
    }
    Ok(())
}

#[test]
fn kustomize_and_helm_come_to_the_same_in_every_mode() -> Result<()> {
    for mode in MODES {
        assert_equal(mode, &[])?;
        assert_equal(mode, &["hardened"])?;
        assert_equal(mode, &["hardened", "own-node", "prometheus-operator", "grafana-dashboard"])?;
    }
    Ok(())
}

#[test]
fn every_component_does_something_by_itself() -> Result<()> {
    let plain = normal(&kustomize("evict", &[])?)?;
    for (component, _) in VALUES {
        assert_equal("evict", &[component])?;
        assert_ne!(normal(&kustomize("evict", &[component])?)?, plain, "{component} changes nothing");
    }
    Ok(())
}
