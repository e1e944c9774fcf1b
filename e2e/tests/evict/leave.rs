//! Pods that are evicted only where the policy gives leave.

use anyhow::{Context as _, Result, ensure};
use guard_e2e::{
    Behaviour, ControlPlane, Kubelet, Space, eventually, kubelet,
    objects::{daemon_set, deployment, merge, pod},
    stage::{SOON, Stage, config},
};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::Pod,
};
use kube::ResourceExt as _;
use serde_json::json;

use crate::ROOM;

/// A pod of each kind, each with what the log says of it if there is no leave.
async fn cast(stage: &Stage) -> Result<Vec<(Pod, &'static str)>> {
    let space = &stage.space;
    space.create::<Pod>(pod("alone")).await?;
    // Of all nodes of this cluster, this test's.
    let here = json!({"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": stage.node}}}}});
    space.create::<DaemonSet>(merge(daemon_set("each"), here)).await?;
    space.create::<Deployment>(deployment("single", 1)).await?;
    space.create::<Deployment>(deployment("pair", 2)).await?;
    let volumes = json!([{"name": "disk", "hostPath": {"path": "/var/lib/thing"}}]);
    let containers = [merge(
        deployment("disk", 2)["spec"]["template"]["spec"]["containers"][0].take(),
        json!({"volumeMounts": [{"name": "disk", "mountPath": "/thing"}]}),
    )];
    let disk = json!({"spec": {"template": {"spec": {"volumes": volumes, "containers": containers}}}});
    space.create::<Deployment>(merge(deployment("disk", 2), disk)).await?;

    let mut cast = vec![];
    for (app, count, why) in [
        ("alone", 1, "reason=\"unmanaged\""),
        ("each", 1, "reason=\"daemon_set\""),
        ("disk", 2, "reason=\"local_volume\""),
        ("single", 1, "0 of its workload's replicas are ready beside it, and minReady is 1"),
        ("pair", 2, "0 of its workload's replicas are ready beside it, and minReady is 1"),
    ] {
        let mut pods = space.ready(app, count).await?;
        if app == "pair" {
            let other = pods.pop().context("two pods")?;
            kubelet::set_ready(&space.api(), &other.name_any(), false).await?;
            eventually("its status says so", SOON, async || {
                let status = space.api::<Deployment>().get("pair").await?.status;
                let ready = status.and_then(|status| status.ready_replicas);
                ensure!(ready == Some(1), "{ready:?} are ready");
                Ok(())
            })
            .await?;
        }
        cast.push((pods.remove(0), why));
    }
    Ok(cast)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_leave_these_are_let_alone() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let elsewhere = Space::new(&plane.admin().await?).await?;
    let protect = format!("{ROOM}\nprotect: {{namespaces: [kube-system, {}]}}", elsewhere.name);
    let mut stage = Stage::new(plane, &config(&protect, "")).await?;
    let mut cast = cast(&stage).await?;
    let _kubelet = Kubelet::start(&elsewhere.client, &elsewhere.name, &[&stage.node], Behaviour::default()).await?;
    elsewhere.create::<Deployment>(deployment("web", 2)).await?;
    cast.push((elsewhere.ready("web", 2).await?.remove(0), "reason=\"namespace\""));

    for (pod, _) in &cast {
        stage.run(pod).await?;
    }
    let _attacks = cast.iter().map(|(pod, _)| stage.attack(pod)).collect::<Result<Vec<_>>>()?;
    for (pod, why) in &cast {
        stage.says_of(pod, why).await?;
        stage.contained(pod)?;
        stage.untouched(pod).await?;
    }
    assert_eq!(stage.all_asked(plane)?, []);
    for (reason, count) in [("unmanaged", 1), ("daemon_set", 1), ("local_volume", 1), ("namespace", 1)] {
        let series = format!("egress_guard_declined_total{{action=\"evict\",reason=\"{reason}\"}}");
        assert_eq!(stage.series(&series)?, count, "{series}");
    }
    // Those two are counted with each attempt.
    assert!(stage.evictions("protected")? >= 2, "{}", stage.log()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_leave_they_are_evicted() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let leave = ", unmanaged: true, daemonSets: true, lastReplica: true, localVolumes: true";
    let mut stage = Stage::new(plane, &config(ROOM, leave)).await?;
    let cast = cast(&stage).await?;
    for (pod, _) in &cast {
        stage.run(pod).await?;
    }
    let _attacks = cast.iter().map(|(pod, _)| stage.attack(pod)).collect::<Result<Vec<_>>>()?;
    for (pod, _) in &cast {
        stage.says_of(pod, ": evicted").await?;
        stage.space.gone(pod).await?;
        let asked = stage.asked(plane, pod)?;
        assert_eq!(asked.len(), 1, "{asked:?}");
    }
    assert_eq!(stage.evictions("done")?, cast.len() as u64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_let_alone_until_it_is_old_enough() -> Result<()> {
    const AGE: i64 = 12;
    let plane = ControlPlane::shared().await?;
    let config = config("", "").replace("minAge: 0s", &format!("minAge: {AGE}s"));
    let mut stage = Stage::new(plane, &config).await?;
    stage.space.create::<Deployment>(deployment("web", 2)).await?;
    let young = stage.space.ready("web", 2).await?.remove(0);
    stage.run(&young).await?;
    let _attack = stage.attack(&young)?;
    stage.says_of(&young, "reason=\"too_young\"").await?;
    stage.says_of(&young, ": evicted").await?;
    let asked = stage.asked(plane, &young)?;
    let created = young.creation_timestamp().context("no creation")?.0;
    let age = asked[0].at.as_second() - created.as_second();
    assert!(age >= AGE, "it was evicted at the age of {age} s");
    Ok(())
}
