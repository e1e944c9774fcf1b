//! What a node's limits would have said and done: a trace, replayed through the code that a running agent decides with.
//!
//! Only the kernel is a model, for a trace has one count per sample and not each packet:
//!
//! - What was sent within a sample counts as sent evenly, and a rate limit is crossed at the sample's end. So each breach
//!   of a rate is one that the kernel would have found within that sample (to within the credit that its CPUs hold, and
//!   while nothing was held); but a burst that the rate makes up for within the same sample is not seen.
//! - Recorded is what went its way while nothing was held. While the replay holds a container, that is what it would have
//!   sent: of it the throttle's rate passes in each sample, and the rest is dropped. What a real one would have done with
//!   less (gone on, retried, given up) nobody knows.
//! - Evictions succeed at once, and the replay goes on with what was recorded, of the container as it was: the trace does
//!   not know what a fresh one would have sent. It is not evicted again.
//! - What is protected from eviction is not in a trace: here nothing is. Nor are pods and their annotations: each container
//!   is evicted on its own, and the policies hold as the file has them.

use std::{collections::BTreeMap, mem, sync::Arc};

use guard_common::{Class, Totals};

use crate::{
    breach::{Breach, ContainerId, Limit},
    bucket::{Bucket, Taken},
    budget::{Alarm, nanos},
    identity::Labels,
    inventory::series,
    judge::{About, Effect, Evicted, Judge, Means, Orders, Settings},
    policy::{Contain, Containment, Count, Mode, Policy, RateLimit},
    trace::{self, Header, Record, Sample},
    verdict::{Action, Contained, Declined, Refusal, Release},
    watch::Closing,
};

const SECOND: u128 = 1_000_000_000;

/// What came of a replay. All instants are nanoseconds of the trace's `CLOCK_BOOTTIME`; see [`Report::wall`].
#[derive(Clone, Debug)]
pub struct Report {
    /// When the trace begins.
    pub header: Header,
    /// The first sample and the last. `None`: the trace has none.
    pub span: Option<(u64, u64)>,
    /// How many samples there are.
    pub samples: u64,
    /// All containers that were there at any time, in the order in which they appeared.
    pub containers: Vec<Container>,
    /// All breaches, in the order in which they were opened.
    pub breaches: Vec<Breached>,
    /// What would have been said loudly, and when.
    pub alarms: Vec<(u64, Alarm)>,
}

/// A container of a replay.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its names, as far as they were known at last.
    pub names: Labels,
    /// The policy that held at last.
    pub policy: Option<Arc<Policy>>,
    /// Bytes that passed, and that a containment would have dropped: together they are what was recorded.
    pub totals: Totals,
    /// Its policy has a baseline, and in all its time there was too little learned for a limit.
    pub unlearned: bool,
}

/// A breach of a replay.
#[derive(Clone, Debug, PartialEq)]
pub struct Breached {
    /// Whose: an index into [`Report::containers`].
    pub container: usize,
    /// The name of the policy that it is a breach of.
    pub policy: String,
    /// What was found, and since when.
    pub breach: Breach,
    /// When it was over and why. `None`: it was not when the trace ended.
    pub closed: Option<(u64, Closing)>,
    /// What would have been done and what not, in order, and when.
    pub deeds: Vec<(u64, Deed)>,
}

/// Something done about a breach, or not.
#[derive(Clone, Debug, PartialEq)]
pub enum Deed {
    /// The container is held.
    Contained {
        /// How.
        how: Containment,
        /// Until when, at the most.
        until: u64,
    },
    /// The containment ends.
    Released(Release),
    /// The container is made to start afresh.
    Evicted,
    /// The policy asks for it and it is not done.
    Declined {
        /// What.
        what: Mode,
        /// Why not.
        why: Refusal,
    },
}

/// A trace that is being replayed.
#[derive(Debug)]
pub struct Replay {
    judge: Judge,
    report: Report,
    /// The containers that are there, in the order in which a trace's samples tell of them.
    live: Vec<Live>,
    /// Where in the report the open breaches are.
    open: BTreeMap<(ContainerId, Limit), usize>,
    /// When the sample before was taken.
    before: u64,
}

/// A container that is there, and the kernel's part of it.
#[derive(Debug)]
struct Live {
    id: ContainerId,
    /// Where it is in the report.
    index: usize,
    orders: Orders,
    egress: Bucket,
    ingress: Bucket,
    held: Option<Held>,
    /// What it does in this sample.
    counted: Totals,
    /// What it did in all.
    totals: Totals,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    how: Containment,
    /// Where in the report the breach is that it is held for.
    breach: usize,
}

