//! The one task that changes anything in the kernel: it gives cgroups their meters, reads them and takes them back.

mod act;
mod bypass;
pub mod commands;
mod enforce;
mod evictions;
mod fleet;
pub mod hammer;
pub mod keep;
mod mend;
mod names;
mod orders;
mod restore;
mod sample;
mod settle;
mod tell;
pub mod voice;
mod walk;

use std::{borrow::Cow, collections::HashMap, io, path::Path, sync::Arc};

use tokio::sync::watch;
use tracing::error;

use crate::{
    clock,
    config::Config,
    core::{
        breach::ContainerId,
        event::{DecodeError, Event},
        judge::{Judge, Means},
        ledger::{Ledger, Slot},
        roster::Roster,
    },
    kernel::{
        evidence::Sample,
        kill_switch::KillSwitchError,
        meters::{Links, MeterError, Meters},
    },
    kill_switch::View,
    metrics::Metrics,
    node::tree::Watched,
    snapshot::Snapshot,
    webhook::Webhook,
};

use self::{
    bypass::Bypass,
    enforce::Seen,
    hammer::Hammer,
    keep::{Keeper, Remembered},
    names::NewNames,
    voice::Voice,
};

/// How long after a meter was detached its last packet is waited for. The kernel lets go of a program within a grace
/// period, some 10 ms.
const GRACE: u64 = 1_000_000_000;

/// What a slot's links are at.
#[derive(Debug)]
enum State {
    /// The cgroup is there.
    Attached(Links),
    /// The cgroup was removed at this instant of boot time; sockets of it may still send.
    Draining(Links, u64),
    /// Detached at this instant of boot time, to be read a last time after [`GRACE`].
    Closing(u64),
}

#[derive(Debug)]
struct Meter {
    cgroup_id: u64,
    path: String,
    state: State,
    /// Until when its containment lasts that was in force when the cgroup was removed: its sockets are not free for that.
    held: Option<u64>,
}

impl Meter {
    /// Whether its programs are attached.
    fn counts(&self) -> bool {
        !matches!(self.state, State::Closing(_))
    }

    /// Whether its container is there.
    fn is_attached(&self) -> bool {
        matches!(self.state, State::Attached(_))
    }
}

/// What holds until the next walk of the tree.
#[derive(Debug, Default)]
struct UntilWalk {
    /// Events did not say what happened: it is to be soon.
    is_wanted: bool,
    /// Programs could not be loaded ahead; not tried again before.
    spare_failed: bool,
}

/// The meters of a node.
#[derive(Debug)]
pub struct Guard {
    kernel: Meters,
    watched: Watched,
    ledger: Ledger,
    meters: HashMap<Slot, Meter>,
    by_path: HashMap<String, Slot>,
    pods_root: Option<(String, u64)>,
    node: Option<Links>,
    /// The node meter's links to pods' roots that were removed.
    old_nodes: Vec<Links>,
    /// Cgroups that found no slot, by their id.
    refused: HashMap<u64, String>,
    events_lost: u64,
    until_walk: UntilWalk,
    metrics: Arc<Metrics>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// What is decided.
    judge: Judge,
    /// What was told of each slot's buckets.
    seen: HashMap<Slot, Seen>,
    /// When the evidence was read last, and what it was.
    evidence: (u64, Arc<Vec<Sample>>),
    /// Containments need no agent to last.
    outlive_agent: bool,
    kill_switch: View,
    /// Why nothing is evicted, as far as it is for the cluster to say.
    protected: Option<Cow<'static, str>>,
    /// It could not be read, which was said.
    kill_switch_unread: bool,
    voice: Voice,
    hammer: Hammer,
    keeper: Keeper,
    /// What is known of pods. `None`: nobody tells.
    roster: Option<Roster>,
    new_names: NewNames,
    bypass: Bypass,
}

/// What the guard works with.
#[derive(Debug)]
pub struct Parts {
    /// The kernel.
    pub kernel: Meters,
    /// The cgroup tree.
    pub watched: Watched,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Where samples go.
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    /// The kill switch.
    pub kill_switch: View,
    /// Why nothing is evicted from the start, if so: the cluster's part in that, see [`Guard::protect`].
    pub protected: Option<Cow<'static, str>>,
    /// Who is told.
    pub voice: Voice,
    /// Who evicts.
    pub hammer: Hammer,
    /// The state file.
    pub keeper: Keeper,
    /// What is known of pods. `None`: nobody will tell.
    pub roster: Option<Roster>,
    /// What was in it.
    pub remembered: Option<Remembered>,
    /// A process in the node's network namespace.
    pub node_process: u32,
}

