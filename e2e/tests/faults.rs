//! Evictions that go wrong halfway: rights, answers and agents are lost, the server is busy, the kill switch is engaged. What
//! was begun comes to one end, and to no second one.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use guard_e2e::{
    Behaviour, ControlPlane, Fault, Proxy, eventually,
    objects::deployment,
    stage::{Stage, config},
};
use guard_tests::process::Traffic;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod, rbac::v1::ClusterRoleBinding};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
};

/// A budget's refusal is tried again within 10 s and a quarter more, a busy server's within 30 s and a quarter more, and it
/// takes a little.
const AGAIN: Duration = Duration::from_secs(20);
const SLOWLY: Duration = Duration::from_secs(50);

/// For as long as this nothing happens that must not.
const WATCHED: Duration = Duration::from_secs(15);

/// A stage whose agent reaches the API server through a proxy.
async fn proxied(plane: &ControlPlane, config: &str) -> Result<(Stage, Proxy)> {
    let proxy = Proxy::start(&plane.kubeconfig_admin()).await?;
    let way = async |installation: &guard_e2e::Installation| proxy.kubeconfig(&installation.kubeconfig);
    let stage = Stage::by(plane, config, Behaviour::default(), way).await?;
    Ok((stage, proxy))
}

/// A Deployment's pods, of which the first runs here.
async fn workload(stage: &mut Stage, name: &str, replicas: u32) -> Result<Vec<Pod>> {
    stage.space.create::<Deployment>(deployment(name, replicas)).await?;
    let pods = stage.space.ready(name, replicas as usize).await?;
    stage.run(&pods[0]).await?;
    Ok(pods)
}

/// One whose breach has led to an eviction that a disruption budget refuses.
async fn blocked(stage: &mut Stage) -> Result<(Vec<Pod>, Traffic)> {
    let pods = workload(stage, "web", 2).await?;
    stage.space.budget("keep-two", "web", 2).await?;
    let attack = stage.attack(&pods[0])?;
    stage.ended("blocked").await?;
    stage.says("PodDisruptionBudget keep-two").await?;
    Ok((pods, attack))
}

