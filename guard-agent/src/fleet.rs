//! The fleet's kill switch and policy file, on this node: the ConfigMap as the API server tells of it, and as it is mounted.

use std::{
    convert::Infallible,
    fs, future, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Result, bail};
use guard_cluster::{
    config_map::{ConfigMaps, Told},
    connect::{Clients, Identity},
};
use prometheus::{IntGaugeVec, Opts};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{self, Instant, Interval, MissedTickBehavior},
};

use crate::{
    core::fleet::{self, Contact, KILL_SWITCH, Mounted, Ruling, Word, World},
    metrics::Metrics,
};

/// The time between two looks at the mounted file.
const LOOK: Duration = Duration::from_millis(500);

/// How it stands with the ConfigMap, in metrics.
const STATES: [&str; 4] = ["present", "missing", "denied", "away"];

/// Who says something of the fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    cluster: Option<Cluster>,
    /// Where the kill switch is mounted: beside the configuration's file.
    path: PathBuf,
    /// What the last look at it saw.
    seen: Option<File>,
    /// What two looks saw: the first may have met a file that was half written.
    file: Option<File>,
    timer: Interval,
}

/// The API server.
#[derive(Debug)]
struct Cluster {
    name: String,
    told: watch::Receiver<Told>,
    task: JoinHandle<Infallible>,
    state: IntGaugeVec,
}

/// The mounted file, which is there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    /// `None`: it cannot be read.
    text: Option<String>,
    /// When it was written; the beginning of time if nobody knows.
    written: SystemTime,
}

/// All that is said at an instant.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    name: String,
    word: Word,
    contact: Contact,
    path: PathBuf,
    file: Option<File>,
}

/// Begins to listen: to the API server, if there is one, and to the file beside the configuration's.
///
/// # Panics
/// Outside a tokio runtime.
pub(crate) fn begin(
    clients: Option<&Clients>,
    identity: &Identity,
    config: &Path,
    metrics: &Metrics,
) -> Result<Fleet, prometheus::Error> {
    let path = config.with_file_name(KILL_SWITCH);
    let file = look(&path);
    let mut timer = time::interval(LOOK);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let cluster = clients.map(|clients| Cluster::begin(clients, identity, metrics)).transpose()?;
    Ok(Fleet { cluster, path, seen: file.clone(), file, timer })
}

impl Cluster {
    fn begin(clients: &Clients, identity: &Identity, metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let maps = ConfigMaps::new(clients.patient.clone(), &identity.namespace)?;
        maps.collectors().into_iter().try_for_each(|collector| metrics.register(collector))?;
        let help = "1: how it stands with the ConfigMap that has the fleet's kill switch; only while it is present there are \
                    evictions.";
        let state = IntGaugeVec::new(Opts::new("egress_guard_config_map", help), &["state"])?;
        metrics.register(Box::new(state.clone()))?;
        Ok(Self { name: maps.name(), told: maps.told(), task: tokio::spawn(maps.run()), state })
    }

    /// Waits until the API server has told something. An error: nobody listens to it any more.
    async fn told(&mut self) -> Result<()> {
        if self.told.changed().await.is_ok() {
            return Ok(());
        }
        let Err(error) = (&mut self.task).await;
        bail!("the ConfigMap {} is no longer watched: {error}", self.name)
    }
}

impl Fleet {
    /// Waits until there may be something new, which is at least twice a second. Nothing is lost if the wait is given up.
    pub(crate) async fn changed(&mut self) -> Result<Heard> {
        let told = async {
            match &mut self.cluster {
                Some(cluster) => cluster.told().await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            told = told => told?,
            _ = self.timer.tick() => self.look(),
        }
        Ok(self.heard())
    }

    fn look(&mut self) {
        let now = look(&self.path);
        if now == self.seen {
            self.file.clone_from(&now);
        }
        self.seen = now;
    }

    /// What is said now.
    pub(crate) fn heard(&mut self) -> Heard {
        let (path, file) = (self.path.clone(), self.file.clone());
        let Some(Cluster { name, told, state, .. }) = &mut self.cluster else {
            return Heard { name: String::new(), word: Word::Unknown, contact: Contact::Nobody, path, file };
        };
        let told = told.borrow_and_update().clone();
        let contact = told.contact(Instant::now());
        let is = match (&contact, &told.word) {
            (Contact::Denied(_), _) => "denied",
            (Contact::Fresh, Word::Present(_)) => "present",
            (Contact::Fresh, Word::Missing) => "missing",
            _ => "away",
        };
        for one in STATES {
            state.with_label_values(&[one]).set(i64::from(one == is));
        }
        Heard { name: name.clone(), word: told.word, contact, path, file }
    }
}

impl Heard {
    /// What follows. `engaged`: since when the kill switch is engaged for the cluster, if it is.
    pub(crate) fn rule(&self, engaged: Option<SystemTime>) -> Ruling {
        let Self { name, word, contact, path, file } = self;
        let mounted = file.as_ref().map(|File { text, written }| Mounted {
            text: text.clone(),
            newer: engaged.is_none_or(|engaged| *written > engaged),
        });
        fleet::rule(&World { name, word, contact, path, file: mounted.as_ref() })
    }

    /// The policy file of the API server, while its word holds and has one, and what that is called.
    pub(crate) fn config(&self) -> Option<(&str, String)> {
        match (&self.contact, &self.word) {
            (Contact::Fresh, Word::Present(map)) => {
                Some((map.config.as_deref()?, format!("ConfigMap {}, {}", self.name, fleet::CONFIG)))
            }
            _ => None,
        }
    }
}

/// What the file says, if it is there.
fn look(path: &Path) -> Option<File> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        read => read.ok(),
    };
    // A file that is not there any more is seen by the next look.
    let written = fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    Some(File { text, written })
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
