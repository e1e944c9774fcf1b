//! A node: what its containers, its kernel and its operator do, and an agent that is driven by the real judge. Whatever
//! happens is told to the witness.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use guard_core::{
    breach::{ContainerId, Limit},
    judge::{About, Effect, Judge, Means, Orders, Settings},
    policy::{Contain, Containment, Policy},
    verdict::{Action, Contained},
};

use crate::{
    pods::{Facts, KINDS},
    setup::{FAR_TOO_MUCH, LEARNED, MODES, MUCH, NORMAL, S, WORKLOADS, sent, settings, subject},
    weather::Whose,
    witness::Witness,
};

/// Between two samples, in seconds: as it should be, late, and while the node slept.
const TICKS: [u64; 8] = [1, 1, 1, 4, 4, 9, 11, 200];
/// After this long without its agent the kernel lets go ...
const LAPSE: u64 = 10 * S;
/// ... unless containments are to outlive it.
const OUTLIVE: u64 = 1_000_000 * S;
const DAY: u64 = 24 * 3600 * S;
/// So much is the wall clock ahead.
pub(crate) const WALL: u64 = 1_700_000_000 * S;
/// So many containers there are at most.
const MOST: usize = 8;

/// What the judge was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Something that may end breaches, and no more.
    Quiet,
    /// What the kernel says of a containment.
    Contained(ContainerId),
    /// Something that a verdict follows.
    Decides,
    /// That the operator ends the storm; a verdict follows.
    Resumes,
}

/// What an eviction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Whole {
    Pod(u64),
    Container(ContainerId),
}

/// A container, and what the kernel has of it.
pub(crate) struct Cell {
    pub(crate) id: ContainerId,
    pub(crate) workload: usize,
    pub(crate) pod: Option<u64>,
    /// The index of its policy; none has the last.
    pub(crate) policy: usize,
    /// The limits that it is over now, one bit each.
    pub(crate) over: u8,
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
    /// Why nothing is evicted.
    pub(crate) nothing: Option<&'static str>,
    pub(crate) only_pods: bool,
    pub(crate) cells: Vec<Cell>,
    pub(crate) pods: BTreeMap<u64, Facts>,
    lapse: u64,
    born: u64,
}

