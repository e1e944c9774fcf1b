//! Which disruption budgets are for a pod.

use std::collections::BTreeMap;

use guard_core::inventory::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::core::SelectorExt as _;
use serde::Deserialize;

use super::{
    Outcome,
    wire::{What, Wire},
};
use crate::convert;

/// Budgets of both versions, as far as they are the same.
#[derive(Debug, Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Budget>,
}

#[derive(Debug, Deserialize)]
struct Budget {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    selector: Option<LabelSelector>,
}

/// The names of the budgets that select a pod.
pub(crate) async fn of_pod(wire: &Wire, pod: &Pod) -> Result<Vec<String>, Outcome> {
    // Both versions' selectors differ in one thing: an empty one selects all pods in v1, none in v1beta1.
    for (version, empty) in [("v1", true), ("v1beta1", false)] {
        let uri = format!("/apis/policy/{version}/namespaces/{}/poddisruptionbudgets", pod.namespace);
        if let Some((List { items }, _)) = wire.get(What::Budget, &uri).await? {
            return Ok(names(items, &pod.labels, empty));
        }
    }
    Ok(vec![])
}

fn names(budgets: Vec<Budget>, labels: &BTreeMap<String, String>, empty: bool) -> Vec<String> {
    let selects = |budget: &Budget| budget.spec.selector.as_ref().is_some_and(|it| matches(it, labels, empty));
    let mut names: Vec<String> =
        budgets.into_iter().filter(selects).filter_map(|budget| budget.metadata.name).collect();
    names.sort();
    names
}

fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>, empty: bool) -> bool {
    convert::selector(selector.clone(), empty).is_some_and(|selector| selector.matches(labels))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_budget_is_for_the_pods_that_its_selector_says() {
        let labels: BTreeMap<String, String> =
            [("app", "web"), ("tier", "front")].map(|(k, v)| (k.into(), v.into())).into();
        let is =
            |selector: Value, empty| matches(&serde_json::from_value(selector).expect("a selector"), &labels, empty);
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let cases = [
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "web", "tier": "back"}}), false),
            (json!({"matchLabels": {"other": "web"}}), false),
            (expression("app", "In", &["db", "web"]), true),
            (expression("app", "In", &["db"]), false),
            (expression("other", "In", &["db"]), false),
            (expression("app", "NotIn", &["db"]), true),
            (expression("app", "NotIn", &["web"]), false),
            (expression("other", "NotIn", &["web"]), true),
            (expression("app", "Exists", &[]), true),
            (expression("other", "Exists", &[]), false),
            (expression("app", "DoesNotExist", &[]), false),
            (expression("other", "DoesNotExist", &[]), true),
            (expression("app", "Resembles", &["web"]), false),
        ];
        for (selector, expected) in cases {
            assert_eq!(is(selector.clone(), true), expected, "{selector}");
        }
        assert!(is(json!({}), true), "an empty selector of v1 selects all");
        assert!(!is(json!({}), false), "an empty selector of v1beta1 selects none");
        let budgets = json!([
            {"metadata": {"name": "b"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}},
            {"metadata": {"name": "other"}, "spec": {"selector": {"matchLabels": {"app": "db"}}}},
            {"metadata": {"name": "none"}, "spec": {}},
            {"metadata": {"name": "a"}, "spec": {"selector": {}}},
        ]);
        let budgets = serde_json::from_value(budgets).expect("budgets");
        assert_eq!(names(budgets, &labels, true), ["a", "b"]);
    }
}
