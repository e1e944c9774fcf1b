//! A real agent evicts through a real API server, with the rights of the manifests and no others.

use anyhow::Result;
use guard_e2e::{
    ControlPlane,
    objects::deployment,
    stage::{Stage, config},
};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn a_breacher_is_evicted_and_replaced() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config("", "")).await?;
    stage.space.create::<Deployment>(deployment("web", 3)).await?;
    let pods = stage.space.ready("web", 3).await?;
    stage.run(&pods[0]).await?;
    let _attack = stage.attack(&pods[0])?;
    stage.ended("done").await?;
    stage.space.gone(&pods[0]).await?;
    let fresh = stage.space.ready("web", 3).await?;
    assert!(fresh.iter().all(|pod| pod.uid() != pods[0].uid()), "the evicted pod is one of the three");
    stage.says("a fresh pod has taken the place of the evicted one").await?;
    assert_eq!(stage.series("egress_guard_replacement_seconds_count")?, 1);
    Ok(())
}
