//! What a user of one namespace, and whoever has stolen an agent's token, may do to a cluster, and what an agent makes of pods
//! that were written to mislead it; docs/threat-model.md says what each test is for.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use guard_e2e::{
    Behaviour, ControlPlane, Installation, Space, control_plane, eventually,
    objects::{self, deployment, eviction, merge},
    stage::{SOON, Stage, config},
};
use http::Method;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod, rbac::v1::RoleBinding};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

/// A policy file without policies.
const OBSERVE: &str = "mode: observe\n";

/// Fails unless the API server forbids each of these to the client of a space.
async fn forbidden(space: &Space, whose: &str, tried: &[(Method, String, Value)]) -> Result<()> {
    for (method, path, body) in tried {
        let answer = space.ask(method.clone(), path, Some(body)).await?;
        ensure!(answer.code == 403, "{whose}: {method} {path} is answered with {} {}", answer.code, answer.message());
    }
    Ok(())
}

/// What nobody but an operator should do to the agents: their kill switch, their policies, their Leases, their processes.
fn upon_the_agents(own: &str) -> Vec<(Method, String, Value)> {
    let api = format!("/api/v1/namespaces/{own}");
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{own}/leases");
    let off = json!({"data": {"kill-switch": "on"}});
    vec![
        (Method::GET, format!("{api}/secrets"), json!(null)),
        (Method::GET, format!("{api}/configmaps"), json!(null)),
        (Method::PATCH, format!("{api}/configmaps/egress-guard"), off.clone()),
        (Method::PUT, format!("{api}/configmaps/egress-guard"), off),
        (Method::DELETE, format!("{api}/configmaps/egress-guard"), json!(null)),
        (Method::POST, format!("{api}/pods"), objects::pod("mine")),
        (Method::POST, format!("{api}/pods/egress-guard-x/exec?command=sh"), json!(null)),
        (Method::DELETE, format!("{api}/pods/egress-guard-x"), json!(null)),
        (Method::POST, format!("{api}/serviceaccounts/egress-guard/token"), json!({})),
        (Method::PATCH, format!("/apis/apps/v1/namespaces/{own}/daemonsets/egress-guard"), json!({})),
        (Method::DELETE, format!("{leases}/egress-guard-eviction-0"), json!(null)),
    ]
}

