//! What must never be done, and what must not be left undone.

use guard_core::{
    breach::{Breach, Limit},
    budget::Refused,
    judge::Effect,
    policy::{Contain, Mode},
    safety::Leave,
    verdict::{Action, Declined, Refusal},
};

use crate::{
    evictions::Outcome,
    node::{Cell, Node, Whole},
    setup::S,
    witness::{Key, Witness, all, key, nanos},
};

impl Witness {
    pub(crate) fn action(&mut self, node: &Node, action: &Action, effects: &[Effect]) -> Result<(), String> {
        let cell = node.find(action.container())?;
        let policy = node.policy(cell);
        let what = || format!("at {}: {action:?}, {:?}, by {policy:?}", node.now, cell.held);
        match action {
            Action::Release { why, contained, .. } => {
                self.seen.saw("release", why.name());
                let held = cell.held.is_none_or(|(held, _)| (held.how, held.since) == (contained.how, contained.since));
                all([(held, "released is another containment")], what)
            }
            Action::Contain { how, until, reason } => {
                self.seen.saw("contain", "");
                let contain = policy.and_then(|policy| policy.on_breach.contain);
                let as_said = |it: Contain| *how == it.how && *until == node.now + nanos(it.length);
                let rules = [
                    (contain.is_some_and(as_said), "not as the policy says"),
                    (cell.held.is_none(), "it is contained"),
                ];
                all(rules, what)?;
                self.may_act(node, cell, reason).map_err(|why| format!("{why} {}", what()))?;
                self.contains(key(reason), node.now)
            }
            Action::Evict { grace, leave, dry_run, reason } => {
                let evict = policy.and_then(|policy| policy.on_breach.evict);
                let rules = [
                    (evict.is_some_and(|it| (it.grace, it.leave) == (*grace, *leave)), "not as the policy says"),
                    (*dry_run == node.settings.dry_run, "in earnest or not"),
                ];
                all(rules, what)?;
                self.may_act(node, cell, reason).map_err(|why| format!("{why} {}", what()))?;
                self.evict(node, cell, reason, effects).map_err(|why| format!("{why} {}", what()))
            }
        }
    }

    /// What holds of all that is done to a container.
    fn may_act(&self, node: &Node, cell: &Cell, reason: &Breach) -> Result<(), String> {
        let rules = [
            (node.settings.policies.mode != Mode::Observe, "in mode observe"),
            (!node.kill_switch, "against the kill switch"),
            (self.open.contains(&key(reason)), "without a breach"),
            (reason.container == cell.id, "for another's breach"),
            (reason.limit != Limit::Ingress, "for ingress"),
            (!self.forgiven.contains(&key(reason)), "though the operator released it"),
        ];
        all(rules, String::new)
    }

    fn evict(&mut self, node: &Node, cell: &Cell, reason: &Breach, effects: &[Effect]) -> Result<(), String> {
        let policy = node.policy(cell).ok_or("without a policy")?;
        let evict = policy.on_breach.evict.ok_or("and the policy says nothing")?;
        let (_, latest) = self.signs.get(&(cell.id, reason.limit)).copied().unwrap_or_default();
        let contains = |effect: &Effect| matches!(effect, Effect::Act(Action::Contain { reason, .. }) if reason.container == cell.id);
        let releases =
            |effect: &Effect| matches!(effect, Effect::Act(Action::Release { container, .. }) if *container == cell.id);
        let held = cell.held.is_some() || effects.iter().any(contains);
        let rules = [
            (node.settings.policies.mode == Mode::Evict, "not in mode evict"),
            (latest.saturating_sub(reason.since) >= nanos(evict.after), "too soon"),
            (held || policy.on_breach.contain.is_none(), "not contained first"),
            (!effects.iter().any(releases), "as it is let go"),
            (Self::forbids(node, cell, &evict.leave).is_none(), "though it is protected"),
            (!self.relapses.is_not_cured(cell.workload), "though that does not cure it"),
            (self.evictions.may(node.now, cell.whole()), "twice"),
            (!self.weather.is_storm(), "in a storm"),
            (!self.is_node_spent(node, cell), "beyond the node's budget"),
            (!self.is_workload_spent(node, cell), "beyond the workload's budget"),
        ];
        all(rules, String::new)?;
        let overdue = node.now + evict.grace.map_or(0, nanos) + 60 * S;
        let dry = node.settings.dry_run;
        let before = self.evictions.begin(node.now, cell, overdue, dry);
        let which = match (before, cell.whole()) {
            (None, _) => "",
            (Some(Outcome::Void), _) => "in earnest after dry",
            (Some(Outcome::Lost(_)), Whole::Pod(_)) => "a pod after it was lost",
            (Some(Outcome::Lost(_)), Whole::Container(_)) => "after it was lost",
            (Some(_), Whole::Pod(_)) => "a pod again",
            (Some(_), Whole::Container(_)) => "again",
        };
        self.seen.saw("evict", which);
        if dry {
            self.seen.saw("evict", "dry");
        }
        Ok(())
    }

