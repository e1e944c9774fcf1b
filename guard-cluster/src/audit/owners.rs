//! Objects that make pods.

use guard_core::{audit::Owner, inventory::Workload};
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job, JobSpec},
        core::v1::{PodTemplateSpec, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::facts;
use crate::convert;

/// How many pods it is to have, by default one, and how many are ready; a count of zero is left out.
fn owner(
    kind: &str,
    metadata: ObjectMeta,
    template: Option<PodTemplateSpec>,
    desired: Option<i32>,
    ready: Option<i32>,
) -> Owner {
    let count = |count: i32| u32::try_from(count).unwrap_or(0);
    let controller = convert::controller(&metadata);
    let ObjectMeta { uid, namespace, name, .. } = metadata;
    let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
    Owner {
        uid: uid.unwrap_or_default(),
        controller,
        desired: count(desired.unwrap_or(1)),
        ready: Some(count(ready.unwrap_or(0))),
        finished: false,
        template: facts::template(template, &namespace),
        workload: Workload { kind: kind.to_owned(), namespace, name },
    }
}

pub(super) fn deployment(it: Deployment) -> Owner {
    let spec = it.spec.unwrap_or_default();
    let ready = it.status.and_then(|status| status.ready_replicas);
    owner("Deployment", it.metadata, Some(spec.template), spec.replicas, ready)
}

pub(super) fn stateful_set(it: StatefulSet) -> Owner {
    let spec = it.spec.unwrap_or_default();
    let ready = it.status.and_then(|status| status.ready_replicas);
    owner("StatefulSet", it.metadata, Some(spec.template), spec.replicas, ready)
}

pub(super) fn daemon_set(it: DaemonSet) -> Owner {
    let (spec, status) = (it.spec.unwrap_or_default(), it.status.unwrap_or_default());
    let (desired, ready) = (status.desired_number_scheduled, status.number_ready);
    owner("DaemonSet", it.metadata, Some(spec.template), Some(desired), Some(ready))
}

pub(super) fn replica_set(it: ReplicaSet) -> Owner {
    let spec = it.spec.unwrap_or_default();
    let ready = it.status.and_then(|status| status.ready_replicas);
    owner("ReplicaSet", it.metadata, spec.template, spec.replicas, ready)
}

pub(super) fn replication_controller(it: ReplicationController) -> Owner {
    let spec = it.spec.unwrap_or_default();
    let ready = it.status.and_then(|status| status.ready_replicas);
    owner("ReplicationController", it.metadata, spec.template, spec.replicas, ready)
}

pub(super) fn job(it: Job) -> Owner {
    let (spec, status) = (it.spec.unwrap_or_default(), it.status.unwrap_or_default());
    let mut conditions = status.conditions.iter().flatten();
    let finished = conditions.any(|it| matches!(it.type_.as_str(), "Complete" | "Failed") && it.status == "True");
    let desired = if spec.suspend == Some(true) { Some(0) } else { at_once(&spec) };
    // Jobs tell of ready pods since Kubernetes 1.24.
    let ready = status.ready.or(status.active);
    Owner { finished, ..owner("Job", it.metadata, Some(spec.template), desired, ready) }
}

pub(super) fn cron_job(it: CronJob) -> Owner {
    let spec = it.spec.and_then(|spec| spec.job_template.spec).unwrap_or_default();
    let desired = at_once(&spec);
    // Its Jobs count the pods.
    Owner { ready: None, ..owner("CronJob", it.metadata, Some(spec.template), desired, None) }
}

/// How many of its pods a Job has at once.
fn at_once(spec: &JobSpec) -> Option<i32> {
    match (spec.parallelism, spec.completions) {
        (Some(parallelism), Some(completions)) => Some(parallelism.min(completions)),
        (parallelism, _) => parallelism,
    }
}
