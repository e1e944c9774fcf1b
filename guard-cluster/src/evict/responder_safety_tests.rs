//! What is looked at before an eviction.

use super::*;

/// To a pod.
type Change = fn(&mut Value);

#[tokio::test(start_paused = true)]
async fn two_agents_that_both_see_two_ready_replicas_evict_one() {
    let fake = cluster(2);
    let other = with_pod(order(), |pod| (pod.name, pod.uid) = ("web-2".into(), "u-2".into()));
    let (one, two) = (responder(&fake, "node-1"), responder(&fake, "node-2"));
    // The second is allowed by its limits, but its workload's status does not know of the first yet.
    let limits = Limits { at_once: NonZeroU64::new(5).expect("not zero"), percent: 100, ..order().limits };
    let (first, second) = (Order { limits, ..order() }, Order { limits, ..other });
    let (first, second) = tokio::join!(one.evict(&first, || false), two.evict(&second, || false));
    let mut names = [first.outcome.name(), second.outcome.name()];
    names.sort_unstable();
    assert_eq!(names, ["done", "protected"], "{first}, {second}");
    assert_eq!(evictions(&fake), 1);
    assert_eq!(taken(&fake), 2);
}

#[tokio::test(start_paused = true)]
async fn one_that_becomes_ready_while_leases_are_waited_for_is_not_taken_for_another() {
    let fake = fill(Fake::new(20), 1);
    let mut unready = pod("web-1", "u-1");
    unready["status"]["conditions"] = json!([]);
    fake.put(POD, unready);
    let becomes_ready = async {
        while fake.asked(&format!("POST {LEASES}")).is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fake.put(POD, pod("web-1", "u-1"));
    };
    let order = order();
    let (attempt, ()) = tokio::join!(evict(&fake, &order), becomes_ready);
    assert!(matches!(attempt.outcome, Outcome::Protected(Unsafe::LastReplica { beside: 0, least: 1 })), "{attempt}");
    assert_eq!((evictions(&fake), taken(&fake)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn leases_of_workloads_whose_evictions_are_long_over_are_removed() {
    let fake = cluster(3);
    let books = &responder(&fake, "node-1").books;
    for (workload, uid) in [("shop/Job/old", "u-1"), ("shop/Job/new", "u-2")] {
        books.hold(workload, uid, 1).await.expect("held");
        tokio::time::sleep(Duration::from_mins(45)).await;
    }
    books.sweep().await;
    let left: Vec<String> = fake
        .under(LEASES)
        .iter()
        .filter_map(|lease| Some(lease["metadata"]["annotations"]["egress-guard.dev/workload"].as_str()?.to_owned()))
        .collect();
    assert_eq!(left, ["shop/Job/new"]);
}

#[tokio::test(start_paused = true)]
async fn a_share_of_the_ready_replicas_may_go_at_once() {
    for (ready, evicted) in [(3, 1), (8, 1), (9, 2)] {
        let fake = cluster(ready);
        let limits = Limits { at_once: NonZeroU64::new(5).expect("not zero"), ..order().limits };
        let other = with_pod(order(), |pod| (pod.name, pod.uid) = ("web-2".into(), "u-2".into()));
        let first = evict(&fake, &Order { limits, ..order() }).await;
        assert_eq!(first.outcome.name(), "done", "{ready}: {first}");
        let second = evict(&fake, &Order { limits, ..other }).await;
        assert_eq!(evictions(&fake), evicted, "{ready}: {second}");
    }
    assert_eq!(
        [at_once(5, 25, Some(100)), at_once(5, 25, Some(11)), at_once(5, 25, Some(0)), at_once(5, 25, None)],
        [5, 2, 1, 1]
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_says_now_counts_and_not_what_the_node_knew() {
    let unready = Leave { last_replica: true, ..Leave::default() };
    let alone = cluster(1);
    let attempt = evict(&alone, &order()).await;
    assert!(matches!(attempt.outcome, Outcome::Protected(Unsafe::LastReplica { beside: 0, least: 1 })), "{attempt}");
    assert_eq!((evictions(&alone), taken(&alone)), (0, 0));
    assert_eq!(evict(&alone, &Order { leave: unready, ..order() }).await.outcome.name(), "done");

    let of = |change: Change| {
        let fake = cluster(3);
        let mut pod = pod("web-1", "u-1");
        change(&mut pod);
        fake.put(POD, pod);
        fake
    };
    let cases: [(&str, Change); 5] = [
        ("priority", |pod| pod["spec"]["priorityClassName"] = json!("system-node-critical")),
        ("mirror", |pod| pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"})),
        ("unmanaged", |pod| pod["metadata"]["ownerReferences"] = json!([])),
        ("too_young", |pod| pod["metadata"]["creationTimestamp"] = json!("2001-09-09T01:46:00Z")),
        ("ended", |pod| pod["status"]["phase"] = json!("Failed")),
    ];
    for (name, change) in cases {
        let fake = of(change);
        let attempt = evict(&fake, &order()).await;
        let Outcome::Protected(why) = &attempt.outcome else { panic!("{name}: {attempt}") };
        assert_eq!(why.name(), name);
        assert_eq!(fake.asked("").len(), 1, "{name}: one look is enough");
    }
    // Another pod of its name.
    let fake = of(|pod| pod["metadata"]["uid"] = json!("u-9"));
    assert_eq!(evict(&fake, &order()).await.outcome.name(), "gone");
    let nobody = with_pod(order(), |pod| pod.name = "web-9".into());
    assert_eq!(evict(&fake, &nobody).await.outcome.name(), "gone");
    assert_eq!(evictions(&fake), 0);
}

#[tokio::test(start_paused = true)]
async fn a_workload_whose_pods_nobody_counts_is_left_alone() {
    let controlled_by = |api_version: &str, kind: &str| {
        let fake = cluster(3);
        let mut pod = pod("web-1", "u-1");
        let owner = json!({"apiVersion": api_version, "kind": kind, "name": "web-1", "uid": "set", "controller": true});
        pod["metadata"]["ownerReferences"] = json!([owner]);
        fake.put(POD, pod);
        fake
    };
    let of = |kind: &str| {
        let workload = Workload { kind: kind.into(), namespace: "shop".into(), name: "web-1".into() };
        with_pod(order(), move |pod| pod.workload = Some(workload.clone()))
    };
    // Of another group, though it is called the same.
    for (api_version, kind) in [("example.com/v1", "Database"), ("apps.kruise.io/v1", "ReplicaSet")] {
        let fake = controlled_by(api_version, kind);
        let attempt = evict(&fake, &of(kind)).await;
        assert!(matches!(attempt.outcome, Outcome::Protected(Unsafe::UnknownReplicas(_))), "{attempt}");
        assert_eq!((evictions(&fake), taken(&fake)), (0, 0));
    }
    // A kind that is not known, above a ReplicaSet that is: its count holds.
    let fake = cluster(3);
    let set = json!({"metadata": {"name": "web-1", "uid": "set"}, "status": {"readyReplicas": 2}});
    fake.put("/apis/apps/v1/namespaces/shop/replicasets/web-1", set);
    assert_eq!(evict(&fake, &of("Rollout")).await.outcome.name(), "done");
    // Another one of its name is not it.
    let fake = cluster(3);
    let set = json!({"metadata": {"name": "web-1", "uid": "other"}, "status": {"readyReplicas": 2}});
    fake.put("/apis/apps/v1/namespaces/shop/replicasets/web-1", set);
    assert_eq!(evict(&fake, &of("Rollout")).await.outcome.name(), "protected");
}

#[tokio::test(start_paused = true)]
async fn volumes_that_are_local_to_the_node_hold_a_pod() {
    let with_claim = || {
        let fake = cluster(3);
        let mut pod = pod("web-1", "u-1");
        pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-1"}}]);
        fake.put(POD, pod);
        fake
    };
    let claim = "/api/v1/namespaces/shop/persistentvolumeclaims/data-1";
    let bound = json!({"metadata": {"name": "data-1"}, "spec": {"volumeName": "pv-1"}});
    let volume = |source: Value| json!({"metadata": {"name": "pv-1"}, "spec": source});
    let cases = [
        (json!({"local": {"path": "/disk"}}), false),
        (json!({"hostPath": {"path": "/disk"}}), false),
        (json!({"csi": {"driver": "pd", "volumeHandle": "x"}}), true),
    ];
    for (source, allowed) in cases {
        let fake = with_claim();
        fake.put(claim, bound.clone());
        fake.put("/api/v1/persistentvolumes/pv-1", volume(source.clone()));
        let attempt = evict(&fake, &order()).await;
        assert_eq!(attempt.outcome.name(), if allowed { "done" } else { "protected" }, "{source}: {attempt}");
    }
    // What cannot be known counts as local: no claim, none bound, no volume.
    let unbound = json!({"metadata": {"name": "data-1"}, "spec": {"volumeName": ""}});
    for object in [None, Some(unbound), Some(bound)] {
        let fake = with_claim();
        if let Some(object) = &object {
            fake.put(claim, object.clone());
        }
        let attempt = evict(&fake, &order()).await;
        assert!(matches!(attempt.outcome, Outcome::Protected(Unsafe::LocalVolume(_))), "{object:?}: {attempt}");
    }
    // With leave nobody asks.
    let fake = with_claim();
    let leave = Leave { local_volumes: true, ..Leave::default() };
    assert_eq!(evict(&fake, &Order { leave, ..order() }).await.outcome.name(), "done");
    assert_eq!(fake.asked(&format!("GET {claim}")), []);
}
