//! Kubernetes objects for tests, as JSON: what a test wants otherwise it [`merge`]s in.

use serde_json::{Value, json};

/// The image of every container here.
pub const IMAGE: &str = "registry.test/web:1";

/// Lays `patch` over an object as a merge patch does (RFC 7386): `null` removes, lists are replaced.
#[must_use]
pub fn merge(mut object: Value, patch: Value) -> Value {
    merge_into(&mut object, patch);
    object
}

fn merge_into(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().and_then(|target| target.remove(&key));
        } else {
            merge_into(&mut target[&key], value);
        }
    }
}

/// A `Deployment` whose pods have the label `app: <name>` and one container, `main`.
#[must_use]
pub fn deployment(name: &str, replicas: u32) -> Value {
    let spec = json!({"replicas": replicas, "selector": selector(name), "template": template(name)});
    object("apps/v1", "Deployment", name, spec)
}

/// A `StatefulSet`, likewise.
#[must_use]
pub fn stateful_set(name: &str, replicas: u32) -> Value {
    let spec =
        json!({"replicas": replicas, "selector": selector(name), "serviceName": name, "template": template(name)});
    object("apps/v1", "StatefulSet", name, spec)
}

/// A `DaemonSet`, likewise.
#[must_use]
pub fn daemon_set(name: &str) -> Value {
    object("apps/v1", "DaemonSet", name, json!({"selector": selector(name), "template": template(name)}))
}

/// A `Job`, likewise; its pods run until they are deleted.
#[must_use]
pub fn job(name: &str, parallelism: u32) -> Value {
    let template = merge(template(name), json!({"spec": {"restartPolicy": "Never"}}));
    object("batch/v1", "Job", name, json!({"parallelism": parallelism, "template": template}))
}

/// A pod without a controller, likewise.
#[must_use]
pub fn pod(name: &str) -> Value {
    merge(object("v1", "Pod", name, json!({})), template(name))
}

/// A `PodDisruptionBudget` in `policy/v1beta1`, the only version that this API server has, for the pods with the label
/// `app: <app>`.
#[must_use]
pub fn budget(name: &str, app: &str, min_available: u32) -> Value {
    let spec = json!({"minAvailable": min_available, "selector": selector(app)});
    object("policy/v1beta1", "PodDisruptionBudget", name, spec)
}

/// An Eviction of a pod in this version of the group `policy`.
#[must_use]
pub fn eviction(version: &str, pod: &str) -> Value {
    json!({"apiVersion": format!("policy/{version}"), "kind": "Eviction", "metadata": {"name": pod}})
}

fn object(api_version: &str, kind: &str, name: &str, spec: Value) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    object["spec"] = spec;
    object
}

fn selector(app: &str) -> Value {
    json!({"matchLabels": {"app": app}})
}

fn template(app: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": "main", "image": IMAGE}]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_replaces_removes_and_reaches_in() {
        let patch = json!({"spec": {"replicas": 2, "selector": null, "paused": {"since": 1}}});
        let merged = merge(deployment("web", 1), patch);
        assert_eq!(merged["spec"]["replicas"], 2);
        assert_eq!(merged["spec"].get("selector"), None);
        assert_eq!(merged["spec"]["paused"]["since"], 1);
        assert_eq!(merged["spec"]["template"], deployment("web", 1)["spec"]["template"], "something else changed");
    }
}
