//! What must hold while an agent is soaked. Observations go in, violations come out.
//!
//! 1. **node = sum + unattributed.** What all pods sent is what the containers that are shown sent, what is said to be
//!    unattributed, and what those had sent that are not shown any more. Exactly, at an instant at which nothing moves; at any
//!    other one the node is never ahead, for it is read first.
//! 2. **The totals equal the wire**, as [`crate::wire`] says: each pod's with the host's end of its interface, and the node's
//!    external bytes with the one interface behind which everything external lies: also those of pods that are gone, that
//!    never rested, and of those without an interface of their own.
//! 3. **Counters are monotonic**, also from one agent to the next. A series may go when its pod does, and be renamed while it
//!    has no name.
//! 4. **Nothing is unattributed** but while no agent was there to see a container begin.
//! 5. **Evictions are allowed**: [`crate::evictions`].
//! 6. **Nothing leaks**: [`crate::leaks`].
//! 7. **An agent lives until it is ended.**
//! 8. **Nothing is taken for a bypass**: nobody here sends past the meters.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    books::{Books, Labels},
    evictions::{self, Allowed, Deeds, Granted, Wrong},
    leaks::{Bounds, Held, Leak, Leaks, Life},
    violation::{Broken, Soak, Violation},
    wire::{self, Direction, Wire},
};

const CLASSES: [&str; 2] = ["cluster", "external"];
const EXTERNAL: usize = 1;

/// The agent itself speaks with the API server all the while, and the counters of the node are read before its own: so many
/// bytes of the class `cluster` may be in its series only.
const UNDER_WAY: u64 = 128 * 1024;

/// So long after it was ended the last of an agent may be seen: a rollout waits for the new pod, the kubelet with a restart.
const ENDS: Duration = Duration::from_mins(3);

/// A pod that runs in a network of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name; another pod has another.
    pub name: String,
    /// Its interface, as the pod sees it.
    pub wire: Wire,
}

/// What is seen at a checkpoint: nothing has moved while it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The agent.
    pub life: Life,
    /// Its metrics, of a sample that was taken after everything had come to rest.
    pub books: Books,
    /// The pods.
    pub pods: Vec<Pod>,
    /// The wire to the world: `sent` is what left the node.
    pub world: Wire,
    /// What the agent holds.
    pub held: Held,
}

/// How much was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Checkpoints.
    pub checkpoints: u32,
    /// Scrapes in mid traffic.
    pub scrapes: u32,
    /// Comparisons of a pod with its wire.
    pub pods: u32,
    /// Bytes that were on the wire to the world, and in the node's total.
    pub bytes: u64,
    /// Of those, on the wire only: last ACKs and resets without a socket.
    pub unmetered: u64,
    /// Looks at a pod whose interface the agent compared with its meters.
    pub watched: u64,
    /// Evictions that were not, for a budget was spent, as far as an agent was there to be asked.
    pub over_budget: u64,
    /// Agents that were seen.
    pub lives: u32,
    /// Checkpoints at which a warm agent's memory and files were compared with what it had.
    pub warm: u32,
}

/// Finds what does not hold.
#[derive(Clone, Debug)]
pub struct Checker {
    soak: Soak,
    allowed: Allowed,
    last: Option<(Duration, Life, Books)>,
    /// The agent was killed since.
    killed: bool,
    /// When agents were told to end of whose successors none was seen yet.
    ends: Vec<Duration>,
    /// At the checkpoint before: the life, and what was unattributed.
    rested: Option<(Life, [u64; 2])>,
    /// Bytes of series that are not shown any more, at the checkpoint before.
    gone: [u64; 2],
    /// And of those that went since: at least, and at most. One that had no name may have got it.
    went: [[u64; 2]; 2],
    /// When each pod was compared first: its wire then, and what was metered.
    pods: BTreeMap<(String, String), (Wire, Books)>,
    world: Option<(Wire, u64)>,
    leaks: Leaks,
    compared: Compared,
    told: Vec<Wrong>,
}

impl Checker {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(soak: Soak, allowed: Allowed, bounds: Bounds) -> Self {
        Self {
            soak,
            allowed,
            last: None,
            killed: false,
            ends: vec![],
            rested: None,
            gone: [0; 2],
            went: [[0; 2]; 2],
            pods: BTreeMap::new(),
            world: None,
            leaks: Leaks::new(bounds),
            compared: Compared::default(),
            told: vec![],
        }
    }

    /// How much was compared so far.
    pub fn compared(&self) -> Compared {
        self.compared
    }

    /// The agent was killed: the next that is seen is another one.
    pub fn agent_killed(&mut self) {
        self.killed = true;
    }

    /// An agent was told to end, and will do so in a while.
    pub fn agent_ends(&mut self, at: Duration) {
        self.ends.push(at);
    }

