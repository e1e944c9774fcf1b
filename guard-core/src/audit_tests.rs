use globset::Glob;

use super::*;
use crate::policy::Globs;

pub(super) type Change = fn(&mut Cluster);

pub(super) fn controller(kind: &str, name: &str) -> Controller {
    Controller { api_version: String::new(), kind: kind.into(), name: name.into(), uid: format!("{kind}/{name}") }
}

pub(super) fn owner(kind: &str, name: &str, above: Option<Controller>) -> Owner {
    Owner {
        uid: format!("{kind}/{name}"),
        workload: Workload { kind: kind.into(), namespace: "shop".into(), name: name.into() },
        controller: above,
        desired: 3,
        ready: Some(3),
        finished: false,
        template: facts("", None, ""),
    }
}

pub(super) fn facts(name: &str, controller: Option<Controller>, node: &str) -> Facts {
    Facts {
        pod: Pod {
            uid: format!("uid-{name}"),
            namespace: "shop".into(),
            name: name.into(),
            controller,
            phase: Phase::Running,
            ready: true,
            grace: Some(30),
            containers: vec![crate::inventory::Container { name: "main".into(), ..Default::default() }],
            ..Pod::default()
        },
        node: node.into(),
        containers: vec![Container {
            name: "main".into(),
            image: "web@sha256:00".into(),
            missing: vec![],
            read_only_root: true,
        }],
        budgets: vec!["web".into()],
    }
}

/// A Deployment with nothing to find fault with: three pods of a ReplicaSet on two nodes.
pub(super) fn shop() -> Cluster {
    let replica_set = || Some(controller("ReplicaSet", "web-5f"));
    Cluster {
        owners: vec![
            owner("Deployment", "web", None),
            owner("ReplicaSet", "web-5f", Some(controller("Deployment", "web"))),
        ],
        pods: vec![facts("a", replica_set(), "n1"), facts("b", replica_set(), "n2"), facts("c", replica_set(), "n2")],
        budgets: vec![Budget {
            namespace: "shop".into(),
            name: "web".into(),
            expected: 3,
            desired: 2,
            healthy: 3,
            allowed: 1,
            current: true,
            failed: None,
        }],
        local: BTreeSet::new(),
    }
}

pub(super) fn only_row(cluster: &Cluster, rules: &Rules) -> Row {
    let mut rows = audit(cluster, rules);
    assert_eq!(rows.len(), 1, "{rows:#?}");
    rows.remove(0)
}

/// All that is not ok, the worst first, as `verdict check [declined]: reason`.
pub(super) fn faults(row: &Row) -> Vec<String> {
    let faults = row.findings.iter().filter(|finding| finding.verdict != Verdict::Ok);
    let said = faults.map(|Finding { check, verdict, declined, reason, remedy }| {
        assert_eq!(remedy.is_empty(), *verdict == Verdict::Protected, "{reason}: {remedy}");
        let declined = declined.map(|name| format!(" [{name}]")).unwrap_or_default();
        format!("{} {}{declined}: {reason}", verdict.name(), check.name())
    });
    said.collect()
}

#[test]
fn a_workload_without_fault_is_ok_in_every_check() {
    let row = only_row(&shop(), &Rules::default());
    assert_eq!((row.workload.to_string(), row.pods, row.verdict), ("shop/Deployment/web".into(), 3, Verdict::Ok));
    let said: Vec<(&str, &str)> =
        row.findings.iter().map(|finding| (finding.check.name(), finding.reason.as_str())).collect();
    let expected = [
        ("protection", "it may be evicted"),
        ("controller", "its controller makes another"),
        ("replicas", "3 of 3 are ready"),
        ("budget", "the PodDisruptionBudget web allows 1 eviction now"),
        ("volumes", "no data stays behind on a node"),
        ("spread", "on 2 nodes"),
        ("grace", "from 1 s to 5 min"),
        ("resources", "all are set"),
        ("root_filesystem", "all are read-only"),
        ("image", "all are pinned by digest"),
    ];
    assert_eq!(said, expected);
}

#[test]
fn what_is_never_evicted_is_not_judged_further() {
    let all = "protected protection";
    let cases: [(Change, String); 4] = [
        (
            |it| it.pods.iter_mut().for_each(|it| it.pod.priority_class = "system-node-critical".into()),
            format!("{all} [priority]: never evicted: its priority class system-node-critical is the system's"),
        ),
        (
            |it| {
                it.owners.iter_mut().for_each(|it| it.workload.namespace = "kube-system".into());
                it.pods.iter_mut().for_each(|it| it.pod.namespace = "kube-system".into());
            },
            format!("{all} [namespace]: never evicted: its namespace kube-system is protected (protect.namespaces)"),
        ),
        (
            |it| {
                it.owners.iter_mut().for_each(|it| it.workload.namespace = "gke-managed-cim".into());
                it.pods.clear();
            },
            format!(
                "{all} [namespace]: never evicted: its namespace gke-managed-cim is protected (protect.namespaces)"
            ),
        ),
        (
            |it| {
                it.owners.clear();
                it.pods.truncate(1);
                it.pods[0].pod.mirror = true;
                it.pods[0].pod.controller = Some(controller("Node", "n1"));
            },
            format!(
                "{all} [mirror]: never evicted: it is the mirror of a static pod, which only its file on the node starts afresh"
            ),
        ),
    ];
    for (change, expected) in cases {
        let mut cluster = shop();
        change(&mut cluster);
        let row = only_row(&cluster, &Rules::default());
        assert_eq!((row.findings.len(), faults(&row)), (1, vec![expected]));
    }
    // Only one of its pods is: the others, on one node, are judged.
    let mut cluster = shop();
    cluster.pods[0].pod.priority_class = "system-node-critical".into();
    assert_eq!(faults(&only_row(&cluster, &Rules::default())), ["risk spread: all its 2 pods are on the node n2"]);
}