impl Replay {
    /// Begins, with nothing learned.
    #[must_use]
    pub fn new(header: Header, settings: Settings, kill_switch: bool) -> Self {
        // What would have been done if it were done.
        let settings = Settings { dry_run: false, ..settings };
        let mut judge = Judge::new(settings, Means::default());
        judge.wall_clock(header.wall.saturating_sub(header.at));
        // Nothing is there yet that it could be about.
        judge.kill_switch(header.at, kill_switch);
        let (containers, breaches, alarms) = (Vec::new(), Vec::new(), Vec::new());
        let report = Report { header, span: None, samples: 0, containers, breaches, alarms };
        Self { judge, report, live: Vec::new(), open: BTreeMap::new(), before: header.at }
    }

    /// Takes the trace's next record.
    pub fn take(&mut self, record: Record) {
        match record {
            Record::Appears(container) => self.appears(container),
            Record::Gone(id) => self.gone(id),
            Record::Sample(sample) => self.sample(&sample),
        }
    }

    /// The trace is at its end.
    #[must_use]
    pub fn finish(mut self) -> Report {
        for live in mem::take(&mut self.live) {
            self.sum_up(&live);
        }
        self.report
    }

    fn appears(&mut self, container: trace::Container) {
        let trace::Container { id, subject, workload, totals: _ } = container;
        let names = subject.names.clone();
        let workload = if workload.is_empty() { names.workload() } else { workload };
        let series = series(&workload, &names.container).into();
        let about = About { subject, workload: workload.into(), series, unit: None, pod: None };
        let effects = self.judge.appeared(self.before, id, about);
        self.note(self.before, effects);
        let live = match self.live.iter().position(|live| live.id == id) {
            // Known better now: samples tell of it in its new place.
            Some(place) => self.live.remove(place),
            None => self.fresh(id),
        };
        let known = &mut self.report.containers[live.index];
        (known.names, known.policy) = (names, self.judge.policy(id).cloned());
        self.live.push(Live { orders: self.judge.orders(id), ..live });
    }

    fn fresh(&mut self, id: ContainerId) -> Live {
        let index = self.report.containers.len();
        let totals = Totals::default();
        let container = Container { names: Labels::default(), policy: None, totals, unlearned: false };
        self.report.containers.push(container);
        let bucket = Bucket::full();
        let (orders, counted) = (Orders::default(), totals);
        Live { id, index, orders, egress: bucket, ingress: bucket, held: None, counted, totals }
    }

    fn gone(&mut self, id: ContainerId) {
        if let Some(place) = self.live.iter().position(|live| live.id == id) {
            let live = self.live.remove(place);
            self.sum_up(&live);
        }
        let effects = self.judge.gone(self.before, id);
        self.note(self.before, effects);
    }

    fn sum_up(&mut self, live: &Live) {
        let container = &mut self.report.containers[live.index];
        let baseline = container.policy.as_ref().is_some_and(|policy| policy.egress.baseline.is_some());
        container.unlearned = baseline && self.judge.allowed(live.id).is_none();
        container.totals = live.totals;
    }

    fn sample(&mut self, sample: &Sample) {
        let (from, now) = (self.before, sample.at.max(self.before));
        self.before = now;
        self.report.samples += 1;
        self.report.span = Some((self.report.span.map_or(now, |(first, _)| first), now));
        self.count(sample);
        let crossed: Vec<_> = self.live.iter_mut().flat_map(|live| live.kernel(from, now)).collect();
        for (id, limit, figure) in crossed {
            self.crossed(now, id, limit, figure);
        }
        let moved = self.live.iter().map(|live| (live.id, live.counted));
        let effects = self.judge.sample(now, now - from, moved);
        self.note(now, effects);
    }

    /// Gives each container what the sample says of it.
    fn count(&mut self, sample: &Sample) {
        self.live.iter_mut().for_each(|live| live.counted = Totals::default());
        let mut next = 0;
        for (id, counted) in &sample.moved {
            // Both are in the order of appearance, so it is not far.
            let ahead = self.live[next..].iter().position(|live| live.id == *id).map(|steps| next + steps);
            if let Some(place) = ahead.or_else(|| self.live.iter().position(|live| live.id == *id)) {
                self.live[place].counted += *counted;
                next = place + 1;
            }
        }
    }

    /// As in a running agent, where the kernel holds a container by itself at the packet that crosses.
    fn crossed(&mut self, now: u64, id: ContainerId, limit: Limit, figure: f64) {
        let effects = self.judge.crossed(now, id, limit, figure);
        self.note(now, effects);
        let arm = self.live.iter().find(|live| live.id == id).and_then(|live| live.orders.arm);
        if let Some((Contain { how, length }, &breach)) = arm.zip(self.open.get(&(id, Limit::Rate)))
            && limit == Limit::Rate
        {
            let until = now.saturating_add(nanos(length));
            let effects = self.judge.contained(now, id, Some(Contained { how, since: now, until }));
            self.hold(now, id, how, until, breach);
            self.note(now, effects);
        }
    }

