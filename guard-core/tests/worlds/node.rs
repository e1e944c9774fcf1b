//! A node: what its containers, its kernel and its operator do, and an agent that is driven by the real judge. Whatever
//! happens is told to the witness.

use std::sync::Arc;

use guard_core::{
    breach::{ContainerId, Limit},
    budget::Allowance,
    judge::{Effect, Evicted, Judge, Orders, Settings},
    policy::{Contain, Containment, Policy},
    verdict::{Action, Contained},
};

use crate::{
    setup::{FAR_TOO_MUCH, LEARNED, MODES, MUCH, NORMAL, S, WORKLOADS, allowance, policy, sent, settings, subject},
    witness::Witness,
};

/// Between two samples, in seconds: as it should be, late, and while the node slept.
const TICKS: [u64; 8] = [1, 1, 1, 4, 4, 9, 11, 200];
/// After this long without its agent the kernel lets go ...
const LAPSE: u64 = 10 * S;
/// ... unless containments are to outlive it.
const OUTLIVE: u64 = 1_000_000 * S;

/// What the judge was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Something that may end breaches, and no more.
    Quiet,
    /// What the kernel says of a containment.
    Contained(ContainerId),
    /// Something that a verdict follows.
    Decides,
}

/// A container, and what the kernel has of it.
pub(crate) struct Cell {
    pub(crate) id: ContainerId,
    pub(crate) workload: usize,
    /// The index of its policy; none has the last.
    policy: usize,
    /// The limits that it is over now, one bit each.
    over: u8,
    /// Samples for which it may still count as being over its baseline.
    lag: u8,
    /// What the agent last ordered.
    orders: Orders,
    /// The containment in force, and when it lapses.
    pub(crate) held: Option<(Contained, u64)>,
}

/// What is true.
pub(crate) struct Node {
    pub(crate) now: u64,
    pub(crate) settings: Settings,
    pub(crate) kill_switch: bool,
    pub(crate) protected: Option<&'static str>,
    pub(crate) cells: Vec<Cell>,
    lapse: u64,
    born: u64,
}

/// A node, its agent and who watches it.
pub(crate) struct World {
    node: Node,
    judge: Judge,
    pub(crate) witness: Witness,
}

impl Node {
    pub(crate) fn policy(&self, cell: &Cell) -> Option<&Arc<Policy>> {
        self.settings.policies.policies.get(cell.policy)
    }

    pub(crate) fn find(&self, id: ContainerId) -> Result<&Cell, String> {
        self.cells.iter().find(|cell| cell.id == id).ok_or_else(|| format!("{id:?} is not there"))
    }

    fn cell(&mut self, id: ContainerId) -> Result<&mut Cell, String> {
        self.cells.iter_mut().find(|cell| cell.id == id).ok_or_else(|| format!("{id:?} is not there"))
    }

    fn ids(&self) -> Vec<ContainerId> {
        self.cells.iter().map(|cell| cell.id).collect()
    }

    /// The kernel lets go of what nobody renewed, and contains by itself what crosses its rate.
    fn kernel(&mut self) {
        for cell in &mut self.cells {
            cell.held = cell.held.filter(|(_, until)| *until > self.now);
            let crosses = cell.is_over(Limit::Rate) && cell.orders.egress.is_some() && cell.held.is_none();
            if let Some(Contain { how, length }) = cell.orders.arm.filter(|_| crosses) {
                // When it ends the programs do not know.
                let contained = Contained { how, since: self.now, until: u64::MAX };
                cell.held = Some((contained, self.now + self.lapse.min(length.as_nanos() as u64)));
            }
        }
    }
}

impl Cell {
    fn is_over(&self, limit: Limit) -> bool {
        self.over & 1 << limit as u32 != 0
    }