#[test]
fn the_agents_own_namespace_is_protected() {
    let protect = Protect { own_namespace: "shop".into(), ..Protect::default() };
    assert_eq!(only_row(&shop(), &Rules { protect, policies: None }).verdict, Verdict::Protected);
}

#[test]
fn without_pods_the_template_is_judged() {
    let empty: fn(&mut Cluster) = |it| it.pods.clear();
    let mut cluster = shop();
    empty(&mut cluster);
    cluster.owners[0].ready = Some(0);
    cluster.owners[0].template.containers[0].image = "web:1".into();
    let row = only_row(&cluster, &Rules::default());
    assert_eq!((row.pods, row.verdict), (0, Verdict::Unsafe));
    let said = faults(&row);
    assert!(said[0].starts_with("unsafe replicas [last_replica]: 0 of"), "{said:?}");
    assert_eq!(said[1..], ["risk image: container main has an image without a digest: web:1"]);
    assert_eq!(row.findings[0].remedy, "find out why no more than 0 of 3 are ready");

    cluster.owners[0].desired = 0;
    let row = only_row(&cluster, &Rules::default());
    assert_eq!((row.verdict, row.findings.len(), &*row.findings[0].reason), (Verdict::Ok, 1, "it is to have no pods"));
}

#[test]
fn a_cron_job_is_judged_as_if_it_ran() {
    let mut cluster = shop();
    cluster.pods.clear();
    cluster.owners = vec![Owner { ready: None, desired: 2, ..owner("CronJob", "nightly", None) }];
    assert_eq!(faults(&only_row(&cluster, &Rules::default())), Vec::<String>::new());
    cluster.owners[0].desired = 1;
    let said = faults(&only_row(&cluster, &Rules::default()));
    assert!(said.len() == 1 && said[0].contains("[last_replica]: 0 of"), "{said:?}");

    // Its pods are those of its Jobs, and these count them.
    let above = controller("CronJob", "nightly");
    cluster.owners.push(Owner { desired: 1, ready: Some(2), ..owner("Job", "nightly-1", Some(above)) });
    cluster.pods = ["a", "b"].map(|name| facts(name, Some(controller("Job", "nightly-1")), name)).into();
    let row = only_row(&cluster, &Rules::default());
    assert_eq!((row.pods, row.workload.kind.as_str(), faults(&row)), (2, "CronJob", vec![]));
}

#[test]
fn what_has_ended_is_left_out() {
    let finished = Owner { finished: true, desired: 1, ready: Some(0), ..owner("Job", "once", None) };
    let mut done = facts("once-x", Some(controller("Job", "once")), "n1");
    done.pod.phase = Phase::Succeeded;
    let mut bare = facts("bare", None, "n1");
    bare.pod.phase = Phase::Failed;
    let cluster = Cluster { owners: vec![finished], pods: vec![done, bare], ..Cluster::default() };
    assert_eq!(audit(&cluster, &Rules::default()), []);
}

#[test]
fn workloads_are_ordered_and_told_apart() {
    let mut cluster = shop();
    let elsewhere = |mut owner: Owner| {
        owner.workload.namespace = "bank".into();
        owner.uid.push_str("/bank");
        owner
    };
    cluster.owners.push(elsewhere(owner("StatefulSet", "web", None)));
    cluster.owners.push(elsewhere(owner("Deployment", "web", None)));
    cluster.owners.push(owner("ReplicationController", "old", None));
    cluster.pods.push(facts("alone", None, "n1"));
    cluster.pods.push(facts("vm", Some(controller("VirtualMachine", "vm-1")), "n1"));
    let rows = audit(&cluster, &Rules::default());
    let names: Vec<String> = rows.iter().map(|row| format!("{} {}", row.workload, row.pods)).collect();
    let expected = [
        "bank/Deployment/web 0",
        "bank/StatefulSet/web 0",
        "shop/Deployment/web 3",
        "shop/Pod/alone 1",
        "shop/ReplicationController/old 0",
        "shop/VirtualMachine/vm-1 1",
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_verdict_is_the_worst_and_said_first() {
    let mut cluster = shop();
    cluster.pods[0].budgets = vec!["all".into(), "web".into()];
    cluster.pods[0].pod.grace = Some(0);
    cluster.pods[0].node = "n2".into();
    let row = only_row(&cluster, &Rules::default());
    let order: Vec<(Verdict, &str)> = row.findings.iter().map(|it| (it.verdict, it.check.name())).take(3).collect();
    assert_eq!(order, [(Verdict::Unsafe, "budget"), (Verdict::Risk, "spread"), (Verdict::Risk, "grace")]);
    assert_eq!(row.verdict, Verdict::Unsafe);
}

#[test]
fn globs_of_the_file_protect() {
    let namespaces = Globs::new([Glob::new("sh*").expect("a pattern")]);
    let protect = Protect { namespaces, ..Protect::default() };
    assert_eq!(only_row(&shop(), &Rules { protect, policies: None }).verdict, Verdict::Protected);
}
