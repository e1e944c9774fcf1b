//! From what is known to what is to be done.

use super::{
    Judge, Known,
    attempts::{Begun, Unit},
    told::Effect,
};
use crate::{
    breach::ContainerId,
    budget::{self, Breaching},
    verdict::{self, Action, Contained, Container, Declined, Eviction, Safety, World},
};

/// How long after its grace an eviction must have ended, in nanoseconds. One of a container in no pod whose agent died
/// meanwhile is not tried again before.
const PATIENCE: u64 = 60_000_000_000;

impl Judge {
    /// Seconds since 1970.
    pub(super) fn wall_seconds(&self, now: u64) -> i64 {
        i64::try_from(now.saturating_add(self.wall) / 1_000_000_000).unwrap_or(i64::MAX)
    }

    pub(super) fn decide(&mut self, now: u64) -> Vec<Effect> {
        let open = |id: &ContainerId| self.watch.of(*id).next().is_some();
        let concerned = self.containers.iter().filter(|(id, known)| known.facts.contained.is_some() || open(id));
        let containers: Vec<Container> = concerned.map(|(_, known)| self.facts(known)).collect();
        let mut effects = self.alarms(now, &containers);
        let safety = Safety {
            nothing: self.means.nothing.as_ref(),
            only_pods: self.means.only_pods,
            protect: &self.settings.protect,
            wall: self.wall_seconds(now),
        };
        let verdict = verdict::decide(&World {
            now,
            mode: self.settings.policies.mode,
            kill_switch: self.kill_switch,
            watch: &self.watch,
            budgets: &self.budgets,
            relapses: &self.relapses,
            dry_run: self.settings.dry_run,
            safety,
            containers: &containers,
        });
        for action in verdict.actions {
            effects.extend(self.take(now, action));
        }
        let key = |d: &Declined| (d.reason.container, d.reason.limit, d.what, d.why.name());
        let declined = verdict.declined.iter().map(key).collect();
        let before = std::mem::replace(&mut self.declined, declined);
        effects.extend(verdict.declined.into_iter().filter(|d| !before.contains(&key(d))).map(Effect::Declined));
        effects
    }

    /// What is known of a container now, with what became of its eviction.
    fn facts(&self, known: &Known) -> Container {
        let unit = known.facts.whole();
        let (eviction, paid) = (self.attempts.state(&unit), self.attempts.paid(&unit).cloned());
        Container { eviction, paid, ..known.facts.clone() }
    }

    /// What is to be said of those that breach.
    fn alarms(&mut self, now: u64, containers: &[Container]) -> Vec<Effect> {
        let breaching: Vec<&Container> = verdict::breaching(&self.watch, containers).collect();
        let each = breaching.iter().map(|it| Breaching { workload: &it.workload, pod: it.pod_or_workload() });
        let storm = self.budgets.breaching(now, self.pods.len(), each);
        let still = breaching.iter().filter(|it| it.eviction != Some(Eviction::Done));
        let since = still.flat_map(|it| {
            let egress = self.watch.of(it.id).filter(|open| open.breach.limit.is_egress());
            egress.map(|open| (&it.workload, open.breach.since))
        });
        let not_cured = self.relapses.breaching(now, since);
        storm.into_iter().chain(not_cured).map(Effect::Alarm).collect()
    }

    /// Takes an action for granted, for whoever is told will carry it out.
    fn take(&mut self, now: u64, action: Action) -> Vec<Effect> {
        let id = action.container();
        let Some(known) = self.containers.get_mut(&id) else { return vec![] };
        let facts = &mut known.facts;
        let mut effects = vec![Effect::Act(action)];
        match action {
            Action::Contain { how, until, .. } => facts.contained = Some(Contained { how, since: now, until }),
            Action::Release { .. } => {
                facts.contained = None;
                let closed = self.watch.let_go(now, id, facts.released);
                effects.extend(closed.into_iter().map(Effect::Closed));
            }
            Action::Evict { grace, dry_run, .. } => {
                let (unit, workload) = (facts.whole(), &facts.workload);
                let paid = match self.attempts.paid(&unit) {
                    Some(before) => self.budgets.spend_again(now, workload, before),
                    None => self.budgets.spend(now, workload),
                };
                // The verdict asked the same budgets: if they differ, nothing is done.
                let Ok(paid) = paid else { return vec![] };
                let grace = grace.map_or(0, budget::nanos);
                let overdue_at = now.saturating_add(grace).saturating_add(PATIENCE);
                let (pods, containers, keep) = (&self.pods, &self.containers, self.budgets.keep());
                let is_there = |unit: &Unit| match unit {
                    Unit::Pod(uid) => pods.contains_key(uid),
                    Unit::Container(id) => containers.contains_key(id),
                };
                let begun = Begun { container: id, at: now, overdue_at, paid, dry: dry_run };
                self.attempts.begin(unit, begun, keep, is_there);
            }
        }
        effects
    }
}

impl Container {
    /// What an eviction for it is of.
    pub(super) fn whole(&self) -> Unit {
        Unit::of(self.id, self.unit.as_ref())
    }

    /// Its pod, for a storm; without one its workload.
    pub(super) fn pod_or_workload(&self) -> &std::sync::Arc<str> {
        self.unit.as_ref().unwrap_or(&self.workload)
    }
}
