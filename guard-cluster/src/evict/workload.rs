//! Whose pod it is, and how many others there are.

use guard_core::inventory::{Controller, Pod, Workload};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Outcome,
    wire::{What, Wire},
};
use crate::convert;

/// An object that makes pods, as far as anything is decided by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Maker {
    pub(crate) kind: String,
    pub(crate) uid: String,
    /// How many of its pods are Ready.
    pub(crate) ready: u32,
    /// The labels of its pods, as a list's `labelSelector`.
    pub(crate) selector: Option<String>,
}

/// All the kinds that are known here, as far as they are the same.
#[derive(Debug, Deserialize)]
struct Object {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    /// A [`LabelSelector`]; a plain map in a `ReplicationController`.
    selector: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    ready_replicas: Option<u32>,
    number_ready: Option<u32>,
    ready: Option<u32>,
    active: Option<u32>,
}

/// Where objects of a kind are: their group and version, and their name in a path.
fn place(kind: &str) -> Option<(&'static str, &'static str)> {
    Some(match kind {
        "Deployment" => ("apps/v1", "deployments"),
        "ReplicaSet" => ("apps/v1", "replicasets"),
        "StatefulSet" => ("apps/v1", "statefulsets"),
        "DaemonSet" => ("apps/v1", "daemonsets"),
        "Job" => ("batch/v1", "jobs"),
        "ReplicationController" => ("v1", "replicationcontrollers"),
        _ => return None,
    })
}

/// `None`: there is none of the kind that is called so.
fn uri(kind: &str, namespace: &str, name: &str) -> Option<String> {
    if !convert::is_name(name) {
        return None;
    }
    let (version, plural) = place(kind)?;
    let root = if version.contains('/') { "/apis" } else { "/api" };
    Some(format!("{root}/{version}/namespaces/{namespace}/{plural}/{name}"))
}

/// What the pod's controller belongs to in the end: its own controller, of a ReplicaSet or a Job; else it is the workload
/// itself.
pub(crate) async fn of_pod(wire: &Wire, pod: &Pod) -> Result<Option<Workload>, Outcome> {
    let Some(controller) = &pod.controller else { return Ok(None) };
    let workload =
        |it: &Controller| Workload { kind: it.kind.clone(), namespace: pod.namespace.clone(), name: it.name.clone() };
    let above = match controller.kind.as_str() {
        "ReplicaSet" | "Job" if is_ours(controller) => {
            parent(wire, &pod.namespace, &controller.kind, &controller.name).await?
        }
        _ => None,
    };
    Ok(Some(workload(above.as_ref().unwrap_or(controller))))
}

/// The controller of a ReplicaSet or a Job. `None`: it has none, or is not there any more.
pub(crate) async fn parent(
    wire: &Wire,
    namespace: &str,
    kind: &str,
    name: &str,
) -> Result<Option<Controller>, Outcome> {
    let Some(uri) = uri(kind, namespace, name) else { return Ok(None) };
    let object = wire.get::<Object>(What::Workload, &uri).await?;
    Ok(object.and_then(|(object, _)| convert::controller(&object.metadata)))
}

/// What makes the pod's replacement and its like: its workload if that is of a kind that counts its pods, else its
/// controller. `None`: neither is.
pub(crate) async fn maker(wire: &Wire, pod: &Pod) -> Result<Option<Maker>, Outcome> {
    let Some(controller) = &pod.controller else { return Ok(None) };
    if let Some(workload) = &pod.workload
        && (&workload.kind, &workload.name) != (&controller.kind, &controller.name)
        && let Some(maker) = get(wire, &workload.kind, &pod.namespace, &workload.name).await?
    {
        return Ok(Some(maker));
    }
    if !is_ours(controller) {
        return Ok(None);
    }
    let maker = get(wire, &controller.kind, &pod.namespace, &controller.name).await?;
    // Another one of its name is not it.
    Ok(maker.filter(|maker| maker.uid == controller.uid))
}

async fn get(wire: &Wire, kind: &str, namespace: &str, name: &str) -> Result<Option<Maker>, Outcome> {
    let Some(uri) = uri(kind, namespace, name) else { return Ok(None) };
    let object = wire.get::<Object>(What::Workload, &uri).await?;
    Ok(object.map(|(object, _)| made_of(kind, object)))
}

/// Other groups have kinds of the same names.
fn is_ours(controller: &Controller) -> bool {
    place(&controller.kind).is_some_and(|(version, _)| version == controller.api_version)
}

