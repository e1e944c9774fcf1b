//! What must never happen, by a memory of all that did: in other words than the code that it watches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use guard_core::{
    breach::{Breach, ContainerId, Limit},
    budget::{Alarm, Refused},
    judge::{Effect, Evicted, Judge, Orders},
    policy::{Contain, Mode, Policy},
    verdict::{Action, Declined, Refusal},
    watch::{CLEAR, Closed, Closing},
};

use crate::{
    evictions::{Evictions, Outcome},
    node::{Call, Cell, Node},
    seen::Seen,
    setup::S,
    weather::Weather,
};

/// A breach, once and for all.
type Key = (ContainerId, Limit, u64);

/// What happened so far.
#[derive(Default)]
pub(crate) struct Witness {
    pub(crate) seen: Seen,
    /// The containers that the agent knows.
    pub(crate) known: BTreeSet<ContainerId>,
    /// It does not know all yet.
    pub(crate) settling: bool,
    open: BTreeSet<Key>,
    ever: BTreeSet<Key>,
    /// Those that a containment was for.
    contained: BTreeSet<Key>,
    /// When those containments began.
    begun: BTreeSet<(ContainerId, u64)>,
    /// Those that the operator forgave.
    forgiven: BTreeSet<Key>,
    /// When there was a sign of a breach last, surely and at the latest.
    signs: BTreeMap<(ContainerId, Limit), (u64, u64)>,
    evictions: Evictions,
    /// What was declined, ever and by the last verdict.
    declined: BTreeSet<(ContainerId, Mode)>,
    just_declined: Vec<(ContainerId, Limit, Mode, &'static str)>,
    weather: Weather,
}

fn key(breach: &Breach) -> Key {
    (breach.container, breach.limit, breach.since)
}

fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Each rule, and what is said if it does not hold.
fn all<const N: usize>(rules: [(bool, &str); N], what: impl FnOnce() -> String) -> Result<(), String> {
    let broken = rules.into_iter().find(|(holds, _)| !holds);
    broken.map_or(Ok(()), |(_, rule)| Err(format!("{rule}: {}", what())))
}

const fn nanos(length: Duration) -> u64 {
    length.as_nanos() as u64
}

impl Witness {
    /// A sign of a breach, if there is one.
    pub(crate) fn sign(&mut self, now: u64, id: ContainerId, limit: Limit) {
        self.signs.insert((id, limit), (now, now));
    }

    /// What a container does. `lag`: it may count as being over its baseline.
    pub(crate) fn sample(&mut self, now: u64, id: ContainerId, sending: bool, dropping: bool, lag: bool) {
        if dropping {
            self.sign(now, id, Limit::Rate);
            self.sign(now, id, Limit::Baseline);
        }
        for (limit, may) in [(Limit::Quota, sending || dropping), (Limit::Baseline, lag)] {
            let (_, latest) = self.signs.entry((id, limit)).or_default();
            *latest = if may { now } else { *latest };
        }
    }

    pub(crate) fn released(&mut self, container: ContainerId) {
        self.forgiven.extend(self.open.iter().filter(|key| key.0 == container));
    }

    /// An agent was there, and another one is.
    pub(crate) fn restarted(&mut self) {
        self.seen.saw("restart", if self.open.is_empty() { "" } else { "in a breach" });
        self.known.clear();
        self.settling = true;
        self.just_declined.clear();
        self.evictions.lose();
    }

    /// How an eviction ended. `false`: none is underway.
    pub(crate) fn evicted(&mut self, id: ContainerId, how: Evicted) -> bool {
        let was_open = self.evictions.end(id, how);
        let name = match how {
            Evicted::Done => "done",
            Evicted::Untouched { .. } => "untouched",
            Evicted::Broken { .. } => "broken",
        };
        if was_open {
            self.seen.saw("evicted", name);
        }
        was_open
    }

    /// Whether it was told what a containment is for.
    pub(crate) fn knows(&self, id: ContainerId, since: u64) -> bool {
        self.begun.contains(&(id, since))
    }

    /// The kernel contains a container by itself, for its rate.
    pub(crate) fn contained_by_kernel(&mut self, id: ContainerId, since: u64) -> Result<(), String> {
        self.seen.saw("kernel", "");
        // By now it may be over: held against the mode, it is let go at once.
        let rate = self.ever.range((id, Limit::Rate, 0)..=(id, Limit::Rate, u64::MAX)).next_back();
        let rate = *rate.ok_or_else(|| format!("the kernel contains {id:?} without a breach"))?;
        self.contains(rate, since)
    }

    fn contains(&mut self, key: Key, since: u64) -> Result<(), String> {
        self.begun.insert((key.0, since));
        must(!self.forgiven.contains(&key), || format!("contained though the operator released it: {key:?}"))?;
        must(self.contained.insert(key), || format!("contained twice for {key:?}"))
    }

