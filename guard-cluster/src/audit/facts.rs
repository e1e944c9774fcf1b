//! Pods, those that there are and those that a template would make.

use guard_core::audit::{Bound, Container, Facts};
use k8s_openapi::{
    api::core::v1::{self as api, PodTemplateSpec, ResourceRequirements},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::budgets::Selecting;
use crate::convert;

/// A pod that there is.
pub(super) fn pod(pod: &api::Pod) -> Facts {
    let spec = pod.spec.as_ref();
    let of_pod = spec.and_then(|spec| spec.resources.as_ref());
    let containers =
        spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    Facts {
        node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        containers: containers.map(|it| container(it, of_pod)).collect(),
        budgets: vec![],
        pod: convert::pod(pod),
    }
}

/// The pod that a template would make in a namespace.
pub(super) fn template(template: Option<PodTemplateSpec>, namespace: &str) -> Facts {
    let PodTemplateSpec { metadata, spec } = template.unwrap_or_default();
    let metadata = ObjectMeta { namespace: Some(namespace.to_owned()), ..metadata.unwrap_or_default() };
    pod(&api::Pod { metadata, spec, status: None })
}

/// With the budgets that select it.
pub(super) fn selected(facts: Facts, budgets: &[Selecting]) -> Facts {
    let selecting = budgets.iter().filter(|it| it.selects(&facts.pod.namespace, &facts.pod.labels));
    let mut names: Vec<String> = selecting.map(|it| it.budget.name.clone()).collect();
    names.sort();
    Facts { budgets: names, ..facts }
}

/// `of_pod`: what all its containers may use together, which stands in for what a container does not say (1.34 and up).
fn container(container: &api::Container, of_pod: Option<&ResourceRequirements>) -> Container {
    let api::Container { name, image, resources, security_context, .. } = container;
    let says = |limit: bool, what: &str| {
        [resources.as_ref(), of_pod].into_iter().flatten().any(|resources| {
            let all = if limit { &resources.limits } else { &resources.requests };
            all.as_ref().is_some_and(|all| all.contains_key(what))
        })
    };
    let bounds = [
        (Bound::CpuRequest, says(false, "cpu")),
        (Bound::CpuLimit, says(true, "cpu")),
        (Bound::MemoryRequest, says(false, "memory")),
        (Bound::MemoryLimit, says(true, "memory")),
    ];
    Container {
        name: name.clone(),
        image: image.clone().unwrap_or_default(),
        missing: bounds.into_iter().filter(|(_, said)| !said).map(|(bound, _)| bound).collect(),
        read_only_root: security_context.as_ref().is_some_and(|it| it.read_only_root_filesystem == Some(true)),
    }
}
