//! An API server's pod as the core knows it.

use std::collections::{BTreeMap, BTreeSet};

use guard_core::inventory::{Container, Controller, PREFIX, Phase, Pod, Volume};
use k8s_openapi::{
    api::core::v1::{self as api, ContainerStatus, PersistentVolumeSpec, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};
use kube::core::Selector;

/// On the mirror of a static pod, by kubelet.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// On a static pod and its mirror, by kubelet: the hash of its manifest, which is the UID that kubelet itself gives it.
const HASH: &str = "kubernetes.io/config.hash";

/// What is known of a pod by itself. [`Pod::workload`] is left open: whose its controller is, other objects say.
#[must_use]
pub fn pod(pod: &api::Pod) -> Pod {
    let api::Pod { metadata, spec, status } = pod;
    let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
    let (spec, status) = (spec.as_ref().unwrap_or(&no_spec), status.as_ref().unwrap_or(&no_status));
    let annotations = metadata.annotations.as_ref();
    let annotation = |name: &str| annotations.and_then(|all| all.get(name));
    let mirror = annotation(MIRROR).is_some();
    let ours = annotations.into_iter().flatten().filter_map(|(name, value)| {
        let name = name.strip_prefix(PREFIX)?;
        Some((name.to_owned(), value.clone()))
    });
    Pod {
        uid: metadata.uid.clone().unwrap_or_default(),
        cgroup_uid: annotation(HASH).filter(|_| mirror).cloned(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        labels: metadata.labels.clone().unwrap_or_default(),
        annotations: ours.collect(),
        controller: controller(metadata),
        workload: None,
        qos: status.qos_class.clone().unwrap_or_default(),
        priority_class: spec.priority_class_name.clone().unwrap_or_default(),
        priority: spec.priority.unwrap_or(0),
        phase: phase(status.phase.as_deref()),
        mirror,
        terminating: metadata.deletion_timestamp.is_some(),
        ready: status.conditions.iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True"),
        created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        grace: spec.termination_grace_period_seconds,
        volumes: volumes(spec),
        containers: containers(spec, status),
    }
}

/// The owner that makes the pod's replacement: that with `controller: true`.
#[must_use]
pub fn controller(metadata: &ObjectMeta) -> Option<Controller> {
    let mut owners = metadata.owner_references.iter().flatten();
    let OwnerReference { api_version, kind, name, uid, .. } = owners.find(|owner| owner.controller == Some(true))?;
    Some(Controller { api_version: plain(api_version), kind: plain(kind), name: plain(name), uid: uid.clone() })
}

/// The longest name that an object may have.
const LONGEST: usize = 253;

/// What whoever writes a pod may choose freely, as it may stand in a log, in an Event and in a path: of owners' names, kinds
/// and versions the API server asks no more than that they are not empty, of images and claims hardly more.
fn plain(text: &str) -> String {
    let fits = |c: &char| c.is_ascii_alphanumeric() || "-._:/@".contains(*c);
    text.chars().take(LONGEST).map(|c| if fits(&c) { c } else { '_' }).collect()
}

/// Whether an object of the kinds that are asked for may be called so (RFC 1123, subdomain). What may not is not there, and
/// would make another request of the path that it stands in.
pub(crate) fn is_name(text: &str) -> bool {
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
            && [bytes.first(), bytes.last()].into_iter().all(|end| end.is_some_and(|byte| *byte != b'-'))
    };
    text.len() <= LONGEST && text.split('.').all(is_part)
}

fn phase(phase: Option<&str>) -> Phase {
    match phase {
        Some("Pending") => Phase::Pending,
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        _ => Phase::Unknown,
    }
}

fn volumes(spec: &PodSpec) -> Vec<Volume> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mounts = containers.flat_map(|container| container.volume_mounts.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten().flat_map(|it| it.volume_mounts.iter().flatten());
    let writable: BTreeSet<&str> =
        mounts.chain(ephemeral).filter(|it| it.read_only != Some(true)).map(|it| it.name.as_str()).collect();
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| {
        let name = volume.name.clone();
        if let Some(folder) = volume.host_path.as_ref() {
            return writable.contains(name.as_str()).then(|| Volume::HostPath { name, path: folder.path.clone() });
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            return Some(Volume::Claim { name, claim: plain(&claim.claim_name) });
        }
        // A generic ephemeral volume's claim belongs to the pod and goes with it, wherever it is.
        (volume.empty_dir.is_some() || volume.ephemeral.is_some()).then_some(Volume::EmptyDir { name })
    });
    volumes.collect()
}

fn containers(spec: &PodSpec, status: &PodStatus) -> Vec<Container> {
    let PodStatus { container_statuses, init_container_statuses, ephemeral_container_statuses, .. } = status;
    let statuses = [container_statuses, init_container_statuses, ephemeral_container_statuses];
    let statuses: BTreeMap<&str, &ContainerStatus> =
        statuses.into_iter().flatten().flatten().map(|status| (status.name.as_str(), status)).collect();
    let named = |it: &api::Container| (it.name.clone(), it.image.clone());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|it| (it.name.clone(), it.image.clone()));
    let all = spec.containers.iter().map(named).chain(spec.init_containers.iter().flatten().map(named));
    let containers = all.chain(ephemeral).map(|(name, image)| {
        let status = statuses.get(name.as_str());
        Container {
            id: status.and_then(|it| id(it.container_id.as_deref()?)).unwrap_or_default(),
            digest: status.and_then(|it| digest(&it.image_id)).unwrap_or_default(),
            ready: status.is_some_and(|it| it.ready),
            image: image.map(|image| plain(&image)).unwrap_or_default(),
            name,
        }
    });
    containers.collect()
}

/// Of `containerd://<id>`, `docker://<id>`, `cri-o://<id>`.
fn id(container: &str) -> Option<String> {
    let (_, id) = container.split_once("://")?;
    is_hash(id).then(|| id.to_owned())
}

/// Of `docker.io/library/nginx@sha256:<hash>`, `docker-pullable://nginx@sha256:<hash>`, or a bare `sha256:<hash>`.
fn digest(image: &str) -> Option<String> {
    let (_, hash) = image.rsplit_once("sha256:")?;
    is_hash(hash).then(|| format!("sha256:{hash}"))
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether what is in a volume is on one node only. One that is not there counts as such: what it is cannot be known.
pub(crate) fn is_local(volume: Option<&PersistentVolumeSpec>) -> bool {
    volume.is_none_or(|volume| volume.local.is_some() || volume.host_path.is_some())
}

/// A disruption budget's selector; `empty`: one that says nothing selects all pods, as in `policy/v1`. `None`: it selects none.
pub(crate) fn selector(selector: LabelSelector, empty: bool) -> Option<Selector> {
    // One that cannot be read selects nothing for the API server either.
    let selector = Selector::try_from(selector).ok()?;
    (empty || !selector.selects_all()).then_some(selector)
}

/// An error with its causes: the outermost alone often says no more than "service error".
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
