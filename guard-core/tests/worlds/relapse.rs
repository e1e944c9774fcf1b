//! A memory of which workloads were evicted, and whether that cured them.

use std::collections::BTreeMap;

use crate::setup::S;

const HOUR: u64 = 3600 * S;

#[derive(Default)]
pub(crate) struct Relapses {
    /// When which workload was evicted.
    evicted: Vec<(u64, usize)>,
    /// When each workload that is not cured breached last.
    not_cured: BTreeMap<usize, u64>,
}

impl Relapses {
    pub(crate) fn evicted(&mut self, at: u64, workload: usize) {
        self.evicted.push((at, workload));
    }

    pub(crate) fn is_not_cured(&self, workload: usize) -> bool {
        self.not_cured.contains_key(&workload)
    }

    /// Somebody else says so. `true`: that is news.
    pub(crate) fn told(&mut self, now: u64, workload: usize) -> bool {
        self.not_cured.insert(workload, now).is_none()
    }

    /// Of the workloads that breach now, and since when: those of which it is to be said.
    pub(crate) fn look(&mut self, now: u64, breaches: &[(usize, u64)]) -> Vec<usize> {
        self.not_cured.retain(|_, last| *last + HOUR >= now);
        let again = |(workload, since): &(usize, u64)| {
            let before =
                self.evicted.iter().filter(|(at, of)| of == workload && at < since && at + 24 * HOUR >= *since);
            let before: Vec<u64> = before.map(|(at, _)| *at).collect();
            before.len() > 1 && before.iter().any(|at| at + HOUR >= *since)
        };
        let known = |breach: &&(usize, u64)| self.is_not_cured(breach.0) || again(breach);
        let found: Vec<usize> = breaches.iter().filter(known).map(|(workload, _)| *workload).collect();
        found.into_iter().filter(|workload| self.told(now, *workload)).collect()
    }
}
