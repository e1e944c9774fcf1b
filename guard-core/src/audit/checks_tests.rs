use std::path::Path;

use super::super::{
    Bound, Budget, Cluster, Rules, Verdict,
    tests::{Change, controller, facts, faults, only_row, owner, shop},
};
use crate::{
    config::Config,
    inventory::{Phase, Volume},
};

/// The same pods, without budget and of another kind, and without objects that are known but this.
fn of_kind(cluster: &mut Cluster, kind: &str) {
    cluster.owners = vec![owner(kind, "web", None)];
    for facts in &mut cluster.pods {
        facts.pod.controller = Some(controller(kind, "web"));
        facts.budgets = vec![];
    }
}

/// What is found after a change.
fn after(change: Change) -> Vec<String> {
    let mut cluster = shop();
    change(&mut cluster);
    faults(&only_row(&cluster, &Rules::default()))
}

#[track_caller]
fn check(cases: &[(&str, Change, &str)]) {
    for (what, change, expected) in cases {
        let expected: &[&str] = if expected.is_empty() { &[] } else { &[expected] };
        assert_eq!(after(*change), expected, "{what}");
    }
}

#[test]
fn others_must_be_ready_meanwhile() {
    check(&[
        (
            "one replica",
            |it| {
                it.pods.truncate(1);
                it.owners[0].desired = 1;
                it.owners[0].ready = Some(1);
            },
            "unsafe replicas [last_replica]: 0 of its workload's replicas are ready beside it, and minReady is 1 \
            (onBreach.evict.lastReplica gives leave)",
        ),
        (
            "the only one that is ready",
            |it| {
                it.owners[0].ready = Some(1);
                it.pods[0].pod.ready = false;
                it.pods[1].pod.ready = false;
            },
            "unsafe replicas [last_replica]: 0 of its workload's replicas are ready beside it, and minReady is 1 \
            (onBreach.evict.lastReplica gives leave)",
        ),
        ("not all ready", |it| it.owners[0].ready = Some(2), "risk replicas: 2 of 3 are ready"),
        (
            "nobody knows",
            |it| {
                it.owners.clear();
            },
            "unsafe replicas [unknown_replicas]: how many replicas of a ReplicaSet are ready cannot be known \
            (onBreach.evict.lastReplica gives leave)",
        ),
        (
            "pods on their way out",
            |it| {
                it.pods[0].pod.terminating = true;
                it.pods[0].pod.volumes = vec![Volume::HostPath { name: "logs".into(), path: "/var/log".into() }];
                it.pods[1].pod.phase = Phase::Failed;
                it.pods[1].pod.grace = Some(0);
            },
            "",
        ),
        ("made just now", |it| it.pods[0].pod.created = i64::MAX, ""),
        (
            "a Rollout's ReplicaSet",
            |it| {
                it.owners.remove(0);
                it.owners[0].controller = Some(controller("Rollout", "web"));
            },
            "",
        ),
    ]);
}

#[test]
fn one_budget_must_allow_it_now() {
    check(&[
        (
            "no budget",
            |it| it.pods.iter_mut().for_each(|pod| pod.budgets.clear()),
            "risk budget: no PodDisruptionBudget selects it: evictions may coincide with a node's drain",
        ),
        (
            "a budget for some",
            |it| it.pods[0].budgets.clear(),
            "risk budget: no PodDisruptionBudget selects 1 of its 3 pods: evictions may coincide with a node's drain",
        ),
        (
            "two budgets",
            |it| it.pods[0].budgets = vec!["all".into(), "web".into()],
            "unsafe budget: more than one PodDisruptionBudget selects it, and the API server evicts no such pod: all, web",
        ),
        (
            "a budget that never allows any",
            |it| {
                it.budgets[0].allowed = 0;
                it.budgets[0].desired = 3;
            },
            "unsafe budget: the PodDisruptionBudget web never allows an eviction: 3 of its 3 pods must be healthy",
        ),
        (
            "a budget that is used up",
            |it| {
                it.budgets[0].allowed = 0;
                it.budgets[0].healthy = 2;
            },
            "risk budget: the PodDisruptionBudget web allows no eviction now: 2 of its 3 pods are healthy, and 2 must be",
        ),
        (
            "a budget without pods",
            |it| it.budgets[0] = Budget { expected: 0, desired: 0, healthy: 0, allowed: 0, ..it.budgets[0].clone() },
            "risk budget: the PodDisruptionBudget web allows no eviction now: 0 of its 0 pods are healthy, and 0 must be",
        ),
        (
            "a budget that has just changed",
            |it| it.budgets[0].current = false,
            "risk budget: the status of the PodDisruptionBudget web is not up to date, so it allows no eviction now",
        ),
        (
            "a budget that cannot be computed",
            |it| it.budgets[0].failed = Some("no scale".into()),
            "unsafe budget: the PodDisruptionBudget web cannot be computed, so it allows no eviction: no scale",
        ),
        (
            "another namespace's budget",
            |it| it.budgets.insert(0, Budget { namespace: "other".into(), allowed: 0, ..it.budgets[0].clone() }),
            "",
        ),
    ]);
}

