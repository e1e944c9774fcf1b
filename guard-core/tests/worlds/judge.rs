//! What must never happen, by a memory of all that did: in other words than the code that it judges.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use guard_core::{
    breach::{Breach, ContainerId, Limit},
    budget::{Alarm, QUIET, Refused},
    policy::{Budget, Mode},
    verdict::{Action, Container, Declined, Eviction, Refusal, Verdict},
    watch::{Closed, Closing, Open},
};

use crate::node::{Node, WORKLOADS};

/// A breach, once and for all.
type Key = (ContainerId, Limit, u64);

/// What happened so far.
#[derive(Default)]
pub(crate) struct Judge {
    pub(crate) seen: Seen,
    open: BTreeSet<Key>,
    ever: BTreeSet<Key>,
    /// Those that a containment was for.
    contained: BTreeSet<Key>,
    /// Those that the operator forgave.
    forgiven: BTreeSet<Key>,
    /// When each container was seen to send too much last.
    signs: BTreeMap<ContainerId, u64>,
    evictions: Vec<Evicted>,
    /// When which workloads breached, one bit each.
    breaching: Vec<(u64, u32)>,
    /// When too many did last.
    storm: Option<u64>,
}

struct Evicted {
    at: u64,
    container: ContainerId,
    workload: Arc<str>,
    /// It failed: when it may be tried again.
    retry_at: Option<u64>,
}

/// How often what was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen(BTreeMap<(&'static str, &'static str), u64>);

/// What must have been seen in some world.
const ALL: [(&str, &str); 16] = [
    ("contain", ""),
    ("evict", ""),
    ("kernel", ""),
    ("retry", ""),
    ("storm", ""),
    ("calm", ""),
    ("release", "kill_switch"),
    ("release", "operator"),
    ("release", "mode"),
    ("release", "policy"),
    ("release", "over"),
    ("decline", "kill_switch"),
    ("decline", "protected"),
    ("decline", "storm"),
    ("decline", "node_budget"),
    ("decline", "workload_budget"),
];

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(*what).or_default() += count;
        }
    }

    pub(crate) fn missing(&self) -> Vec<(&'static str, &'static str)> {
        ALL.into_iter().filter(|what| !self.0.contains_key(what)).collect()
    }

    fn saw(&mut self, what: &'static str, why: &'static str) {
        *self.0.entry((what, why)).or_default() += 1;
    }
}

fn key(breach: &Breach) -> Key {
    (breach.container, breach.limit, breach.since)
}

fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

fn find(node: &Node, id: ContainerId) -> Result<&Container, String> {
    node.containers.iter().find(|container| container.id == id).ok_or_else(|| format!("{id:?} is not there"))
}

impl Judge {
    pub(crate) fn opened(&mut self, breaches: &[Breach]) -> Result<(), String> {
        for breach in breaches {
            must(self.ever.insert(key(breach)), || format!("said twice: {breach:?}"))?;
            self.open.insert(key(breach));
        }
        Ok(())
    }

    pub(crate) fn closed(&mut self, closed: &[Closed]) {
        for Closed { breach, why, .. } in closed {
            assert!(self.open.remove(&key(breach)), "closed, but was not open: {breach:?}");
            // Or else the next sign would be another breach, which nobody released.
            let forgiven = self.forgiven.contains(&key(breach));
            assert!(!forgiven || *why != Closing::LetGo, "released, and closed by a containment's end: {breach:?}");
        }
    }

    pub(crate) fn sign(&mut self, container: ContainerId, now: u64) {
        self.signs.insert(container, now);
    }

    pub(crate) fn released(&mut self, container: ContainerId) {
        self.forgiven.extend(self.open.iter().filter(|key| key.0 == container));
    }

    /// The kernel contains a container by itself, for its rate.
    pub(crate) fn kernel_contained(&mut self, node: &Node, container: ContainerId) -> Result<(), String> {
        self.seen.saw("kernel", "");
        must(node.mode > Mode::Observe, || format!("the kernel contains in mode observe: {container:?}"))?;
        must(!node.kill_switch, || format!("the kernel contains against the kill switch: {container:?}"))?;
        let key = self.open.iter().find(|key| key.0 == container && key.1 == Limit::Rate);
        let key = *key.ok_or("the kernel contains without a breach")?;
        self.contains(key)
    }

    /// When it was begun.
    pub(crate) fn eviction_failed(&mut self, container: ContainerId, retry_at: u64) -> u64 {
        let eviction = self.evictions.iter_mut().rfind(|it| it.container == container).expect("it was begun");
        eviction.retry_at = Some(retry_at);
        eviction.at
    }

    fn contains(&mut self, key: Key) -> Result<(), String> {
        must(!self.forgiven.contains(&key), || format!("contained though the operator released it: {key:?}"))?;
        must(self.contained.insert(key), || format!("contained twice for {key:?}"))
    }

