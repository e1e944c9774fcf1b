//! What the operator asks of the guard, through the socket.

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::{Guard, act::destinations};
use crate::{
    breaches::Destination,
    clock,
    core::{breach::ContainerId, ledger::Owner},
    kernel::evidence::Sample,
};

/// How many may wait.
const QUEUE: usize = 16;

/// What is asked, for the most part of the container that a text names.
#[derive(Debug)]
pub enum Command {
    /// End the storm.
    Resume(oneshot::Sender<Result<String, Unclear>>),
    /// Let go of it.
    Release(String, oneshot::Sender<Result<String, Unclear>>),
    /// Say where its bytes went.
    Destinations(String, oneshot::Sender<Result<Vec<Destination>, Unclear>>),
}

/// Sends commands.
pub type Commands = mpsc::Sender<Command>;

/// A channel for commands.
pub fn channel() -> (Commands, mpsc::Receiver<Command>) {
    mpsc::channel(QUEUE)
}

/// A text does not name one container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// None.
    #[error(
        "no container is named {0:?}: give its id or the beginning of it, its name, NAMESPACE/POD/CONTAINER, or its \
             cgroup's path, as `guard-agent list --json` shows them"
    )]
    Unknown(String),
    /// Several.
    #[error("{0:?} names several containers: {1}")]
    Several(String, String),
}

/// The least digits of an id that name a container.
const LEAST_ID: usize = 6;

impl Guard {
    /// Does what the operator asks.
    pub fn command(&mut self, command: Command) {
        // Whoever does not wait for the answer any more has it all the same.
        match command {
            Command::Resume(answer) => {
                let _unheard = answer.send(Ok(self.resume()));
            }
            Command::Release(name, answer) => {
                let released = self.find(&name).map(|id| self.release(id));
                let _unheard = answer.send(released);
            }
            Command::Destinations(name, answer) => {
                let found = self.find(&name).map(|id| {
                    let all = self.evidence();
                    destinations(all.iter().filter(|sample: &&Sample| sample.owner == id.0 && !sample.ingress))
                });
                let _unheard = answer.send(found);
            }
        }
    }

    fn resume(&mut self) -> String {
        let Some(effects) = self.judge.resume(clock::boottime()) else {
            return "there is no storm: evictions are not stopped by one".to_owned();
        };
        warn!("the operator ends the storm");
        self.carry_out(effects);
        drop(self.keep_now());
        "the storm is over: what breaches now is part of no other until it has been quiet".to_owned()
    }

    fn release(&mut self, id: ContainerId) -> String {
        let name = self.name(id);
        // The meter may hold it since a moment ago.
        if let Some(slot) = self.slot_of(id) {
            self.hear(slot, id);
        }
        let contained = self.judge.contained_now(id).is_some();
        let open = self.judge.open().any(|breach| breach.container == id);
        // Before the judge may order another.
        self.hammer.recall();
        // What the judge knows no longer is gone.
        let effects = self.judge.release(clock::boottime(), id).unwrap_or_default();
        self.carry_out(effects);
        self.let_go(id);
        warn!(container = name, "the operator lets it go");
        let was = if contained { "released" } else { "not contained" };
        let until = if open { ": it is left alone until its breach is over" } else { "" };
        format!("{name}: {was}{until}")
    }

    /// The container that a text names.
    fn find(&self, text: &str) -> Result<ContainerId, Unclear> {
        let path = text.trim_matches('/');
        let is_it = |owner: &Owner| {
            let id = &owner.identity.container_id;
            owner.labels.to_string() == text
                || owner.labels.container == text
                || owner.path == path
                || (text.len() >= LEAST_ID && id.starts_with(text))
        };
        let owners = self.attached().filter_map(|(slot, _)| self.ledger.record(slot).owner.as_ref());
        let found: Vec<&Owner> = owners.filter(|owner| is_it(owner)).collect();
        match found.as_slice() {
            [] => Err(Unclear::Unknown(text.into())),
            [owner] => Ok(ContainerId(owner.cgroup_id)),
            several => {
                let paths: Vec<String> = several.iter().map(|owner| format!("/{}", owner.path)).collect();
                Err(Unclear::Several(text.into(), paths.join(", ")))
            }
        }
    }
}
