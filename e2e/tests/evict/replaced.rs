//! What has come in an evicted pod's place.

use std::time::Duration;

use anyhow::Result;
use guard_e2e::{
    ControlPlane,
    kubelet::digest,
    objects::{IMAGE, deployment},
    stage::{Stage, config},
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::ResourceExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_was_moved_is_said() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config("", ", grace: 3s")).await?;
    stage.space.create::<Deployment>(deployment("web", 2)).await?;
    let breacher = stage.space.ready("web", 2).await?.remove(0);
    let other = digest("another build");
    stage.kubelet.change(|behaviour| {
        behaviour.digests.insert(IMAGE.into(), other.clone());
        behaviour.gone_after = None;
    });
    stage.run(&breacher).await?;
    let _attack = stage.attack(&breacher)?;
    stage.ended("done").await?;
    let terminating = stage.space.api::<Pod>().get(&breacher.name_any()).await?;
    assert_eq!(terminating.metadata.deletion_grace_period_seconds, Some(3), "the policy's grace");
    stage.kubelet.change(|behaviour| behaviour.gone_after = Some(Duration::ZERO));
    stage.says_of(&breacher, "the replacement runs another image under the same name").await?;
    stage.says_of(&breacher, &format!("before=\"{}\" after=\"{other}\"", digest(IMAGE))).await
}
