//! What follows from a verdict: it is said, and done.

use std::sync::Arc;

use guard_cluster::events::What;
use guard_common::Class;
use tracing::{error, info, warn};

use super::{Guard, evictions::Ordered};
use crate::{
    breaches::{Destination, Done, Report, State, Time},
    clock,
    core::{
        breach::{Breach, ContainerId, Limit},
        budget::Alarm,
        inventory::PREFIX,
        judge::Effect,
        ledger::Owner,
        overrides::Bad,
        policy::{Count, Mode},
        verdict::{Action, Contained, Declined},
        watch::{Closed, Closing},
    },
    kernel::evidence::Sample,
    webhook::Alert,
};

/// How many destinations a breach names.
const NAMED: usize = 10;
/// How many of them the log line has.
const LOGGED: usize = 3;

/// Evidence is read once for breaches that come within so many nanoseconds.
const FRESH: u64 = 100_000_000;

/// The alert that there are too many breaches.
const STORM: &str = "EgressEvictionStorm";
/// The alert that evictions do not cure a workload.
const NOT_CURED: &str = "RestartDidNotCure";

impl Guard {
    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            // What the judge orders for a container may have changed with whatever is said of it.
            let id = match effect {
                Effect::Opened(breach) => {
                    self.opened(breach);
                    breach.container
                }
                Effect::Closed(closed) => {
                    self.closed(closed);
                    closed.breach.container
                }
                Effect::Act(action) => {
                    self.act(action);
                    action.container()
                }
                Effect::Declined(declined) => {
                    self.declined(declined);
                    continue;
                }
                Effect::Alarm(alarm) => {
                    self.alarm(alarm);
                    continue;
                }
                Effect::BadAnnotation { container, bad } => {
                    self.bad_annotation(container, &bad);
                    continue;
                }
            };
            self.order(id);
        }
    }

    pub(super) fn owner(&self, id: ContainerId) -> Option<&Owner> {
        let slot = self.slot_of(id)?;
        self.ledger.record(slot).owner.as_ref()
    }

    /// A container as the log names it.
    pub(super) fn name(&self, id: ContainerId) -> String {
        self.owner(id).map_or_else(|| format!("cgroup {}", id.0), |owner| owner.labels.to_string())
    }

    /// What the outside is told of a breach. `None`: the container is gone.
    fn report(&mut self, breach: Breach) -> Option<Report> {
        let Breach { container, limit, since, figure, allowed } = breach;
        let destinations = self.top(container, limit);
        let slot = self.slot_of(container)?;
        let owner = self.owner(container)?;
        // What the meter did by itself is done already; what the agent is about to do is told when it is.
        let held_by_meter = limit.can_be_held() && self.kernel.controls.report(slot).contained.is_some();
        let contained = self.judge.contained_now(container).filter(|_| held_by_meter);
        Some(Report {
            state: State::Open,
            opened: wall(since),
            closed: None,
            limit,
            labels: owner.labels.clone(),
            container_id: owner.identity.container_id.clone(),
            cgroup_id: owner.cgroup_id,
            cgroup_path: format!("/{}", owner.path),
            figure,
            allowed,
            policy: self.judge.policy(container).map(|policy| policy.name.clone()).unwrap_or_default(),
            done: contained.iter().map(held).collect(),
            destinations,
        })
    }

    /// The breaches that an earlier agent said are told to whoever asks this one, and to the webhook, so that their end is
    /// too.
    pub(super) fn reopen(&mut self) {
        for breach in self.judge.open().copied().collect::<Vec<_>>() {
            if let Some(report) = self.report(breach) {
                self.voice.alert(|node| Alert::of(&report, node));
                self.voice.breaches.open(report);
            }
        }
    }

    fn opened(&mut self, breach: Breach) {
        let Breach { limit, figure, allowed, .. } = breach;
        self.metrics.breaches.with_label_values(&[limit.name()]).inc();
        let Some(report) = self.report(breach) else { return };
        let (figure, allowed) = (figure.round() as u64, allowed.round() as u64);
        let top = report.destinations.iter().take(LOGGED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let unit = if limit == Limit::Quota { "bytes" } else { "bytes/s" };
        warn!(
            namespace = report.labels.namespace,
            pod = report.labels.pod,
            container = report.labels.container,
            cgroup = report.cgroup_path,
            %limit,
            figure,
            allowed,
            unit,
            policy = report.policy,
            contained = !report.done.is_empty(),
            destinations = top,
            "breach"
        );
        self.voice.alert(|node| Alert::of(&report, node));
        self.tell_breach(&report);
        self.flag(&report);
        report.done.iter().for_each(|done| self.tell_contained(breach.container, limit, done));
        self.voice.breaches.open(report);
    }

    fn closed(&self, Closed { breach, at, why }: Closed) {
        let why = match why {
            Closing::Clear => "it has kept its limit for 10 s",
            Closing::Gone => "the container is gone",
            Closing::Unlimited => "its policy has no such limit any more",
            Closing::LetGo => "its containment has ended",
        };
        let report = self.voice.breaches.close(breach.container.0, breach.limit, wall(at).0);
        let container = report.as_ref().map_or_else(|| self.name(breach.container), |report| report.labels.to_string());
        info!(container, limit = %breach.limit, "breach over: {why}");
        if let Some(report) = report {
            self.voice.alert(|node| Alert::of(&report, node));
        }
    }

    fn act(&mut self, action: Action) {
        let id = action.container();
        match action {
            Action::Contain { how, until, reason } => {
                let Some(contained) = self.judge.contained_now(id) else { return };
                self.contain(id, contained);
                info!(container = self.name(id), limit = %reason.limit, %how, until = %wall(until), "contained");
                self.metrics.actions.with_label_values(&["contain"]).inc();
                self.done(reason, held(&contained));
                self.tell_contained(id, reason.limit, &held(&contained));
            }
            Action::Release { why, .. } => {
                self.let_go(id);
                info!(container = self.name(id), reason = why.name(), "released");
                self.metrics.actions.with_label_values(&["release"]).inc();
                self.tell_released(id, why);
            }
            Action::Evict { grace, leave, dry_run, reason } => self.evict(&Ordered { grace, leave, dry_run, reason }),
        }
    }

    /// The meter contained a container by itself.
    pub(super) fn contained_by_meter(&self, id: ContainerId) {
        self.metrics.actions.with_label_values(&["contain"]).inc();
        let open = self.judge.open().find(|breach| breach.container == id && breach.limit == Limit::Rate);
        if let (Some(breach), Some(contained)) = (open, self.judge.contained_now(id)) {
            self.done(*breach, held(&contained));
            self.tell_contained(id, breach.limit, &held(&contained));
        }
    }

    pub(super) fn done(&self, breach: Breach, done: Done) {
        if let Some(report) = self.voice.breaches.done(breach.container.0, breach.limit, done) {
            self.voice.alert(|node| Alert::of(&report, node));
        }
    }

    fn declined(&self, Declined { what, reason, why }: Declined) {
        let name = why.name();
        self.metrics.declined.with_label_values(&[&what.to_string(), name]).inc();
        let why = why.to_string();
        let container = self.name(reason.container);
        warn!(container, limit = %reason.limit, reason = name, "its policy says {what}, and it is not done: {why}");
        if what == Mode::Evict {
            let why = || format!("its policy says evict, and it is not done: {why}");
            self.tell_of(reason.container, || What::EvictionRefused { cause: name.into(), budget: None, why: why() });
        }
        self.done(reason, Done::Nothing { why });
    }

    fn alarm(&mut self, alarm: Alarm) {
        let now = wall(clock::boottime()).0;
        match alarm {
            Alarm::Storm { workloads, pods, of } => {
                self.hammer.recall();
                let said = format!(
                    "{workloads} workloads ({pods} of {of} pods) breach their limits at once: nothing is evicted until it \
                     has been quiet for 10 minutes, or until `guard-agent resume`. Either the limits are wrong (see \
                     `guard-agent simulate`), or the node is lost: look at it"
                );
                error!("{said}");
                let alert = self.voice.alert(|node| Alert::new(STORM, "critical", node, &said, now));
                self.voice.storm = alert;
            }
            Alarm::Calm => {
                warn!("the storm is over: evictions may take place again");
                if let Some(alert) = self.voice.storm.take() {
                    self.voice.alert(|_| alert.resolved(now));
                }
            }
            Alarm::NotCured { workload } => {
                let said = format!(
                    "{workload} was evicted more than once and breaches its limits again: it is not evicted any more until \
                     it has been without a breach for an hour, only contained. A fresh start does not cure it: look at its \
                     image, and at what it is told to do"
                );
                error!("{said}");
                self.voice.alert(|node| Alert::new(NOT_CURED, "critical", node, &said, now));
                self.tell_not_cured(&workload, &said);
            }
        }
        self.metrics.storm.set(self.judge.storm().into());
    }

    /// An annotation of a pod is not followed.
    fn bad_annotation(&self, id: ContainerId, bad: &Bad) {
        self.tell_bad_annotation(id, bad);
        let Bad { key, value, why } = bad;
        let container = self.name(id);
        warn!(container, annotation = format!("{PREFIX}{key}"), value, "not followed, the file's policy holds: {why}");
    }

    /// The destinations that got most of what a limit is about; for a limit of ingress, the sources.
    fn top(&mut self, id: ContainerId, limit: Limit) -> Vec<Destination> {
        if limit == Limit::Bypass {
            // Nobody has seen where.
            return vec![];
        }
        let external_only = limit.is_egress() && self.judge.orders(id).count == Count::External;
        let ingress = !limit.is_egress();
        let all = self.evidence();
        let of = |sample: &&Sample| {
            sample.owner == id.0 && sample.ingress == ingress && (!external_only || sample.class == Class::External)
        };
        let mut top = destinations(all.iter().filter(of));
        top.truncate(NAMED);
        top
    }

    /// All that is noted of destinations, at most [`FRESH`] old.
    pub(super) fn evidence(&mut self) -> Arc<Vec<Sample>> {
        let now = clock::boottime();
        if now.saturating_sub(self.evidence.0) > FRESH {
            match self.kernel.evidence(now) {
                Ok(read) => self.evidence = (now, Arc::new(read)),
                Err(error) => {
                    self.metrics.evidence_failures.inc();
                    error!(
                        "cannot read the evidence map, so destinations are missing: {:#}",
                        anyhow::Error::from(error)
                    );
                    self.evidence = (now, Arc::default());
                }
            }
        }
        Arc::clone(&self.evidence.1)
    }
}

/// Adds up what belongs together; the most bytes first.
pub(super) fn destinations<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<Destination> {
    let mut sums = std::collections::BTreeMap::new();
    let mut all = 0;
    for Sample { address, port, protocol, bytes, .. } in samples {
        *sums.entry((*address, *port, *protocol)).or_insert(0u64) += bytes;
        all += bytes;
    }
    let destination = |((address, port, protocol), bytes): (_, u64)| Destination {
        address,
        port,
        protocol: protocol_name(protocol),
        bytes,
        share: bytes as f64 / all as f64,
    };
    let mut top: Vec<Destination> = sums.into_iter().map(destination).collect();
    top.sort_by_key(|destination| std::cmp::Reverse(destination.bytes));
    top
}

/// The name of an IP protocol (IANA's keyword, in lower case), or its number.
fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "ipv6-icmp".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

fn held(contained: &Contained) -> Done {
    Done::Contained { how: contained.how.into(), until: wall(contained.until) }
}

pub(super) fn wall(boottime: u64) -> Time {
    Time(clock::wall(boottime))
}
