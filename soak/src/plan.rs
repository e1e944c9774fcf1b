//! A seed and a length give a sequence of steps, always the same one.
//!
//! A plan knows nothing of what its steps lead to (which pod was evicted, how long a pod took to come up): it names
//! workloads, and says when each step is due within its round. What a slow guest needs stands here as rules: few pods at
//! once, few breaches, one fault of the API server at a time, and a round that ends with nothing under way, so that what
//! was sent can be compared to the byte.

mod action;

use std::{collections::BTreeMap, time::Duration};

use guard_tests::random::Random;

pub use self::action::{Action, Fault, Kind};

/// So long steps are due in a round; then follows its checkpoint.
pub const ROUND: Duration = Duration::from_secs(65);

/// So long a round takes about, with its checkpoint.
const WHOLE_ROUND: u64 = 100;

/// The most pods of workloads at once. Each takes seconds to start where everything is emulated.
pub const MOST_PODS: u32 = 9;

/// The most breaches in a round: three breaching pods are a storm, in which nothing is evicted.
const MOST_BREACHES: u64 = 2;

/// What ends an agent; each of these before one comes again, as with [`FAULTS`]: a long plan has something of everything.
const ENDS: [Action; 3] = [Action::KillAgent, Action::KillAgent, Action::Rollout];

/// What is wrong with the API server.
const FAULTS: [Fault; 8] = [
    Fault::Away,
    Fault::Frozen,
    Fault::Slow,
    Fault::Refusing(429),
    Fault::Refusing(500),
    Fault::Refusing(503),
    Fault::LosesAnswers,
    Fault::EndsWatches,
];

/// The first workloads. The first of them, Deployments, stay, until they have breached so often: whom evictions do not cure is
/// not evicted any more. Then others take their places.
const FIRST: [Kind; 4] = [Kind::Deployment(3), Kind::Deployment(2), Kind::HostNetwork, Kind::Nested];
const STAY: usize = 2;
const CURED: u32 = 2;

/// The fewest rounds of a plan, and of those at its end in which one agent runs on: whether it grows is seen only then.
const FEWEST_ROUNDS: u64 = 5;
const FEWEST_STEADY: u64 = 3;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its round, from 0: in the first one the first workloads are made.
    pub round: u32,
    /// When it is due, from the beginning of its round. Late ones are done at once.
    pub at: Duration,
    /// What is done.
    pub action: Action,
}

/// How many rounds a plan of so many minutes has, besides the first, and from which one on nothing ends the agent.
#[must_use]
pub fn rounds(minutes: u32) -> (u32, u32) {
    let rounds = (u64::from(minutes) * 60 / WHOLE_ROUND).max(FEWEST_ROUNDS);
    let steady = (rounds * 2 / 5).max(FEWEST_STEADY);
    (rounds as u32, (rounds - steady) as u32 + 1)
}

/// The steps of a soak, in the order in which they are done.
#[must_use]
pub fn plan(seed: u64, minutes: u32) -> Vec<Step> {
    let random = scrambled(seed);
    let mut planner = Planner {
        random,
        workloads: vec![],
        breaches: BTreeMap::new(),
        made: 0,
        ends: vec![],
        faults: vec![],
        steps: vec![],
    };
    for (index, kind) in FIRST.into_iter().enumerate() {
        planner.make(0, 2 * index as u64, kind);
    }
    planner.step(0, ROUND.as_secs(), Action::Checkpoint);
    let (rounds, steady) = rounds(minutes);
    for round in 1..=rounds {
        planner.round(round, round < steady);
    }
    planner.steps
}

/// Neighbouring seeds, 0 and 1 among them, begin quite differently.
fn scrambled(seed: u64) -> Random {
    let mut random = Random::new((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9));
    for _ in 0..8 {
        random.next();
    }
    random
}

/// One of those that are left; of all, when none is.
fn draw<T: Clone>(random: &mut Random, left: &mut Vec<T>, all: &[T]) -> T {
    if left.is_empty() {
        left.extend_from_slice(all);
    }
    left.swap_remove(random.below(left.len() as u64) as usize)
}

struct Planner {
    random: Random,
    /// Those that there are; the first [`STAY`] are Deployments.
    workloads: Vec<(String, Kind)>,
    /// How often each has breached.
    breaches: BTreeMap<String, u32>,
    made: u32,
    /// Those that have not come since all had.
    ends: Vec<Action>,
    faults: Vec<Fault>,
    steps: Vec<Step>,
}

impl Planner {
    fn step(&mut self, round: u32, at: u64, action: Action) {
        self.steps.push(Step { round, at: Duration::from_secs(at), action });
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random.below(100) < percent
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.random.below(high - low + 1)
    }

    fn pods(&self) -> u32 {
        self.workloads.iter().map(|(_, kind)| kind.pods()).sum()
    }

    fn make(&mut self, round: u32, at: u64, kind: Kind) {
        let letter = match kind {
            Kind::Deployment(_) => "web",
            Kind::Bare => "bare",
            Kind::Job(_) => "job",
            Kind::HostNetwork => "host",
            Kind::Nested => "nested",
        };
        let name = format!("{letter}{}", self.made);
        self.made += 1;
        self.workloads.push((name.clone(), kind));
        self.step(round, at, Action::Make { name, kind });
    }

