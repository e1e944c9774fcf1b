//! What outlives the agent of what the judge knows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Judge, Known,
    attempts::{self, Attempts},
};
use crate::{
    breach::ContainerId,
    budget::{self, Budgets},
    detect::{self, Detector},
    policy::Containment,
    relapse::{self, Relapses},
    units::Rate,
    verdict::{Contained, Container, Eviction},
    watch::{self, Watch},
};

/// What is kept while the agent restarts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    detector: detect::Saved,
    watch: watch::Saved,
    budgets: budget::Saved,
    containers: BTreeMap<u64, SavedContainer>,
    // Agents before this one did not keep these.
    #[serde(default)]
    evictions: Vec<attempts::Saved>,
    #[serde(default)]
    relapses: relapse::Saved,
}

/// What is kept of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedContainer {
    pub(super) released: Option<u64>,
    /// Of an agent that did not keep `evictions` on their own.
    #[serde(skip_serializing)]
    eviction: Option<Eviction>,
    contained: Option<SavedContained>,
}

/// A containment that was in force: if the kernel has let go of it since, its breaches have had theirs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedContained {
    /// Bytes per second; `None`: nothing passes.
    throttle: Option<u64>,
    since: u64,
    until: u64,
}

impl SavedContainer {
    pub(super) fn contained(&self) -> Option<Contained> {
        self.contained.map(|SavedContained { throttle, since, until }| {
            let how = throttle.and_then(Rate::new).map_or(Containment::Block, Containment::Throttle);
            Contained { how, since, until }
        })
    }
}

impl From<&Known> for SavedContainer {
    fn from(known: &Known) -> Self {
        let Container { released, contained, .. } = known.facts;
        let contained = contained.map(|Contained { how, since, until }| {
            let throttle = match how {
                Containment::Throttle(rate) => Some(rate.bytes_per_second()),
                Containment::Block => None,
            };
            SavedContained { throttle, since, until }
        });
        Self { released, eviction: None, contained }
    }
}

impl Judge {
    /// What a restarted agent needs to go on.
    #[must_use]
    pub fn save(&self) -> Saved {
        let known = self.containers.iter().map(|(id, known)| (id.0, SavedContainer::from(known)));
        let kept = self.kept.iter().map(|(id, kept)| (id.0, kept.clone()));
        Saved {
            detector: self.detector.save(),
            watch: self.watch.save(),
            budgets: self.budgets.save(),
            containers: known.chain(kept).filter(|(_, kept)| *kept != SavedContainer::default()).collect(),
            evictions: self.attempts.save(),
            relapses: self.relapses.save(),
        }
    }

    /// Goes on. After a reboot (not `same_boot`) only what is normal for the workloads is still true. Returns what could
    /// not be used, in words.
    ///
    /// To be told then, before anything else: [the wall clock](Judge::wall_clock); whether the kill switch is engaged; of each container that is there, that
    /// it [appeared](Judge::appeared), and what the kernel says of [its containment](Judge::contained); and that it
    /// [settled](Judge::settled).
    pub fn restore(&mut self, now: u64, saved: Saved, same_boot: bool) -> Vec<String> {
        let Saved { detector, watch, budgets, containers, evictions, relapses } = saved;
        self.detector = Detector::restore(detector, same_boot);
        if !same_boot {
            return vec![];
        }
        let mut lost = Vec::new();
        match Watch::restore(now, watch) {
            Ok(watch) => self.watch = watch,
            Err(error) => lost.push(format!("the open breaches: {error}")),
        }
        match Budgets::restore(now, budgets, self.settings.allowance) {
            Ok(budgets) => self.budgets = budgets,
            Err(error) => lost.push(format!("the evictions that were: {error}")),
        }
        match Relapses::restore(now, relapses) {
            Ok(relapses) => self.relapses = relapses,
            Err(error) => lost.push(format!("whom evictions did not cure: {error}")),
        }
        match Attempts::restore(now, evictions) {
            Ok(attempts) => self.attempts = attempts,
            Err(error) => lost.push(format!("the evictions that were underway: {error}")),
        }
        for (id, container) in &containers {
            if let Some(state) = container.eviction {
                self.attempts.adopt(ContainerId(*id), state);
            }
        }
        if !self.settings.dry_run {
            self.attempts.forget_dry(&mut self.budgets);
        }
        self.kept = containers.into_iter().map(|(id, container)| (ContainerId(id), container)).collect();
        lost
    }
}
