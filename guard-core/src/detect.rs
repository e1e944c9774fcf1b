//! What samples say of quotas and baselines: the same for a running agent and for the replay of a trace.

use std::{collections::BTreeMap, sync::Arc};

use guard_common::{Class, Tally, Totals};
use serde::{Deserialize, Serialize};

use crate::{
    baseline::{Baseline, Streak},
    breach::ContainerId,
    policy::{Count, Policy, Quota},
    quota::Window,
    watch::{Found, Over},
};

/// Of how many workloads the normal is remembered; beyond that, that of the one not seen for longest is forgotten.
const WORKLOADS: usize = 4096;

/// What a container did since the last sample.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// What it counted.
    pub counted: Totals,
    /// Nanoseconds since then.
    pub nanos: u64,
    /// Some limit of it is breached.
    pub breached: bool,
    /// It is contained.
    pub contained: bool,
}

#[derive(Clone, Debug)]
struct Container {
    workload: Arc<str>,
    policy: Arc<Policy>,
    quota: Option<Window>,
    streak: Streak,
    allowed: Option<f64>,
}

#[derive(Clone, Debug, Default)]
struct Normal {
    baseline: Baseline,
    seen: u64,
}

/// Quotas by container, baselines by workload.
#[derive(Clone, Debug, Default)]
pub struct Detector {
    containers: BTreeMap<ContainerId, Container>,
    normals: BTreeMap<Arc<str>, Normal>,
    /// Of containers that an earlier agent knew and this one has not seen yet.
    kept: BTreeMap<ContainerId, Window>,
}

/// What is kept while the agent restarts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// By the container's cgroup id.
    quotas: BTreeMap<u64, Window>,
    baselines: BTreeMap<String, Baseline>,
}

impl Policy {
    /// The bytes that its limits are about.
    #[must_use]
    pub const fn counted(&self, tally: &Tally) -> u64 {
        match self.count {
            Count::External => tally.bytes[Class::External as usize],
            Count::All => tally.bytes[Class::Cluster as usize].saturating_add(tally.bytes[Class::External as usize]),
        }
    }
}

impl Detector {
    /// A container appeared, another policy holds for it, or it is known better. `None`: no policy holds for it.
    pub fn assign(&mut self, now: u64, id: ContainerId, workload: &Arc<str>, policy: Option<&Arc<Policy>>) {
        let kept = self.kept.remove(&id);
        let before = self.containers.remove(&id);
        let Some(policy) = policy else { return };
        let (had, streak) = before.map_or((kept, Streak::default()), |before| (before.quota, before.streak));
        let quota = policy.egress.quota.map(|quota| {
            let mut window = had.unwrap_or_else(|| Window::new(quota, now));
            window.set(quota, now);
            window
        });
        let (workload, policy) = (Arc::clone(workload), Arc::clone(policy));
        self.containers.insert(id, Container { workload, policy, quota, streak, allowed: None });
    }

    /// A container is gone. What is normal for its workload is remembered.
    pub fn gone(&mut self, id: ContainerId) {
        self.containers.remove(&id);
    }

    /// Takes a sample of one container. `None`: no policy holds for it.
    pub fn sample(&mut self, now: u64, id: ContainerId, moved: Moved) -> Option<Found> {
        let Container { workload, policy, quota, streak, allowed } = self.containers.get_mut(&id)?;
        let Moved { counted, nanos, breached, contained } = moved;
        let bytes = policy.counted(&counted.egress);
        let quota = quota.as_mut().and_then(|window| {
            window.add(now, bytes);
            let Quota { bytes: most, per: _ } = window.quota();
            let over = Over { figure: window.sum(now) as f64, allowed: most.bytes() as f64 };
            window.over(now).then_some(over)
        });
        let baseline = policy.egress.baseline.as_ref().filter(|_| nanos > 0).and_then(|limit| {
            let normal = self.normals.entry(Arc::clone(workload)).or_default();
            normal.seen = now;
            let rate = bytes as f64 * 1e9 / nanos as f64;
            // What a containment lets through is not normal.
            let reading = normal.baseline.observe(streak, now, rate, limit, breached || contained);
            *allowed = reading.allowed;
            reading.allowed.filter(|_| reading.over).map(|allowed| Over { figure: rate, allowed })
        });
        if self.normals.len() > WORKLOADS {
            let oldest =
                self.normals.iter().min_by_key(|(_, normal)| normal.seen).map(|(workload, _)| Arc::clone(workload));
            oldest.and_then(|oldest| self.normals.remove(&oldest));
        }
        Some(Found {
            container: id,
            quota,
            baseline,
            sending: bytes > 0,
            pressing: contained && counted.egress.dropped > 0,
        })
    }

    /// The limit, in bytes per second, that a container's baseline comes to now. `None`: it has none (yet).
    pub fn allowed(&self, id: ContainerId) -> Option<f64> {
        self.containers.get(&id)?.allowed
    }

    /// What a restarted agent needs to go on.
    #[must_use]
    pub fn save(&self) -> Saved {
        let counted = |(id, container): (&ContainerId, &Container)| Some((id.0, container.quota.clone()?));
        let kept = self.kept.iter().map(|(id, window)| (id.0, window.clone()));
        Saved {
            quotas: self.containers.iter().filter_map(counted).chain(kept).collect(),
            baselines: self.normals.iter().map(|(name, normal)| (name.to_string(), normal.baseline.clone())).collect(),
        }
    }

    /// Goes on. `same_boot`: no container of another boot is there any more.
    #[must_use]
    pub fn restore(saved: Saved, same_boot: bool) -> Self {
        let Saved { quotas, baselines } = saved;
        let quotas = quotas.into_iter().filter(|_| same_boot);
        let normal = |(name, baseline): (String, Baseline)| (name.into(), Normal { baseline, seen: 0 });
        Self {
            containers: BTreeMap::new(),
            normals: baselines.into_iter().map(normal).collect(),
            kept: quotas.map(|(id, window)| (ContainerId(id), window)).collect(),
        }
    }

    /// All containers that are there are assigned: what is kept of others is not needed any more.
    pub fn settled(&mut self) {
        self.kept.clear();
    }
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