    fn note(&mut self, now: u64, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Opened(breach) => self.opened(breach),
                Effect::Closed(closed) => {
                    let place = self.open.remove(&(closed.breach.container, closed.breach.limit));
                    if let Some(place) = place {
                        self.report.breaches[place].closed = Some((closed.at, closed.why));
                    }
                }
                Effect::Act(action) => self.act(now, action),
                Effect::Declined(Declined { what, reason, why }) => {
                    self.deed(now, &reason, Deed::Declined { what, why });
                }
                Effect::Alarm(alarm) => self.report.alarms.push((now, alarm)),
                // A trace has no annotations.
                Effect::BadAnnotation { .. } => {}
            }
        }
    }

    fn opened(&mut self, breach: Breach) {
        let Some(live) = self.live.iter().find(|live| live.id == breach.container) else { return };
        self.open.insert((breach.container, breach.limit), self.report.breaches.len());
        let policy = self.judge.policy(breach.container).map_or_else(String::new, |policy| policy.name.clone());
        let (closed, deeds) = (None, Vec::new());
        self.report.breaches.push(Breached { container: live.index, policy, breach, closed, deeds });
    }

    fn act(&mut self, now: u64, action: Action) {
        match action {
            Action::Contain { how, until, reason } => {
                if let Some(&breach) = self.open.get(&(reason.container, reason.limit)) {
                    self.hold(now, reason.container, how, until, breach);
                }
            }
            Action::Release { container, contained: _, why } => {
                let live = self.live.iter_mut().find(|live| live.id == container);
                if let Some(Held { breach, .. }) = live.and_then(|live| live.held.take()) {
                    self.report.breaches[breach].deeds.push((now, Deed::Released(why)));
                }
            }
            Action::Evict { grace: _, leave: _, dry_run: _, reason } => {
                self.deed(now, &reason, Deed::Evicted);
                // One that is done is not said.
                self.judge.evicted(now, reason.container, Evicted::Done);
            }
        }
    }

    /// Agent and kernel both hold a container; whoever is second finds it held.
    fn hold(&mut self, now: u64, id: ContainerId, how: Containment, until: u64, breach: usize) {
        let free = self.live.iter_mut().find(|live| live.id == id && live.held.is_none());
        if let Some(live) = free {
            live.held = Some(Held { how, breach });
            self.report.breaches[breach].deeds.push((now, Deed::Contained { how, until }));
        }
    }

    fn deed(&mut self, now: u64, reason: &Breach, deed: Deed) {
        if let Some(&place) = self.open.get(&(reason.container, reason.limit)) {
            self.report.breaches[place].deeds.push((now, deed));
        }
    }
}

impl Live {
    /// What the kernel does in a sample: holds or checks what is sent, and checks what is received. Returns the limits
    /// that were crossed, and the bytes per second that did it.
    fn kernel(&mut self, from: u64, now: u64) -> impl Iterator<Item = (ContainerId, Limit, f64)> + use<> {
        let Orders { count, egress, ingress, arm: _ } = self.orders;
        // Nothing is taken from the bucket of what is held.
        let sent = match self.held {
            Some(Held { how, .. }) => {
                hold(&mut self.counted, how, count, now - from);
                None
            }
            None => check(&mut self.egress, from, now, count.of(&self.counted.egress), egress),
        };
        let received = check(&mut self.ingress, from, now, count.of(&self.counted.ingress), ingress);
        self.totals += self.counted;
        let id = self.id;
        let sent = sent.map(|figure| (id, Limit::Rate, figure));
        sent.into_iter().chain(received.map(|figure| (id, Limit::Ingress, figure)))
    }
}

/// `Some`: the limit is crossed, by so many bytes per second.
fn check(bucket: &mut Bucket, from: u64, now: u64, bytes: u64, limit: Option<RateLimit>) -> Option<f64> {
    let limit = limit.filter(|_| bytes > 0)?;
    let over = bucket.take_evenly(from, now, bytes, limit) == Taken::Over;
    over.then(|| bytes as f64 * SECOND as f64 / (now - from).max(1) as f64)
}

/// Drops what a containment does not let through.
fn hold(counted: &mut Totals, how: Containment, count: Count, nanos: u64) {
    let egress = &mut counted.egress;
    let offered = count.of(egress);
    let passes = match how {
        Containment::Throttle(rate) => {
            let passes = u128::from(rate.bytes_per_second()) * u128::from(nanos) / SECOND;
            u64::try_from(passes).map_or(offered, |passes| passes.min(offered))
        }
        Containment::Block => 0,
    };
    let external = &mut egress.bytes[Class::External as usize];
    match count {
        Count::External => *external = passes,
        Count::All => {
            // Each class has its part of what passes.
            let part = u128::from(*external) * u128::from(passes) / u128::from(offered.max(1));
            *external = u64::try_from(part).map_or(passes, |part| part.min(passes));
            egress.bytes[Class::Cluster as usize] = passes - *external;
        }
    }
    egress.other = offered - passes;
}

impl Report {
    /// The wall clock at an instant: nanoseconds since 1970, if nobody has set the clock since the trace began.
    #[must_use]
    pub fn wall(&self, at: u64) -> u64 {
        self.header.wall.saturating_add(at.saturating_sub(self.header.at))
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