    /// The name of what keeps a container from being evicted, whatever the budgets say.
    fn forbids(node: &Node, cell: &Cell, leave: &Leave) -> Option<&'static str> {
        let facts = cell.pod.and_then(|uid| node.pods.get(&uid));
        match facts {
            _ if node.nothing.is_some() => Some("protected"),
            Some(facts) if facts.told => facts.forbids(leave, node.wall()),
            Some(_) => node.only_pods.then_some("unknown_pod"),
            None => node.only_pods.then_some("no_pod"),
        }
    }

    fn is_node_spent(&self, node: &Node, cell: &Cell) -> bool {
        self.evictions.are_spent(node.now, node.settings.allowance.node, None, cell.whole())
    }

    fn is_workload_spent(&self, node: &Node, cell: &Cell) -> bool {
        let budget = node.settings.allowance.workload.on_node();
        self.evictions.are_spent(node.now, budget, Some(cell.workload), cell.whole())
    }

    pub(crate) fn declined(&mut self, node: &Node, declined: &Declined) -> Result<(), String> {
        let Declined { what, reason, why } = declined;
        self.seen.saw("decline", why.name());
        let cell = node.find(reason.container)?;
        let justified = match why {
            Refusal::KillSwitch => node.kill_switch,
            Refusal::Protected(_) => {
                let evict = node.policy(cell).and_then(|policy| policy.on_breach.evict);
                evict.is_some_and(|evict| Self::forbids(node, cell, &evict.leave) == Some(why.name()))
            }
            Refusal::NotCured => self.relapses.is_not_cured(cell.workload),
            Refusal::Budget(Refused::Storm) => self.weather.is_storm(),
            Refusal::Budget(Refused::Node) => self.is_node_spent(node, cell),
            Refusal::Budget(Refused::Workload) => self.is_workload_spent(node, cell),
            Refusal::Bypass => reason.limit == Limit::Bypass,
        };
        self.declined.insert((cell.id, *what));
        self.just_declined.push((cell.id, reason.limit, *what, why.name()));
        let rules = [
            (justified, "without need"),
            (self.open.contains(&key(reason)), "without a breach"),
            (reason.limit != Limit::Ingress, "for ingress"),
        ];
        all(rules, || format!("at {}: {declined:?}", node.now))
    }

    /// What is to be done is done, or it was said why not.
    pub(crate) fn nothing_is_missing(&self, node: &Node, cell: &Cell) -> Result<(), String> {
        let Some(policy) = node.policy(cell) else { return Ok(()) };
        let mode = node.settings.policies.mode;
        let said = |what| self.declined.contains(&(cell.id, what));
        let counts = |key: &&Key| {
            key.0 == cell.id && key.1 != Limit::Ingress && !self.forgiven.contains(key) && policy.limits(key.1)
        };
        let breaches: Vec<&Key> = self.open.iter().filter(counts).collect();
        let contain = mode != Mode::Observe && policy.on_breach.contain.is_some() && !breaches.is_empty();
        let contained = cell.held.is_some() || (node.kill_switch && said(Mode::Contain));
        let surely = |key: &&&Key| self.signs.get(&(key.0, key.1)).map_or(0, |(surely, _)| *surely);
        let due = policy.on_breach.evict.filter(|_| mode == Mode::Evict && self.evictions.may(node.now, cell.whole()));
        let due = due
            .is_some_and(|evict| breaches.iter().any(|key| surely(&key).saturating_sub(key.2) >= nanos(evict.after)));
        let spent = self.is_node_spent(node, cell) || self.is_workload_spent(node, cell);
        let leave = policy.on_breach.evict.map(|evict| evict.leave).unwrap_or_default();
        let forbidden = Self::forbids(node, cell, &leave).is_some() || self.relapses.is_not_cured(cell.workload);
        let refused = node.kill_switch || forbidden || self.weather.is_storm() || spent;
        let rules = [(!contain || contained, "not contained"), (!due || (refused && said(Mode::Evict)), "not evicted")];
        all(rules, String::new)
    }
}