    /// What followed from a call, before it is carried out.
    pub(crate) fn hear(&mut self, node: &Node, call: Call, effects: &[Effect]) -> Result<(), String> {
        let is_closed = |effect: &Effect| matches!(effect, Effect::Closed(_));
        must(call == Call::Decides || effects.iter().all(is_closed), || format!("after {call:?}: {effects:?}"))?;
        let breaches = |effect: &Effect| matches!(effect, Effect::Opened(_) | Effect::Closed(_));
        let (before, after) = effects.split_at(effects.iter().take_while(|effect| breaches(effect)).count());
        let mut let_go: Vec<ContainerId> = if let Call::Contained(id) = call { vec![id] } else { vec![] };
        for effect in before {
            self.effect(node, effect, &mut let_go, effects)?;
        }
        if call != Call::Decides {
            return Ok(());
        }
        let alarms: Vec<Alarm> =
            after.iter().filter_map(|it| if let Effect::Alarm(alarm) = it { Some(*alarm) } else { None }).collect();
        let expected = self.weather(node);
        must(alarms == expected.as_slice(), || format!("said {alarms:?} instead of {expected:?}"))?;
        let before = std::mem::take(&mut self.just_declined);
        for effect in after {
            self.effect(node, effect, &mut let_go, effects)?;
        }
        let again = self.just_declined.iter().find(|declined| before.contains(declined));
        must(again.is_none(), || format!("declined twice in a row: {again:?}"))
    }

    fn effect(
        &mut self,
        node: &Node,
        effect: &Effect,
        let_go: &mut Vec<ContainerId>,
        effects: &[Effect],
    ) -> Result<(), String> {
        match effect {
            Effect::Opened(breach) => self.opened(node, breach),
            Effect::Closed(closed) => self.closed(node, closed, let_go),
            Effect::Act(action) => {
                if let Action::Release { container, .. } = action {
                    let_go.push(*container);
                }
                self.action(node, action, effects)
            }
            Effect::Declined(declined) => self.declined(node, declined),
            Effect::Alarm(_) => Ok(()),
        }
    }

    fn opened(&mut self, node: &Node, breach: &Breach) -> Result<(), String> {
        self.seen.saw("opened", breach.limit.name());
        let is_open = |key: &Key| (key.0, key.1) == (breach.container, breach.limit);
        let policy = node.policy(node.find(breach.container)?);
        let rules = [
            (breach.since == node.now, "not now"),
            // Of a baseline the last samples together are.
            (breach.figure > breach.allowed || breach.limit == Limit::Baseline, "not over the limit"),
            (policy.is_some_and(|policy| policy.limits(breach.limit)), "there is no such limit"),
            (!self.open.iter().any(is_open), "it is open"),
            (self.ever.insert(key(breach)), "it was said"),
        ];
        self.open.insert(key(breach));
        all(rules, || format!("opened at {}: {breach:?}", node.now))
    }

    fn closed(&mut self, node: &Node, closed: &Closed, let_go: &[ContainerId]) -> Result<(), String> {
        let Closed { breach, at, why } = closed;
        let id = breach.container;
        let limited = |cell: &Cell| node.policy(cell).is_some_and(|policy: &Arc<Policy>| policy.limits(breach.limit));
        let (name, justified) = match why {
            Closing::Gone => ("gone", node.find(id).is_err()),
            Closing::Unlimited => ("unlimited", !node.find(id).is_ok_and(limited)),
            // Or else the next sign would be another breach, which nobody released.
            Closing::LetGo => ("let_go", let_go.contains(&id) && !self.forgiven.contains(&key(breach))),
            Closing::Clear => {
                let last = self.signs.get(&(id, breach.limit)).map_or(0, |(surely, _)| *surely).max(breach.since);
                ("clear", node.now - last >= CLEAR)
            }
        };
        self.seen.saw("closed", name);
        let rules = [
            (*at == node.now, "not now"),
            (justified, "without need"),
            (self.open.remove(&key(breach)), "it was not open"),
        ];
        all(rules, || format!("closed: {closed:?}"))
    }

    /// What is to be said of the workloads that breach.
    fn weather(&mut self, node: &Node) -> Option<Alarm> {
        let breaches = |cell: &&Cell| {
            self.known.contains(&cell.id) && self.open.iter().any(|key| key.0 == cell.id && key.1 != Limit::Ingress)
        };
        let breaching = node.cells.iter().filter(breaches).fold(0, |bits, cell| bits | 1 << cell.workload);
        let alarm = self.weather.look(node.now, breaching, node.settings.allowance.storm)?;
        self.seen.saw(if alarm == Alarm::Calm { "calm" } else { "storm" }, "");
        Some(alarm)
    }

