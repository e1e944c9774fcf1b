//! A memory of which workloads and pods breached when, and whether that is a storm.

use std::collections::{BTreeMap, BTreeSet};

use guard_core::{
    budget::{Alarm, QUIET},
    policy::Storm,
};

/// What counts as a pod: one, or the workload of a container that is in none.
pub(crate) type Whose = Result<u64, usize>;

#[derive(Default)]
pub(crate) struct Weather {
    /// When which workloads breached, with which pods.
    breaching: Vec<(u64, usize, Whose)>,
    /// When those breached last that the operator excused.
    excused: BTreeMap<usize, u64>,
    /// When too many did last.
    storm: Option<u64>,
}

impl Weather {
    pub(crate) const fn is_storm(&self) -> bool {
        self.storm.is_some()
    }

    /// What is to be said of the workloads and pods that breach now, of so many.
    pub(crate) fn look(&mut self, now: u64, breaching: &[(usize, Whose)], of: usize, storm: Storm) -> Option<Alarm> {
        let per = storm.per.as_nanos() as u64;
        self.excused.retain(|_, last| now - *last <= per);
        for (workload, whose) in breaching {
            match self.excused.get_mut(workload) {
                Some(last) => *last = now,
                None => self.breaching.push((now, *workload, *whose)),
            }
        }
        self.breaching.retain(|(at, ..)| now - at <= per);
        let workloads = self.breaching.iter().map(|(_, workload, _)| workload).collect::<BTreeSet<_>>().len();
        let pods = self.breaching.iter().map(|(.., whose)| whose).collect::<BTreeSet<_>>().len();
        let before = self.is_storm();
        let share = 100.0 * pods as f64 / of as f64;
        let many = pods > 2 && share > storm.pods.to_string().trim_end_matches('%').parse().expect("percent");
        if workloads as u64 >= storm.workloads.get() || many {
            self.storm = Some(now);
        } else if self.storm.is_some_and(|at| now - at >= QUIET) {
            self.storm = None;
        }
        match (before, self.is_storm()) {
            (false, true) => Some(Alarm::Storm { workloads, pods, of }),
            (true, false) => Some(Alarm::Calm),
            _ => None,
        }
    }

    /// The operator ends it.
    pub(crate) fn resume(&mut self) {
        self.storm = None;
        for (at, workload, _) in self.breaching.drain(..) {
            let last = self.excused.entry(workload).or_default();
            *last = at.max(*last);
        }
    }
}
