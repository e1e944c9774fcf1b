//! The ConfigMap with the fleet's policy file and kill switch, watched.
//!
//! One object, so every failure leads to another list, which a quorum of etcd answers: a kill switch is no place for a cached
//! answer. Watches end after a minute, and what was told in the last of them counts as fresh: an API server behind a
//! connection that is dead without a word is noticed by then.

use std::{convert::Infallible, fmt, io, time::Duration};

use futures_util::TryStreamExt as _;
use guard_core::fleet::{CONFIG, CONFIG_MAP, Contact, KILL_SWITCH, Map, Word};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ListParams, WatchEvent, WatchParams},
    core::{ResourceExt as _, Status},
};
use prometheus::{IntCounter, core::Collector};
use tokio::{
    sync::watch,
    time::{Instant, error::Elapsed, sleep, timeout},
};
use tracing::{info, warn};

use crate::{backoff::Backoff, connect::PATIENCE};

/// How long a watch lasts, in seconds: then the API server ends it, and another begins.
const WATCH: u32 = 60;

/// A watch that says nothing for so long after that is dead, and what was told before it is old.
const WINDOW: Duration = Duration::from_secs(WATCH as u64 + 5);

/// A watch that ends sooner has failed.
const SHORT: Duration = Duration::from_secs(5);

/// Between two attempts. Short, for a kill switch; a list of one object is little work.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));

/// What the API server said, and when it was there last.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// What it said last.
    pub word: Word,
    /// It says no, in these words.
    denied: Option<String>,
    /// When it last answered, or told something.
    heard: Option<Instant>,
}

impl Told {
    /// How it stands with the API server now.
    #[must_use]
    pub fn contact(&self, now: Instant) -> Contact {
        if let Some(why) = &self.denied {
            return Contact::Denied(why.clone());
        }
        match self.heard {
            Some(heard) if now.saturating_duration_since(heard) <= WINDOW => Contact::Fresh,
            _ => Contact::Away,
        }
    }
}

/// Watches the ConfigMap.
pub struct ConfigMaps {
    api: Api<ConfigMap>,
    namespace: String,
    told: watch::Sender<Told>,
    said: Said,
    backoff: Backoff,
    failures: IntCounter,
}

impl fmt::Debug for ConfigMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigMaps").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// What the log has of it: one line for each loss, and one when it is told of again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Told,
    Lost,
    Denied,
}

