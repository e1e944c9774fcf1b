//! What must never happen, by a memory of all that did: in other words than the code that it watches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use guard_core::{
    breach::{Breach, ContainerId, Limit},
    budget::Alarm,
    judge::{Effect, Evicted, Judge, Orders},
    policy::{Mode, Policy},
    verdict::Action,
    watch::{CLEAR, Closed, Closing},
};

use crate::{
    evictions::Evictions,
    node::{Call, Cell, Node},
    relapse::Relapses,
    seen::Seen,
    setup::WORKLOADS,
    weather::{Weather, Whose},
};

/// A breach, once and for all.
pub(crate) type Key = (ContainerId, Limit, u64);

/// What happened so far.
#[derive(Default)]
pub(crate) struct Witness {
    pub(crate) seen: Seen,
    /// The containers that the agent knows.
    pub(crate) known: BTreeSet<ContainerId>,
    /// It does not know all yet.
    pub(crate) settling: bool,
    pub(crate) open: BTreeSet<Key>,
    pub(crate) ever: BTreeSet<Key>,
    /// Those that a containment was for.
    pub(crate) contained: BTreeSet<Key>,
    /// When those containments began.
    pub(crate) begun: BTreeSet<(ContainerId, u64)>,
    /// Those that the operator forgave.
    pub(crate) forgiven: BTreeSet<Key>,
    /// When there was a sign of a breach last, surely and at the latest.
    pub(crate) signs: BTreeMap<(ContainerId, Limit), (u64, u64)>,
    pub(crate) evictions: Evictions,
    /// What was declined, ever and by the last verdict.
    pub(crate) declined: BTreeSet<(ContainerId, Mode)>,
    pub(crate) just_declined: Vec<(ContainerId, Limit, Mode, &'static str)>,
    pub(crate) weather: Weather,
    pub(crate) relapses: Relapses,
}

pub(crate) fn key(breach: &Breach) -> Key {
    (breach.container, breach.limit, breach.since)
}

pub(crate) fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Each rule, and what is said if it does not hold.
pub(crate) fn all<const N: usize>(rules: [(bool, &str); N], what: impl FnOnce() -> String) -> Result<(), String> {
    let broken = rules.into_iter().find(|(holds, _)| !holds);
    broken.map_or(Ok(()), |(_, rule)| Err(format!("{rule}: {}", what())))
}

pub(crate) const fn nanos(length: Duration) -> u64 {
    length.as_nanos() as u64
}

fn not_cured(workload: usize) -> Alarm {
    Alarm::NotCured { workload: WORKLOADS[workload].into() }
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
    pub(crate) fn restarted(&mut self, node: &Node) {
        self.seen.saw("restart", if self.open.is_empty() { "" } else { "in a breach" });
        self.known.clear();
        self.settling = true;
        self.just_declined.clear();
        self.evictions.lose(node.now);
        self.reloaded(node);
    }

    /// Other settings hold.
    pub(crate) fn reloaded(&mut self, node: &Node) {
        if !node.settings.dry_run {
            self.evictions.earnest();
        }
    }

    pub(crate) const fn is_storm(&self) -> bool {
        self.weather.is_storm()
    }

    /// How an eviction ended, and what is to be said of that.
    pub(crate) fn evicted(&mut self, node: &Node, id: ContainerId, how: Evicted) -> Option<Alarm> {
        let (at, workload, done) = self.evictions.end(id, how, node.settings.dry_run)?;
        self.seen.saw(
            "evicted",
            match how {
                Evicted::Done => "done",
                Evicted::Untouched { .. } => "untouched",
                Evicted::Broken { .. } => "broken",
                Evicted::NotCured => "not_cured",
            },
        );
        if done {
            self.relapses.evicted(at, workload);
        }
        let news = how == Evicted::NotCured && self.relapses.told(node.now, workload);
        if news {
            self.seen.saw("not_cured", "told");
        }
        news.then(|| not_cured(workload))
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

    pub(crate) fn contains(&mut self, key: Key, since: u64) -> Result<(), String> {
        self.begun.insert((key.0, since));
        must(!self.forgiven.contains(&key), || format!("contained though the operator released it: {key:?}"))?;
        must(self.contained.insert(key), || format!("contained twice for {key:?}"))
    }

    /// What followed from a call, before it is carried out.
    pub(crate) fn hear(&mut self, node: &Node, call: Call, effects: &[Effect]) -> Result<(), String> {
        let is_closed = |effect: &Effect| matches!(effect, Effect::Closed(_));
        let decides = matches!(call, Call::Decides | Call::Resumes);
        must(decides || effects.iter().all(is_closed), || format!("after {call:?}: {effects:?}"))?;
        let breaches = |effect: &Effect| matches!(effect, Effect::Opened(_) | Effect::Closed(_));
        let (before, after) = effects.split_at(effects.iter().take_while(|effect| breaches(effect)).count());
        let mut let_go: Vec<ContainerId> = if let Call::Contained(id) = call { vec![id] } else { vec![] };
        for effect in before {
            self.effect(node, effect, &mut let_go, effects)?;
        }
        if !decides {
            return Ok(());
        }
        let alarm = |effect: &Effect| if let Effect::Alarm(alarm) = effect { Some(alarm.clone()) } else { None };
        let alarms: Vec<Alarm> = after.iter().filter_map(alarm).collect();
        let expected = self.alarms(node, call);
        must(alarms == expected, || format!("said {alarms:?} instead of {expected:?}"))?;
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
            Effect::BadAnnotation { .. } => Err("there are no annotations".to_owned()),
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

    /// What is to be said of those that breach.
    fn alarms(&mut self, node: &Node, call: Call) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        let of = |cell: &Cell| {
            let egress = self.open.iter().filter(|key| key.0 == cell.id && key.1 != Limit::Ingress);
            egress.map(|key| key.2).collect::<Vec<_>>()
        };
        let mut known: Vec<&Cell> = node.cells.iter().filter(|cell| self.known.contains(&cell.id)).collect();
        known.sort_by_key(|cell| cell.id);
        let breaching: Vec<_> = known.iter().filter(|cell| !of(cell).is_empty()).collect();
        let workloads: Vec<(usize, Whose)> = breaching.iter().map(|cell| (cell.workload, cell.whose())).collect();
        let pods: BTreeSet<Whose> = known.iter().map(|cell| cell.whose()).collect();
        let done = |cell: &Cell| self.evictions.is_done(cell.whole());
        if breaching.iter().any(|cell| cell.pod.is_some() && done(cell)) {
            self.seen.saw("breach", "of a pod that was evicted");
        }
        let still = breaching.iter().filter(|cell| !done(cell));
        let still: Vec<(usize, u64)> =
            still.flat_map(|cell| of(cell).into_iter().map(|since| (cell.workload, since))).collect();
        if call == Call::Resumes {
            self.seen.saw("resume", if breaching.len() > 1 { "while they breach" } else { "" });
            self.weather.resume();
            alarms.push(Alarm::Calm);
        }
        let storm = node.settings.allowance.storm;
        alarms.extend(self.weather.look(node.now, &workloads, pods.len(), storm));
        match alarms.last() {
            Some(Alarm::Storm { workloads, .. }) => {
                let share = (*workloads as u64) < storm.workloads.get();
                self.seen.saw("storm", if share { "by share" } else { "" });
            }
            Some(Alarm::Calm) if call != Call::Resumes => self.seen.saw("calm", ""),
            _ => {}
        }
        for workload in self.relapses.look(node.now, &still) {
            self.seen.saw("not_cured", "");
            alarms.push(not_cured(workload));
        }
        alarms
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
        must(judge.storm() == self.is_storm(), || format!("storm: {}", judge.storm()))?;
        if !matches!(call, Call::Decides | Call::Resumes) {
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
}
