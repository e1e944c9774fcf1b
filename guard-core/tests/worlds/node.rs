//! A node: what its containers, its kernel, its operator and its agent do. Whatever happens is told to the judge.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use guard_core::{
    breach::{Breach, ContainerId, Limit},
    budget::{Allowance, Budgets},
    policy::{
        BaselineLimit, Budget, Contain, Containment, Count, EgressLimits, Evict, Matcher, Mode, OnBreach, Policy,
        Quota, RateLimit, Storm,
    },
    units::{Rate, Size},
    verdict::{Action, Contained, Container, Eviction, World, arm, breaching, decide},
    watch::{Found, Over, Watch},
};

use crate::judge::Judge;

/// A second.
const S: u64 = 1_000_000_000;

pub(crate) const WORKLOADS: [&str; 4] = ["w0", "w1", "w2", "w3"];
const OVER: Over = Over { figure: 9.0, allowed: 3.0 };
const MODES: [Mode; 8] =
    [Mode::Evict, Mode::Evict, Mode::Evict, Mode::Evict, Mode::Evict, Mode::Contain, Mode::Contain, Mode::Observe];
/// Between two samples, in seconds: as it should be, late, and while the node slept.
const TICKS: [u64; 8] = [1, 1, 1, 4, 4, 9, 11, 200];
/// After this long without its agent the kernel lets go.
const LAPSE: u64 = 10 * S;

pub(crate) struct Node {
    pub(crate) now: u64,
    pub(crate) mode: Mode,
    pub(crate) kill_switch: bool,
    pub(crate) watch: Watch,
    pub(crate) budgets: Budgets,
    pub(crate) allowance: Allowance,
    pub(crate) containers: Vec<Container>,
    pub(crate) judge: Judge,
    policies: Vec<Arc<Policy>>,
    /// For each container the limits that it is over now, one bit each.
    over: Vec<u8>,
    born: u64,
}

fn bit(bits: u16, index: u32) -> bool {
    bits >> index & 1 == 1
}

fn policy(bits: u16) -> Arc<Policy> {
    let rate = RateLimit { rate: Rate::new(1).expect("a rate"), burst: Size::new(1).expect("a size") };
    let hour = Duration::from_hours(1);
    let pick = |from: [u64; 4], index: u32| Duration::from_secs(from[usize::from(bits >> index & 3)]);
    let how = if bit(bits, 4) { Containment::Block } else { Containment::Throttle(rate.rate) };
    let contain = Contain { how, length: pick([5, 30, 60, 600], 7) };
    let evict = Evict { after: pick([0, 3, 10, 30], 9), grace: Duration::from_secs(1) };
    Arc::new(Policy {
        name: String::new(),
        matcher: Matcher::default(),
        count: Count::All,
        egress: EgressLimits {
            rate: (!bit(bits, 0)).then_some(rate),
            quota: (!bit(bits, 1)).then_some(Quota { bytes: rate.burst, per: hour }),
            baseline: (!bit(bits, 2)).then_some(BaselineLimit { factor: 1.0, floor: rate.rate, learn: hour }),
        },
        ingress: (!bit(bits, 3)).then_some(rate),
        on_breach: OnBreach {
            // Three of four.
            contain: (bits >> 5 & 3 != 3).then_some(contain),
            evict: (bits >> 11 & 3 != 3).then_some(evict),
        },
    })
}

fn allowance(bits: u16) -> Allowance {
    let number = |index: u32, most: u16| NonZeroU64::new(u64::from(bits >> index & 7) % u64::from(most) + 1);
    let number = |index, most| number(index, most).expect("at least one");
    let per = |index: u32| Duration::from_secs([30, 300, 1000, 3600][usize::from(bits >> index & 3)]);
    Allowance {
        node: Budget { evictions: number(0, 3), per: per(3) },
        workload: Budget { evictions: number(5, 2), per: per(8) },
        storm: Storm { workloads: number(10, 4).saturating_add(1), per: per(13) },
    }
}