    fn action(&mut self, node: &Node, action: &Action, effects: &[Effect]) -> Result<(), String> {
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
            Action::Evict { reason, .. } => {
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
            (node.protected.is_none(), "though it is protected"),
            (self.evictions.may(node.now, cell.id), "twice"),
            (!self.weather.is_storm(), "in a storm"),
            (!self.is_node_spent(node), "beyond the node's budget"),
            (!self.is_workload_spent(node, cell), "beyond the workload's budget"),
        ];
        all(rules, String::new)?;
        let before = self.evictions.begin(node.now, cell, node.now + nanos(evict.grace) + 60 * S);
        let which = match before {
            None => "",
            Some(Outcome::Lost) => "after it was lost",
            Some(_) => "again",
        };
        self.seen.saw("evict", which);
        Ok(())
    }

    fn is_node_spent(&self, node: &Node) -> bool {
        self.evictions.are_spent(node.now, node.settings.allowance.node, None)
    }

    fn is_workload_spent(&self, node: &Node, cell: &Cell) -> bool {
        self.evictions.are_spent(node.now, node.settings.allowance.workload, Some(cell.workload))
    }

    fn declined(&mut self, node: &Node, declined: &Declined) -> Result<(), String> {
        let Declined { what, reason, why } = declined;
        self.seen.saw("decline", why.name());
        let cell = node.find(reason.container)?;
        let justified = match why {
            Refusal::KillSwitch => node.kill_switch,
            Refusal::Protected(why) => node.protected == Some(why),
            Refusal::Budget(Refused::Storm) => self.weather.is_storm(),
            Refusal::Budget(Refused::Node) => self.is_node_spent(node),
            Refusal::Budget(Refused::Workload) => self.is_workload_spent(node, cell),
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

    /// What the kernel is told to do by itself.
    pub(crate) fn ordered(&self, node: &Node, cell: &Cell, orders: &Orders) -> Result<(), String> {
        let policy = node.policy(cell).filter(|_| self.known.contains(&cell.id));
        let forgiven = |key: &&Key| key.0 == cell.id && key.1 != Limit::Ingress;
        let forgiven = self.open.intersection(&self.forgiven).any(|key| forgiven(&key));
        let may = node.settings.policies.mode != Mode::Observe && !node.kill_switch && !forgiven;
        let expected = policy.map_or_else(Orders::default, |policy| Orders {
            count: policy.count,
            egress: policy.egress.rate,
            ingress: policy.ingress,
            arm: policy.on_breach.contain.filter(|_| may && policy.egress.rate.is_some()),
        });
        must(*orders == expected, || format!("ordered {orders:?} instead of {expected:?}"))
    }

    /// After all was carried out.
    pub(crate) fn after(&mut self, node: &Node, call: Call, judge: &Judge) -> Result<(), String> {
        let open: BTreeSet<Key> = judge.open().map(key).collect();
        must(open == self.open, || format!("open are {open:?}, and said to be {:?}", self.open))?;
        let gone = self.open.iter().find(|key| node.find(key.0).is_err()).filter(|_| !self.settling);
        must(gone.is_none(), || format!("open, and the container is gone: {gone:?}"))?;
        if call != Call::Decides {
            return Ok(());
        }
        for cell in node.cells.iter().filter(|cell| self.known.contains(&cell.id)) {
            let what = || format!("at {}: {:?}, {:?}", node.now, cell.id, cell.held);
            let known = judge.contained_now(cell.id);
            all([(known.is_some() == cell.held.is_some(), "the judge does not know whether it is contained")], what)?;
            if let Some((contained, _)) = cell.held {
                let contain = node.policy(cell).and_then(|policy| policy.on_breach.contain);
                let lasts = contain.is_some_and(|contain| node.now < contained.since + nanos(contain.length));
                let rules = [
                    (lasts, "contained for too long, or without a policy"),
                    (node.settings.policies.mode != Mode::Observe, "contained in mode observe"),
                    (!node.kill_switch, "contained against the kill switch"),
                ];
                all(rules, what)?;
            }
            self.nothing_is_missing(node, cell).map_err(|why| format!("{why} {}", what()))?;
        }
        Ok(())
    }

    /// What is to be done is done, or it was said why not.
    fn nothing_is_missing(&self, node: &Node, cell: &Cell) -> Result<(), String> {
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
        let due = policy.on_breach.evict.filter(|_| mode == Mode::Evict && self.evictions.may(node.now, cell.id));
        let due = due
            .is_some_and(|evict| breaches.iter().any(|key| surely(&key).saturating_sub(key.2) >= nanos(evict.after)));
        let spent = self.is_node_spent(node) || self.is_workload_spent(node, cell);
        let refused = node.kill_switch || node.protected.is_some() || self.weather.is_storm() || spent;
        let rules = [(!contain || contained, "not contained"), (!due || (refused && said(Mode::Evict)), "not evicted")];
        all(rules, String::new)
    }
}
