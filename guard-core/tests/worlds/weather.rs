//! A memory of which workloads breached when, and whether that is a storm.

use guard_core::{
    budget::{Alarm, QUIET},
    policy::Storm,
};

#[derive(Default)]
pub(crate) struct Weather {
    /// When which workloads breached, one bit each.
    breaching: Vec<(u64, u32)>,
    /// When too many did last.
    storm: Option<u64>,
}

impl Weather {
    pub(crate) const fn is_storm(&self) -> bool {
        self.storm.is_some()
    }

    /// What is to be said of the workloads that breach now.
    pub(crate) fn look(&mut self, now: u64, breaching: u32, storm: Storm) -> Option<Alarm> {
        self.breaching.push((now, breaching));
        let per = storm.per.as_nanos() as u64;
        let recent = self.breaching.iter().rev().take_while(|(at, _)| now - at <= per);
        let recent = recent.fold(0, |bits, (_, breaching)| bits | breaching).count_ones();
        let before = self.is_storm();
        if u64::from(recent) >= storm.workloads.get() {
            self.storm = Some(now);
        } else if self.storm.is_some_and(|at| now - at >= QUIET) {
            self.storm = None;
        }
        match (before, self.is_storm()) {
            (false, true) => Some(Alarm::Storm { workloads: recent as usize }),
            (true, false) => Some(Alarm::Calm),
            _ => None,
        }
    }
}
