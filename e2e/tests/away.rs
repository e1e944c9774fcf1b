//! The API server stands still, dies, or is not there when the agent starts: what the agent does by itself goes on, and what
//! it needs the server for is made up for, once.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guard_e2e::{
    Behaviour, ControlPlane, Installation, Options, Proxy, eventually,
    kubelet::set_ready,
    objects::{deployment, merge, pod},
    stage::{Stage, config},
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

/// What was not answered is tried again within 30 s and a quarter more, and again within a minute and a quarter more.
const AGAIN: Duration = Duration::from_secs(100);

/// Kilobytes that are well within the limit.
const FEW: u64 = 20;

async fn web(stage: &mut Stage) -> Result<Vec<Pod>> {
    stage.space.create::<Deployment>(deployment("web", 3)).await?;
    stage.space.ready("web", 3).await
}

/// Waits until the eviction that was due has taken place, which may take as long as its backoff.
async fn evicted(plane: &ControlPlane, stage: &Stage, pod: &Pod) -> Result<()> {
    eventually("it is evicted", AGAIN, async || {
        let done = stage.evictions("done")?;
        ensure!(done == 1, "{done} evictions; the agent says:\n{}", stage.log()?);
        Ok(())
    })
    .await?;
    stage.space.gone(pod).await?;
    stage.says("a fresh pod has taken the place of the evicted one").await?;
    assert_eq!(stage.evicted(plane)?, [(pod.name_any(), 201)], "the evictions that the API server was asked for");
    assert_eq!(stage.taken().await?, 1, "slots of the cluster's budget for one eviction");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_for_a_minute_changes_nothing_on_the_node() -> Result<()> {
    let plane = ControlPlane::start(Options::default()).await?;
    let mut stage = Stage::new(&plane, &config("", "")).await?;
    let pods = web(&mut stage).await?;
    stage.run(&pods[0]).await?;
    stage.run(&pods[1]).await?;
    let _sink = stage.sink()?;
    let start = stage.reading(&pods[0])?;
    plane.stop_api()?;
    let stopped = Instant::now();
    let before = stage.reading(&pods[0])?;
    let sent = stage.send(&pods[1], FEW)?;
    assert_eq!(stage.exact_since(before, &pods[0])?.tx.bytes, sent);
    // So late that what is tried again then finds it at work.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let attack = stage.attack(&pods[0])?;
    stage.held(&pods[0]).await?;
    stage.ended("failed").await?;
    stage.says("not evicted: cannot read the pod: no answer within 10s").await?;
    drop(attack);
    let moved = stage.exact_since(start, &pods[0])?;
    assert!(moved.tx.bytes > sent + 100_000, "it was attacked: {moved:?}");
    let _attack = stage.attack(&pods[0])?;
    tokio::time::sleep(Duration::from_mins(1).saturating_sub(stopped.elapsed())).await;
    stage.held(&pods[0]).await?;
    plane.continue_api()?;
    evicted(&plane, &stage, &pods[0]).await
}

/// Of an agent whose API server is killed: what becomes of pods before it lists them again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_started_again_is_caught_up_with() -> Result<()> {
    let plane = ControlPlane::start(Options::default()).await?;
    let (mut stage, proxy) = proxied(&plane, &tiers("evict")).await?;
    let pods = web(&mut stage).await?;
    for pod in &pods {
        stage.run(pod).await?;
    }
    let _sink = stage.sink()?;
    let before = stage.reading(&pods[0])?;
    plane.kill_api();
    let attack = stage.attack(&pods[0])?;
    stage.held(&pods[0]).await?;
    stage.ended("failed").await?;
    assert_eq!(stage.series("egress_guard_cluster_connected")?, 0);
    // Once the server is back, the agent hears of it no sooner than all has changed.
    proxy.stop();
    plane.restart_api().await?;
    let late = changed(&mut stage, &pods).await?;
    proxy.go_on();
    stage.named(&late).await?;
    stage.shows(&[&pods[0], &pods[2], &late], &[&pods[1]]).await?;
    evicted(&plane, &stage, &pods[0]).await?;
    drop(attack);
    // Its policy is another one by now.
    let _calm = stage.attack(&pods[2])?;
    breaches(&stage, &pods[2], "strict").await?;
    drop(_calm);
    stage.exact_since(before, &pods[0]).map(drop)
}