/// A node, its agent and who watches it.
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) judge: Judge,
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

    pub(crate) fn ids(&self) -> Vec<ContainerId> {
        self.cells.iter().map(|cell| cell.id).collect()
    }

    pub(crate) fn means(&self) -> Means {
        Means { only_pods: self.only_pods, nothing: self.nothing.map(Cow::Borrowed) }
    }

    /// Seconds since 1970.
    pub(crate) const fn wall(&self) -> i64 {
        ((self.now + WALL) / S) as i64
    }

    /// The kernel lets go of what nobody renewed, and contains by itself what crosses its rate.
    pub(crate) fn kernel(&mut self) {
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
    pub(crate) fn whole(&self) -> Whole {
        self.pod.map_or(Whole::Container(self.id), Whole::Pod)
    }

    pub(crate) fn whose(&self) -> Whose {
        self.pod.ok_or(self.workload)
    }

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
    pub(crate) fn new([a, b, c, mode, budgets, containers, pods]: [u16; 7]) -> Result<Self, String> {
        let settings = settings([a, b, c], budgets, MODES[usize::from(mode & 7)]);
        let nothing = (mode >> 3).is_multiple_of(16).then_some("it must not be");
        let lapse = if (mode >> 7).is_multiple_of(4) { OUTLIVE } else { LAPSE };
        let node = Node {
            now: 1000 * S,
            settings,
            kill_switch: false,
            nothing,
            only_pods: pods & 1 == 1,
            cells: Vec::new(),
            pods: BTreeMap::new(),
            lapse,
            born: 0,
        };
        let mut judge = Judge::new(node.settings.clone(), node.means());
        judge.wall_clock(WALL);
        judge.restore(0, serde_json::from_str(&LEARNED).map_err(|error| error.to_string())?, false);
        let mut world = Self { node, judge, witness: Witness::default() };
        for index in 0..=containers & 3 {
            world.come((containers >> (4 * index)) as u8, (pods >> (4 * index)) as u8)?;
        }
        Ok(world)
    }

    /// Something happens.
    pub(crate) fn event(&mut self, event: u32) -> Result<(), String> {
        let [what, who, how, more] = event.to_be_bytes();
        self.node.now += 1;
        let index = usize::from(who) % self.node.cells.len().max(1);
        let whom = self.node.cells.get(index).map(|cell| cell.id);
        match (what % 40, whom) {
            (0..=13, _) => self.time_passes(how),
            (14..=20, Some(_)) => {
                self.node.cells[index].over ^= 1 << (how & 3);
                Ok(())
            }
            (21..=27, _) => self.operator(what % 40 - 21, who, how, more),
            (28, _) => self.restart(who, how),
            (29..=30, _) if self.node.cells.len() < MOST => self.come(how, more),
            (31, Some(id)) => self.go(id),
            (32, Some(id)) => {
                self.node.cells[index].policy = usize::from(how & 3);
                self.appear(id)
            }
            (33, Some(id)) => {
                self.witness.released(id);
                let effects = self.judge.release(self.node.now, id).ok_or("it is there, and not known")?;
                self.tell(Call::Decides, effects)
            }
            (34, Some(id)) => {
                // Somebody cleared bpffs.
                self.node.cells[index].held = None;
                self.hear(id)
            }
            (35..=37, _) => self.evicted(usize::from(who), how),
            (38, Some(_)) => self.changed(index, how),
            (39, _) => {
                // The node sleeps.
                self.node.now += DAY;
                self.time_passes(how)
            }
            _ => Ok(()),
        }
    }

    /// A container, in a new pod, in the pod of another one or in none.
    fn come(&mut self, how: u8, more: u8) -> Result<(), String> {
        let (policy, workload) = (usize::from(how & 3), usize::from(how >> 2 & 3));
        let others: Vec<u64> = self.node.pods.keys().copied().collect();
        let pod = match more & 3 {
            0 => None,
            1 if !others.is_empty() => Some(others[usize::from(how >> 4) % others.len()]),
            _ => {
                self.node.born += 1;
                let (uid, kind, told) = (self.node.born, KINDS[usize::from(more >> 2 & 7)], more >> 5 != 0);
                let created = self.node.wall() - if how & 0x80 == 0 { 100 } else { 0 };
                self.node.pods.insert(uid, Facts { uid, workload, kind, told, created });
                Some(uid)
            }
        };
        let workload = pod.map_or(workload, |uid| self.node.pods[&uid].workload);
        // Every other one is over some limit from the start.
        let over = if how & 0x40 == 0 { 0 } else { 1 << (how >> 4 & 3) };
        self.born(workload, pod, policy, over)
    }

    fn born(&mut self, workload: usize, pod: Option<u64>, policy: usize, over: u8) -> Result<(), String> {
        self.node.born += 1;
        let (id, orders) = (ContainerId(self.node.born), Orders::default());
        self.node.cells.push(Cell { id, workload, pod, policy, over, lag: 0, orders, held: None });
        self.appear(id)
    }

    /// Its controller makes another pod like it.
    pub(crate) fn replace(&mut self, pod: u64, policy: usize, over: u8) -> Result<(), String> {
        let Some(facts) = self.node.pods.get(&pod).copied() else { return Ok(()) };
        self.node.born += 1;
        let uid = self.node.born;
        self.node.pods.insert(uid, Facts { uid, created: self.node.wall() - 100, ..facts });
        self.born(facts.workload, Some(uid), policy, over)
    }

    /// The judge hears of a container, or more of it.
    pub(crate) fn appear(&mut self, id: ContainerId) -> Result<(), String> {
        let Cell { policy, workload, pod, .. } = self.node.find(id)?;
        let pod = pod.map(|uid| &self.node.pods[&uid]);
        let about = About {
            unit: pod.map(Facts::name),
            pod: pod.and_then(Facts::pod),
            ..About::on_its_own(subject(*policy), WORKLOADS[*workload].into())
        };
        let effects = self.judge.appeared(self.node.now, id, about);
        self.witness.known.insert(id);
        self.tell(Call::Quiet, effects)
    }

    pub(crate) fn go(&mut self, id: ContainerId) -> Result<(), String> {
        self.node.cells.retain(|cell| cell.id != id);
        self.node.pods.retain(|uid, _| self.node.cells.iter().any(|cell| cell.pod == Some(*uid)));
        self.witness.known.remove(&id);
        let effects = self.judge.gone(self.node.now, id);
        self.tell(Call::Quiet, effects)
    }

    /// A few samples, and what the kernel says between them.
    pub(crate) fn time_passes(&mut self, how: u8) -> Result<(), String> {
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
    pub(crate) fn hear(&mut self, id: ContainerId) -> Result<(), String> {
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
    pub(crate) fn packets(&mut self, id: ContainerId) -> Result<(), String> {
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
    pub(crate) fn tell(&mut self, told: Call, effects: Vec<Effect>) -> Result<(), String> {
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
