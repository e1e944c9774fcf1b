//! `PodDisruptionBudget`s.

use std::collections::BTreeMap;

use guard_core::audit::Budget;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use kube::core::{Selector, SelectorExt as _};

use crate::convert;

/// A budget, and whom it is for.
#[derive(Debug)]
pub(super) struct Selecting {
    pub(super) budget: Budget,
    /// `None`: for no pod.
    selector: Option<Selector>,
}

/// A budget of `policy/v1` or `policy/v1beta1`. `empty`: an empty selector selects all pods.
pub(super) fn budget(budget: PodDisruptionBudget, empty: bool) -> Selecting {
    let PodDisruptionBudget { metadata, spec, status } = budget;
    let status = status.unwrap_or_default();
    let PodDisruptionBudgetStatus { observed_generation, conditions, .. } = &status;
    let generation = metadata.generation.unwrap_or(0);
    let mut conditions = conditions.iter().flatten();
    let failed = conditions.find(|it| it.type_ == "DisruptionAllowed" && it.reason == "SyncFailed");
    let count = |count: i32| u32::try_from(count).unwrap_or(0);
    Selecting {
        selector: spec.and_then(|spec| spec.selector).and_then(|selector| convert::selector(selector, empty)),
        budget: Budget {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            expected: count(status.expected_pods),
            desired: count(status.desired_healthy),
            healthy: count(status.current_healthy),
            allowed: count(status.disruptions_allowed),
            current: observed_generation.unwrap_or(0) >= generation,
            failed: failed.map(|condition| condition.message.clone()),
        },
    }
}

impl Selecting {
    pub(super) fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        self.budget.namespace == namespace && self.selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }
}
