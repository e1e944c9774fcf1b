//! A real agent evicts through a real API server, with the rights of the manifests and no others.

mod audit;
mod budgets;
mod leave;
mod never;
mod replaced;
mod storm;

use anyhow::Result;
use guard_e2e::{
    ControlPlane, eventually,
    objects::{deployment, merge},
    space::is_ready,
    stage::{SOON, Stage, config},
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::ResourceExt as _;
use serde_json::json;

/// No budget of the guard is in the way.
const ROOM: &str = "budgets: {node: {evictions: 50, per: 10m}, workload: {evictions: 50, per: 10m}, cluster: {evictions: 50, \
                    per: 10m}}\nstorm: {workloads: 50, pods: 100%, per: 1m}";

#[tokio::test(flavor = "multi_thread")]
async fn a_breacher_is_evicted_once_and_replaced() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config("", "")).await?;
    let patient = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}}});
    stage.space.create::<Deployment>(merge(deployment("web", 3), patient)).await?;
    let pods = stage.space.ready("web", 3).await?;
    let breacher = &pods[0];
    stage.run(breacher).await?;
    stage.run(&pods[1]).await?;
    // The names of the pod are those of its series.
    let scraped = stage.world.agent().get("/metrics")?;
    let (namespace, pod) = (&stage.space.name, breacher.name_any());
    let names = format!("container=\"main\",namespace=\"{namespace}\",pod=\"{pod}\"");
    assert!(scraped.contains(&names), "no series with {names}:\n{scraped}");

    stage.kubelet.change(|behaviour| behaviour.gone_after = None);
    let attack = stage.attack(breacher)?;
    stage.ended("done").await?;
    let terminating = stage.space.api::<Pod>().get(&breacher.name_any()).await?;
    assert_eq!(terminating.metadata.deletion_grace_period_seconds, Some(7), "the pod's own grace");
    stage.kubelet.change(|behaviour| behaviour.gone_after = Some(std::time::Duration::ZERO));
    stage.space.gone(breacher).await?;
    drop(attack);
    stage.end(breacher)?;

    let fresh = stage.space.ready("web", 3).await?;
    assert!(fresh.iter().all(|pod| pod.uid() != breacher.uid()), "the evicted pod is one of the three");
    stage.says("a fresh pod has taken the place of the evicted one").await?;
    assert_eq!(stage.series("egress_guard_replacement_seconds_count")?, 1);
    let asked = stage.all_asked(plane)?;
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!((asked[0].verb.as_str(), asked[0].name.as_str(), asked[0].code), ("create", pod.as_str(), 201));
    stage.untouched(&pods[1]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_evicts_nothing() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config("dryRun: true", "")).await?;
    stage.space.create::<Deployment>(deployment("web", 2)).await?;
    let breacher = stage.space.ready("web", 2).await?.remove(0);
    stage.run(&breacher).await?;
    let _attack = stage.attack(&breacher)?;
    stage.ended("dry_run").await?;
    stage.says_of(&breacher, "would be evicted").await?;
    let asked = stage.asked(plane, &breacher)?;
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].uri.ends_with("?dryRun=All"), "{asked:?}");
    assert_eq!(stage.evictions("done")?, 0);
    stage.contained(&breacher)?;
    stage.untouched(&breacher).await
}

/// Waits until a Deployment's pods that are there, and not being deleted, are so many and so many of them Ready.
async fn counts(stage: &Stage, app: &str, all: usize, ready: usize) -> Result<Vec<Pod>> {
    eventually(&format!("{ready} of {all} pods of {app} are ready"), SOON, async || {
        let pods = stage.space.pods(app).await?;
        let is = pods.iter().filter(|pod| is_ready(pod)).count();
        anyhow::ensure!((pods.len(), is) == (all, ready), "{is} of {}", pods.len());
        Ok(pods)
    })
    .await
}