    /// Before it is carried out.
    pub(crate) fn before(&mut self, node: &Node, verdict: &Verdict, alarm: Option<Alarm>) -> Result<(), String> {
        let open: BTreeSet<Key> = node.watch.all().map(|open| key(&open.breach)).collect();
        must(open == self.open, || format!("open are {open:?}, and said to be {:?}", self.open))?;
        for (id, limit, _) in open {
            let limited = find(node, id)?.policy.as_ref().is_some_and(|policy| policy.limits(limit));
            must(limited, || format!("a breach of a limit that is not: {id:?}, {limit}"))?;
        }
        self.weather(node, alarm)?;
        for action in &verdict.actions {
            self.action(node, verdict, action)?;
        }
        for declined in &verdict.declined {
            self.declined(node, declined)?;
        }
        for container in &node.containers {
            self.nothing_is_missing(node, verdict, container)?;
        }
        Ok(())
    }

    /// After it was carried out.
    pub(crate) fn after(node: &Node) -> Result<(), String> {
        for container in &node.containers {
            let Some(contained) = container.contained else { continue };
            let policy = container.policy.as_ref().and_then(|policy| policy.on_breach.contain);
            let policy = policy.ok_or_else(|| format!("contained without a policy: {container:?}"))?;
            must(node.mode > Mode::Observe, || format!("contained in mode observe: {container:?}"))?;
            must(!node.kill_switch, || format!("contained against the kill switch: {container:?}"))?;
            let lasts = node.now < contained.until && node.now - contained.since < policy.length.as_nanos() as u64;
            must(lasts, || format!("contained for too long at {}: {container:?}", node.now))?;
        }
        Ok(())
    }

    /// Whether there is a storm, and that it was said.
    fn weather(&mut self, node: &Node, alarm: Option<Alarm>) -> Result<(), String> {
        let breaches = |c: &&Container| self.open.iter().any(|key| key.0 == c.id && key.1 != Limit::Ingress);
        let bit =
            |c: &Container| 1 << WORKLOADS.iter().position(|name| *name == &*c.workload).expect("a workload of ours");
        let now = node.containers.iter().filter(breaches).fold(0, |bits, c| bits | bit(c));
        self.breaching.push((node.now, now));
        let per = node.allowance.storm.per.as_nanos() as u64;
        let recent = self.breaching.iter().rev().take_while(|(at, _)| node.now - at <= per);
        let recent = recent.fold(0, |bits, (_, now)| bits | now).count_ones();
        let before = self.storm.is_some();
        if u64::from(recent) >= node.allowance.storm.workloads.get() {
            self.storm = Some(node.now);
        } else if self.storm.is_some_and(|at| node.now - at >= QUIET) {
            self.storm = None;
        }
        let expected = match (before, self.storm.is_some()) {
            (false, true) => Some(Alarm::Storm { workloads: recent as usize }),
            (true, false) => Some(Alarm::Calm),
            _ => None,
        };
        if let Some(alarm) = expected {
            self.seen.saw(if alarm == Alarm::Calm { "calm" } else { "storm" }, "");
        }
        must(alarm == expected, || format!("at {}: said {alarm:?} instead of {expected:?}", node.now))
    }

    fn action(&mut self, node: &Node, verdict: &Verdict, action: &Action) -> Result<(), String> {
        let container = find(node, action.container())?;
        let what = || format!("{action:?} at {} of {container:?}", node.now);
        match action {
            Action::Release { why, contained, .. } => {
                self.seen.saw("release", why.name());
                return must(container.contained == Some(*contained), what);
            }
            Action::Contain { how, until, reason } => {
                self.seen.saw("contain", "");
                self.may_act(node, container, reason).map_err(|why| format!("{why}: {}", what()))?;
                let policy = container.policy.as_ref().and_then(|policy| policy.on_breach.contain).ok_or_else(what)?;
                must(container.contained.is_none(), what)?;
                must(*how == policy.how && *until == node.now + policy.length.as_nanos() as u64, what)?;
                self.contains(key(reason))?;
            }
            Action::Evict { reason, .. } => {
                self.seen.saw("evict", "");
                self.may_act(node, container, reason).map_err(|why| format!("{why}: {}", what()))?;
                self.may_evict(node, verdict, container, reason).map_err(|why| format!("{why}: {}", what()))?;
            }
        }
        Ok(())
    }

