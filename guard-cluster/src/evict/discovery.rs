//! Which Evictions this API server understands.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::Instant;

use super::{
    EvictError, Outcome,
    wire::{What, Wire},
};

/// A control plane is upgraded under a running agent: it is asked again.
const FRESH: Duration = Duration::from_mins(10);

/// A version of group `policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Kubernetes 1.22 and up.
    V1,
    /// Kubernetes 1.5 to 1.24.
    V1Beta1,
}

/// Asks once in a while.
#[derive(Debug, Default)]
pub(crate) struct Discovery(Mutex<Option<(Instant, Version)>>);

/// `v1.APIResourceList`.
#[derive(Debug, Deserialize)]
struct Resources {
    resources: Vec<Resource>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resource {
    name: String,
    kind: String,
    group: String,
    version: String,
}

impl Version {
    /// Of an Eviction.
    pub(crate) const fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "policy/v1",
            Self::V1Beta1 => "policy/v1beta1",
        }
    }
}

impl Discovery {
    /// The version of `pods/eviction`, as kubectl finds it: 1.21 serves budgets of `policy/v1`, and evictions of
    /// `policy/v1beta1` alone.
    pub(crate) async fn eviction(&self, wire: &Wire) -> Result<Version, Outcome> {
        if let Some((_, version)) = self.cached().filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(version);
        }
        let served = wire.get::<Resources>(What::Discovery, "/api/v1").await?;
        let version = served.and_then(|(all, _)| find(&all.resources)).ok_or(EvictError::NoEviction)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), version));
        Ok(version)
    }

    /// What was found out does not hold any more.
    pub(crate) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn cached(&self) -> Option<(Instant, Version)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(resources: &[Resource]) -> Option<Version> {
    let eviction = |it: &&Resource| it.name == "pods/eviction" && it.kind == "Eviction" && it.group == "policy";
    match resources.iter().find(eviction)?.version.as_str() {
        "v1" => Some(Version::V1),
        "v1beta1" => Some(Version::V1Beta1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str, group: &str, version: &str) -> Resource {
        let kind = if name == "pods" { "Pod" } else { "Eviction" };
        Resource { name: name.into(), kind: kind.into(), group: group.into(), version: version.into() }
    }

    #[test]
    fn the_version_of_an_eviction() {
        let all = |version| [resource("pods", "", ""), resource("pods/eviction", "policy", version)];
        assert_eq!(find(&all("v1")), Some(Version::V1));
        assert_eq!(find(&all("v1beta1")), Some(Version::V1Beta1));
        assert_eq!(find(&all("v9")), None);
        assert_eq!(find(&[resource("pods", "", "")]), None);
        assert_eq!(find(&[resource("pods/eviction", "other", "v1")]), None);
    }
}
