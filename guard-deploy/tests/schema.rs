//! Every object is what its schema says, to the last key: read as its type and written again it is the same. A key that
//! the API does not know would be lost on the way, as the API server would drop or refuse it.

use anyhow::{Context as _, Result, bail};
use guard_deploy::{COMPONENTS, MODES, kustomize, objects};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Namespace, ResourceQuota, ServiceAccount},
    networking::v1::NetworkPolicy,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// What the oldest server, 1.20, serves of what is in every overlay.
const IN_1_20: [&str; 5] =
    ["v1", "apps/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1", "coordination.k8s.io/v1"];

fn again<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Value> {
    Ok(serde_json::to_value(T::deserialize(object)?)?)
}

fn typed(object: &Value) -> Result<Value> {
    let (version, kind) = (object["apiVersion"].as_str(), object["kind"].as_str());
    match (version.context("no apiVersion")?, kind.context("no kind")?) {
        ("v1", "Namespace") => again::<Namespace>(object),
        ("v1", "ServiceAccount") => again::<ServiceAccount>(object),
        ("v1", "ConfigMap") => again::<ConfigMap>(object),
        ("v1", "ResourceQuota") => again::<ResourceQuota>(object),
        ("apps/v1", "DaemonSet") => again::<DaemonSet>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => again::<NetworkPolicy>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => again::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => again::<ClusterRoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => again::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => again::<RoleBinding>(object),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => again::<ValidatingAdmissionPolicy>(object),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            again::<ValidatingAdmissionPolicyBinding>(object)
        }
        // The operator's own kinds: promtool reads the one (rules.rs), the other has few keys.
        ("monitoring.coreos.com/v1", "PrometheusRule") => Ok(object.clone()),
        ("monitoring.coreos.com/v1", "PodMonitor") => {
            let endpoint = &object["spec"]["podMetricsEndpoints"][0];
            assert_eq!(endpoint["port"], "metrics");
            assert_eq!(endpoint["honorLabels"], true);
            Ok(object.clone())
        }
        other => bail!("no schema for {other:?}"),
    }
}

#[test]
fn every_object_is_what_its_schema_says() -> Result<()> {
    for mode in MODES {
        for object in objects(&kustomize(mode, &COMPONENTS)?)? {
            let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
            let again = typed(&object).with_context(|| name.clone())?;
            assert!(again == object, "{mode}: {name} is\n{object:#}\nand its schema knows of it\n{again:#}");
        }
    }
    Ok(())
}

#[test]
fn a_key_that_the_schema_does_not_know_is_noticed() -> Result<()> {
    let policy = objects(&guard_deploy::read("deploy/kustomize/components/own-node/evictions.yaml")?)?.swap_remove(0);
    assert_eq!(typed(&policy)?, policy);
    for (pointer, key) in
        [("/spec", "matchConstraint"), ("/spec/matchConditions/0", "expr"), ("/spec/paramKind", "name")]
    {
        let mut wrong = policy.clone();
        wrong
            .pointer_mut(pointer)
            .and_then(Value::as_object_mut)
            .context("no such place")?
            .insert(key.into(), "x".into());
        assert_ne!(typed(&wrong)?, wrong, "{pointer}/{key} passes");
    }
    Ok(())
}

#[test]
fn the_overlays_ask_for_nothing_newer_than_kubernetes_1_20() -> Result<()> {
    for mode in MODES {
        for object in objects(&kustomize(mode, &["hardened", "grafana-dashboard"])?)? {
            let version = object["apiVersion"].as_str().unwrap_or_default();
            assert!(IN_1_20.contains(&version), "{mode}: {} is of {version}", object["kind"]);
        }
    }
    Ok(())
}
