//! Pods that are never evicted, whatever leave the policy gives.

use anyhow::Result;
use guard_e2e::{
    Behaviour, ControlPlane, Kubelet, Space,
    objects::{deployment, merge, pod},
    stage::{Stage, config},
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{ResourceExt as _, api::DeleteParams};
use serde_json::json;

use crate::ROOM;

#[tokio::test(flavor = "multi_thread")]
async fn these_are_let_alone_whatever_the_policy_says() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let leave = ", unmanaged: true, daemonSets: true, lastReplica: true, localVolumes: true";
    let mut stage = Stage::new(plane, &config(ROOM, leave)).await?;
    stage.kubelet.change(|behaviour| behaviour.gone_after = None);
    let space = &stage.space;
    let mut cast = vec![];

    let hash = "0123456789abcdef0123456789abcdef";
    let annotations = json!({"kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": hash});
    let mirror =
        merge(pod("static"), json!({"metadata": {"annotations": annotations}, "spec": {"nodeName": stage.node}}));
    space.create::<Pod>(mirror).await?;
    cast.push((space.ready("static", 1).await?.remove(0), "mirror"));

    let critical = json!({"spec": {"template": {"spec": {"priorityClassName": "system-node-critical"}}}});
    space.create::<Deployment>(merge(deployment("critical", 2), critical)).await?;
    cast.push((space.ready("critical", 2).await?.remove(0), "priority"));

    space.create::<Deployment>(deployment("ending", 2)).await?;
    let ending = space.ready("ending", 2).await?.remove(0);
    space.api::<Pod>().delete(&ending.name_any(), &DeleteParams::default()).await?;
    cast.push((ending, "terminating"));

    let mut kubelets = vec![];
    for namespace in [stage.installation.space.name.as_str(), "kube-system"] {
        let elsewhere = Space::existing(&space.client, namespace);
        kubelets.push(Kubelet::start(&space.client, namespace, &[&stage.node], Behaviour::default()).await?);
        elsewhere.create::<Deployment>(deployment("web", 2)).await?;
        cast.push((elsewhere.ready("web", 2).await?.remove(0), "namespace"));
    }

    for (pod, _) in &cast {
        stage.run(pod).await?;
    }
    let _attacks = cast.iter().map(|(pod, _)| stage.attack(pod)).collect::<Result<Vec<_>>>()?;
    for (pod, why) in &cast {
        stage.says_of(pod, &format!("reason=\"{why}\"")).await?;
        stage.contained(pod)?;
        if *why != "terminating" {
            stage.untouched(pod).await?;
        }
    }
    assert_eq!(stage.all_asked(plane)?, []);
    assert_eq!(stage.evictions("done")?, 0);
    Ok(())
}