/// Why a watch has ended.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Kube(#[from] kube::Error),
    #[error("there is no answer within {PATIENCE:?}")]
    Timeout(#[from] Elapsed),
    #[error("the watch says: {0}")]
    Watch(Box<Status>),
    #[error("the watch says nothing for {WINDOW:?}")]
    Silent,
    #[error("the watch ended at once")]
    Short,
    #[error("{0}")]
    Unversioned(#[from] Unversioned),
}

/// What no API server says.
#[derive(Debug, thiserror::Error)]
#[error("the answer has no resourceVersion: is this an API server?")]
struct Unversioned;

impl ConfigMaps {
    /// In this namespace. `client` must not repeat requests by itself, nor limit how long an answer takes.
    pub fn new(client: Client, namespace: &str) -> Result<Self, prometheus::Error> {
        Ok(Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            told: watch::Sender::default(),
            said: Said::Nothing,
            backoff: BACKOFF,
            failures: IntCounter::new(
                "egress_guard_config_map_failures_total",
                "Times that the list or the watch of the ConfigMap failed.",
            )?,
        })
    }

    /// `NAMESPACE/NAME`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{CONFIG_MAP}", self.namespace)
    }

    /// What the API server says, now and later.
    #[must_use]
    pub fn told(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }

    /// The metrics, to be registered.
    #[must_use]
    pub fn collectors(&self) -> [Box<dyn Collector>; 1] {
        [Box::new(self.failures.clone())]
    }

    /// Watches for ever.
    pub async fn run(mut self) -> Infallible {
        loop {
            let Err(failure) = self.follow().await;
            self.failed(&failure);
            sleep(self.backoff.next()).await;
        }
    }

    /// Lists and watches until that fails.
    async fn follow(&mut self) -> Result<Infallible, Failure> {
        let mut version = self.list().await?;
        loop {
            let begun = Instant::now();
            let ended = self.watch(version).await;
            let short = begun.elapsed() < SHORT;
            if !short {
                self.backoff.reset();
            }
            version = ended?;
            // Whatever closes watches as soon as they begin must not be asked without a pause.
            if short {
                return Err(Failure::Short);
            }
        }
    }

    async fn list(&mut self) -> Result<String, Failure> {
        let of_it = ListParams::default().fields(&selector());
        let list = timeout(PATIENCE, self.api.list(&of_it)).await??;
        let word = list.items.into_iter().next().map_or(Word::Missing, present);
        self.tell(word);
        list.metadata.resource_version.filter(|version| !version.is_empty()).ok_or_else(|| Unversioned.into())
    }

    /// Until the API server ends it. Returns the version up to which it told.
    async fn watch(&mut self, mut version: String) -> Result<String, Failure> {
        let of_it = WatchParams::default().fields(&selector()).timeout(WATCH);
        let events = timeout(PATIENCE, self.api.watch(&of_it, &version)).await??;
        self.hear();
        let mut events = std::pin::pin!(events);
        loop {
            let Ok(event) = timeout(WINDOW, events.try_next()).await else { return Err(Failure::Silent) };
            match event? {
                None => return Ok(version),
                Some(WatchEvent::Added(map) | WatchEvent::Modified(map)) => {
                    version = map.resource_version().unwrap_or(version);
                    self.tell(present(map));
                }
                Some(WatchEvent::Deleted(map)) => {
                    version = map.resource_version().unwrap_or(version);
                    self.tell(Word::Missing);
                }
                Some(WatchEvent::Bookmark(bookmark)) => {
                    version = bookmark.metadata.resource_version;
                    self.hear();
                }
                Some(WatchEvent::Error(status)) => return Err(Failure::Watch(status)),
            }
        }
    }

    /// It tells of every change from now on.
    fn hear(&mut self) {
        self.told.send_modify(|told| {
            told.heard = Some(Instant::now());
            told.denied = None;
        });
        if self.said != Said::Told {
            self.said = Said::Told;
            info!("the API server tells of the ConfigMap {}", self.name());
        }
    }

    /// A list alone takes no refusal back: it may be the watch that is refused.
    fn tell(&mut self, word: Word) {
        let mut vanished = false;
        self.told.send_modify(|told| {
            vanished = word == Word::Missing && told.word != Word::Missing;
            told.word = word;
            told.heard = Some(Instant::now());
        });
        if vanished {
            warn!(
                "there is no ConfigMap {}: nothing is evicted until there is one, with the key {KILL_SWITCH}: \"off\"; the kill \
                 switch stays as it was, and so does the configuration",
                self.name()
            );
        }
    }

    fn failed(&mut self, failure: &Failure) {
        self.failures.inc();
        let name = self.name();
        if let Some(why) = failure.denied() {
            if self.said != Said::Denied {
                self.said = Said::Denied;
                warn!(
                    "the API server does not let the agent read the ConfigMap {name}, so nothing is evicted: {why}; grant its \
                     service account get, list and watch of it"
                );
            }
            self.told.send_modify(|told| told.denied = Some(why));
            return;
        }
        // A watch that breaks and is begun again is nothing to talk of.
        if self.told.borrow().contact(Instant::now()) == Contact::Away && self.said != Said::Lost {
            self.said = Said::Lost;
            warn!(
                "the API server does not tell of the ConfigMap {name}: {failure}; the kill switch is not released meanwhile, \
                 its mounted file can engage it, and nothing is evicted; it is tried again until it works"
            );
        }
    }
}

impl Failure {
    /// What the API server says, if it says no for good.
    fn denied(&self) -> Option<String> {
        let (Self::Kube(kube::Error::Api(status)) | Self::Watch(status)) = self else { return None };
        matches!(status.code, 401 | 403).then(|| status.message.clone())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Kube(kube::Error::ReadEvents(error))
    }
}

/// The only way in which a Role that names the object allows a list and a watch.
fn selector() -> String {
    format!("metadata.name={CONFIG_MAP}")
}

fn present(map: ConfigMap) -> Word {
    let resource_version = map.resource_version().unwrap_or_default();
    let mut data = map.data.unwrap_or_default();
    Word::Present(Map { config: data.remove(CONFIG), kill_switch: data.remove(KILL_SWITCH), resource_version })
}

#[cfg(test)]
#[path = "config_map_tests.rs"]
mod tests;