    /// What holds of all that is done to a container.
    fn may_act(&self, node: &Node, container: &Container, reason: &Breach) -> Result<(), &'static str> {
        let rules = [
            (node.mode != Mode::Observe, "in mode observe"),
            (!node.kill_switch, "against the kill switch"),
            (self.open.contains(&key(reason)), "without a breach"),
            (reason.container == container.id, "for another's breach"),
            (reason.limit != Limit::Ingress, "for ingress"),
            (!self.forgiven.contains(&key(reason)), "though the operator released it"),
        ];
        rules.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err(rule))
    }

    fn may_evict(
        &mut self,
        node: &Node,
        verdict: &Verdict,
        container: &Container,
        reason: &Breach,
    ) -> Result<(), &'static str> {
        let policy = container.policy.as_ref().ok_or("without a policy")?;
        let evict = policy.on_breach.evict.ok_or("and the policy says nothing")?;
        let sign = self.signs.get(&container.id).copied().unwrap_or_default();
        let contains = |action: &Action| matches!(action, Action::Contain { .. }) && action.container() == container.id;
        let releases = |action: &Action| matches!(action, Action::Release { .. }) && action.container() == container.id;
        let held = container.contained.is_some() || verdict.actions.iter().any(contains);
        let retried = self.evictions.iter().filter(|it| it.container == container.id);
        let may_retry = retried.clone().all(|it| it.retry_at.is_some_and(|at| at <= node.now));
        let of = |it: &&Evicted| it.workload == container.workload;
        let rules = [
            (node.mode == Mode::Evict, "not in mode evict"),
            (sign - reason.since.min(sign) >= evict.after.as_nanos() as u64, "too soon"),
            (held || policy.on_breach.contain.is_none(), "not contained first"),
            (!verdict.actions.iter().any(releases), "as it is let go"),
            (container.protected.is_none(), "though it is protected"),
            (may_retry, "twice"),
            (self.storm.is_none(), "in a storm"),
            (!self.is_spent(node, node.allowance.node, |_| true), "beyond the node's budget"),
            (!self.is_spent(node, node.allowance.workload, |it| of(&it)), "beyond the workload's budget"),
        ];
        if let Some((_, rule)) = rules.into_iter().find(|(holds, _)| !holds) {
            return Err(rule);
        }
        if retried.count() > 0 {
            self.seen.saw("retry", "");
        }
        let (container, workload) = (container.id, Arc::clone(&container.workload));
        self.evictions.push(Evicted { at: node.now, container, workload, retry_at: None });
        Ok(())
    }

    /// One more now would be one too many in the window that ends now. Of those that failed, nothing is left.
    fn is_spent(&self, node: &Node, budget: Budget, of: impl Fn(&Evicted) -> bool) -> bool {
        let per = budget.per.as_nanos() as u64;
        let counts = |it: &&Evicted| of(it) && it.retry_at.is_none() && it.at + per >= node.now;
        self.evictions.iter().filter(counts).count() as u64 >= budget.evictions.get()
    }

    fn declined(&mut self, node: &Node, declined: &Declined) -> Result<(), String> {
        self.seen.saw("decline", declined.why.name());
        let container = find(node, declined.reason.container)?;
        let workload = |it: &Evicted| it.workload == container.workload;
        let justified = match declined.why {
            Refusal::KillSwitch => node.kill_switch,
            Refusal::Protected(_) => container.protected.is_some(),
            Refusal::Budget(Refused::Storm) => self.storm.is_some(),
            Refusal::Budget(Refused::Node) => self.is_spent(node, node.allowance.node, |_| true),
            Refusal::Budget(Refused::Workload) => self.is_spent(node, node.allowance.workload, workload),
        };
        must(justified, || format!("{declined:?} without need at {} of {container:?}", node.now))
    }

    /// What is to be done is done, or it is said why not.
    fn nothing_is_missing(&self, node: &Node, verdict: &Verdict, whom: &Container) -> Result<(), String> {
        let Some(policy) = &whom.policy else { return Ok(()) };
        let done = |what: fn(&Action) -> bool| {
            verdict.actions.iter().any(|action| what(action) && action.container() == whom.id)
        };
        let declined = |what: Mode| {
            verdict.declined.iter().any(|declined| declined.what == what && declined.reason.container == whom.id)
        };
        if done(|action| matches!(action, Action::Release { .. })) {
            return Ok(());
        }
        let counts = |open: &&Open| {
            let breach = &open.breach;
            breach.limit != Limit::Ingress && policy.limits(breach.limit) && !self.forgiven.contains(&key(breach))
        };
        let breaches: Vec<&Open> = node.watch.of(whom.id).filter(counts).collect();
        let contain = node.mode >= Mode::Contain && policy.on_breach.contain.is_some() && !breaches.is_empty();
        let contained = whom.contained.is_some() || done(|action| matches!(action, Action::Contain { .. }));
        must(!contain || contained || declined(Mode::Contain), || format!("not contained: {whom:?}"))?;
        let due = policy.on_breach.evict.filter(|_| node.mode == Mode::Evict).is_some_and(|evict| {
            breaches.iter().any(|open| open.last - open.breach.since >= evict.after.as_nanos() as u64)
        });
        let may = match whom.eviction {
            None => true,
            Some(Eviction::Failed { retry_at }) => retry_at <= node.now,
            Some(_) => false,
        };
        let evicted = done(|action| matches!(action, Action::Evict { .. })) || declined(Mode::Evict);
        must(!due || !may || evicted, || format!("not evicted: {whom:?}"))
    }
}
