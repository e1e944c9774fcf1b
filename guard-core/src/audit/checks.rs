//! What is looked at in a workload, one function each.

use std::collections::BTreeSet;

use super::{Budget, Check, Cluster, Facts, Finding, Owner, Verdict};
use crate::{
    inventory::{Pod, Volume},
    policy::Globs,
    safety::{self, Leave, Protect, Unsafe},
};

/// The longest termination grace that is sane, in seconds: so long a breacher may go on.
const LONGEST_GRACE: i64 = 300;

/// Leave for everything, of which a check takes back what it is about. Age is left out: every pod grows older.
const EVERYTHING: Leave = Leave {
    unmanaged: true,
    daemon_sets: true,
    last_replica: true,
    min_ready: 0,
    min_age: std::time::Duration::ZERO,
    empty_dir: true,
    local_volumes: true,
};

/// A pod that is judged.
#[derive(Debug)]
pub(super) struct Judged<'a> {
    pub(super) facts: &'a Facts,
    /// That of `facts`, with its workload.
    pub(super) pod: Pod,
    /// How many of its workload's pods are ready; see [`safety::of_workload`].
    pub(super) ready: Option<u32>,
    /// What the policies give leave for that may evict it.
    pub(super) leave: Leave,
}

impl Judged<'_> {
    fn kind(&self) -> &str {
        self.pod.workload.as_ref().map_or("Pod", |workload| workload.kind.as_str())
    }
}

/// What [`safety::never`] says.
pub(super) fn never(why: &Unsafe) -> Finding {
    let reason = format!("never evicted: {why}");
    Finding { declined: Some(why.name()), ..Finding::new(Check::Protection, Verdict::Protected, reason, "") }
}

/// Nothing would evict it.
pub(super) fn no_policy() -> Finding {
    let reason = "never evicted: the policies that hold for it do not evict";
    Finding::new(Check::Protection, Verdict::Protected, reason, "")
}

/// It is to have no pods.
pub(super) fn idle() -> Finding {
    Finding::new(Check::Replicas, Verdict::Ok, "it is to have no pods", "")
}

/// What all checks find of a workload's pods, of which there is one at least.
pub(super) fn all(pods: &[Judged<'_>], owner: Option<&Owner>, cluster: &Cluster) -> Vec<Finding> {
    let mut found = vec![Finding::new(Check::Protection, Verdict::Ok, "it may be evicted", "")];
    found.extend(controller(pods));
    found.extend(replicas(pods, owner));
    found.extend(budget(pods, cluster));
    found.extend(volumes(pods, cluster));
    found.extend(spread(pods));
    found.extend(grace(pods));
    found.extend(containers(pods));
    found
}

/// What the agent declines for, unless there is leave.
fn declined(check: Check, why: &Unsafe, leave: bool, remedy: impl Into<String>) -> Finding {
    if leave {
        return Finding::new(check, Verdict::Risk, format!("evicted by leave: {why}"), remedy);
    }
    Finding::declined(check, why, remedy)
}

/// What [`safety::of_pod`] says of a pod that nothing protects.
fn ask(pod: &Pod, leave: &Leave, local: &[String]) -> Result<(), Unsafe> {
    let nobody = Protect { namespaces: Globs::new([]), own_namespace: String::new(), own_uid: String::new() };
    safety::of_pod(pod, &nobody, leave, local, pod.created)
}

fn controller(pods: &[Judged<'_>]) -> Vec<Finding> {
    let mut found = vec![];
    for Judged { pod, leave, .. } in pods {
        let Err(why) = ask(pod, &Leave { unmanaged: false, daemon_sets: false, ..EVERYTHING }, &[]) else { continue };
        let Leave { unmanaged, daemon_sets, .. } = *leave;
        let remedy = match why {
            Unsafe::DaemonSet => "protect its namespace, or give leave if a node can do without it for a moment",
            _ => "make it a Deployment's, a StatefulSet's or a Job's",
        };
        let by_leave = ask(pod, &Leave { unmanaged, daemon_sets, ..EVERYTHING }, &[]).is_ok();
        push(&mut found, declined(Check::Controller, &why, by_leave, remedy));
    }
    or_ok(found, Check::Controller, "its controller makes another")
}

fn replicas(pods: &[Judged<'_>], owner: Option<&Owner>) -> Vec<Finding> {
    let worst = pods.iter().filter_map(|judged| {
        let Judged { pod, ready, leave, .. } = judged;
        let strict = Leave { last_replica: false, min_ready: leave.min_ready.max(1), ..*leave };
        let why = safety::of_workload(pod, *ready, &strict).err()?;
        Some((safety::of_workload(pod, *ready, leave).is_ok(), why, judged))
    });
    // Refused before by leave, and of those the one with the fewest beside it.
    if let Some((by_leave, why, judged)) = worst.min_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1))) {
        return vec![declined(Check::Replicas, &why, by_leave, more_replicas(&why, judged.kind(), owner))];
    }
    // One that nobody starts again has no others: what that means, the check of the controller says.
    let Some(ready) = pods.iter().find_map(|judged| judged.ready) else { return vec![] };
    let Some(desired) = owner.map(|owner| owner.desired) else {
        return ok(Check::Replicas, &format!("{ready} are ready"));
    };
    let reason = format!("{ready} of {desired} are ready");
    if ready < desired {
        return vec![Finding::new(Check::Replicas, Verdict::Risk, reason, "find out why not all of them are")];
    }
    ok(Check::Replicas, &reason)
}