#[test]
fn no_data_may_stay_behind() {
    check(&[
        (
            "a host's folder",
            |it| it.pods[1].pod.volumes = vec![Volume::HostPath { name: "logs".into(), path: "/var/log".into() }],
            "unsafe volumes [local_volume]: its volume logs is local to the node (onBreach.evict.localVolumes gives leave)",
        ),
        (
            "a local claim",
            |it| {
                it.pods[0].pod.volumes = vec![Volume::Claim { name: "data".into(), claim: "data-0".into() }];
                it.local.insert(("shop".into(), "data-0".into()));
            },
            "unsafe volumes [local_volume]: its volume data is local to the node (onBreach.evict.localVolumes gives leave)",
        ),
        (
            "a claim that is not local",
            |it| {
                it.pods[0].pod.volumes = vec![Volume::Claim { name: "data".into(), claim: "data-0".into() }];
                it.local.insert(("other".into(), "data-0".into()));
            },
            "",
        ),
        ("an emptyDir", |it| it.pods[0].pod.volumes = vec![Volume::EmptyDir { name: "tmp".into() }], ""),
    ]);
}

#[test]
fn what_makes_an_eviction_safer() {
    check(&[
        ("one node", |it| it.pods[0].node = "n2".into(), "risk spread: all its 3 pods are on the node n2"),
        ("no time to end", |it| it.pods[0].pod.grace = Some(0), "risk grace: it has no time to end by itself"),
        (
            "time without end",
            |it| it.pods[0].pod.grace = Some(301),
            "risk grace: it may go on for 301 s after its eviction",
        ),
        ("the longest time", |it| it.pods[0].pod.grace = Some(300), ""),
        (
            "no limits",
            |it| it.pods[0].containers[0].missing = vec![Bound::CpuLimit, Bound::MemoryRequest],
            "risk resources: container main has no CPU limit, no memory request",
        ),
        (
            "can write",
            |it| it.pods.iter_mut().for_each(|pod| pod.containers[0].read_only_root = false),
            "risk root_filesystem: container main can write to its root file system",
        ),
        (
            "a tag",
            |it| it.pods[0].containers[0].image = "web:1".into(),
            "risk image: container main has an image without a digest: web:1",
        ),
    ]);
}

#[test]
fn kinds_differ_in_what_they_need() {
    let decline = "(onBreach.evict.daemonSets gives leave)";
    assert_eq!(after(|it| of_kind(it, "StatefulSet")).len(), 1, "no budget");
    assert_eq!(after(|it| of_kind(it, "Job")), Vec::<String>::new());
    assert_eq!(
        after(|it| of_kind(it, "DaemonSet")),
        [format!("unsafe controller [daemon_set]: it belongs to a DaemonSet {decline}")]
    );
    let bare = after(|it| {
        *it = Cluster { pods: vec![facts("a", None, "n1")], budgets: vec![], ..Cluster::default() };
        it.pods[0].budgets.clear();
    });
    let said = "unsafe controller [unmanaged]: it has no controller that would start another \
                (onBreach.evict.unmanaged gives leave)";
    assert_eq!(bare, [said]);
}

#[test]
fn a_single_job_may_begin_anew_only_with_leave() {
    let mut cluster = shop();
    of_kind(&mut cluster, "Job");
    cluster.pods.truncate(1);
    (cluster.owners[0].desired, cluster.owners[0].ready) = (1, Some(1));
    let row = only_row(&cluster, &Rules::default());
    assert_eq!((row.verdict, &*row.findings[0].remedy), (Verdict::Unsafe, "give leave if its work may begin anew"));
}

