//! What the agent relies on of a Kubernetes API server, shown on one: these are facts of Kubernetes, not of the agent.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use guard_e2e::{
    Behaviour, ControlPlane, Kubelet, Options, Space,
    audit::uses,
    control_plane::client,
    eventually,
    kubelet::{self, container_id, digest},
    objects::{self, IMAGE, daemon_set, deployment, eviction, job, merge, pod, stateful_set},
    space::is_ready,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    batch::v1::Job,
    core::v1::Pod,
};
use kube::{Api, ResourceExt as _};
use serde_json::json;

const NODES: [&str; 2] = ["node-1", "node-2"];

async fn space() -> Result<(Space, Kubelet)> {
    with(Behaviour::default()).await
}

async fn with(behaviour: Behaviour) -> Result<(Space, Kubelet)> {
    let client = ControlPlane::shared().await?.admin().await?;
    let space = Space::new(&client).await?;
    let kubelet = Kubelet::start(&client, &space.name, &NODES, behaviour).await?;
    Ok((space, kubelet))
}

#[tokio::test]
async fn workloads_get_their_pods_running_and_ready() -> Result<()> {
    let (space, _kubelet) = space().await?;
    space.create::<Deployment>(deployment("web", 3)).await?;
    space.create::<StatefulSet>(stateful_set("db", 2)).await?;
    space.create::<DaemonSet>(daemon_set("log")).await?;
    space.create::<Job>(job("load", 2)).await?;
    space.create::<Pod>(pod("alone")).await?;
    for (app, count, owner) in [
        ("web", 3, Some("ReplicaSet")),
        ("db", 2, Some("StatefulSet")),
        ("log", 2, Some("DaemonSet")),
        ("alone", 1, None),
    ] {
        for pod in space.ready(app, count).await? {
            let kind = pod.owner_references().first().map(|owner| owner.kind.as_str());
            assert_eq!(kind, owner, "the owner of {}", pod.name_any());
            assert_eq!(pod.labels()["app"], app, "the labels of {}", pod.name_any());
        }
    }
    let pods = space.api::<Pod>().list(&kube::api::ListParams::default().labels("job-name=load")).await?.items;
    assert_eq!(pods.len(), 2, "the job's pods");
    let log = space.pods("log").await?;
    let mut nodes: Vec<_> = log.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, NODES, "the nodes of a DaemonSet's pods");
    let ready = async || {
        let status = space.api::<Deployment>().get("web").await?.status.unwrap_or_default();
        ensure!(status.ready_replicas == Some(3), "the deployment says {status:?}");
        Ok(())
    };
    eventually("the deployment says so too", Duration::from_secs(10), ready).await
}

#[tokio::test]
async fn a_container_has_the_id_and_the_digest_that_the_test_knows() -> Result<()> {
    let other = format!("sha256:{}", "ab".repeat(32));
    let behaviour =
        Behaviour { digests: [("registry.test:5000/side:2".into(), other.clone())].into(), ..Behaviour::default() };
    let (space, _kubelet) = with(behaviour).await?;
    let containers = json!([{"name": "main", "image": IMAGE}, {"name": "side", "image": "registry.test:5000/side:2"}]);
    space.create::<Pod>(merge(pod("two"), json!({"spec": {"containers": containers}}))).await?;
    let pod = space.ready("two", 1).await?.remove(0);
    let statuses = pod.status.clone().and_then(|status| status.container_statuses).context("it has no statuses")?;
    let shown: Vec<_> = statuses
        .iter()
        .map(|status| (status.container_id.clone().unwrap_or_default(), status.image_id.clone()))
        .collect();
    assert_eq!(
        shown[0],
        (format!("containerd://{}", container_id(&pod, "main")), format!("registry.test/web@{}", digest(IMAGE)))
    );
    assert_eq!(
        shown[1],
        (format!("containerd://{}", container_id(&pod, "side")), format!("registry.test:5000/side@{other}"))
    );
    assert_ne!(shown[0].0, shown[1].0, "two containers share an id");
    Ok(())
}

