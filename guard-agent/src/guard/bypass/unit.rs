//! What shares an interface, and what is compared of it.

use std::collections::{BTreeMap, HashMap};

use guard_common::Totals;
use tracing::{debug, info};

use super::{Interfaces, LOOK_NEW};
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
    /// It has another interface that sends past the node's, or one of which the node's end does not count all.
    Beside,
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
            Self::Beside => {
                "it has an interface that has no veth's end on the node (macvlan, SR-IOV, netkit, networks of its own)"
            }
            Self::Shared => "it shares its network with others",
            Self::Past => {
                "what it receives does not come by its interface (eBPF host routing, a network of its own within it)"
            }
            Self::Unmetered => "not all of its containers have a meter",
        }
    }
}

impl Unit {
    pub(super) fn new(labels: Labels, since: u64) -> Self {
        let state = State::Not(Unwatched::New);
        Self { labels, since, state, bytes: None, attached: BTreeMap::new(), meters: HashMap::new() }
    }

    /// Whether it is to be looked for again so long after all were: if it had no process yet, when it is twice as old.
    pub(super) fn is_due(&self, looked: u64, since: u64) -> bool {
        let is_new = matches!(self.state, State::Not(Unwatched::New)) && !self.attached.is_empty();
        is_new && since >= looked.saturating_sub(self.since).max(LOOK_NEW)
    }

    /// Whether it stays unwatched, for as long as it is there.
    pub(super) fn is_past(&self) -> bool {
        matches!(self.state, State::Not(Unwatched::Past))
    }

    /// Leaves a unit unwatched; said once, of a pod.
    pub(super) fn leave(&mut self, why: Unwatched) {
        if self.is_past() || matches!(&self.state, State::Not(before) if *before == why) {
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

    /// It is where nothing can be compared; one in a network namespace shares that.
    pub(super) fn stay_out(&mut self, place: Place) {
        self.leave(match place {
            Place::Nowhere => Unwatched::New,
            Place::Unseen => Unwatched::Unseen,
            Place::Node => Unwatched::HostNetwork,
            Place::Apart => Unwatched::NoUplink,
            Place::In(_) => Unwatched::Shared,
        });
    }

    /// Whether these are the interfaces that are compared already: no others, and no more.
    pub(super) fn is_watched_by(&self, of: Netns, own: &[&Link]) -> bool {
        let State::Watched { netns, links, .. } = &self.state else { return false };
        let own = own.iter().map(|link| (link.index, link.name.as_str()));
        *netns == of && own.eq(links.iter().map(|(index, name)| (*index, name.as_str())))
    }

    /// Compares the node's ends of its interfaces from now on, if it has no others. `inside`: those of its network namespace.
    pub(super) fn watch(&mut self, netns: Netns, own: &[&Link], node: Netns, inside: &[Link]) {
        if own.is_empty() {
            return self.leave(Unwatched::NoUplink);
        }
        let is_veth = |link: &Link| link.kind.as_deref() == Some("veth");
        let is_end = |link: &Link, end: &Link| link.peer == Some(node) && link.lower == end.index;
        let leads_elsewhere = |link: &Link| match (link.kind.as_deref(), link.peer) {
            _ if link.loopback => false,
            // A device of the machine's; and those that do not say whose they are.
            (None | Some("ipoib" | "wireguard"), _) => true,
            (Some(_), Some(_)) => own.iter().all(|end| !is_end(link, end)),
            // On top of another one, or a tunnel.
            (Some(_), None) => false,
        };
        if !own.iter().all(|end| is_veth(end) && inside.iter().any(|link| is_end(link, end)))
            || inside.iter().any(leads_elsewhere)
        {
            return self.leave(Unwatched::Beside);
        }
        if self.is_watched_by(netns, own) {
            return;
        }
        let links = own.iter().map(|link| (link.index, link.name.clone())).collect();
        debug!(of = %self.labels, ?links, "what passes by its meters is watched");
        self.state = State::Watched { netns, links, gap: None };
        self.bytes.get_or_insert(0);
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
            Ok(0) => return None,
            Ok(bytes) => bytes,
            // Whose that is has to be found out.
            Err(Incomparable::Another) => {
                self.leave(Unwatched::New);
                return None;
            }
            Err(Incomparable::Past) => {
                self.leave(Unwatched::Past);
                return None;
            }
        };
        *self.bytes.get_or_insert(0) += bytes;
        Some(bytes)
    }
}