/// What a token of no overlay may do.
fn beyond_every_overlay(space: &Space, pod: &str) -> Vec<(Method, String, Value)> {
    let api = format!("/api/v1/namespaces/{}", space.name);
    let deployments = format!("/apis/apps/v1/namespaces/{}/deployments", space.name);
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    vec![
        (Method::GET, "/api/v1/secrets".into(), json!(null)),
        (Method::GET, format!("{api}/secrets"), json!(null)),
        (Method::GET, format!("{api}/configmaps"), json!(null)),
        (Method::DELETE, format!("{api}/pods/{pod}"), json!(null)),
        (Method::DELETE, format!("{api}/pods"), json!(null)),
        (Method::POST, format!("{api}/pods"), objects::pod("mine")),
        (Method::PUT, format!("{api}/pods/{pod}"), json!({})),
        (Method::PATCH, format!("{api}/pods/{pod}/status"), json!({})),
        (Method::PATCH, format!("{api}/pods/{pod}/ephemeralcontainers"), json!({})),
        (Method::POST, format!("{api}/pods/{pod}/exec?command=sh"), json!(null)),
        (Method::POST, format!("{api}/pods/{pod}/binding"), json!({})),
        (Method::GET, format!("{api}/pods/{pod}/log"), json!(null)),
        (Method::POST, format!("{api}/serviceaccounts/default/token"), json!({})),
        (Method::GET, deployments.clone(), json!(null)),
        (Method::PATCH, format!("{deployments}/web"), json!({})),
        (Method::DELETE, format!("{deployments}/web"), json!(null)),
        (Method::GET, "/api/v1/nodes".into(), json!(null)),
        (Method::DELETE, "/api/v1/namespaces/default".into(), json!(null)),
        (Method::POST, roles.into(), json!({})),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_token_may_do_what_its_overlay_grants_and_no_more() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let victims = Space::new(&plane.admin().await?).await?;
    let _kubelet = guard_e2e::Kubelet::start(&victims.client, &victims.name, &["n1"], Behaviour::default()).await?;
    victims.create::<Deployment>(deployment("web", 2)).await?;
    let pod = victims.ready("web", 2).await?.remove(0).name_any();
    for mode in ["observe", "contain", "evict"] {
        let installation = Installation::new(plane, mode, OBSERVE).await?;
        let thief = control_plane::client(&installation.kubeconfig).await?;
        let (own, there) = (&installation.space.name, Space::existing(&thief, &victims.name));
        eventually("its rights are known", SOON, async || Ok(there.api::<Pod>().get(&pod).await?)).await?;
        let mut never = upon_the_agents(own);
        never.extend(beyond_every_overlay(&there, &pod));
        let leases = "/apis/coordination.k8s.io/v1/namespaces";
        never.push((Method::POST, format!("{leases}/{}/leases", victims.name), json!({})));
        if mode == "evict" {
            // Those it may: they are the cluster's budget.
            never.retain(|(_, path, _)| !path.starts_with(leases) || !path.contains(own.as_str()));
        } else {
            let evict = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", victims.name);
            never.push((Method::POST, evict, eviction("v1beta1", &pod)));
        }
        forbidden(&there, mode, &never).await?;

        // What it may, and the document says so: read all pods, and change any of them.
        let listed = there.ask(Method::GET, "/api/v1/pods", None).await?;
        ensure!(listed.code == 200, "{mode}: {listed:?}");
        let image = json!({"spec": {"containers": [{"name": "main", "image": "registry.test/evil:1"}]}});
        let patched = there.api::<Pod>().patch(&pod, &PatchParams::default(), &Patch::Strategic(image)).await?;
        let image = patched.spec.and_then(|spec| spec.containers.into_iter().next()?.image);
        ensure!(image.as_deref() == Some("registry.test/evil:1"), "{mode}: {image:?}");
        if mode == "evict" {
            let evicted = there.evict(&pod, &eviction("v1beta1", &pod)).await?;
            ensure!(evicted.code == 201, "a pod of another node and namespace: {evicted:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_edit_one_namespace_gets_at_nothing_of_the_agents() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let admin = plane.admin().await?;
    let installation = Installation::new(plane, "evict", OBSERVE).await?;
    let space = Space::new(&admin).await?;
    space.account("editor").await?;
    // What `edit` consists of: no controller puts it together here.
    let binding = json!({
        "metadata": {"name": "editor"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:aggregate-to-edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "editor", "namespace": space.name}],
    });
    space.create::<RoleBinding>(binding).await?;
    let kubeconfig = plane.kubeconfig_for_account(&space.name, "editor", None).await?;
    let own = Space::existing(&control_plane::client(&kubeconfig).await?, &space.name);
    eventually("it may edit", SOON, async || Ok(own.create::<Pod>(objects::pod("mine")).await?)).await?;
    let mut never = upon_the_agents(&installation.space.name);
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", installation.space.name);
    never.push((Method::POST, leases, json!({})));
    forbidden(&own, "an editor of another namespace", &never).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_makes_a_running_pod_the_mirror_of_a_static_one() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let space = Space::new(&plane.admin().await?).await?;
    space.create::<Pod>(objects::pod("web")).await?;
    let mirror = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}});
    let pods: Api<Pod> = space.api();
    let refused = pods.patch("web", &PatchParams::default(), &Patch::Merge(mirror)).await;
    let refused = refused.err().context("it is a mirror now")?.to_string();
    ensure!(refused.contains("may not add mirror pod annotation"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_pod_that_takes_its_time_to_end_is_held_meanwhile() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config("", "")).await?;
    let patient = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 86_400}}}});
    stage.space.create::<Deployment>(merge(deployment("web", 2), patient)).await?;
    let breacher = stage.space.ready("web", 2).await?.remove(0);
    stage.kubelet.change(|behaviour| behaviour.gone_after = None);
    stage.run(&breacher).await?;
    let _attack = stage.attack(&breacher)?;
    stage.ended("done").await?;
    let node = &stage.world.wires.node;
    let before = (node.interface()?.tx.bytes, std::time::Instant::now());
    tokio::time::sleep(Duration::from_secs(12)).await;
    stage.contained(&breacher)?;
    let rate = (node.interface()?.tx.bytes - before.0) as f64 / before.1.elapsed().as_secs_f64();
    ensure!(rate < 55_000.0, "{rate} bytes/s leave through a throttle of 50 KB/s");
    let found = stage.space.api::<Pod>().get(&breacher.name_any()).await?;
    ensure!(found.metadata.deletion_timestamp.is_some() && found.uid() == breacher.uid(), "it is still ending");
    Ok(())
}

/// The API server takes any owner: a kind that does not exist, another namespace's path, a line of its own for the log.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_made_up_saves_from_eviction_and_not_from_containment() -> Result<()> {
    const LINE: &str = "ERROR forged: the node is lost";
    let plane = ControlPlane::shared().await?;
    let mut stage = Stage::new(plane, &config("", "")).await?;
    let owner = |kind: &str, name: &str| {
        let owner = json!({
            "apiVersion": "none.example/v1", "kind": kind, "name": name, "uid": format!("made-up-{kind}"),
            "controller": true,
        });
        json!({"metadata": {"ownerReferences": [owner]}})
    };
    let forged = format!("../../kube-system/secrets?watch=true\n{LINE}\u{1b}[2J");
    let cast = [("daemon", "DaemonSet", "daemon_set"), ("own", "Contraption", "cannot be known")];
    let mut pods = vec![];
    for (name, kind, why) in cast {
        stage.space.create::<Pod>(merge(objects::pod(name), owner(kind, &forged))).await?;
        let pod = stage.space.ready(name, 1).await?.remove(0);
        let told = pod.owner_references().first().map(|owner| owner.name.clone());
        ensure!(told.as_ref() == Some(&forged), "the API server keeps it as it is: {told:?}");
        stage.run(&pod).await?;
        pods.push((pod, why));
    }
    let _attacks = pods.iter().map(|(pod, _)| stage.attack(pod)).collect::<Result<Vec<_>>>()?;
    for (pod, why) in &pods {
        stage.says_of(pod, why).await?;
        stage.contained(pod)?;
        stage.untouched(pod).await?;
    }
    let log = stage.log()?;
    ensure!(!log.lines().any(|line| line.starts_with(LINE)) && !log.contains('\u{1b}'), "{log}");
    let user = format!("system:serviceaccount:{}:egress-guard", stage.installation.space.name);
    let mut asked = plane.requests()?;
    asked.retain(|request| request.user == user && (request.uri.contains("..") || request.resource == "secrets"));
    ensure!(asked.is_empty(), "{asked:?}");
    Ok(())
}
