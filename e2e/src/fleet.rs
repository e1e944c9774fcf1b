//! Many agents on one API server, as far as the cluster is concerned: each has connections, watches, a judge and a responder of
//! its own, the real ones. They have no kernel: which containers there are is what the API server tells, and what they send
//! is the test's to say.

mod agent;
mod onlooker;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use guard_cluster::connect::{Identity, clients};
use jiff::Timestamp;
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{sync::watch, task::JoinSet};

use crate::{Installation, eventually};

use agent::Agent;
pub use onlooker::{Onlooker, Seen};

/// Between the starts of two agents: handshakes are work for both ends.
const STAGGER: Duration = Duration::from_millis(10);

/// How long it may take until all of them know what they need.
const START: Duration = Duration::from_mins(1);

/// Connections of one agent, at both ends: two watches, an eviction, a replacement, an Event; and some to spare.
const FILES: u64 = 10;

/// Agents of one installation. They end when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    members: Vec<Arc<Member>>,
    breach: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

/// What became of an eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// When the judge was told.
    pub at: Timestamp,
    /// How it ended: one of [`guard_cluster::evict::RESULTS`].
    pub result: &'static str,
    /// In words.
    pub said: String,
}

/// An agent, as far as it notes what it does.
#[derive(Debug)]
pub struct Member {
    /// Its node.
    pub node: String,
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    containers: usize,
    may_act: bool,
    attempts: Vec<Attempted>,
    switched: Vec<(Timestamp, bool)>,
}

impl Fleet {
    /// Starts an agent for each node and waits until all have pods and the ConfigMap.
    pub async fn start(installation: &Installation, nodes: &[String]) -> Result<Self> {
        raise_file_limit(FILES * nodes.len() as u64)?;
        let mut tasks = JoinSet::new();
        let (breach, breaching) = watch::channel(false);
        let mut members = vec![];
        for node in nodes {
            let mut config = config(&installation.kubeconfig).await?;
            config.headers.push((http::header::USER_AGENT, name(node).parse()?));
            let identity = Identity {
                node: node.clone(),
                namespace: installation.space.name.clone(),
                pod: format!("egress-guard-{node}"),
                pod_uid: String::new(),
            };
            let member = Arc::new(Member { node: node.clone(), noted: Mutex::default() });
            Agent::start(&mut tasks, &clients(config)?, identity, Arc::clone(&member), breaching.clone())?;
            members.push(member);
            tokio::time::sleep(STAGGER).await;
        }
        let fleet = Self { members, breach, _tasks: tasks };
        eventually("all agents know their pods and the ConfigMap", START, async || {
            let waiting = fleet.members.iter().filter(|member| !member.lock().is_ready()).count();
            ensure!(waiting == 0, "{waiting} of {} do not", fleet.members.len());
            Ok(())
        })
        .await?;
        Ok(fleet)
    }

    /// All containers that there are now send far more than they may, from now on.
    pub fn breach(&self) {
        self.breach.send_replace(true);
    }

    /// All of them.
    pub fn agents(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().map(Arc::as_ref)
    }

    /// Waits until every agent has taken over what the ConfigMap says of the kill switch since `since`. Returns when the last
    /// one had.
    pub async fn switched(&self, engaged: bool, since: Timestamp) -> Result<Timestamp> {
        eventually(&format!("the kill switch is engaged: {engaged}"), START, async || {
            let heard = |member: &Member| {
                let noted = member.lock();
                noted.switched.iter().find(|(at, to)| *at >= since && *to == engaged).map(|(at, _)| *at)
            };
            let heard: Vec<_> = self.agents().filter_map(heard).collect();
            ensure!(heard.len() == self.members.len(), "{} of {} have heard", heard.len(), self.members.len());
            heard.into_iter().max().context("there is no agent")
        })
        .await
    }
}

impl Member {
    /// Its evictions, in their order.
    pub fn attempts(&self) -> Vec<Attempted> {
        self.lock().attempts.clone()
    }

    /// What it calls itself to the API server, and so in the audit log.
    pub fn name(&self) -> String {
        name(&self.node)
    }

    /// What panicked while it held them left them as they are.
    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    const fn is_ready(&self) -> bool {
        self.containers > 0 && self.may_act
    }
}

fn name(node: &str) -> String {
    format!("egress-guard/{node}")
}

async fn config(kubeconfig: &Path) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

/// A shell's usual 1,024 are too few. What is started later inherits it.
pub fn raise_file_limit(needed: u64) -> Result<()> {
    let needed = needed + 1024;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < needed) {
        let limit = Rlimit { current: Some(needed), maximum };
        setrlimit(Resource::Nofile, limit).with_context(|| format!("raise the limit of open files to {needed}"))?;
    }
    Ok(())
}