fn more_replicas(why: &Unsafe, kind: &str, owner: Option<&Owner>) -> String {
    match (why, kind, owner) {
        (_, "Job" | "CronJob", _) => "give leave if its work may begin anew".into(),
        (Unsafe::LastReplica { least, .. }, _, Some(owner)) if owner.desired > *least => {
            let (ready, desired) = (owner.ready.unwrap_or(0), owner.desired);
            format!("find out why no more than {ready} of {desired} are ready")
        }
        (
            Unsafe::LastReplica { least, .. },
            "Deployment" | "ReplicaSet" | "ReplicationController" | "StatefulSet",
            _,
        ) => {
            format!("set spec.replicas to {} at least", least.saturating_add(1))
        }
        _ => "give leave if others stand in for it".into(),
    }
}

fn budget(pods: &[Judged<'_>], cluster: &Cluster) -> Vec<Finding> {
    let mut found = vec![];
    let unsafe_of = |reason: String, remedy: &str| Finding::new(Check::Budget, Verdict::Unsafe, reason, remedy);
    let selecting: BTreeSet<(&str, &[String])> =
        pods.iter().map(|judged| (judged.pod.namespace.as_str(), judged.facts.budgets.as_slice())).collect();
    for (namespace, names) in selecting {
        match names {
            // `unselected` has them.
            [] => {}
            [name] => {
                let this = |budget: &&Budget| (&budget.namespace[..], &budget.name) == (namespace, name);
                found.extend(cluster.budgets.iter().find(this).map(one_budget));
            }
            names => {
                let names = names.join(", ");
                let reason = format!(
                    "more than one PodDisruptionBudget selects it, and the API server evicts no such pod: {names}"
                );
                found.push(unsafe_of(reason, "change their selectors so that one is left"));
            }
        }
    }
    found.extend(unselected(pods));
    found
}

fn unselected(pods: &[Judged<'_>]) -> Option<Finding> {
    let without = pods.iter().filter(|judged| judged.facts.budgets.is_empty()).count();
    let kind = pods.first().map_or("Pod", Judged::kind);
    if without == 0 {
        return None;
    }
    if matches!(kind, "DaemonSet" | "Job" | "CronJob" | "Pod") {
        let reason = format!("none, and a {kind} needs none");
        return Some(Finding::new(Check::Budget, Verdict::Ok, reason, ""));
    }
    let whom = if without == pods.len() { "it".into() } else { format!("{without} of its {} pods", pods.len()) };
    let reason = format!("no PodDisruptionBudget selects {whom}: evictions may coincide with a node's drain");
    Some(Finding::new(Check::Budget, Verdict::Risk, reason, "make one with maxUnavailable: 1"))
}

fn one_budget(budget: &Budget) -> Finding {
    let Budget { namespace: _, name, expected, desired, healthy, allowed, current, failed } = budget;
    let found = |verdict, reason: String, remedy: &str| Finding::new(Check::Budget, verdict, reason, remedy);
    if let Some(why) = failed {
        let reason = format!("the PodDisruptionBudget {name} cannot be computed, so it allows no eviction: {why}");
        return found(
            Verdict::Unsafe,
            reason,
            "let it select pods of controllers with a scale, or say minAvailable as a number",
        );
    }
    if !current {
        let reason =
            format!("the status of the PodDisruptionBudget {name} is not up to date, so it allows no eviction now");
        return found(Verdict::Risk, reason, "audit again in a moment; if it stays so, see to kube-controller-manager");
    }
    if *allowed > 0 {
        let evictions = if *allowed == 1 { "eviction" } else { "evictions" };
        return found(Verdict::Ok, format!("the PodDisruptionBudget {name} allows {allowed} {evictions} now"), "");
    }
    if *expected > 0 && desired >= expected {
        let reason = format!(
            "the PodDisruptionBudget {name} never allows an eviction: {desired} of its {expected} pods must be healthy"
        );
        return found(Verdict::Unsafe, reason, "lower minAvailable, or raise maxUnavailable or the replicas");
    }
    let reason = format!(
        "the PodDisruptionBudget {name} allows no eviction now: {healthy} of its {expected} pods are healthy, and {desired} must be"
    );
    found(Verdict::Risk, reason, "find out why not all of them are")
}

fn volumes(pods: &[Judged<'_>], cluster: &Cluster) -> Vec<Finding> {
    let mut found = vec![];
    for Judged { pod, leave, .. } in pods {
        let local = cluster.local.iter().filter(|(namespace, _)| *namespace == pod.namespace);
        let local: Vec<String> = local.map(|(_, claim)| claim.clone()).collect();
        for volume in &pod.volumes {
            let pod = Pod { volumes: vec![volume.clone()], ..pod.clone() };
            let Leave { empty_dir, local_volumes, .. } = *leave;
            // What is in an emptyDir is meant to be lost, unless the configuration says otherwise.
            let Err(why) = ask(&pod, &Leave { empty_dir, local_volumes: false, ..EVERYTHING }, &local) else {
                continue;
            };
            let remedy = match volume {
                Volume::EmptyDir { .. } => "keep what must not be lost in a PersistentVolumeClaim",
                Volume::HostPath { .. } => "mount it with readOnly: true, or keep the data in a PersistentVolumeClaim",
                Volume::Claim { .. } => {
                    "claim a volume that any node can mount; one whose kind cannot be known counts as local"
                }
            };
            let by_leave = ask(&pod, &Leave { empty_dir, local_volumes, ..EVERYTHING }, &local).is_ok();
            push(&mut found, declined(Check::Volumes, &why, by_leave, remedy));
        }
    }
    or_ok(found, Check::Volumes, "no data stays behind on a node")
}

fn spread(pods: &[Judged<'_>]) -> Vec<Finding> {
    let nodes = pods.iter().map(|judged| judged.facts.node.as_str()).filter(|node| !node.is_empty());
    let (count, nodes) = (nodes.clone().count(), nodes.collect::<BTreeSet<_>>());
    match nodes.first() {
        Some(node) if count > 1 && nodes.len() == 1 => {
            let reason = format!("all its {count} pods are on the node {node}");
            let remedy = "spread them with topologySpreadConstraints or podAntiAffinity over kubernetes.io/hostname";
            vec![Finding::new(Check::Spread, Verdict::Risk, reason, remedy)]
        }
        // Whether one is enough, the check of the replicas says.
        _ => ok(Check::Spread, &format!("on {} {}", nodes.len(), if nodes.len() == 1 { "node" } else { "nodes" })),
    }
}

fn grace(pods: &[Judged<'_>]) -> Vec<Finding> {
    let mut found = vec![];
    for Judged { pod, .. } in pods {
        let (reason, remedy) = match pod.grace {
            Some(..=0) => {
                ("it has no time to end by itself".to_owned(), "set terminationGracePeriodSeconds to 1 at least")
            }
            Some(seconds) if seconds > LONGEST_GRACE => (
                format!("it may go on for {seconds} s after its eviction"),
                "set terminationGracePeriodSeconds to 300 at most",
            ),
            _ => continue,
        };
        push(&mut found, Finding::new(Check::Grace, Verdict::Risk, reason, remedy));
    }
    or_ok(found, Check::Grace, "from 1 s to 5 min")
}

/// What the containers are to be like.
fn containers(pods: &[Judged<'_>]) -> Vec<Finding> {
    // Pods of two revisions may differ.
    let containers = || pods.iter().flat_map(|judged| &judged.facts.containers);
    let missing = containers().filter(|container| !container.missing.is_empty()).map(|container| {
        let missing: Vec<String> = container.missing.iter().map(|bound| format!("no {bound}")).collect();
        format!("container {} has {}", container.name, missing.join(", "))
    });
    let writable = containers().filter(|container| !container.read_only_root);
    let writable = writable.map(|container| format!("container {} can write to its root file system", container.name));
    let unpinned = containers().filter(|container| !container.image.contains("@sha256:"));
    let unpinned = unpinned
        .map(|container| format!("container {} has an image without a digest: {}", container.name, container.image));
    let found = |check, faults: BTreeSet<String>, remedy: &str, well: &str| {
        let faults: Vec<String> = faults.into_iter().collect();
        if faults.is_empty() {
            return Finding::new(check, Verdict::Ok, well, "");
        }
        Finding::new(check, Verdict::Risk, faults.join("; "), remedy)
    };
    vec![
        found(Check::Resources, missing.collect(), "set resources.requests and resources.limits", "all are set"),
        found(
            Check::RootFilesystem,
            writable.collect(),
            "set securityContext.readOnlyRootFilesystem: true",
            "all are read-only",
        ),
        found(
            Check::Image,
            unpinned.collect(),
            "name it as IMAGE@sha256:DIGEST, or its replacement may be another",
            "all are pinned by digest",
        ),
    ]
}

/// The same of many pods is said once.
fn push(found: &mut Vec<Finding>, finding: Finding) {
    if !found.contains(&finding) {
        found.push(finding);
    }
}

fn or_ok(found: Vec<Finding>, check: Check, reason: &str) -> Vec<Finding> {
    if found.is_empty() { ok(check, reason) } else { found }
}

fn ok(check: Check, reason: &str) -> Vec<Finding> {
    vec![Finding::new(check, Verdict::Ok, reason, "")]
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
