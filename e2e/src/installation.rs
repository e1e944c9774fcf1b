//! The agent as its users install it: the manifests' objects, applied to the API server, and an identity with just their
//! rights.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind, TypeMeta},
};
use serde_json::{Value, json};

use crate::{ControlPlane, Space, control_plane};

/// The name of all objects of an installation.
const NAME: &str = "egress-guard";

/// An installation in a namespace of its own: budgets and the kill switch of one test are not another's.
#[derive(Debug)]
pub struct Installation {
    /// The namespace of the agents.
    pub space: Space,
    /// A kubeconfig with the agents' identity.
    pub kubeconfig: PathBuf,
}

impl Installation {
    /// Applies what the overlay `mode` renders, but for what needs a kubelet, and with this policy file.
    pub async fn new(plane: &ControlPlane, mode: &str, config: &str) -> Result<Self> {
        let client = plane.admin().await?;
        let space = Space::new(&client).await?;
        for object in guard_deploy::objects(&guard_deploy::kustomize(mode, &[])?)? {
            let kind = object["kind"].as_str().unwrap_or_default();
            if matches!(kind, "ServiceAccount" | "ConfigMap") || object["apiVersion"] == "rbac.authorization.k8s.io/v1"
            {
                apply(&client, moved(object, &space.name, config)).await?;
            }
        }
        control_plane::service_account(&client, &space.name, NAME).await?;
        let kubeconfig = plane.kubeconfig_for_account(&space.name, NAME, None).await?;
        Ok(Self { space, kubeconfig })
    }

    /// Writes a key of the ConfigMap.
    pub async fn write(&self, key: &str, value: &str) -> Result<()> {
        self.patch(&json!({"data": {key: value}})).await
    }

    /// What the README's one-liners do.
    pub async fn kill_switch(&self, word: &str) -> Result<()> {
        self.write("kill-switch", word).await
    }

    /// Merges something into the ConfigMap.
    pub async fn patch(&self, patch: &Value) -> Result<()> {
        let maps: Api<ConfigMap> = self.space.api();
        maps.patch(NAME, &PatchParams::default(), &Patch::Merge(patch)).await.context("patch the ConfigMap")?;
        Ok(())
    }
}

/// An object in another namespace; what is the whole cluster's has another name.
fn moved(mut object: Value, namespace: &str, config: &str) -> Value {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    if kind.starts_with("Cluster") {
        let name = format!("{}-{namespace}", object["metadata"]["name"].as_str().unwrap_or_default());
        object["metadata"]["name"] = json!(name);
    } else {
        object["metadata"]["namespace"] = json!(namespace);
    }
    if kind == "ClusterRoleBinding" {
        let name = format!("{}-{namespace}", object["roleRef"]["name"].as_str().unwrap_or_default());
        object["roleRef"]["name"] = json!(name);
    }
    for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        subject["namespace"] = json!(namespace);
    }
    if kind == "ConfigMap" {
        object["data"]["config.yaml"] = json!(config);
    }
    object
}

/// Server-side apply, as `kubectl apply --server-side`.
pub async fn apply(client: &Client, object: Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object)?;
    let TypeMeta { api_version, kind } = object.types.clone().context("an object without a kind")?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    // All of the manifests' kinds have regular plurals but this one.
    let resource = match kind.as_str() {
        "NetworkPolicy" => {
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, &kind), "networkpolicies")
        }
        _ => ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind)),
    };
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = object.metadata.name.clone().context("an object without a name")?;
    let applied = api.patch(&name, &PatchParams::apply("e2e"), &Patch::Apply(&object)).await;
    let applied = applied.with_context(|| format!("apply {kind} {name}"))?;
    ensure!(applied.metadata.uid.is_some(), "{kind} {name} was not made");
    Ok(())
}