impl Node {
    pub(crate) fn new([a, b, c, mode, budgets, containers]: [u16; 6]) -> Self {
        let allowance = allowance(budgets);
        let mut node = Self {
            now: 1000 * S,
            mode: MODES[usize::from(mode & 7)],
            kill_switch: false,
            watch: Watch::default(),
            budgets: Budgets::new(allowance),
            allowance,
            containers: Vec::new(),
            judge: Judge::default(),
            policies: [a, b, c].map(policy).into(),
            over: Vec::new(),
            born: 0,
        };
        for index in 0..=containers & 3 {
            node.come((containers >> (4 * index)) as u8);
        }
        node
    }

    /// Something happens.
    pub(crate) fn event(&mut self, event: u32) -> Result<(), String> {
        let [what, who, how, _] = event.to_be_bytes();
        // No two things happen at the same time.
        self.now += 1;
        let index = usize::from(who) % self.containers.len().max(1);
        let there = index < self.containers.len();
        match what % 32 {
            0..=11 => self.time_passes(how)?,
            20 => self.kill_switch = how < 0x60,
            21 => self.mode = MODES[usize::from(how & 7)],
            22 => {
                let changed = usize::from(how) % self.policies.len();
                let new = policy(u16::from_le_bytes([who, how]));
                let old = std::mem::replace(&mut self.policies[changed], Arc::clone(&new));
                for container in &mut self.containers {
                    if container.policy.as_ref().is_some_and(|policy| Arc::ptr_eq(policy, &old)) {
                        container.policy = Some(Arc::clone(&new));
                    }
                }
                self.reload();
            }
            23 if self.containers.len() < 6 => self.come(how),
            24 => self.restart(u64::from(how % 16) * S)?,
            12..=19 if there => self.over[index] ^= 1 << (how & 3),
            25 if there => {
                let policy = self.policies.get(usize::from(how & 3)).cloned();
                self.containers[index].policy = policy;
                self.reload();
            }
            26 if there => {
                self.containers[index].released = Some(self.now);
                self.judge.released(self.containers[index].id);
            }
            27 if there => self.go(index),
            28 if there => self.containers[index].protected = (how & 1 == 1).then_some("it must not be"),
            29 | 30 if there => self.evicted(index, how),
            _ => {}
        }
        self.settle()
    }

    fn come(&mut self, how: u8) {
        self.born += 1;
        self.over.push(0);
        self.containers.push(Container {
            id: ContainerId(self.born),
            policy: self.policies.get(usize::from(how & 3)).cloned(),
            workload: WORKLOADS[usize::from(how >> 2 & 3)].into(),
            contained: None,
            released: None,
            eviction: None,
            protected: None,
        });
    }

    fn go(&mut self, index: usize) {
        let gone = self.containers.remove(index);
        self.over.remove(index);
        let closed = self.watch.gone(self.now, gone.id);
        self.judge.closed(&closed);
    }

    fn reload(&mut self) {
        let policy_of = |id| self.containers.iter().find(|c| c.id == id).and_then(|c| c.policy.as_deref());
        let limited = |breach: &Breach| policy_of(breach.container).is_some_and(|policy| policy.limits(breach.limit));
        let closed = self.watch.reloaded(self.now, limited);
        self.judge.closed(&closed);
    }

    /// An eviction that is underway ends; or else it hangs.
    fn evicted(&mut self, index: usize, how: u8) {
        let container = &mut self.containers[index];
        if container.eviction != Some(Eviction::Underway) {
            return;
        }
        if how & 1 == 0 {
            container.eviction = Some(Eviction::Done);
            // Most are gone soon.
            if how & 6 != 0 {
                self.go(index);
            }
            return;
        }
        let retry_at = self.now + u64::from(how) * S / 4;
        container.eviction = Some(Eviction::Failed { retry_at });
        let begun = self.judge.eviction_failed(container.id, retry_at);
        self.budgets.refund(begun, &container.workload);
    }

    /// Another agent goes on from what this one saved; the kernel goes on meanwhile, and lets go if it takes too long.
    fn restart(&mut self, down: u64) -> Result<(), String> {
        let (watch, budgets) = (self.watch.save(), self.budgets.save());
        self.now += down;
        self.watch = Watch::restore(self.now, watch).map_err(|error| error.to_string())?;
        self.budgets = Budgets::restore(self.now, budgets, self.allowance).map_err(|error| error.to_string())?;
        for container in self.containers.iter_mut().filter(|_| down >= LAPSE) {
            if container.contained.take().is_some() {
                let closed = self.watch.let_go(self.now, container.id, container.released);
                self.judge.closed(&closed);
            }
        }
        Ok(())
    }

