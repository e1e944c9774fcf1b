//! What has come in an evicted pod's place.

use std::time::Duration;

use anyhow::Result;
use guard_e2e::{
    Behaviour, ControlPlane, Fault, Installation, Proxy,
    kubelet::digest,
    objects::{IMAGE, deployment, stateful_set},
    stage::{SOON, Stage, config},
};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::Pod,
};
use kube::{ResourceExt as _, api::DeleteParams};
use serde_json::json;

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

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_took_the_name_meanwhile_is_not_evicted() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let proxy = Proxy::start(&plane.kubeconfig_admin()).await?;
    let way = async |installation: &Installation, _: &guard_e2e::Space| proxy.kubeconfig(&installation.kubeconfig);
    let mut stage = Stage::by(plane, &config("", ""), Behaviour::default(), way).await?;
    proxy.faults([Fault::DelayRequest]);
    stage.space.create::<StatefulSet>(stateful_set("db", 2)).await?;
    let breacher = stage.space.ready("db", 2).await?.remove(0);
    stage.run(&breacher).await?;
    let _attack = stage.attack(&breacher)?;

    // All has been looked at by now, and the eviction is under way.
    let eviction = proxy.come(1, SOON).await?.remove(0);
    assert_eq!(eviction.body["metadata"]["name"], "db-0");
    assert_eq!(eviction.body["deleteOptions"], json!({"preconditions": {"uid": breacher.uid()}}));
    stage.space.api::<Pod>().delete("db-0", &DeleteParams::default().grace_period(0)).await?;
    stage.space.gone(&breacher).await?;
    let fresh = stage.space.ready("db", 2).await?.remove(0);
    assert_eq!(fresh.name_any(), "db-0");
    proxy.pass_on();

    stage.ended("gone").await?;
    stage.says_of(&breacher, "not evicted: it is gone already").await?;
    let asked = stage.all_asked(plane)?;
    assert_eq!(asked.iter().map(|request| request.code).collect::<Vec<_>>(), [409], "{asked:?}");
    assert_eq!(stage.evictions("done")?, 0);
    stage.untouched(&fresh).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_replaced_before_its_time_came_takes_nobody_along() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let config = config("", "").replace("after: 1s", "after: 4s");
    let mut stage = Stage::new(plane, &config).await?;
    stage.space.create::<StatefulSet>(stateful_set("db", 2)).await?;
    let breacher = stage.space.ready("db", 2).await?.remove(0);
    stage.run(&breacher).await?;
    let _attack = stage.attack(&breacher)?;
    stage.says_of(&breacher, "contained by its meter").await?;
    stage.space.api::<Pod>().delete("db-0", &DeleteParams::default().grace_period(0)).await?;
    stage.space.gone(&breacher).await?;
    let fresh = stage.space.ready("db", 2).await?.remove(0);
    stage.run(&fresh).await?;

    // What runs on of a pod that is gone is on its way already.
    stage.says_of(&breacher, "reason=\"terminating\"").await?;
    stage.untouched(&fresh).await?;
    assert_eq!(stage.all_asked(plane)?, []);
    Ok(())
}