    /// Bytes per second that it would send: every other container sends nothing unless it is over something.
    fn wants(&self) -> u64 {
        let normal = if self.id.0.is_multiple_of(2) || self.is_over(Limit::Rate) { NORMAL } else { 0 };
        let much = if self.is_over(Limit::Quota) { MUCH } else { 0 };
        normal + much + if self.is_over(Limit::Baseline) { FAR_TOO_MUCH } else { 0 }
    }

    /// What of that gets through, and what is dropped.
    fn sends(&self) -> (u64, u64) {
        let wants = self.wants();
        let through = match self.held {
            Some((Contained { how: Containment::Throttle(rate), .. }, _)) => rate.bytes_per_second(),
            Some(_) => 0,
            None => wants,
        };
        (wants.min(through), wants.saturating_sub(through))
    }
}

impl World {
    pub(crate) fn new([a, b, c, mode, budgets, containers]: [u16; 6]) -> Result<Self, String> {
        let settings = settings([a, b, c], budgets, MODES[usize::from(mode & 7)]);
        let protected = (mode >> 3).is_multiple_of(16).then_some("it must not be");
        let lapse = if (mode >> 7).is_multiple_of(4) { OUTLIVE } else { LAPSE };
        let mut judge = Judge::new(settings.clone(), protected);
        judge.restore(0, serde_json::from_str(&LEARNED).map_err(|error| error.to_string())?, false);
        let node = Node { now: 1000 * S, settings, kill_switch: false, protected, cells: Vec::new(), lapse, born: 0 };
        let mut world = Self { node, judge, witness: Witness::default() };
        for index in 0..=containers & 3 {
            world.come((containers >> (4 * index)) as u8)?;
        }
        Ok(world)
    }

    /// Something happens.
    pub(crate) fn event(&mut self, event: u32) -> Result<(), String> {
        let [what, who, how, _] = event.to_be_bytes();
        self.node.now += 1;
        let index = usize::from(who) % self.node.cells.len().max(1);
        let whom = self.node.cells.get(index).map(|cell| cell.id);
        match (what % 32, whom) {
            (0..=11, _) => self.time_passes(how),
            (20, _) => {
                self.node.kill_switch = how < 0x60;
                let effects = self.judge.kill_switch(self.node.now, self.node.kill_switch);
                self.tell(Call::Decides, effects)
            }
            (21, _) => self.reload(|settings| {
                settings.policies.mode = MODES[usize::from(how & 7)];
                let new = allowance(u16::from_le_bytes([who, how]));
                settings.allowance = Allowance { storm: settings.allowance.storm, ..new };
            }),
            (22, _) => self.reload(|settings| {
                let changed = usize::from(how) % 3;
                settings.policies.policies[changed] = policy(changed, u16::from_le_bytes([who, how]));
            }),
            (23, _) if self.node.cells.len() < 6 => self.come(how),
            (24, _) => self.restart(who, how),
            (12..=19, Some(_)) => {
                self.node.cells[index].over ^= 1 << (how & 3);
                Ok(())
            }
            (25, Some(id)) => {
                self.node.cells[index].policy = usize::from(how & 3);
                self.appear(id)
            }
            (26, Some(id)) => {
                self.witness.released(id);
                let effects = self.judge.release(self.node.now, id).ok_or("it is there, and not known")?;
                self.tell(Call::Decides, effects)
            }
            (27, Some(id)) => self.go(id),
            (28..=30, Some(id)) => self.evicted(id, how),
            (31, Some(id)) => {
                // Somebody cleared bpffs.
                self.node.cells[index].held = None;
                self.hear(id)
            }
            _ => Ok(()),
        }
    }

    fn reload(&mut self, change: impl FnOnce(&mut Settings)) -> Result<(), String> {
        change(&mut self.node.settings);
        let effects = self.judge.reload(self.node.now, self.node.settings.clone());
        self.tell(Call::Decides, effects)
    }