#[tokio::test]
async fn an_evicted_pod_is_replaced_by_one_that_becomes_ready() -> Result<()> {
    let (space, kubelet) = space().await?;
    space.create::<Deployment>(deployment("web", 3)).await?;
    let pods = space.ready("web", 3).await?;
    kubelet.change(|behaviour| behaviour.gone_after = None);
    let answer = space.evict(&pods[0].name_any(), &eviction("v1beta1", &pods[0].name_any())).await?;
    assert_eq!((answer.code, answer.body["status"].as_str()), (201, Some("Success")), "{answer:?}");
    let evicted = space.api::<Pod>().get(&pods[0].name_any()).await?;
    assert!(evicted.metadata.deletion_timestamp.is_some(), "without a kubelet it stays, in Terminating");
    kubelet.change(|behaviour| behaviour.gone_after = Some(Duration::ZERO));
    space.gone(&pods[0]).await?;
    let fresh = space.ready("web", 3).await?;
    assert!(fresh.iter().all(|pod| pod.uid() != pods[0].uid()), "the evicted pod is one of the three");
    Ok(())
}

#[tokio::test]
async fn a_budget_refuses_and_then_allows() -> Result<()> {
    let (space, kubelet) = space().await?;
    space.create::<Deployment>(deployment("web", 2)).await?;
    let pods = space.ready("web", 2).await?;
    space.budget("keep-two", "web", 2).await?;
    space.budget_allows("keep-two", 0).await?;
    let name = pods[0].name_any();
    let answer = space.evict(&name, &eviction("v1beta1", &name)).await?;
    assert_eq!((answer.code, answer.causes()), (429, vec!["DisruptionBudget"]), "{answer:?}");
    assert!(
        answer.body["details"]["causes"].to_string().contains("keep-two"),
        "the budget's name is not said: {answer:?}"
    );
    // A pod that never gets ready is of no help.
    kubelet.change(|behaviour| behaviour.ready_after = None);
    let three = kube::api::Patch::Merge(json!({"spec": {"replicas": 3}}));
    space.api::<Deployment>().patch("web", &kube::api::PatchParams::default(), &three).await?;
    eventually("a third pod runs", Duration::from_secs(20), async || {
        let pods = space.pods("web").await?;
        let running = pods.iter().filter(|pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
        let count = running.count();
        ensure!(count == 3, "{count} run");
        Ok(())
    })
    .await?;
    let answer = space.evict(&name, &eviction("v1beta1", &name)).await?;
    assert_eq!(answer.code, 429, "{answer:?}");
    kubelet.change(|behaviour| behaviour.ready_after = Some(Duration::ZERO));
    space.budget_allows("keep-two", 1).await?;
    let answer = space.evict(&name, &eviction("v1beta1", &name)).await?;
    assert_eq!(answer.code, 201, "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_pod_that_is_not_ready_is_no_longer_counted() -> Result<()> {
    let (space, _kubelet) = space().await?;
    space.create::<Deployment>(deployment("web", 3)).await?;
    let pods = space.ready("web", 3).await?;
    space.budget("keep-two", "web", 2).await?;
    space.budget_allows("keep-two", 1).await?;
    kubelet::set_ready(&space.api(), &pods[2].name_any(), false).await?;
    space.budget_allows("keep-two", 0).await?;
    let labels = space.api::<Pod>().get(&pods[2].name_any()).await?.labels().clone();
    assert_eq!(labels["app"], "web", "a status took the labels along");
    Ok(())
}

#[tokio::test]
async fn two_budgets_for_one_pod_are_an_internal_error() -> Result<()> {
    let (space, _kubelet) = space().await?;
    space.create::<Deployment>(deployment("web", 2)).await?;
    let name = space.ready("web", 2).await?[0].name_any();
    space.budget("one", "web", 0).await?;
    space.budget("other", "web", 0).await?;
    let answer = space.evict(&name, &eviction("v1beta1", &name)).await?;
    assert_eq!((answer.code, answer.body["reason"].as_str()), (500, None), "{answer:?}");
    assert!(answer.message().contains("more than one PodDisruptionBudget"), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn only_the_version_of_discovery_is_taken() -> Result<()> {
    let (space, _kubelet) = space().await?;
    space.create::<Pod>(pod("alone")).await?;
    space.ready("alone", 1).await?;
    let group = space.ask(http::Method::GET, "/apis/policy", None).await?;
    let versions: Vec<_> =
        group.body["versions"].as_array().into_iter().flatten().map(|v| v["version"].clone()).collect();
    assert_eq!(versions, ["v1beta1"]);
    let answer = space.evict("alone", &eviction("v1", "alone")).await?;
    assert_eq!((answer.code, answer.body["reason"].as_str()), (400, Some("BadRequest")), "{answer:?}");
    assert_eq!(space.ready("alone", 1).await?.len(), 1, "it was evicted all the same");
    Ok(())
}

#[tokio::test]
async fn a_pod_that_is_gone_and_one_that_came_in_its_place_are_told_apart() -> Result<()> {
    let (space, _kubelet) = space().await?;
    let answer = space.evict("missing", &eviction("v1beta1", "missing")).await?;
    assert_eq!((answer.code, answer.body["reason"].as_str()), (404, Some("NotFound")), "{answer:?}");
    // A StatefulSet's pod comes back under the same name.
    space.create::<StatefulSet>(stateful_set("db", 1)).await?;
    let first = space.ready("db", 1).await?.remove(0);
    let precise = merge(
        eviction("v1beta1", "db-0"),
        json!({"deleteOptions": {"preconditions": {"uid": first.uid()}, "gracePeriodSeconds": 0}}),
    );
    assert_eq!(space.evict("db-0", &precise).await?.code, 201, "the precondition of its own UID");
    space.gone(&first).await?;
    let second = space.ready("db", 1).await?.remove(0);
    let answer = space.evict("db-0", &precise).await?;
    assert_eq!((answer.code, answer.body["reason"].as_str()), (409, Some("Conflict")), "{answer:?}");
    let found = space.api::<Pod>().get("db-0").await?;
    assert_eq!((found.uid(), found.metadata.deletion_timestamp), (second.uid(), None), "the replacement was evicted");
    Ok(())
}

#[tokio::test]
async fn a_dry_run_evicts_nothing() -> Result<()> {
    let (space, _kubelet) = space().await?;
    space.create::<Pod>(pod("alone")).await?;
    let before = space.ready("alone", 1).await?.remove(0);
    let dry = merge(eviction("v1beta1", "alone"), json!({"deleteOptions": {"dryRun": ["All"]}}));
    assert_eq!(space.evict("alone", &dry).await?.code, 201);
    let after = space.ready("alone", 1).await?.remove(0);
    assert_eq!(after.uid(), before.uid());
    Ok(())
}

#[tokio::test]
async fn a_service_account_may_do_what_it_was_given_and_is_known_by_its_pod() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let (space, _kubelet) = space().await?;
    space.account("agent").await?;
    let bound = space.create::<Pod>(merge(pod("agent-x"), json!({"spec": {"serviceAccountName": "agent"}}))).await?;
    let path = plane.kubeconfig_for_account(&space.name, "agent", Some(&bound)).await?;
    let pods: Api<Pod> = Api::namespaced(client(&path).await?, &space.name);
    let start = Timestamp::now();
    let refused = pods.get("agent-x").await.err().context("it may do what nobody gave it")?;
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    let role = json!({"metadata": {"name": "agent"}, "rules": rules});
    space.create::<k8s_openapi::api::rbac::v1::Role>(role).await?;
    let binding = json!({
        "metadata": {"name": "agent"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "agent"},
        "subjects": [{"kind": "ServiceAccount", "name": "agent", "namespace": space.name}],
    });
    space.create::<k8s_openapi::api::rbac::v1::RoleBinding>(binding).await?;
    eventually("it may", Duration::from_secs(10), async || Ok(pods.get("agent-x").await?)).await?;
    let user = format!("system:serviceaccount:{}:agent", space.name);
    eventually("the audit log has it", Duration::from_secs(10), async || {
        let mut mine = plane.requests_in(&(start..Timestamp::now()))?;
        mine.retain(|request| request.user == user);
        ensure!(
            mine.iter().any(|request| request.code == 403) && mine.iter().any(|request| request.code == 200),
            "{mine:?}"
        );
        assert!(mine.iter().all(|request| request.pod.as_deref() == Some("agent-x")), "{mine:?}");
        let asked: Vec<_> = uses(&mine).into_keys().collect();
        assert_eq!(asked, [(user.as_str(), "get", "pods")]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn kubectl_applies_and_renders() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let (space, _kubelet) = space().await?;
    let applied = plane.kubectl(&["apply", "-n", &space.name, "-f", "-"], &pod("alone").to_string())?;
    assert_eq!(applied.trim(), "pod/alone created");
    let pod = space.ready("alone", 1).await?.remove(0);
    // Server-side apply, as the agent's flag.
    let flag = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "alone", "annotations": {"flag": "up"}}});
    let arguments = ["apply", "-n", &space.name, "--server-side", "--field-manager=flags", "-f", "-"];
    plane.kubectl(&arguments, &flag.to_string())?;
    let found = space.api::<Pod>().get("alone").await?;
    assert_eq!((found.annotations()["flag"].as_str(), found.labels()), ("up", pod.labels()));
    let refused = plane.kubectl(&["get", "pod", "missing", "-n", &space.name], "").expect_err("there is no such pod");
    assert!(refused.to_string().contains("NotFound"), "{refused:#}");

    let folder = plane.folder().join("kustomization");
    fs::create_dir(&folder)?;
    fs::write(folder.join("pod.yaml"), objects::pod("rendered").to_string())?;
    fs::write(folder.join("kustomization.yaml"), "resources: [pod.yaml]\nnamePrefix: x-\n")?;
    let rendered = plane.kubectl(&["kustomize", &folder.display().to_string()], "")?;
    assert!(rendered.contains("name: x-rendered"), "{rendered}");
    Ok(())
}

/// A control plane of its own, since others would notice.
#[tokio::test]
async fn an_api_server_can_be_frozen_and_killed_and_comes_back() -> Result<()> {
    let plane = ControlPlane::start(Options::default()).await?;
    let admin = plane.admin().await?;
    let space = Space::new(&admin).await?;
    let kubelet = Kubelet::start(&admin, &space.name, &NODES, Behaviour::default()).await?;
    space.create::<Deployment>(deployment("web", 2)).await?;
    let pods = space.ready("web", 2).await?;

    plane.stop_api()?;
    let answer = tokio::time::timeout(Duration::from_millis(500), admin.apiserver_version()).await;
    assert!(answer.is_err(), "a frozen server answers {answer:?}");
    plane.continue_api()?;
    assert_eq!(space.ready("web", 2).await?.len(), 2);

    plane.kill_api();
    let answer = admin.apiserver_version().await;
    assert!(answer.is_err(), "a dead server answers {answer:?}");
    plane.restart_api().await?;
    let same: Vec<_> = space.ready("web", 2).await?.iter().map(Pod::uid).collect();
    assert_eq!(same, pods.iter().map(Pod::uid).collect::<Vec<_>>(), "the objects of before");
    // Controllers and kubelet come back as well.
    let name = pods[0].name_any();
    let answer = space.evict(&name, &eviction("v1beta1", &name)).await?;
    assert_eq!(answer.code, 201, "{answer:?}");
    space.gone(&pods[0]).await?;
    space.ready("web", 2).await?;
    drop(kubelet);

    let folder = plane.folder().to_owned();
    let processes = || -> Result<Vec<String>> {
        let mut found = vec![];
        for entry in fs::read_dir("/proc")?.flatten() {
            let working_folder = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            if working_folder.starts_with(&folder) {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(found)
    };
    assert_eq!(processes()?.len(), 3, "etcd, API server and controller manager");
    drop(plane);
    assert_eq!(processes()?, Vec::<String>::new(), "something still runs");
    assert!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}

#[tokio::test]
async fn it_does_without_controllers() -> Result<()> {
    let plane = ControlPlane::start(Options { controllers: &[], ..Options::default() }).await?;
    let admin = plane.admin().await?;
    let space = Space::existing(&admin, "default");
    let _kubelet = Kubelet::start(&admin, &space.name, &NODES, Behaviour::default()).await?;
    space.create::<Pod>(pod("alone")).await?;
    space.ready("alone", 1).await?;
    Ok(())
}

#[tokio::test]
async fn why_a_server_does_not_start_is_said() -> Result<()> {
    let options = Options { api_arguments: vec!["--no-such-flag".into()], ..Options::default() };
    let error = format!("{:#}", ControlPlane::start(options).await.err().context("it started")?);
    assert!(error.starts_with("kube-apiserver ended with exit"), "{error}");
    assert!(error.contains("unknown flag: --no-such-flag"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_pod_may_stay_pending_and_unready() -> Result<()> {
    let (space, kubelet) = with(Behaviour { running_after: Duration::MAX, ..Behaviour::default() }).await?;
    space.create::<Pod>(pod("alone")).await?;
    let phase = async |phase: &str| {
        eventually(phase, Duration::from_secs(20), async || {
            let pod = space.api::<Pod>().get("alone").await?;
            let is_bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
            ensure!(
                is_bound && pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase),
                "{:?}",
                pod.status
            );
            Ok(pod)
        })
        .await
    };
    let pending = phase("Pending").await?;
    assert_eq!(pending.status.and_then(|status| status.container_statuses), None, "ids of containers that do not run");
    kubelet.change(|behaviour| {
        behaviour.running_after = Duration::ZERO;
        behaviour.ready_after = None;
    });
    let running = phase("Running").await?;
    assert!(!is_ready(&running), "{:?}", running.status);
    kubelet.change(|behaviour| behaviour.ready_after = Some(Duration::ZERO));
    space.ready("alone", 1).await?;
    Ok(())
}
