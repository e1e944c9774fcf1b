//! Budgets: the cluster's own disruption budgets, and the guard's for a workload.

use std::time::Duration;

use anyhow::Result;
use guard_e2e::{
    ControlPlane,
    objects::deployment,
    stage::{Stage, config},
};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{ROOM, counts};

#[tokio::test(flavor = "multi_thread")]
async fn a_disruption_budget_refuses_and_then_allows() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config("", "")).await?;
    stage.space.create::<Deployment>(deployment("web", 2)).await?;
    let breacher = stage.space.ready("web", 2).await?.remove(0);
    stage.space.budget("keep-two", "web", 2).await?;
    stage.space.budget_allows("keep-two", 0).await?;
    stage.run(&breacher).await?;
    let _attack = stage.attack(&breacher)?;
    stage.ended("blocked").await?;
    stage.says_of(&breacher, "the PodDisruptionBudget keep-two does not allow it now").await?;
    stage.says_of(&breacher, "needs 2 healthy pods and has 2 currently").await?;
    stage.untouched(&breacher).await?;
    stage.contained(&breacher)?;
    assert_eq!(stage.evictions("done")?, 0);

    // The breach goes on; the disruption controller finds room for one.
    let three = Patch::Merge(json!({"spec": {"replicas": 3}}));
    stage.space.api::<Deployment>().patch("web", &PatchParams::default(), &three).await?;
    stage.space.budget_allows("keep-two", 1).await?;
    stage.ended("done").await?;
    stage.space.gone(&breacher).await?;
    let codes: Vec<u16> = stage.asked(plane, &breacher)?.iter().map(|request| request.code).collect();
    assert_eq!(codes.last(), Some(&201), "{codes:?}");
    assert!(codes.len() >= 2 && codes[..codes.len() - 1].iter().all(|code| *code == 429), "{codes:?}");
    stage.space.ready("web", 3).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_disruption_budgets_are_a_misconfiguration() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config("", "")).await?;
    stage.space.create::<Deployment>(deployment("web", 3)).await?;
    let breacher = stage.space.ready("web", 3).await?.remove(0);
    for name in ["one", "other"] {
        stage.space.budget(name, "web", 1).await?;
        stage.space.budget_allows(name, 2).await?;
    }
    stage.run(&breacher).await?;
    let _attack = stage.attack(&breacher)?;
    stage.ended("misconfigured").await?;
    stage.says_of(&breacher, "more than one PodDisruptionBudget selects it").await?;
    stage.says_of(&breacher, "one, other; change their selectors").await?;
    stage.untouched(&breacher).await?;
    stage.contained(&breacher)?;
    assert_eq!(stage.evictions("done")?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_loses_one_pod_at_a_time_and_is_let_alone_when_that_does_not_cure_it() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config(ROOM, "")).await?;
    stage.space.create::<Deployment>(deployment("web", 4)).await?;
    let mut pods = stage.space.ready("web", 4).await?;
    pods.truncate(2);
    stage.kubelet.change(|behaviour| behaviour.ready_after = None);
    for pod in &pods {
        stage.run(pod).await?;
    }
    let mut attacks = vec![];
    for pod in &pods {
        attacks.push(stage.attack(pod)?);
    }
    // The other one is tried, and held back.
    stage.ended("done").await?;
    stage.ended("budget").await?;
    let left = counts(&stage, "web", 4, 3).await?;
    let is_left = |pod: &k8s_openapi::api::core::v1::Pod| left.iter().any(|left| left.uid() == pod.uid());
    let (first, second) = if is_left(&pods[1]) { (0, 1) } else { (1, 0) };
    assert!(is_left(&pods[second]) && !is_left(&pods[first]), "{left:?}");
    stage.says_of(&pods[second], "1 evictions of its pods are under way or wait for a Ready replacement").await?;
    stage.contained(&pods[second])?;
    drop(attacks.remove(first));
    stage.end(&pods[first])?;
    assert_eq!(stage.evictions("done")?, 1);
    stage.untouched(&pods[second]).await?;
    assert_eq!(stage.asked(plane, &pods[second])?, []);

    stage.kubelet.change(|behaviour| behaviour.ready_after = Some(Duration::ZERO));
    stage.at_least("done", 2).await?;
    stage.space.gone(&pods[second]).await?;
    drop(attacks);
    stage.end(&pods[second])?;

    // A fresh start has not cured it twice.
    let third = stage.space.ready("web", 4).await?.into_iter().find(|pod| !is_left(pod));
    let third = third.expect("a fresh one");
    stage.run(&third).await?;
    let _attack = stage.attack(&third)?;
    stage.says("was evicted more than once and breaches its limits again").await?;
    stage.says_of(&third, "reason=\"not_cured\"").await?;
    stage.contained(&third)?;
    // Another one's breach is no news.
    let fourth = stage.space.ready("web", 4).await?.into_iter().find(|pod| pod.uid() != third.uid());
    let fourth = fourth.expect("another one");
    stage.run(&fourth).await?;
    let _another = stage.attack(&fourth)?;
    stage.says_of(&fourth, "reason=\"not_cured\"").await?;
    assert_eq!(stage.said("was evicted more than once and breaches its limits again")?, 1);
    for pod in [&third, &fourth] {
        stage.untouched(pod).await?;
        assert_eq!(stage.asked(plane, pod)?, []);
    }
    assert_eq!(stage.evictions("done")?, 2);
    Ok(())
}