async fn count(stage: &Stage, result: &str, count: u64, limit: Duration) -> Result<()> {
    eventually(&format!("{count} evictions that end with {result:?}"), limit, async || {
        let found = stage.evictions(result)?;
        ensure!(found == count, "{found}; the agent says:\n{}", stage.log()?);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_away_is_missed_once_and_quietly() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config("storm: {pods: 100%}", "")).await?;
    let (web, _attack) = blocked(&mut stage).await?;
    let bindings: Api<ClusterRoleBinding> = Api::all(plane.admin().await?);
    let name = format!("egress-guard-evict-{}", stage.installation.space.name);
    let mut binding = bindings.get(&name).await?;
    bindings.delete(&name, &DeleteParams::default()).await?;
    count(&stage, "forbidden", 1, AGAIN).await?;
    let said = "the agent may not create pods/eviction; apply the ClusterRole and its binding";
    let log = stage.log()?;
    let line = log.lines().find(|line| line.contains(said)).context("the missing right is not said")?;
    let again = line.split_once("tried again in ").and_then(|(_, rest)| rest.split_once('s')?.0.parse::<u64>().ok());
    let again = again.with_context(|| format!("when it is tried again is not said: {line}"))?;
    assert!((600..=750).contains(&again), "tried again after {again} s: {line}");

    // It is missing for another workload as well, which is no news.
    let shop = workload(&mut stage, "shop", 2).await?;
    let second = stage.attack(&shop[0])?;
    count(&stage, "forbidden", 2, AGAIN).await?;
    assert_eq!(stage.world.agent().said(said)?, 1, "the missing right is said again and again");
    let codes = |asked: Vec<(String, u16)>| asked.into_iter().map(|(_, code)| code).collect::<Vec<_>>();
    let before = codes(stage.evicted(plane)?);
    assert_eq!(before, [429, 403, 403], "the evictions that the API server was asked for");
    tokio::time::sleep(WATCHED).await;
    assert_eq!(codes(stage.evicted(plane)?), before, "it goes on asking");
    stage.held(&web[0]).await?;
    stage.held(&shop[0]).await?;
    assert_eq!(stage.taken().await?, 0, "slots of the cluster's budget are kept for what did not happen");
    drop(second);

    // What breaches once it is granted again is evicted, by the same agent.
    binding.metadata.resource_version = None;
    binding.metadata.uid = None;
    bindings.create(&PostParams::default(), &binding).await?;
    let news = workload(&mut stage, "news", 2).await?;
    let _third = stage.attack(&news[0])?;
    stage.ended("done").await?;
    stage.space.gone(&news[0]).await?;
    stage.untouched(&web[0]).await?;
    stage.untouched(&shop[0]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_too_much_to_do_is_left_alone_for_as_long_as_it_asks() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let (mut stage, proxy) = proxied(plane, &config("", "")).await?;
    let pods = workload(&mut stage, "web", 3).await?;
    let refuse = |code, retry_after| Fault::Refuse { code, retry_after };
    proxy.faults([refuse(429, Some(40)), refuse(503, None)]);
    let _attack = stage.attack(&pods[0])?;
    proxy.come(1, AGAIN).await?;
    count(&stage, "overloaded", 1, AGAIN).await?;
    stage.says("the API server has trouble, it answers 429: Too many requests, please try again later").await?;
    assert_eq!(stage.taken().await?, 0, "a slot of the cluster's budget is kept for what did not happen");
    let asked = proxy.requests();
    let came = proxy.come(2, Duration::from_mins(1)).await?;
    let asked = proxy.requests() - asked;
    let waited = came[1].at - came[0].at;
    assert!((40..=55).contains(&waited.as_secs()), "it was asked again after {waited:?}, and wanted 40 s");
    count(&stage, "overloaded", 2, AGAIN).await?;
    stage.held(&pods[0]).await?;
    stage.untouched(&pods[0]).await?;
    // It doubles: nobody says for how long.
    let came = proxy.come(3, Duration::from_secs(90)).await?;
    let waited = came[2].at - came[1].at;
    assert!((60..=80).contains(&waited.as_secs()), "it was asked again after {waited:?}");
    stage.ended("done").await?;
    stage.space.gone(&pods[0]).await?;
    assert_eq!(stage.evicted(plane)?, [(pods[0].name_any(), 201)], "the evictions that reached the API server");
    assert_eq!(stage.evictions("overloaded")?, 2);
    // What an attempt takes, with what it tells on the pod: nothing else is asked meanwhile.
    assert!(asked <= 20, "{asked} requests between two attempts");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_without_an_answer_is_not_repeated_on_another_pod() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let (mut stage, proxy) = proxied(plane, &config("", "")).await?;
    let pods = workload(&mut stage, "web", 3).await?;
    stage.run(&pods[1]).await?;
    stage.kubelet.change(|behaviour| behaviour.gone_after = None);
    proxy.faults([Fault::LoseAnswer]);
    let _attack = stage.attack(&pods[0])?;
    stage.ended("failed").await?;
    stage.says("the eviction was sent and not answered").await?;
    terminating(&stage, &pods[0]).await?;
    // The other one must wait: for all that the agent knows the first is gone.
    let _other = stage.attack(&pods[1])?;
    stage.held(&pods[1]).await?;
    eventually("it is tried again, and seen that there is no need", SLOWLY, async || {
        let log = stage.log()?;
        ensure!(log.contains("it is terminating already"), "{log}");
        Ok(())
    })
    .await?;
    proxy.come(1, Duration::ZERO).await?;
    stage.untouched(&pods[1]).await?;
    assert_eq!(stage.evicted(plane)?, [(pods[0].name_any(), 201)], "the evictions that reached the API server");
    assert_eq!(stage.taken().await?, 1, "slots of the cluster's budget for one eviction");
    assert_eq!(stage.evictions("done")?, 0);
    Ok(())
}

async fn terminating(stage: &Stage, pod: &Pod) -> Result<()> {
    let found = stage.space.api::<Pod>().get(&pod.name_any()).await?;
    let is = found.uid() == pod.uid() && found.metadata.deletion_timestamp.is_some();
    ensure!(is, "{} is not being deleted:\n{}", pod.name_any(), stage.log()?);
    Ok(())
}

/// A pod whose eviction is stuck in the proxy, and another one of its workload that breaches as well.
async fn stuck(stage: &mut Stage, proxy: &Proxy, fault: Fault) -> Result<(Vec<Pod>, Vec<Traffic>)> {
    let pods = workload(stage, "web", 3).await?;
    stage.run(&pods[1]).await?;
    // No replacement, so that nothing gives the other pod's eviction free.
    stage.kubelet.change(|behaviour| {
        behaviour.gone_after = None;
        behaviour.ready_after = None;
    });
    proxy.faults([fault]);
    let mut attacks = vec![stage.attack(&pods[0])?];
    proxy.come(1, AGAIN).await?;
    attacks.push(stage.attack(&pods[1])?);
    stage.held(&pods[1]).await?;
    Ok((pods, attacks))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_before_its_eviction_arrives_does_not_forget_it() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let (mut stage, proxy) = proxied(plane, &config("", "")).await?;
    let (pods, _attacks) = stuck(&mut stage, &proxy, Fault::HoldRequest).await?;
    stage.kill_agent()?;
    stage.untouched(&pods[0]).await?;
    stage.start_agent()?;
    stage.ended("done").await?;
    terminating(&stage, &pods[0]).await?;
    tokio::time::sleep(WATCHED).await;
    proxy.come(2, Duration::ZERO).await?;
    assert_eq!(stage.evicted(plane)?, [(pods[0].name_any(), 201)], "the evictions that reached the API server");
    assert_eq!(stage.taken().await?, 1, "slots of the cluster's budget for one eviction");
    stage.untouched(&pods[1]).await?;
    stage.untouched(&pods[2]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_after_its_eviction_arrived_does_not_repeat_it() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let (mut stage, proxy) = proxied(plane, &config("", "")).await?;
    let (pods, _attacks) = stuck(&mut stage, &proxy, Fault::HoldAnswer).await?;
    proxy.answered(1, 201, AGAIN).await?;
    stage.kill_agent()?;
    terminating(&stage, &pods[0]).await?;
    stage.start_agent()?;
    stage.held(&pods[0]).await?;
    stage.held(&pods[1]).await?;
    tokio::time::sleep(WATCHED).await;
    proxy.come(1, Duration::ZERO).await?;
    assert_eq!(stage.evicted(plane)?, [(pods[0].name_any(), 201)], "the evictions that reached the API server");
    assert_eq!(stage.taken().await?, 1, "slots of the cluster's budget for one eviction");
    stage.untouched(&pods[1]).await?;
    stage.untouched(&pods[2]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_kill_switch_stops_what_is_tried_again() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config("", "")).await?;
    let (pods, _attack) = blocked(&mut stage).await?;
    tokio::task::block_in_place(|| stage.world.kill_switch("on"))?;
    nothing_while_engaged(plane, &stage, &pods[0]).await?;
    tokio::task::block_in_place(|| stage.world.kill_switch("off"))?;
    stage.ended("done").await?;
    stage.space.gone(&pods[0]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleets_kill_switch_stops_what_is_tried_again() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config("", "")).await?;
    let (pods, _attack) = blocked(&mut stage).await?;
    stage.installation.kill_switch("on").await?;
    nothing_while_engaged(plane, &stage, &pods[0]).await?;
    stage.installation.kill_switch("off").await?;
    stage.ended("done").await?;
    stage.space.gone(&pods[0]).await
}

/// The kill switch has just been engaged: what was contained is let go, and neither the time for another attempt nor a budget
/// that allows it leads to one.
async fn nothing_while_engaged(plane: &ControlPlane, stage: &Stage, pod: &Pod) -> Result<()> {
    eventually("it is let go, and its breach is known", Duration::from_secs(2), async || {
        let standing = stage.listed(pod)?.standing;
        ensure!(!standing.contained && standing.breached, "it stands {standing:?}:\n{}", stage.log()?);
        Ok(())
    })
    .await?;
    let before = stage.evicted(plane)?;
    tokio::time::sleep(WATCHED).await;
    let path = format!("/apis/policy/v1beta1/namespaces/{}/poddisruptionbudgets/keep-two", stage.space.name);
    let removed = stage.space.ask(http::Method::DELETE, &path, None).await?;
    assert_eq!(removed.code, 200, "{removed:?}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(stage.evicted(plane)?, before, "it was tried again");
    let standing = stage.listed(pod)?.standing;
    ensure!(!standing.contained && standing.breached, "it stands {standing:?}:\n{}", stage.log()?);
    stage.untouched(pod).await
}