/// The watch ends as watches do, and the version from which the agent wants it to go on is too old by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_cannot_go_on_is_made_up_for_by_a_list() -> Result<()> {
    let plane = ControlPlane::start(Options::default()).await?;
    let (mut stage, proxy) = proxied(&plane, &tiers("contain")).await?;
    let pods = web(&mut stage).await?;
    for pod in &pods {
        stage.run(pod).await?;
    }
    proxy.stop();
    proxy.end_watches();
    let late = changed(&mut stage, &pods).await?;
    // The server has forgotten what was before.
    plane.restart_api().await?;
    proxy.go_on();
    stage.says("too old resource version").await?;
    stage.named(&late).await?;
    stage.shows(&[&pods[0], &pods[2], &late], &[&pods[1]]).await?;
    let _attack = stage.attack(&pods[2])?;
    breaches(&stage, &pods[2], "strict").await?;
    let nodes_pods = stage.space.api::<Pod>().list(&kube::api::ListParams::default()).await?.items.len() as u64;
    eventually("it counts the pods that there are", Duration::from_secs(10), async || {
        let known = stage.series("egress_guard_pods")?;
        ensure!(known == nodes_pods, "{known} of {nodes_pods}");
        Ok(())
    })
    .await
}

async fn proxied(plane: &ControlPlane, config: &str) -> Result<(Stage, Proxy)> {
    let proxy = Proxy::start(&plane.kubeconfig_admin()).await?;
    let way = async |installation: &Installation| proxy.kubeconfig(&installation.kubeconfig);
    let stage = Stage::by(plane, config, Behaviour::default(), way).await?;
    Ok((stage, proxy))
}

/// A policy for the pods that are labelled so, and one for all others.
fn tiers(mode: &str) -> String {
    let strict =
        "policies:\n  - name: strict\n    match: {labels: {tier: strict}}\n    egress: {rate: 50KB/s, burst: 50KB}\n";
    config("", "").replace("policies:\n", strict).replace("mode: evict", &format!("mode: {mode}"))
}

/// Of three pods the second is deleted, with its cgroup as kubelet does it, the third gets another label, and one more is made
/// and has its cgroup.
async fn changed(stage: &mut Stage, pods: &[Pod]) -> Result<Pod> {
    let api: Api<Pod> = stage.space.api();
    api.delete(&pods[1].name_any(), &DeleteParams::default().grace_period(0)).await?;
    stage.space.gone(&pods[1]).await?;
    tokio::task::block_in_place(|| stage.container(&pods[1])?.remove())?;
    let label = Patch::Merge(json!({"metadata": {"labels": {"tier": "strict"}}}));
    api.patch(&pods[2].name_any(), &PatchParams::default(), &label).await?;
    stage.space.create::<Pod>(merge(pod("late"), json!({"spec": {"nodeName": stage.node}}))).await?;
    let late = stage.space.ready("late", 1).await?.remove(0);
    stage.place(&late)?;
    Ok(late)
}

/// Waits until a pod breaches a policy of this name.
async fn breaches(stage: &Stage, pod: &Pod, policy: &str) -> Result<()> {
    stage.held(pod).await?;
    let breaches = tokio::task::block_in_place(|| stage.world.agent().breaches())?;
    let of_it = breaches.iter().find(|breach| breach["pod"] == pod.name_any().as_str()).context("no breach")?;
    assert_eq!(of_it["policy"], policy, "{of_it}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_without_its_server_does_what_it_can() -> Result<()> {
    let plane = ControlPlane::start(Options::default()).await?;
    let way = async |installation: &Installation| {
        plane.kill_api();
        Ok(installation.kubeconfig.clone())
    };
    let mut stage = Stage::by(&plane, &config("", ""), Behaviour::default(), way).await?;
    plane.restart_api().await?;
    let pods = web(&mut stage).await?;
    let _ = set_ready;
    Ok(())
}