fn made_of(kind: &str, object: Object) -> Maker {
    let Object { metadata, spec, status } = object;
    // Jobs tell of ready pods since Kubernetes 1.24.
    let ready = match kind {
        "DaemonSet" => status.number_ready,
        "Job" => status.ready.or(status.active),
        _ => status.ready_replicas,
    };
    let selector = if kind == "ReplicationController" {
        let match_labels = serde_json::from_value(spec.selector).ok();
        Some(LabelSelector { match_labels, match_expressions: None })
    } else {
        serde_json::from_value(spec.selector).ok()
    };
    Maker {
        kind: kind.to_owned(),
        uid: metadata.uid.unwrap_or_default(),
        // A count of zero is left out.
        ready: ready.unwrap_or(0),
        selector: selector.and_then(|selector| text(&selector)),
    }
}

/// A selector as the text that a list takes. `None`: it selects nothing, or cannot be said so.
fn text(selector: &LabelSelector) -> Option<String> {
    let LabelSelector { match_labels, match_expressions } = selector;
    let equal = match_labels.iter().flatten().map(|(name, value)| Some(format!("{name}={value}")));
    let expressions = match_expressions.iter().flatten().map(|it| {
        let (key, values) = (&it.key, it.values.as_deref().unwrap_or_default().join(","));
        Some(match it.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.clone(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        })
    });
    let all: Vec<String> = equal.chain(expressions).collect::<Option<_>>()?;
    (!all.is_empty()).then(|| all.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn where_objects_are() {
        let cases = [
            ("Deployment", Some("/apis/apps/v1/namespaces/shop/deployments/web")),
            ("ReplicaSet", Some("/apis/apps/v1/namespaces/shop/replicasets/web")),
            ("StatefulSet", Some("/apis/apps/v1/namespaces/shop/statefulsets/web")),
            ("DaemonSet", Some("/apis/apps/v1/namespaces/shop/daemonsets/web")),
            ("Job", Some("/apis/batch/v1/namespaces/shop/jobs/web")),
            ("ReplicationController", Some("/api/v1/namespaces/shop/replicationcontrollers/web")),
            ("Rollout", None),
            ("CronJob", None),
        ];
        for (kind, expected) in cases {
            assert_eq!(uri(kind, "shop", "web").as_deref(), expected, "{kind}");
        }
        // Whoever writes a pod may have it belong to anything.
        for name in ["../../secrets/s", "web?watch=true", "web/scale", "..", "", "web%2fscale", "web\r\nX: y"] {
            assert_eq!(uri("Deployment", "shop", name), None, "{name:?}");
        }
    }

    #[test]
    fn how_many_are_ready_and_how_its_pods_are_known() {
        let by_label = json!({"matchLabels": {"app": "web"}});
        let cases = [
            ("Deployment", by_label.clone(), json!({"replicas": 5, "readyReplicas": 3}), 3),
            ("Deployment", by_label.clone(), json!({"replicas": 5}), 0),
            ("StatefulSet", by_label.clone(), json!({"readyReplicas": 2}), 2),
            ("DaemonSet", by_label.clone(), json!({"numberReady": 7, "readyReplicas": 1}), 7),
            ("Job", by_label.clone(), json!({"active": 4, "ready": 1}), 1),
            ("Job", by_label, json!({"active": 4}), 4),
            ("ReplicationController", json!({"app": "web"}), json!({"readyReplicas": 6}), 6),
        ];
        for (kind, selector, status, ready) in cases {
            let object = json!({"metadata": {"uid": "u"}, "spec": {"selector": selector}, "status": status});
            let maker = made_of(kind, serde_json::from_value(object).expect("an object"));
            let selector = Some("app=web".into());
            assert_eq!(maker, Maker { kind: kind.into(), uid: "u".into(), ready, selector }, "{kind} {status}");
        }
    }

    #[test]
    fn a_selector_as_a_list_takes_it() {
        let selector = |expressions| {
            let selector = json!({"matchLabels": {"app": "web", "tier": "front"}, "matchExpressions": expressions});
            text(&serde_json::from_value(selector).expect("a selector"))
        };
        let said = selector(json!([
            {"key": "a", "operator": "In", "values": ["x", "y"]}, {"key": "b", "operator": "NotIn", "values": ["z"]},
            {"key": "c", "operator": "Exists"}, {"key": "d", "operator": "DoesNotExist"},
        ]));
        assert_eq!(said.as_deref(), Some("app=web,tier=front,a in (x,y),b notin (z),c,!d"));
        assert_eq!(selector(json!([{"key": "a", "operator": "Resembles"}])), None);
        assert_eq!(text(&LabelSelector::default()), None);
    }
}