    fn come(&mut self, how: u8) -> Result<(), String> {
        self.node.born += 1;
        let id = ContainerId(self.node.born);
        let (policy, workload) = (usize::from(how & 3), usize::from(how >> 2 & 3));
        self.node.cells.push(Cell { id, workload, policy, over: 0, lag: 0, orders: Orders::default(), held: None });
        self.appear(id)
    }

    /// The judge hears of a container, or more of it.
    fn appear(&mut self, id: ContainerId) -> Result<(), String> {
        let Cell { policy, workload, .. } = self.node.find(id)?;
        let effects = self.judge.appeared(self.node.now, id, subject(*policy), WORKLOADS[*workload].into());
        self.witness.known.insert(id);
        self.tell(Call::Quiet, effects)
    }

    fn go(&mut self, id: ContainerId) -> Result<(), String> {
        self.node.cells.retain(|cell| cell.id != id);
        self.witness.known.remove(&id);
        let effects = self.judge.gone(self.node.now, id);
        self.tell(Call::Quiet, effects)
    }

    /// An eviction that is underway ends; or else it hangs.
    fn evicted(&mut self, id: ContainerId, how: u8) -> Result<(), String> {
        let retry_at = self.node.now + u64::from(how) * S / 4;
        let outcome = match how & 3 {
            0 | 1 => Evicted::Done,
            2 => Evicted::Untouched { retry_at },
            _ => Evicted::Broken { retry_at },
        };
        if !self.witness.evicted(id, outcome) {
            return Ok(());
        }
        // Most are gone soon, and some before that is told.
        let goes = outcome == Evicted::Done && how & 0b1100 != 0;
        if goes && how & 0b1_0000 != 0 {
            self.go(id)?;
            self.judge.evicted(id, outcome);
            return Ok(());
        }
        self.judge.evicted(id, outcome);
        if goes { self.go(id) } else { Ok(()) }
    }

    /// Another agent goes on from what this one saved; the kernel goes on meanwhile, and lets go if it takes too long.
    fn restart(&mut self, who: u8, how: u8) -> Result<(), String> {
        let mut saved = serde_json::to_string(&self.judge.save()).map_err(|error| error.to_string())?;
        self.node.now += u64::from(how % 16) * S;
        self.node.kernel();
        if how & 0x30 == 0 && !self.node.cells.is_empty() {
            let gone = self.node.cells.swap_remove(usize::from(who) % self.node.cells.len()).id;
            self.witness.known.remove(&gone);
        }
        if how & 0x40 != 0 {
            self.node.settings.policies.mode = MODES[usize::from(who & 7)];
        }
        // Some do not live until all have appeared.
        let lives = if how & 0x80 != 0 { vec![self.node.cells.len() / 2, usize::MAX] } else { vec![usize::MAX] };
        for count in lives {
            let mut judge = Judge::new(self.node.settings.clone(), self.node.protected);
            let state = serde_json::from_str(&saved).map_err(|error| error.to_string())?;
            let lost = judge.restore(self.node.now, state, true);
            assert_eq!(lost, [""; 0], "lost by a restart");
            self.judge = judge;
            self.witness.restarted();
            let effects = self.judge.kill_switch(self.node.now, self.node.kill_switch);
            self.tell(Call::Decides, effects)?;
            for id in self.node.ids().into_iter().take(count) {
                self.node.now += 1;
                self.appear(id)?;
                let held = self.node.find(id)?.held.map(|(contained, _)| contained);
                let effects = self.judge.contained(self.node.now, id, held);
                self.tell(Call::Contained(id), effects)?;
            }
            saved = serde_json::to_string(&self.judge.save()).map_err(|error| error.to_string())?;
        }
        self.witness.settling = false;
        let effects = self.judge.settled(self.node.now);
        self.tell(Call::Quiet, effects)?;
        self.node.ids().into_iter().try_for_each(|id| self.packets(id))
    }

