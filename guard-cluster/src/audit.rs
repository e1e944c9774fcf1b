//! What an audit must know of a cluster. It only lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use guard_core::{
    audit::{Budget, Cluster, Facts, Owner},
    inventory::Volume,
};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, KubeconfigError},
};

use crate::convert;

use self::{
    budgets::Selecting,
    list::{Lister, Resource},
};

mod budgets;
mod facts;
mod list;
mod owners;

/// How long an answer may take, repeated requests included: the API server may be busy for a while.
const PATIENCE: Duration = Duration::from_mins(1);

/// Why a cluster cannot be audited.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// There is none, or it is wrong.
    #[error("cannot use the kubeconfig: {0}; point KUBECONFIG to one, and name a context of it with --context")]
    Kubeconfig(#[source] KubeconfigError),
    /// No client can be made of it.
    #[error("cannot make a client of the kubeconfig: {0}")]
    Client(#[source] kube::Error),
    /// 401.
    #[error("cannot list {resource}: the API server does not know you ({message}); renew the kubeconfig's credentials")]
    Unauthorized {
        /// What was to be listed.
        resource: String,
        /// The API server's words.
        message: String,
    },
    /// 403.
    #[error(
        "you may not list {resource} {scope} ({message}); have the verb list on it granted to you, or audit a namespace of \
         yours with -n"
    )]
    Forbidden {
        /// What was to be listed, with its API group.
        resource: String,
        /// Where.
        scope: String,
        /// The API server's words.
        message: String,
    },
    /// None of the versions that are known.
    #[error("the API server serves no {0} of a version that is known here: is it a Kubernetes of 1.17 or newer?")]
    NotServed(String),
    /// The namespace is not there.
    #[error("there is no namespace {0}: `kubectl get namespaces` has their names")]
    NoNamespace(String),
    /// Any other refusal.
    #[error("cannot list {resource}: the API server answers {status}: {message}")]
    Refused {
        /// What was to be listed.
        resource: String,
        /// The HTTP status.
        status: u16,
        /// The API server's words.
        message: String,
    },
    /// No answer, or none that can be read.
    #[error(
        "cannot list {resource}: {error}; does the context name the right cluster, and can you reach it from here?"
    )]
    Unanswered {
        /// What was to be listed.
        resource: String,
        /// What happened.
        error: String,
    },
}

/// A client by the kubeconfig (`KUBECONFIG`, else `~/.kube/config`). `context`: one of it; else its current one.
pub async fn client(context: Option<String>) -> Result<Client, AuditError> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let config = Config::from_kubeconfig(&options).await.map_err(AuditError::Kubeconfig)?;
    Client::try_from(config).map_err(AuditError::Client)
}

/// All that an audit must know. `namespace`: of this alone.
pub async fn cluster(client: Client, namespace: Option<&str>) -> Result<Cluster, AuditError> {
    let lister = Lister::new(client, namespace);
    let budgets = budgets(&lister).await?;
    let select = |facts: Facts| facts::selected(facts, &budgets);
    let owners = owners(&lister).await?;
    let owners: Vec<Owner> =
        owners.into_iter().map(|owner| Owner { template: select(owner.template), ..owner }).collect();
    let pods = lister.all(&Resource::core("pods"), |pod: Pod| Some(select(facts::pod(&pod)))).await?;
    let pods = pods.ok_or_else(|| AuditError::NotServed("pods".into()))?;
    if let (Some(namespace), true, true) = (namespace, owners.is_empty(), pods.is_empty()) {
        // Whether it is empty or not there, lists do not say.
        lister.expect(namespace).await?;
    }
    let local = local(&lister, owners.iter().map(|owner| &owner.template).chain(&pods)).await?;
    let budgets: Vec<Budget> = budgets.into_iter().map(|selecting| selecting.budget).collect();
    Ok(Cluster { owners, pods, budgets, local })
}

async fn budgets(lister: &Lister<'_>) -> Result<Vec<Selecting>, AuditError> {
    // Both versions have the same fields; an empty selector selects all pods in v1, and none in v1beta1.
    for (version, empty) in [("v1", true), ("v1beta1", false)] {
        let resource = Resource::of("policy", version, "poddisruptionbudgets");
        let read = |budget: PodDisruptionBudget| Some(budgets::budget(budget, empty));
        if let Some(budgets) = lister.all(&resource, read).await? {
            return Ok(budgets);
        }
    }
    Err(AuditError::NotServed("poddisruptionbudgets.policy".into()))
}

async fn owners(lister: &Lister<'_>) -> Result<Vec<Owner>, AuditError> {
    let apps = |plural| Resource::of("apps", "v1", plural);
    let jobs = Resource::of("batch", "v1", "jobs");
    let controllers = Resource::core("replicationcontrollers");
    let mut owners = vec![
        lister.must(&apps("deployments"), |it: Deployment| Some(owners::deployment(it))).await?,
        lister.must(&apps("statefulsets"), |it: StatefulSet| Some(owners::stateful_set(it))).await?,
        lister.must(&apps("daemonsets"), |it: DaemonSet| Some(owners::daemon_set(it))).await?,
        lister.must(&apps("replicasets"), |it: ReplicaSet| Some(owners::replica_set(it))).await?,
        lister.must(&controllers, |it: ReplicationController| Some(owners::replication_controller(it))).await?,
        lister.must(&jobs, |it: Job| Some(owners::job(it))).await?,
    ];
    // v1 came with Kubernetes 1.21; both versions have the same fields.
    let cron_job = |it: CronJob| Some(owners::cron_job(it));
    let cron_jobs = lister.all(&Resource::of("batch", "v1", "cronjobs"), cron_job).await?;
    owners.push(match cron_jobs {
        Some(cron_jobs) => cron_jobs,
        None => lister.must(&Resource::of("batch", "v1beta1", "cronjobs"), cron_job).await?,
    });
    Ok(owners.into_iter().flatten().collect())
}

/// The claims that are used and whose data is local to a node. One without a volume, or whose volume is not there, counts:
/// what it is cannot be known.
async fn local(
    lister: &Lister<'_>,
    facts: impl Iterator<Item = &Facts>,
) -> Result<BTreeSet<(String, String)>, AuditError> {
    let claims = facts.flat_map(|facts| facts.pod.volumes.iter().map(|volume| (&facts.pod.namespace, volume)));
    let used: BTreeSet<(String, String)> = claims
        .filter_map(|(namespace, volume)| match volume {
            Volume::Claim { claim, .. } => Some((namespace.clone(), claim.clone())),
            _ => None,
        })
        .collect();
    if used.is_empty() {
        return Ok(used);
    }
    let bound = |it: PersistentVolumeClaim| {
        let claim = (it.metadata.namespace?, it.metadata.name?);
        Some((claim, it.spec?.volume_name.filter(|name| !name.is_empty())?))
    };
    let bound = lister.must(&Resource::core("persistentvolumeclaims"), bound).await?;
    let bound: BTreeMap<(String, String), String> =
        bound.into_iter().filter(|(claim, _)| used.contains(claim)).collect();
    if bound.is_empty() {
        return Ok(used);
    }
    let elsewhere = |it: PersistentVolume| it.metadata.name.filter(|_| !convert::is_local(it.spec.as_ref()));
    let elsewhere = lister.must(&Resource::without_namespace("persistentvolumes"), elsewhere).await?;
    let elsewhere: BTreeSet<String> = elsewhere.into_iter().collect();
    let local = used.into_iter().filter(|claim| bound.get(claim).is_none_or(|volume| !elsewhere.contains(volume)));
    Ok(local.collect())
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