impl Guard {
    /// Takes over what an earlier agent left in the kernel and in the state file.
    pub fn new(parts: Parts, config: &Config) -> Result<Self, GuardError> {
        let Parts {
            kernel,
            watched,
            metrics,
            snapshots,
            kill_switch,
            protected,
            voice,
            hammer,
            keeper,
            roster,
            remembered,
            node_process,
        } = parts;
        let Means { only_pods, nothing } = hammer.means();
        let means = Means { only_pods, nothing: nothing.or_else(|| protected.clone()) };
        hammer.halt(protected.is_some());
        let max = config.meters.max;
        let mut guard = Self {
            kernel,
            watched,
            ledger: Ledger::new(max),
            meters: HashMap::new(),
            by_path: HashMap::new(),
            pods_root: None,
            node: None,
            old_nodes: Vec::new(),
            refused: HashMap::new(),
            events_lost: 0,
            until_walk: UntilWalk::default(),
            metrics,
            snapshots,
            judge: Judge::new(hammer.settings(config), means),
            seen: HashMap::new(),
            evidence: Default::default(),
            outlive_agent: config.containment.outlive_agent,
            kill_switch,
            protected,
            kill_switch_unread: false,
            voice: Voice { flag: config.flag.annotation, ..voice },
            hammer,
            keeper,
            roster,
            new_names: NewNames::default(),
            bypass: Bypass::new(node_process),
        };
        guard.judge.wall_clock(clock::wall_ahead());
        if let Some(remembered) = remembered {
            guard.remember(remembered);
        }
        guard.look_at_kill_switch();
        guard.restore(max)?;
        Ok(guard)
    }

    /// All that an earlier agent knew has been found again, or is gone.
    pub fn settled_in(&mut self) {
        let effects = self.judge.settled(clock::boottime());
        self.carry_out(effects);
        self.order_all();
        self.renew();
        self.reopen();
    }

    /// Another configuration holds, but for what takes a restart.
    pub fn reload(&mut self, config: &Config) {
        self.outlive_agent = config.containment.outlive_agent;
        self.voice.flag = config.flag.annotation;
        // What was ordered by the one before is not done any more.
        self.hammer.recall();
        let effects = self.judge.reload(clock::boottime(), self.hammer.settings(config));
        self.carry_out(effects);
        self.order_all();
        self.disarm_removed();
        drop(self.keep_now());
    }

    /// The containers whose cgroup is there, in no order.
    fn attached(&self) -> impl Iterator<Item = (Slot, ContainerId)> {
        let attached = self.meters.iter().filter(|(_, meter)| meter.is_attached());
        attached.map(|(slot, meter)| (*slot, ContainerId(meter.cgroup_id)))
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whom alerts go to from now on.
    pub fn tell(&mut self, webhook: Option<Webhook>) {
        self.voice.webhook = webhook;
    }

    /// Takes over what the configuration's file says of the kill switch.
    pub fn kill_switch_in_file(&mut self, engaged: bool, path: &Path) -> Result<(), KillSwitchError> {
        self.kill_switch.set_file(engaged, path)?;
        self.look_at_kill_switch();
        Ok(())
    }

    fn pods_root_path(&self) -> Option<&str> {
        self.pods_root.as_ref().map(|(path, _)| path.as_str())
    }

    fn write(&mut self, slots: &[Slot]) -> Result<(), MeterError> {
        slots.iter().try_for_each(|&slot| self.kernel.write_record(slot, self.ledger.record(slot)))
    }

    /// The kernel said that something happened.
    pub fn on_event(&mut self, event: Result<Event, DecodeError>) -> Result<(), MeterError> {
        match event {
            Ok(Event::Cgroup(change)) => self.on_change(change),
            Ok(Event::Crossed(crossing)) => self.on_crossing(crossing),
            Err(error) => {
                error!("{error}; walking the tree instead");
                self.until_walk.is_wanted = true;
                Ok(())
            }
        }
    }
}

/// Why the guard could not do something.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The kernel said no to something that must work: the agent ends.
    #[error(transparent)]
    Meter(#[from] MeterError),
    /// The cgroup tree cannot be read.
    #[error("cannot read the cgroup tree: {0}")]
    Tree(io::Error),
}

impl From<io::Error> for GuardError {
    fn from(error: io::Error) -> Self {
        Self::Tree(error)
    }
}