    /// No agent is there.
    pub fn agent_is_away(&mut self, at: Duration) -> Vec<Violation> {
        let seen = self.last.as_ref().map(|(seen, life, _)| (*seen, life.pid));
        let died = seen.filter(|(seen, _)| !self.killed && !self.is_to_end(*seen));
        self.violations(at, died.into_iter().map(|(_, pid)| Broken::Died(pid)).collect())
    }

    /// Whether one of which the last was seen then was told to.
    fn is_to_end(&mut self, seen: Duration) -> bool {
        self.ends.retain(|ended| *ended + ENDS >= seen);
        !self.ends.is_empty()
    }

    /// Looks at metrics after it did not come to rest. `held`: nothing moved, but slots are not those of the containers.
    pub fn restless(&mut self, at: Duration, life: Life, books: &Books, held: Option<Held>) -> Vec<Violation> {
        let mut found = self.scraped(at, life, books);
        let leak = held.and_then(|Held { slots, containers, .. }| {
            (slots != containers).then_some(Broken::Leak(Leak::Slots { slots, containers }))
        });
        found.extend(self.violations(at, leak.into_iter().collect()));
        found
    }

    /// Looks at metrics that were scraped at any time.
    pub fn scraped(&mut self, at: Duration, life: Life, books: &Books) -> Vec<Violation> {
        let mut broken = self.follow(at, life, books);
        self.compared.scrapes += 1;
        for (class, name) in CLASSES.into_iter().enumerate() {
            let [node, sum, unattributed, _, gone] = self.sides(class, books);
            if node > sum + unattributed + gone {
                broken.push(Broken::Sum { class: name, node, sum, unattributed, gone });
            }
        }
        self.violations(at, broken)
    }

    /// Looks at everything, at rest.
    pub fn checkpoint(&mut self, at: Duration, checkpoint: &Checkpoint) -> Vec<Violation> {
        let Checkpoint { life, books, pods, world, held } = checkpoint;
        let mut broken = self.follow(at, *life, books);
        self.compared.checkpoints += 1;
        broken.extend(self.sums(books));
        broken.extend(self.unattributed(*life, books));
        broken.extend(self.pods(books, pods));
        broken.extend(self.world(books, *world));
        broken.extend(self.leaks.look(at, *life, *held).into_iter().map(Broken::Leak));
        self.compared.warm += u32::from(self.leaks.was_warm(at));
        self.violations(at, broken)
    }

    /// Looks at all evictions so far. What was said is not said again.
    pub fn evicted(&mut self, at: Duration, granted: &[Granted], deeds: &Deeds) -> Vec<Violation> {
        let mut wrong = evictions::judge(granted, deeds, &self.allowed);
        wrong.retain(|wrong| !self.told.contains(wrong));
        self.told.extend(wrong.iter().cloned());
        self.violations(at, wrong.into_iter().map(Broken::Eviction).collect())
    }

    fn violations(&self, at: Duration, broken: Vec<Broken>) -> Vec<Violation> {
        broken.into_iter().map(|broken| Violation { at, broken, soak: self.soak }).collect()
    }

    /// The node's, the sum of the containers', the unattributed, and those that are gone, at least and at most.
    fn sides(&self, class: usize, books: &Books) -> [u64; 5] {
        let [least, most] = self.went.map(|went| self.gone[class] + went[class]);
        [books.node[class], books.attributed(class), books.unattributed[class], least, most]
    }

    /// Takes the next scrape for the last one: no counter went down, and what is not shown any more is remembered.
    fn follow(&mut self, at: Duration, life: Life, books: &Books) -> Vec<Broken> {
        let before = self.last.replace((at, life, books.clone()));
        let killed = std::mem::take(&mut self.killed);
        // What the same agent had said already.
        let said = before.as_ref().filter(|(_, before, _)| *before == life).map(|(_, _, books)| books);
        self.compared.lives += u32::from(said.is_none());
        self.compared.watched += books.watched;
        self.compared.over_budget += books.over_budget.saturating_sub(said.map_or(0, |said| said.over_budget));
        let is_said = |(of, bytes): &(&Labels, &u64)| said.is_some_and(|said| said.bypassed.get(of) == Some(bytes));
        let bypassed = books.bypassed.iter().filter(|it| !is_said(it));
        let mut broken: Vec<_> = bypassed
            .map(|(of, &bytes)| Broken::Bypassed { pod: format!("{}/{}", of.namespace, of.pod), bytes })
            .collect();
        let Some((seen, life_before, before)) = before else { return broken };
        if life_before != life && !killed {
            if self.is_to_end(seen) {
                self.ends.remove(0);
            } else {
                broken.push(Broken::Died(life_before.pid));
            }
        }
        let mut compare = |of: &str, what: &str, before: u64, now: u64| {
            if now < before {
                broken.push(Broken::Down { of: of.into(), what: what.into(), before, now });
            }
        };
        for (class, name) in CLASSES.into_iter().enumerate() {
            compare("the node", &format!("egress bytes, {name}"), before.node[class], books.node[class]);
            compare(
                "the node",
                &format!("ingress bytes, {name}"),
                before.node_ingress[class],
                books.node_ingress[class],
            );
            compare(
                "the node",
                &format!("unattributed bytes, {name}"),
                before.unattributed[class],
                books.unattributed[class],
            );
        }
        for (labels, series) in &before.containers {
            if let Some(now) = books.containers.get(labels) {
                for ((what, before), (_, now)) in series.figures().into_iter().zip(now.figures()) {
                    compare(&shown(labels), what, before, now);
                }
                continue;
            }
            for (class, count) in series.egress.into_iter().enumerate() {
                let [least, most] = &mut self.went;
                most[class] += count.bytes;
                if !nameless(labels) {
                    least[class] += count.bytes;
                }
            }
        }
        broken
    }