/// What is found under a configuration.
fn under(yaml: &str, change: Change) -> Vec<String> {
    let config = Config::parse(yaml, Path::new("config.yaml")).expect("a configuration");
    let mut cluster = shop();
    change(&mut cluster);
    faults(&only_row(&cluster, &Rules { protect: config.protect, policies: Some(config.policies) }))
}

const RATE: &str = "egress: {rate: 1MB/s}, onBreach";

#[test]
fn only_a_policy_that_evicts_makes_an_eviction() {
    let never = ["protected protection: never evicted: the policies that hold for it do not evict"];
    let one_replica: Change = |it| it.owners[0].ready = Some(1);
    assert_eq!(under("mode: evict", one_replica), never);
    let other = format!("policies: [{{name: a, match: {{namespaces: [bank]}}, {RATE}: {{evict: {{after: 1s}}}}}}]");
    assert_eq!(under(&other, one_replica), never);
    let exempt = format!(
        "policies: [{{name: a, match: {{pods: [a, b, c]}}}}, {{name: b, match: {{}}, {RATE}: {{evict: {{after: 1s}}}}}}]"
    );
    assert_eq!(under(&exempt, one_replica), never);
    let all = format!("policies: [{{name: a, match: {{}}, {RATE}: {{evict: {{after: 1s}}}}}}]");
    let found = under(&all, one_replica);
    assert!(found.len() == 1 && found[0].starts_with("unsafe replicas [last_replica]"), "{found:?}");
    let protected = format!("protect: {{namespaces: [shop]}}\n{all}");
    let said = "protected protection [namespace]: never evicted: its namespace shop is protected (protect.namespaces)";
    assert_eq!(under(&protected, one_replica), [said]);
}

#[test]
fn what_there_is_leave_for_is_a_risk_that_was_taken() {
    let cases: [(&str, Change, &str); 6] = [
        ("lastReplica: true", |it| it.owners[0].ready = Some(1), "risk replicas: evicted by leave: 0 of its"),
        ("minReady: 0", |it| it.owners[0].ready = Some(1), "risk replicas: evicted by leave: 0 of its"),
        ("minReady: 3", |_| (), "unsafe replicas [last_replica]: 2 of its"),
        (
            "daemonSets: true",
            |it| of_kind(it, "DaemonSet"),
            "risk controller: evicted by leave: it belongs to a DaemonSet",
        ),
        (
            "localVolumes: true",
            |it| it.pods[0].pod.volumes = vec![Volume::HostPath { name: "logs".into(), path: "/".into() }],
            "risk volumes: evicted by leave: its volume logs is local",
        ),
        (
            "emptyDir: false",
            |it| it.pods[0].pod.volumes = vec![Volume::EmptyDir { name: "tmp".into() }],
            "unsafe volumes [empty_dir]: the data of its emptyDir volume tmp would be lost",
        ),
    ];
    for (leave, change, expected) in cases {
        let yaml = format!("policies: [{{name: a, match: {{}}, {RATE}: {{evict: {{after: 1s, {leave}}}}}}}]");
        let found = under(&yaml, change);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{leave}: {found:?}");
    }
    let bare: Change = |it| *it = Cluster { pods: vec![facts("a", None, "n1")], ..Cluster::default() };
    let yaml = format!("policies: [{{name: a, match: {{}}, {RATE}: {{evict: {{after: 1s, unmanaged: true}}}}}}]");
    let found = under(&yaml, bare);
    assert!(found.len() == 1 && found[0].starts_with("risk controller: evicted by leave: it has no"), "{found:?}");
}

#[test]
fn of_several_policies_for_a_pod_the_strictest_counts() {
    let two: Change = |it| {
        it.owners[0].ready = Some(1);
        for facts in &mut it.pods {
            facts.pod.containers.push(crate::inventory::Container { name: "side".into(), ..Default::default() });
        }
    };
    let yaml = |first: &str, second: &str| {
        format!(
            "policies: [{{name: a, match: {{containers: [side]}}, {RATE}: {{evict: {{after: 1s, lastReplica: {first}}}}}}}, \
             {{name: b, match: {{}}, {RATE}: {{evict: {{after: 1s, lastReplica: {second}}}}}}}]"
        )
    };
    for (first, second, expected) in
        [("true", "true", "risk"), ("true", "false", "unsafe"), ("false", "true", "unsafe")]
    {
        let found = under(&yaml(first, second), two);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{first} and {second}: {found:?}");
    }
}
