//! What samples say of quotas and baselines: the same for a running agent and for the replay of a trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use guard_common::{Class, Tally, Totals};
use serde::{Deserialize, Serialize};

use crate::{
    baseline::{Baseline, Streak},
    breach::ContainerId,
    policy::{Count, Policy, Quota},
    quota::Window,
    watch::{Found, Over},
};

/// Of how many workloads the normal is remembered; beyond that, of those without a container the one that was not seen
/// for longest is forgotten.
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
    policy: Arc<Policy>,
    /// What it has sent since it is metered, by class, as far as it was told here. `None`: nothing was told yet.
    sent: Option<[u64; 2]>,
    /// Where its workload is in `normals`, if it has a baseline.
    normal: Option<usize>,
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
    normals: Vec<Normal>,
    /// Where each workload is in `normals`: looked up once for each container, not with each sample.
    places: BTreeMap<Arc<str>, usize>,
    /// Of containers that an earlier agent knew and this one has not seen yet.
    kept: BTreeMap<ContainerId, Kept>,
}

/// What is kept of a container's quota.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    window: Window,
    sent: [u64; 2],
}

/// What is kept while the agent restarts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// By the container's cgroup id.
    quotas: BTreeMap<u64, Kept>,
    baselines: BTreeMap<String, Baseline>,
}

impl Count {
    /// The bytes that limits are about.
    #[must_use]
    pub const fn of(self, tally: &Tally) -> u64 {
        match self {
            Self::External => tally.bytes[Class::External as usize],
            Self::All => tally.bytes[Class::Cluster as usize].saturating_add(tally.bytes[Class::External as usize]),
        }
    }
}

impl Detector {
    /// A container appeared, another policy holds for it, or it is known better. `None`: no policy holds for it.
    pub fn assign(&mut self, now: u64, id: ContainerId, workload: &Arc<str>, policy: Option<&Arc<Policy>>) {
        let before = self.containers.remove(&id);
        let Some(policy) = policy else { return };
        let kept = self.kept.remove(&id);
        // Samples from before a time in which there was no baseline are not the last ones.
        let streak = before.as_ref().filter(|before| before.normal.is_some()).map(|before| before.streak.clone());
        let streak = streak.unwrap_or_default();
        let sent = before.as_ref().map_or(kept.as_ref().map(|kept| kept.sent), |before| before.sent);
        let had = before.map_or(kept.map(|kept| kept.window), |before| before.quota);
        let quota = policy.egress.quota.map(|quota| {
            let mut window = had.unwrap_or_else(|| Window::new(quota, now));
            window.set(quota, now);
            window
        });
        let normal = policy.egress.baseline.is_some().then(|| self.place(now, workload));
        self.containers
            .insert(id, Container { policy: Arc::clone(policy), sent, normal, quota, streak, allowed: None });
    }

    /// What a container has sent since it is metered, that was there before this agent: its quota is told what was sent
    /// while no agent was.
    pub fn catch_up(&mut self, now: u64, id: ContainerId, egress: &Tally) {
        let Some(Container { policy, sent, quota, .. }) = self.containers.get_mut(&id) else { return };
        let told = sent.replace(egress.bytes);
        if let (Some(told), Some(window)) = (told, quota) {
            let missing = [0, 1].map(|class| egress.bytes[class].saturating_sub(told[class]));
            window.add(now, policy.count.of(&Tally { bytes: missing, ..Tally::default() }));
        }
    }

    /// Where a workload's normal is, from now on if it is new.
    fn place(&mut self, now: u64, workload: &Arc<str>) -> usize {
        if let Some(&place) = self.places.get(workload) {
            return place;
        }
        let fresh = Normal { seen: now, ..Normal::default() };
        let place = self.forget().unwrap_or(self.normals.len());
        match self.normals.get_mut(place) {
            Some(forgotten) => *forgotten = fresh,
            None => self.normals.push(fresh),
        }
        self.places.insert(Arc::clone(workload), place);
        place
    }

    /// Makes room among too many workloads. Returns whose place is free now.
    fn forget(&mut self) -> Option<usize> {
        if self.places.len() < WORKLOADS {
            return None;
        }
        let used: BTreeSet<usize> = self.containers.values().filter_map(|container| container.normal).collect();
        let idle = self.places.iter().filter(|(_, place)| !used.contains(place));
        let oldest = idle.min_by_key(|(_, place)| self.normals[**place].seen).map(|(workload, _)| Arc::clone(workload));
        self.places.remove(&oldest?)
    }

    /// A container is gone. What is normal for its workload is remembered.
    pub fn gone(&mut self, id: ContainerId) {
        self.containers.remove(&id);
    }

    /// Takes a sample of one container. `None`: no policy holds for it.
    pub fn sample(&mut self, now: u64, id: ContainerId, moved: Moved) -> Option<Found> {
        let Container { policy, sent, normal, quota, streak, allowed } = self.containers.get_mut(&id)?;
        let Moved { counted, nanos, breached, contained } = moved;
        let bytes = policy.count.of(&counted.egress);
        for (sent, counted) in sent.get_or_insert_default().iter_mut().zip(counted.egress.bytes) {
            *sent = sent.saturating_add(counted);
        }
        let quota = quota.as_mut().and_then(|window| {
            window.add(now, bytes);
            let Quota { bytes: most, per: _ } = window.quota();
            let over = Over { figure: window.sum(now) as f64, allowed: most.bytes() as f64 };
            window.over(now).then_some(over)
        });
        let normal = normal.and_then(|place| self.normals.get_mut(place));
        let baseline = policy.egress.baseline.as_ref().zip(normal).filter(|_| nanos > 0).and_then(|(limit, normal)| {
            normal.seen = now;
            let rate = bytes as f64 * 1e9 / nanos as f64;
            // What a containment lets through is not normal.
            let reading = normal.baseline.observe(streak, now, rate, limit, breached || contained);
            *allowed = reading.allowed;
            reading.allowed.filter(|_| reading.over).map(|allowed| Over { figure: rate, allowed })
        });
        Some(Found { container: id, quota, baseline, sending: bytes > 0, pressing: contained && counted.dropped() > 0 })
    }

    /// The limit, in bytes per second, that a container's baseline comes to now. `None`: it has none (yet).
    pub fn allowed(&self, id: ContainerId) -> Option<f64> {
        self.containers.get(&id)?.allowed
    }

    /// What a restarted agent needs to go on.
    #[must_use]
    pub fn save(&self) -> Saved {
        let counted = |(id, container): (&ContainerId, &Container)| {
            Some((id.0, Kept { window: container.quota.clone()?, sent: container.sent.unwrap_or_default() }))
        };
        let kept = self.kept.iter().map(|(id, kept)| (id.0, kept.clone()));
        let known = |(name, place): (&Arc<str>, &usize)| (name.to_string(), self.normals[*place].baseline.clone());
        Saved {
            quotas: self.containers.iter().filter_map(counted).chain(kept).collect(),
            baselines: self.places.iter().map(known).collect(),
        }
    }

    /// Goes on. `same_boot`: no container of another boot is there any more.
    #[must_use]
    pub fn restore(saved: Saved, same_boot: bool) -> Self {
        let Saved { quotas, baselines } = saved;
        let quotas = quotas.into_iter().filter(|_| same_boot);
        let places = baselines.keys().enumerate().map(|(place, name)| (name.as_str().into(), place)).collect();
        Self {
            containers: BTreeMap::new(),
            places,
            normals: baselines.into_values().map(|baseline| Normal { baseline, seen: 0 }).collect(),
            kept: quotas.map(|(id, kept)| (ContainerId(id), kept)).collect(),
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
