//! What an operator applies, applied: every overlay, and the chart, to a real API server.

use anyhow::Result;
use guard_deploy::{MODES, helm, kustomize, objects};
use guard_e2e::{ControlPlane, installation::apply};
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::ConfigMap, rbac::v1::ClusterRole};
use kube::Api;

/// What the test's API server, which is older than they are, does not have.
const UNKNOWN: [&str; 1] = ["admissionregistration.k8s.io/v1"];

/// Admission checks each object as it is for an operator, though no kubelet starts anything here.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_takes_all_of_every_overlay_and_of_the_chart() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let client = plane.admin().await?;
    let mut taken = 0;
    for mode in MODES {
        for components in [&[][..], &["hardened"]] {
            let chart = helm(&[&format!("mode={mode}"), &format!("hardened={}", !components.is_empty())])?;
            for text in [kustomize(mode, components)?, chart] {
                for object in objects(&text)? {
                    assert!(!UNKNOWN.contains(&object["apiVersion"].as_str().unwrap_or_default()), "{object}");
                    apply(&client, object).await?;
                    taken += 1;
                }
                // The last one that was applied is the one in force.
                let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "egress-guard");
                let data = maps.get("egress-guard").await?.data.unwrap_or_default();
                assert!(data["config.yaml"].contains(&format!("mode: {mode}")), "{data:?}");
                assert_eq!(data["kill-switch"], "off");
                let sets: Api<DaemonSet> = Api::namespaced(client.clone(), "egress-guard");
                let pod = sets.get("egress-guard").await?.spec.and_then(|spec| spec.template.spec).unwrap_or_default();
                let privileged = pod.containers[0].security_context.as_ref().and_then(|context| context.privileged);
                assert_eq!(privileged.unwrap_or(false), components.is_empty(), "{mode} {components:?}");
            }
        }
    }
    assert!(taken > 100, "{taken} objects are fewer than twelve renderings have");
    // Rights to evict came with the overlay that has them, and with no other.
    let roles: Api<ClusterRole> = Api::all(client);
    let evicts = |role: &ClusterRole| {
        role.rules.iter().flatten().any(|rule| rule.resources.iter().flatten().any(|it| it == "pods/eviction"))
    };
    assert!(!evicts(&roles.get("egress-guard").await?));
    assert!(evicts(&roles.get("egress-guard-evict").await?));
    Ok(())
}