    /// A few samples, and what the kernel says between them.
    fn time_passes(&mut self, how: u8) -> Result<(), String> {
        for _ in 0..=how >> 6 {
            let tick = TICKS[usize::from(how & 7)];
            self.node.now += tick * S;
            self.node.kernel();
            for id in self.node.ids() {
                self.hear(id)?;
            }
            for id in self.node.ids() {
                self.packets(id)?;
            }
            let mut moved = Vec::new();
            for cell in &mut self.node.cells {
                // What is normal may have become less.
                let much = cell.is_over(Limit::Baseline) || cell.is_over(Limit::Quota);
                cell.lag = if much { 5 } else { cell.lag.saturating_sub(1) };
                let (bytes, dropped) = cell.sends();
                self.witness.sample(self.node.now, cell.id, bytes > 0, dropped > 0, cell.lag > 0);
                moved.push((cell.id, sent(bytes * tick, dropped * tick)));
            }
            let effects = self.judge.sample(self.node.now, tick * S, moved);
            self.tell(Call::Decides, effects)?;
            self.renew();
        }
        Ok(())
    }

    /// The agent looks whether the kernel holds a container.
    fn hear(&mut self, id: ContainerId) -> Result<(), String> {
        let told = self.node.find(id)?.held.map(|(contained, _)| contained);
        let news = match (told, self.judge.contained_now(id)) {
            (Some(told), known) => known.is_none_or(|known| known.since != told.since),
            // At its end the judge lifts it.
            (None, Some(known)) => known.until > self.node.now,
            (None, None) => false,
        };
        if !news {
            return Ok(());
        }
        let effects = self.judge.contained(self.node.now, id, told);
        self.tell(Call::Contained(id), effects)
    }

    /// Packets that find a bucket empty: at once, or those that contained the container just now or while there was no
    /// agent.
    fn packets(&mut self, id: ContainerId) -> Result<(), String> {
        let cell = self.node.find(id)?;
        let fresh = cell.held.map(|(held, _)| held.since).filter(|since| !self.witness.knows(id, *since));
        let rate =
            cell.orders.egress.is_some() && cell.is_over(Limit::Rate) && (cell.held.is_none() || fresh.is_some());
        let ingress = cell.orders.ingress.is_some() && cell.is_over(Limit::Ingress);
        for (_, limit) in [(rate, Limit::Rate), (ingress, Limit::Ingress)].into_iter().filter(|(crossed, _)| *crossed) {
            self.witness.sign(self.node.now, id, limit);
            let effects = self.judge.crossed(self.node.now, id, limit, 9e6);
            self.tell(if effects.is_empty() { Call::Quiet } else { Call::Decides }, effects)?;
            if let Some(since) = fresh.filter(|_| limit == Limit::Rate) {
                self.witness.contained_by_kernel(id, since)?;
            }
        }
        Ok(())
    }

    fn renew(&mut self) {
        for cell in &mut self.node.cells {
            if let (Some((_, until)), Some(known)) = (&mut cell.held, self.judge.contained_now(cell.id)) {
                *until = known.until.min(self.node.now + self.node.lapse);
            }
        }
    }

    /// What follows is watched, done and ordered.
    fn tell(&mut self, told: Call, effects: Vec<Effect>) -> Result<(), String> {
        self.witness.hear(&self.node, told, &effects)?;
        let (now, lapse) = (self.node.now, self.node.lapse);
        for effect in effects {
            let Effect::Act(action) = effect else { continue };
            let cell = self.node.cell(action.container())?;
            match action {
                Action::Contain { how, until, .. } => {
                    cell.held = Some((Contained { how, since: now, until }, until.min(now + lapse)));
                }
                Action::Release { .. } => cell.held = None,
                Action::Evict { .. } => {}
            }
        }
        for cell in &mut self.node.cells {
            cell.orders = self.judge.orders(cell.id);
        }
        for cell in &self.node.cells {
            self.witness.ordered(&self.node, cell, &cell.orders)?;
        }
        self.witness.after(&self.node, told, &self.judge)
    }
}
