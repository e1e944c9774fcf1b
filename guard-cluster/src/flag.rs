//! The annotation on a pod that has breached a limit.

use std::sync::Arc;

use guard_core::inventory::{PREFIX, Pod};
use k8s_openapi::api::core::v1 as api;
use kube::{
    Api, Client, Error,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde_json::json;

/// Who owns the annotation (`metadata.managedFields`): it alone of all that is on the pod.
const MANAGER: &str = "egress-guard";

/// A flag for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    pub(crate) pod: Arc<Pod>,
    pub(crate) value: String,
}

/// Server-side apply (Kubernetes 1.22; on by default since 1.16). With the UID in what is applied it is a conflict (409) if
/// the pod is gone, where one would be made otherwise, and invalid (422) if another has its name.
pub(crate) async fn apply(client: &Client, flag: &Flag) -> Result<(), Error> {
    let Flag { pod, value } = flag;
    let Pod { namespace, name, uid, .. } = &**pod;
    let pods: Api<PartialObjectMeta<api::Pod>> = Api::namespaced(client.clone(), namespace);
    let applied = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": uid,
            "annotations": {format!("{PREFIX}flagged"): value},
        },
    });
    // Whoever has set it by hand is not the one who knows.
    let ours = PatchParams::apply(MANAGER).force();
    pods.patch(name, &ours, &Patch::Apply(&applied)).await.map(drop)
}