    fn sums(&mut self, books: &Books) -> Vec<Broken> {
        let mut broken = vec![];
        for (class, name) in CLASSES.into_iter().enumerate() {
            let [node, sum, unattributed, least, most] = self.sides(class, books);
            let known = sum + unattributed;
            let ahead = if class == EXTERNAL { 0 } else { UNDER_WAY };
            if node > known + most || known + least > node + ahead {
                broken.push(Broken::Sum { class: name, node, sum, unattributed, gone: least });
            }
            self.gone[class] = node.saturating_sub(known).clamp(least, most);
        }
        self.went = [[0; 2]; 2];
        broken
    }

    fn unattributed(&mut self, life: Life, books: &Books) -> Vec<Broken> {
        let now = books.unattributed;
        match self.rested.replace((life, now)) {
            Some((before_life, before)) if before_life == life => {
                let classes = CLASSES.into_iter().enumerate();
                let more = classes.map(|(class, name)| (name, now[class].saturating_sub(before[class])));
                more.filter(|(_, bytes)| *bytes > 0)
                    .map(|(class, bytes)| Broken::Unattributed { class, bytes })
                    .collect()
            }
            _ => vec![],
        }
    }

    fn pods(&mut self, books: &Books, pods: &[Pod]) -> Vec<Broken> {
        let mut broken = vec![];
        for pod in pods {
            let key = (pod.namespace.clone(), pod.name.clone());
            let Some((wire_before, before)) = self.pods.get(&key) else {
                self.pods.insert(key, (pod.wire, books.clone()));
                continue;
            };
            let name = format!("{}/{}", pod.namespace, pod.name);
            let (sent_before, received_before) = before.pod(&pod.namespace, &pod.name);
            let (sent, received) = books.pod(&pod.namespace, &pod.name);
            if sent.bytes < sent_before.bytes {
                broken.push(Broken::Lost { pod: name, bytes: sent_before.bytes });
                continue;
            }
            self.compared.pods += 1;
            let moved = pod.wire - *wire_before;
            let both = [
                (Direction::Egress, moved.sent, sent - sent_before, moved.lost),
                (Direction::Ingress, moved.received, received - received_before, 0),
            ];
            for (direction, wire, metered, lost) in both {
                if let Err(how) = wire::compare(direction, wire, metered, moved.stack, lost) {
                    broken.push(Broken::Pod { pod: name.clone(), how });
                }
            }
        }
        self.pods
            .retain(|(namespace, name), _| pods.iter().any(|pod| pod.namespace == *namespace && pod.name == *name));
        broken
    }

    fn world(&mut self, books: &Books, world: Wire) -> Vec<Broken> {
        let node = books.node[EXTERNAL];
        let Some((before, node_before)) = self.world else {
            self.world = Some((world, node));
            return vec![];
        };
        let (moved, metered) = (world - before, node.saturating_sub(node_before));
        self.compared.bytes = moved.sent.bytes;
        self.compared.unmetered = moved.sent.bytes.saturating_sub(metered);
        let result = wire::compare_bytes(moved.sent, metered, moved.stack, moved.lost);
        result.err().map(Broken::World).into_iter().collect()
    }
}

fn shown(Labels { namespace, pod, container }: &Labels) -> String {
    format!("{namespace}/{pod}/{container}")
}

/// Whether a series may go on under another name: its pod or its container has none yet.
fn nameless(Labels { namespace, container, .. }: &Labels) -> bool {
    namespace.is_empty() || container.len() == 12 && container.bytes().all(|digit| digit.is_ascii_hexdigit())
}

#[cfg(test)]
#[path = "invariants_tests.rs"]
mod tests;