    /// Others take the places of those that evictions do not cure.
    fn renew(&mut self, round: u32) {
        let at = ROUND.as_secs() - 1;
        for index in 0..STAY {
            let (name, kind) = self.workloads[index].clone();
            if self.breaches.get(&name).is_some_and(|breaches| *breaches >= CURED) {
                self.step(round, at, Action::Remove { name });
                self.make(round, at, kind);
                self.workloads.swap_remove(index);
            }
        }
    }

    fn round(&mut self, round: u32, may_end_agent: bool) {
        let begin = self.steps.len();
        // A job of the round before has ended.
        self.workloads.retain(|(_, kind)| !matches!(kind, Kind::Job(_)));
        let fault = self.chance(60).then(|| draw(&mut self.random, &mut self.faults, &FAULTS));
        let breached = self.breaches(round, fault.is_some_and(Fault::is_of_evictions));
        self.ends(round, may_end_agent);
        if let Some(fault) = fault {
            self.fault(round, fault);
        }
        // Nothing else keeps an eviction away, or has one come late; and it is engaged when one would come.
        if fault.is_none() && self.chance(40) {
            let off = self.between(30, 45);
            self.step(round, 0, Action::KillSwitch(true));
            self.step(round, off, Action::KillSwitch(false));
        }
        if self.chance(40) {
            let (at, cgroups) = (self.between(0, 55), self.between(5, 40) as u32);
            self.step(round, at, Action::Churn(cgroups));
        }
        self.come_and_go(round, &breached);
        self.renew(round);
        // Stable: of two at the same time the one that was thought of first comes first.
        self.steps[begin..].sort_by_key(|step| step.at);
        self.step(round, ROUND.as_secs(), Action::Checkpoint);
    }

    /// Breaches that last for most of the round: found, contained and, where the policy and the budgets allow, evicted.
    /// `evicts`: one of them is to lead to an eviction.
    fn breaches(&mut self, round: u32, evicts: bool) -> Vec<String> {
        let count = if self.chance(75) || evicts { self.between(1, MOST_BREACHES) } else { 0 };
        let mut breached: Vec<String> = vec![];
        for _ in 0..count {
            let (name, kind) = self.breacher(evicts && breached.is_empty());
            let replica = self.random.below(u64::from(kind.pods())) as u32;
            if breached.contains(&name) {
                continue;
            }
            let (begin, lasts) = (self.between(0, 12), self.between(25, 48));
            self.step(round, begin, Action::Breach { name: name.clone(), replica });
            self.step(round, begin + lasts, Action::EndBreach { name: name.clone() });
            *self.breaches.entry(name.clone()).or_default() += 1;
            breached.push(name);
        }
        breached
    }

    /// Mostly a Deployment: nothing else is evicted. `is_evicted`: the one that has breached least.
    fn breacher(&mut self, is_evicted: bool) -> (String, Kind) {
        let evicted = |(_, kind): &&(String, Kind)| matches!(kind, Kind::Deployment(_));
        let mut deployments: Vec<_> = self.workloads.iter().filter(evicted).cloned().collect();
        if is_evicted {
            deployments.sort_by_key(|(name, _)| self.breaches.get(name).copied());
            return deployments.swap_remove(0);
        }
        let candidates = if self.chance(75) { deployments } else { self.workloads.clone() };
        candidates[self.random.below(candidates.len() as u64) as usize].clone()
    }

    fn ends(&mut self, round: u32, may_end_agent: bool) {
        if may_end_agent && self.chance(65) {
            let end = draw(&mut self.random, &mut self.ends, &ENDS);
            let times = if end == Action::KillAgent { self.between(1, 2) } else { 1 };
            for _ in 0..times {
                let at = self.between(2, 50);
                self.step(round, at, end.clone());
            }
        }
        if self.chance(35) {
            let index = self.random.below(self.workloads.len() as u64) as usize;
            let (name, kind) = self.workloads[index].clone();
            let (at, replica) = (self.between(0, 50), self.random.below(u64::from(kind.pods())) as u32);
            self.step(round, at, Action::KillContainer { name, replica });
        }
    }

    /// One at a time, and over before the round is. Those of evictions are there when one comes.
    fn fault(&mut self, round: u32, fault: Fault) {
        let (begin, lasts) = if fault.is_of_evictions() {
            (self.between(0, 5), self.between(30, 50))
        } else {
            (self.between(0, 35), self.between(5, 25))
        };
        self.step(round, begin, Action::Fault(fault));
        self.step(round, begin + lasts, Action::EndFault);
    }

    fn come_and_go(&mut self, round: u32, breached: &[String]) {
        if self.workloads.len() > STAY + 1 && self.chance(45) {
            let index = STAY + self.random.below((self.workloads.len() - STAY) as u64) as usize;
            // What breaches goes as well, at any time; what is named in later steps of this round is left alone by them.
            let (name, _) = self.workloads.remove(index);
            let at = if breached.contains(&name) { self.between(15, 50) } else { self.between(0, 50) };
            self.step(round, at, Action::Remove { name });
        }
        if !self.chance(70) {
            return;
        }
        let kind = match self.random.below(5) {
            0 => Kind::Deployment(2 + self.random.below(2) as u32),
            1 => Kind::Bare,
            2 => Kind::Job(self.between(5, 20) as u32),
            3 => Kind::HostNetwork,
            _ => Kind::Nested,
        };
        let has_host = self.workloads.iter().any(|(_, kind)| matches!(kind, Kind::HostNetwork));
        // Two in the node's network would want the same port.
        if self.pods() + kind.pods() <= MOST_PODS && !(kind == Kind::HostNetwork && has_host) {
            let at = self.between(0, 35);
            self.make(round, at, kind);
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
