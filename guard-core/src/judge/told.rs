//! What the judge is told, and what it says.

use std::{borrow::Cow, sync::Arc};

use crate::{
    breach::{Breach, ContainerId},
    budget::{Alarm, Allowance},
    config::Config,
    identity::Labels,
    inventory::{self, Pod},
    overrides::{Bad, Overrides},
    policy::{Contain, Count, Policies, RateLimit, Subject},
    safety::Protect,
    verdict::{Action, Declined},
    watch::Closed,
};

/// What the operator wants.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who may send how much, and what happens otherwise.
    pub policies: Policies,
    /// How many evictions there may be.
    pub allowance: Allowance,
    /// Whom no policy can give leave to evict. Of the file, so without the agent itself, which its owner adds.
    pub protect: Protect,
    /// What annotations of pods may change.
    pub overrides: Overrides,
    /// Evictions are asked for so that nothing is evicted: what is done so is forgotten when this ends.
    pub dry_run: bool,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        let Config { policies, budgets, storm, protect, overrides, dry_run, .. } = config;
        let allowance =
            Allowance { node: budgets.node, workload: budgets.workload, cluster: budgets.cluster, storm: *storm };
        Self {
            policies: policies.clone(),
            allowance,
            protect: protect.clone(),
            overrides: overrides.clone(),
            dry_run: *dry_run,
        }
    }
}

/// What evictions can be of here.
#[derive(Clone, Debug, Default)]
pub struct Means {
    /// Only of pods of which the API server has told.
    pub only_pods: bool,
    /// Of nothing, for this reason.
    pub nothing: Option<Cow<'static, str>>,
}

/// What is known of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// What a policy is matched with.
    pub subject: Subject,
    /// What budgets and storms are about: the same for it and its replacement, and for all replicas.
    pub workload: Arc<str>,
    /// What its normal belongs to: its workload and its name.
    pub series: Arc<str>,
    /// What an eviction ends together with it: its pod's UID. `None`: it alone. It cannot become another.
    pub unit: Option<Arc<str>>,
    /// Its pod, as far as the API server has told of it.
    pub pod: Option<Arc<Pod>>,
}

impl About {
    /// A container in no pod, with a normal of its own.
    #[must_use]
    pub fn on_its_own(subject: Subject, workload: Arc<str>) -> Self {
        Self { subject, series: Arc::clone(&workload), workload, unit: None, pod: None }
    }

    /// A container of the pod whose cgroup has this UID. `pod`: what the API server has told of it.
    #[must_use]
    pub fn in_pod(names: Labels, uid: &str, pod: Option<&Arc<Pod>>) -> Self {
        let (unit, own) = (Some(uid.into()), Arc::<str>::from(names.workload()));
        let Some(pod) = pod else {
            return Self { unit, ..Self::on_its_own(Subject { names, ..Subject::default() }, own) };
        };
        let workload: Arc<str> = pod.workload().into();
        // What is not known by its name yet has no normal that others would share.
        let is_known = pod.containers.iter().any(|container| container.name == names.container);
        let series = if is_known { inventory::series(&workload, &names.container).into() } else { own };
        let subject = Subject { names, labels: pod.labels.clone(), annotations: pod.annotations.clone() };
        Self { subject, workload, series, unit, pod: Some(Arc::clone(pod)) }
    }
}

/// Something to be said or done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A breach, to be said with evidence.
    Opened(Breach),
    /// A breach is over.
    Closed(Closed),
    /// To be done.
    Act(Action),
    /// Not done, and why; said once.
    Declined(Declined),
    /// To be said loudly.
    Alarm(Alarm),
    /// An annotation of a pod that is not followed; said once for each pod.
    BadAnnotation {
        /// One of the pod's containers.
        container: ContainerId,
        /// Which, and why.
        bad: Bad,
    },
}

/// What the kernel is to check and to do by itself for a container.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Orders {
    /// Which bytes limits and containment are about.
    pub count: Count,
    /// Limit of what is sent.
    pub egress: Option<RateLimit>,
    /// Limit of what is received.
    pub ingress: Option<RateLimit>,
    /// The containment that a breach of `egress` leads to at once.
    pub arm: Option<Contain>,
}

/// How an eviction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// The container ended, or its pod.
    Done,
    /// Nothing was done, and it may be tried again at this instant.
    Untouched {
        /// When.
        retry_at: u64,
    },
    /// Something may have been done; it may be tried again at this instant.
    Broken {
        /// When.
        retry_at: u64,
    },
    /// Nothing was done, for the workload's evictions on all nodes together have not cured it.
    NotCured,
}
