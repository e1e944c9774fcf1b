//! Many breaches at once, and the node's budget.

use anyhow::{Context as _, Result, ensure};
use guard_e2e::{
    ControlPlane, eventually,
    objects::deployment,
    stage::{SOON, Stage, config},
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::ResourceExt as _;

const WORKLOADS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_evicted_in_a_storm_and_no_more_than_the_budget_after_it() -> Result<()> {
    let plane = ControlPlane::shared().await?;
    let config = config("storm: {pods: 100%}", "").replace("after: 1s", "after: 3s");
    let mut stage = Stage::new(plane, &config).await?;
    let mut pods: Vec<Pod> = vec![];
    for n in 0..WORKLOADS {
        stage.space.create::<Deployment>(deployment(&format!("web-{n}"), 4)).await?;
    }
    for n in 0..WORKLOADS {
        let pod = stage.space.ready(&format!("web-{n}"), 4).await?.pop().context("four pods")?;
        stage.run(&pod).await?;
        pods.push(pod);
    }
    let _attacks = pods.iter().map(|pod| stage.attack(pod)).collect::<Result<Vec<_>>>()?;
    stage.says("5 workloads (5 of 5 pods) breach their limits at once: nothing is evicted").await?;
    for pod in &pods {
        stage.says_of(pod, "reason=\"storm\"").await?;
        stage.contained(pod)?;
    }
    assert_eq!(stage.series("egress_guard_storm")?, 1);
    assert_eq!(stage.said("breach their limits at once")?, 1, "{}", stage.log()?);
    assert_eq!(stage.all_asked(plane)?, []);

    let said = stage.world.agent().verb(&["resume"])?;
    assert!(said.contains("the storm is over"), "{said}");
    assert_eq!(stage.series("egress_guard_storm")?, 0);
    // Three in ten minutes.
    let refused = "egress_guard_declined_total{action=\"evict\",reason=\"node_budget\"}";
    eventually("three are evicted and two are not", SOON, async || {
        let (done, refused) = (stage.evictions("done")?, stage.series(refused)?);
        ensure!((done, refused) == (3, 2), "{done} were, {refused} not:\n{}", stage.log()?);
        Ok(())
    })
    .await?;
    let evicted: Vec<String> = stage.all_asked(plane)?.into_iter().map(|request| request.name).collect();
    assert_eq!(evicted.len(), 3, "{evicted:?}");
    for pod in pods.iter().filter(|pod| !evicted.contains(&pod.name_any())) {
        stage.untouched(pod).await?;
        stage.contained(pod)?;
    }
    Ok(())
}
