//! What a kubelet says of a pod: ids, digests, conditions.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::Behaviour;

/// The id that a pod's container has here: 64 hex digits, without the runtime's prefix.
#[must_use]
pub fn container_id(pod: &Pod, container: &str) -> String {
    hex((pod.uid().unwrap_or_default(), container))
}

/// The digest that an image has here unless [`Behaviour::digests`] says another.
#[must_use]
pub fn digest(image: &str) -> String {
    format!("sha256:{}", hex(image))
}

/// What a kubelet says of a pod whose containers run. Merged, the labels stay as they are.
pub(super) fn status(pod: &Pod, ready: bool, behaviour: &Behaviour) -> Value {
    let spec = pod.spec.as_ref();
    let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let now = now();
    let statuses = |containers: &[Container], ready: bool, state: &Value| -> Vec<Value> {
        containers.iter().map(|container| container_status(pod, container, ready, state, behaviour)).collect()
    };
    let finished = json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}});
    json!({"status": {
        "phase": "Running",
        "startTime": now,
        "hostIP": "192.0.2.1",
        "podIP": "198.51.100.1",
        "podIPs": [{"ip": "198.51.100.1"}],
        "conditions": conditions(ready),
        "containerStatuses": statuses(containers, ready, &json!({"running": {"startedAt": now}})),
        "initContainerStatuses": statuses(init, true, &finished),
    }})
}

fn container_status(pod: &Pod, container: &Container, ready: bool, state: &Value, behaviour: &Behaviour) -> Value {
    let image = container.image.as_deref().unwrap_or_default();
    let digest = behaviour.digests.get(image).cloned().unwrap_or_else(|| digest(image));
    // A name's part behind the last colon is a tag, unless that is the registry's port.
    let name = image.split('@').next().unwrap_or_default();
    let name = name.rsplit_once(':').map_or(name, |(name, tag)| if tag.contains('/') { image } else { name });
    json!({
        "name": container.name,
        "ready": ready,
        "started": true,
        "restartCount": 0,
        "image": image,
        "imageID": format!("{name}@{digest}"),
        "containerID": format!("containerd://{}", container_id(pod, &container.name)),
        "state": state,
    })
}

pub(super) fn conditions(ready: bool) -> Value {
    let condition = |kind: &str, holds: bool| {
        json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "lastTransitionTime": now(),
        })
    };
    json!([
        condition("Initialized", true),
        condition("PodScheduled", true),
        condition("ContainersReady", ready),
        condition("Ready", ready),
    ])
}

/// The API has whole seconds.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// 64 hex digits that depend on `what` alone.
fn hex(what: impl std::hash::Hash) -> String {
    let part = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, &what).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    (0..4).map(part).collect()
}