    /// A few samples, and what the kernel says between them.
    fn time_passes(&mut self, how: u8) -> Result<(), String> {
        for _ in 0..=how >> 6 {
            self.now += TICKS[usize::from(how & 7)] * S;
            for index in 0..self.containers.len() {
                self.packets(index)?;
            }
            let found: Vec<Found> = (0..self.containers.len()).map(|index| self.found(index)).collect();
            let changes = self.watch.sample(self.now, found);
            self.judge.opened(&changes.opened)?;
            self.judge.closed(&changes.closed);
            self.settle()?;
        }
        Ok(())
    }

    /// A container is over a limit, and its policy has that limit.
    fn is_over(&self, index: usize, limit: Limit) -> bool {
        let limited = self.containers[index].policy.as_ref().is_some_and(|policy| policy.limits(limit));
        limited && self.over[index] & 1 << limit as u32 != 0
    }

    /// Packets that find a bucket empty. The kernel acts first; the agent hears of it after.
    fn packets(&mut self, index: usize) -> Result<(), String> {
        for limit in [Limit::Rate, Limit::Ingress] {
            let Container { id, contained, .. } = self.containers[index];
            if !self.is_over(index, limit) || (limit == Limit::Rate && contained.is_some()) {
                continue;
            }
            let held = if limit == Limit::Rate { self.kernel_contains(index) } else { false };
            let opened = self.watch.crossed(self.now, id, limit, OVER);
            self.judge.opened(opened.as_slice())?;
            self.judge.sign(id, self.now);
            if held {
                let mut judge = std::mem::take(&mut self.judge);
                judge.kernel_contained(self, id)?;
                self.judge = judge;
            }
            self.settle()?;
        }
        Ok(())
    }

    fn kernel_contains(&mut self, index: usize) -> bool {
        let container = &mut self.containers[index];
        let released = container.is_released(&self.watch);
        let policy = container.policy.as_ref().expect("it has a limit");
        let Some(Contain { how, length }) = arm(policy, self.mode, self.kill_switch, released) else { return false };
        container.contained = Some(Contained { how, since: self.now, until: self.now + length.as_nanos() as u64 });
        true
    }

    fn found(&mut self, index: usize) -> Found {
        let Container { id, contained, .. } = self.containers[index];
        let over = |limit| self.is_over(index, limit).then_some(OVER);
        let (quota, baseline) = (over(Limit::Quota), over(Limit::Baseline));
        let sending = self.over[index] & 0b111 != 0;
        if sending {
            self.judge.sign(id, self.now);
        }
        Found { container: id, quota, baseline, sending, pressing: sending && contained.is_some() }
    }

    /// The agent decides and acts.
    fn settle(&mut self) -> Result<(), String> {
        let alarm = self.budgets.breaching(self.now, breaching(&self.watch, &self.containers));
        let verdict = decide(&World {
            now: self.now,
            mode: self.mode,
            kill_switch: self.kill_switch,
            watch: &self.watch,
            budgets: &self.budgets,
            containers: &self.containers,
        });
        let mut judge = std::mem::take(&mut self.judge);
        judge.before(self, &verdict, alarm)?;
        for action in verdict.actions {
            let at = self.containers.iter().position(|c| c.id == action.container()).ok_or("an action on nobody")?;
            let container = &mut self.containers[at];
            match action {
                Action::Contain { how, until, .. } => {
                    container.contained = Some(Contained { how, since: self.now, until });
                }
                Action::Release { .. } => {
                    container.contained = None;
                    judge.closed(&self.watch.let_go(self.now, container.id, container.released));
                }
                Action::Evict { .. } => {
                    container.eviction = Some(Eviction::Underway);
                    let spent = self.budgets.spend(self.now, &container.workload);
                    spent.map_err(|why| format!("an eviction that the budget refuses: {why:?}"))?;
                }
            }
        }
        Judge::after(self)?;
        self.judge = judge;
        Ok(())
    }
}
