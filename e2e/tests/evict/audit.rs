//! `guard-agent audit` of a real cluster.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};
use guard_e2e::{Behaviour, ControlPlane, Kubelet, Space, objects::deployment};
use guard_tests::sibling;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

/// The exit code, what it prints, and what it complains about.
fn audit(kubeconfig: &Path, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let mut command = Command::new(sibling("guard-agent")?);
    let output = command.arg("audit").args(arguments).env("KUBECONFIG", kubeconfig).output()?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

/// The findings of a check in the only workload of a namespace, and the exit code.
fn findings(plane: &ControlPlane, space: &Space, check: &str) -> Result<(Option<i32>, Vec<Value>)> {
    let (code, said, complaint) = audit(&plane.kubeconfig_admin(), &["-n", &space.name, "-o", "json"])?;
    let said: Value = serde_json::from_str(&said).with_context(|| complaint)?;
    let workloads = said["workloads"].as_array().context("no list")?;
    assert_eq!(workloads.len(), 1, "{said:#}");
    assert_eq!(workloads[0]["name"], "web", "{said:#}");
    let findings = workloads[0]["findings"].as_array().into_iter().flatten();
    Ok((code, findings.filter(|finding| finding["check"] == check).cloned().collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_says_where_the_hammer_may_not_fall() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let client = plane.admin().await?;
    let space = Space::new(&client).await?;
    let nodes = ["node-audit-1", "node-audit-2"];
    let _kubelet = Kubelet::start(&client, &space.name, &nodes, Behaviour::default()).await?;
    space.create::<Deployment>(deployment("web", 3)).await?;
    space.ready("web", 3).await?;
    space.budget("keep-two", "web", 2).await?;
    space.budget_allows("keep-two", 1).await?;
    let (code, budget) = findings(plane, &space, "budget")?;
    assert_eq!((code, &budget[0]["verdict"]), (Some(0), &json!("ok")), "{budget:?}");

    space.budget("another", "web", 1).await?;
    let (code, budget) = findings(plane, &space, "budget")?;
    assert_eq!((code, &budget[0]["verdict"]), (Some(1), &json!("unsafe")), "{budget:?}");
    let reason = budget[0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("another") && reason.contains("keep-two"), "{reason}");

    let one = Patch::Merge(json!({"spec": {"replicas": 1}}));
    space.api::<Deployment>().patch("web", &PatchParams::default(), &one).await?;
    space.ready("web", 1).await?;
    let (code, replicas) = findings(plane, &space, "replicas")?;
    assert_eq!((code, &replicas[0]["declined"]), (Some(1), &json!("last_replica")), "{replicas:?}");
    // The table says it to people.
    let (code, table, complaint) = audit(&plane.kubeconfig_admin(), &["-n", &space.name])?;
    assert_eq!(code, Some(1), "{complaint}");
    assert!(table.contains("Deployment/web") && complaint.contains("unsafe"), "{table}\n{complaint}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_list_gets_no_verdict() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let space = Space::new(&plane.admin().await?).await?;
    let nobody = plane.kubeconfig_for_account(&space.name, "default", None).await?;
    let (code, said, complaint) = audit(&nobody, &["-n", &space.name])?;
    assert_eq!((code, said.as_str()), (Some(2), ""), "{complaint}");
    assert!(complaint.contains("you may not list"), "{complaint}");
    Ok(())
}
