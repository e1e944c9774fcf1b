//! What shares an interface, and what is compared of it.

use std::collections::{BTreeMap, HashMap};

use guard_common::Totals;
use tracing::{debug, info};

use super::Interfaces;
use crate::{
    core::{
        bypass::{Gap, Incomparable, Reading, Uplink},
        identity::Labels,
    },
    node::uplinks::{Link, Netns, Place},
};

/// Why a pod's interface is not compared with its meters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Unwatched {
    /// Nobody has looked at it yet, or it has no process.
    New,
    /// The agent cannot see the pods' processes.
    Unseen,
    /// It has the node's network.
    HostNetwork,
    /// No interface of the node leads to it.
    NoUplink,
    /// It shares its interface with others.
    Shared,
    /// A container of it has no meter.
    Unmetered,
    /// What it receives comes in past its interface, so nobody knows what its kernel answers to.
    Past,
}

/// What a unit's interfaces are.
#[derive(Debug)]
pub(super) enum State {
    Not(Unwatched),
    Watched { netns: Netns, links: Vec<(i32, String)>, gap: Option<Gap> },
}

/// What shares an interface: a pod, or a cgroup outside of any.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) labels: Labels,
    /// When it appeared.
    pub(super) since: u64,
    pub(super) state: State,
    /// What was told, in bytes; `None`: it was never watched.
    pub(super) bytes: Option<u64>,
    /// The cgroups that are there, by id, with their paths.
    pub(super) attached: BTreeMap<u64, String>,
    /// What each of its meters said at the last reading, and whether its owner was gone.
    pub(super) meters: HashMap<u64, (Totals, bool)>,
}

impl Unwatched {
    const fn said(self) -> &'static str {
        match self {
            Self::New => "it has no process yet",
            Self::Unseen => "the agent does not see its processes",
            Self::HostNetwork => "it has the node's network",
            Self::NoUplink => {
                "no interface of the node leads to it alone (macvlan, ipvlan, SR-IOV, a nested namespace)"
            }
            Self::Shared => "it shares its network with others",
            Self::Past => "what it receives does not come by its interface (eBPF host routing)",
            Self::Unmetered => "not all of its containers have a meter",
        }
    }
}

impl Unit {
    pub(super) fn new(labels: Labels, since: u64) -> Self {
        let state = State::Not(Unwatched::New);
        Self { labels, since, state, bytes: None, attached: BTreeMap::new(), meters: HashMap::new() }
    }

    /// Whether it stays unwatched, for as long as it is there.
    pub(super) fn is_past(&self) -> bool {
        matches!(self.state, State::Not(Unwatched::Past))
    }

    /// Leaves a unit unwatched; said once, of a pod.
    pub(super) fn leave(&mut self, why: Unwatched) {
        if matches!(&self.state, State::Not(before) if *before == why) {
            return;
        }
        let of = &self.labels;
        match why {
            Unwatched::New | Unwatched::Unseen => {}
            _ if of.pod.is_empty() => debug!(%of, "what passes by its meter is not watched: {}", why.said()),
            _ => info!(%of, "what passes by its meters is not watched: {}", why.said()),
        }
        self.state = State::Not(why);
    }

    /// What its meters moved by since the last reading. `None`: some of that is lost.
    fn moved(&mut self, now: &HashMap<u64, (Totals, bool)>) -> Option<Totals> {
        // The slot of one that is gone goes to another some time; before that all of it was read.
        let lost = self.meters.iter().any(|(id, (_, gone))| !gone && !now.contains_key(id));
        let since = |(id, (totals, _)): (&u64, &(Totals, bool))| match self.meters.get(id) {
            Some((before, _)) => *totals - *before,
            None => *totals,
        };
        let moved = now.iter().map(since).fold(Totals::default(), |a, b| a + b);
        self.meters.clone_from(now);
        (!lost).then_some(moved)
    }

    /// Its place is known now.
    pub(super) fn settle(&mut self, place: Place, shared: bool, links: &[Link]) {
        match place {
            Place::Nowhere => self.leave(Unwatched::New),
            Place::Unseen => self.leave(Unwatched::Unseen),
            Place::Node => self.leave(Unwatched::HostNetwork),
            Place::Apart => self.leave(Unwatched::NoUplink),
            Place::In(_) if shared => self.leave(Unwatched::Shared),
            Place::In(_) if matches!(self.state, State::Watched { .. }) => {}
            Place::In(netns) => {
                let own = links.iter().filter(|link| link.peer == netns);
                let links: Vec<_> = own.map(|link| (link.index, link.name.clone())).collect();
                if links.is_empty() {
                    self.leave(Unwatched::NoUplink);
                } else {
                    debug!(of = %self.labels, ?links, "what passes by its meters is watched");
                    self.state = State::Watched { netns, links, gap: None };
                    self.bytes.get_or_insert(0);
                }
            }
        }
    }

    /// Compares. `Some`: so many bytes have passed by.
    pub(super) fn take(&mut self, read: &Interfaces, at: u64, now: &HashMap<u64, (Totals, bool)>) -> Option<u64> {
        let moved = self.moved(now);
        let State::Watched { links, gap, .. } = &mut self.state else { return None };
        let mut uplink = Uplink::default();
        for (_, name) in links {
            let Some(counted) = read.counted.get(name) else {
                // It ends, or its interface has another name now.
                self.state = State::Not(Unwatched::New);
                return None;
            };
            uplink += *counted;
        }
        let skew = at.saturating_sub(read.before);
        let reading = Reading { at, skew, uplink, moved: moved.unwrap_or_default() };
        let Some(gap) = gap.as_mut().filter(|_| moved.is_some()) else {
            *gap = Some(Gap::new(&reading));
            return None;
        };
        let bytes = match gap.take(&reading) {
            Ok(0) | Err(Incomparable::Another) => return None,
            Ok(bytes) => bytes,
            Err(Incomparable::Past) => {
                self.leave(Unwatched::Past);
                return None;
            }
        };
        *self.bytes.get_or_insert(0) += bytes;
        Some(bytes)
    }
}
