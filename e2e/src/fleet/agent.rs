//! One agent of a fleet: what `guard-agent` does in a cluster, without the kernel, the node's files and the outside.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use guard_cluster::{
    config_map::{ConfigMaps, Told},
    connect::{Clients, Identity},
    events::{Tell, Teller, What},
    evict::{Attempt, Order, Outcome, Replacement, Responder},
    pods::{Latest, Pods},
};
use guard_core::{
    breach::{Breach, ContainerId, Limit},
    config::Config,
    fleet::{self, Switch, Word, World},
    identity::Labels,
    inventory::{Inventory, Phase, Pod},
    judge::{About, Effect, Judge, Means, Settings},
    verdict::Action,
};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{Attempted, Member};

/// Between two samples, and two crossings of a container that goes on.
const SAMPLE: Duration = Duration::from_secs(1);

/// What a container sends that breaches, in bytes per second.
const ATTACK: f64 = 1e9;

pub(super) struct Agent {
    identity: Identity,
    notes: Arc<Member>,
    judge: Judge,
    /// The judge's clock is 0 at this instant.
    begun: Instant,
    /// By their pods' UIDs: there is one in each pod.
    containers: BTreeMap<String, ContainerId>,
    /// How many there have been.
    count: u64,
    breaching: Vec<ContainerId>,
    responder: Arc<Responder>,
    teller: Teller,
    /// Nothing is to be evicted: asked also by what has begun.
    stop: Arc<AtomicBool>,
    engaged: bool,
    config: String,
    ended: JoinSet<Ended>,
}

/// What was done beside the agent's task.
enum Ended {
    Attempt(ContainerId, Arc<Pod>, Attempt),
    Replaced(Arc<Pod>, Replacement),
}

impl Agent {
    /// Starts all tasks of one.
    pub(super) fn start(
        tasks: &mut JoinSet<()>,
        clients: &Clients,
        identity: Identity,
        notes: Arc<Member>,
        breach: watch::Receiver<bool>,
    ) -> Result<()> {
        let pods = Pods::new(clients.patient.clone(), &identity.node, std::iter::empty())?;
        let maps = ConfigMaps::new(clients.patient.clone(), &identity.namespace)?;
        let (latest, told, teller) = (pods.latest(), maps.told(), Teller::new()?);
        let agent = Self {
            // It begins with the defaults, which evict nothing.
            judge: Judge::new(Settings::from(&Config::default()), Means { only_pods: true, nothing: None }),
            begun: Instant::now(),
            containers: BTreeMap::new(),
            count: 0,
            breaching: vec![],
            responder: Arc::new(Responder::new(clients, &identity)?),
            teller: teller.clone(),
            stop: Arc::new(AtomicBool::new(true)),
            engaged: false,
            config: String::new(),
            ended: JoinSet::new(),
            notes,
            identity: identity.clone(),
        };
        let once = clients.once.clone();
        tasks.spawn(async move { match pods.run().await {} });
        tasks.spawn(async move { match maps.run().await {} });
        tasks.spawn(async move { match teller.run(once, &identity.pod).await {} });
        tasks.spawn(async move { match agent.run(latest, told, breach).await {} });
        Ok(())
    }

    async fn run(
        mut self,
        mut pods: Latest,
        mut told: watch::Receiver<Told>,
        mut breach: watch::Receiver<bool>,
    ) -> Infallible {
        let mut sample = interval(SAMPLE);
        sample.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // What is watched ends with the fleet, and so does this task.
                Ok(()) = told.changed() => self.hear(&told.borrow_and_update().clone()),
                Ok(()) = pods.changed() => {
                    let all = pods.borrow_and_update().clone();
                    self.on_pods(all.as_deref());
                }
                Ok(()) = breach.changed() => {
                    self.breaching = self.containers.values().copied().collect();
                    self.cross();
                }
                Some(Ok(ended)) = self.ended.join_next() => self.on_end(ended),
                _ = sample.tick() => {
                    self.hear(&told.borrow().clone());
                    self.cross();
                    let now = self.now();
                    let effects = self.judge.sample(now, SAMPLE.as_nanos() as u64, []);
                    self.carry_out(effects);
                }
            }
        }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// What the ConfigMap says.
    fn hear(&mut self, told: &Told) {
        let name = format!("{}/{}", self.identity.namespace, fleet::CONFIG_MAP);
        let contact = told.contact(Instant::now());
        let world = World { name: &name, word: &told.word, contact: &contact, path: Path::new("none"), file: None };
        let ruling = fleet::rule(&world);
        let engaged = match ruling.switch {
            Switch::Engaged(_) => true,
            Switch::Released => false,
            Switch::AsItWas => self.engaged,
        };
        self.stop.store(engaged || ruling.nothing.is_some(), Ordering::SeqCst);
        let now = self.now();
        let mut effects = vec![];
        if engaged != self.engaged {
            self.engaged = engaged;
            self.notes.lock().switched.push((Timestamp::now(), engaged));
            effects.extend(self.judge.kill_switch(now, engaged));
        }
        self.notes.lock().may_act = ruling.nothing.is_none();
        effects.extend(self.judge.protect(now, ruling.nothing));
        if let Word::Present(map) = &told.word
            && let Some(text) = map.config.as_ref().filter(|text| **text != self.config)
        {
            self.config.clone_from(text);
            match Config::parse(text, Path::new(fleet::CONFIG)) {
                Ok(config) => {
                    let mut settings = Settings::from(&config);
                    settings.protect.own_namespace.clone_from(&self.identity.namespace);
                    effects.extend(self.judge.reload(now, settings));
                }
                Err(error) => eprintln!("{}: {error}", self.notes.node),
            }
        }
        self.carry_out(effects);
    }

    fn on_pods(&mut self, all: Option<&Inventory>) {
        let now = self.now();
        let mut effects = vec![];
        let running = |pod: &&Arc<Pod>| pod.phase == Phase::Running;
        for pod in all.into_iter().flat_map(Inventory::pods).filter(running) {
            let id = *self.containers.entry(pod.uid.clone()).or_insert_with(|| {
                self.count += 1;
                ContainerId(self.count)
            });
            let container = pod.containers.first().map(|container| container.name.clone()).unwrap_or_default();
            let names = Labels { namespace: pod.namespace.clone(), pod: pod.name.clone(), container };
            effects.extend(self.judge.appeared(now, id, About::in_pod(names, &pod.uid, Some(pod))));
        }
        let is_there = |uid: &str| all.is_some_and(|all| all.pod(uid).is_some());
        for (_, id) in self.containers.extract_if(.., |uid, _| !is_there(uid)) {
            self.breaching.retain(|breaching| *breaching != id);
            effects.extend(self.judge.gone(now, id));
        }
        self.notes.lock().containers = self.containers.len();
        self.carry_out(effects);
    }

    /// As the kernel tells of a container that finds its bucket empty.
    fn cross(&mut self) {
        let now = self.now();
        let wall = u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(u64::MAX);
        self.judge.wall_clock(wall.saturating_sub(now));
        for id in self.breaching.clone() {
            let effects = self.judge.crossed(now, id, Limit::Rate, ATTACK);
            self.carry_out(effects);
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Opened(breach) => self.tell_breach(breach),
                Effect::Act(Action::Evict { grace, leave, dry_run, reason }) => {
                    let (id, settings) = (reason.container, self.judge.settings());
                    let Some(pod) = self.judge.pod(id).cloned() else { continue };
                    let (limits, protect) = (settings.allowance.into(), settings.protect.clone());
                    let order = Order { pod, grace, leave, protect, dry_run, limits };
                    let (responder, stop) = (Arc::clone(&self.responder), Arc::clone(&self.stop));
                    self.ended.spawn(async move {
                        let attempt = responder.evict(&order, || stop.load(Ordering::SeqCst)).await;
                        Ended::Attempt(id, order.pod, attempt)
                    });
                }
                Effect::Act(_)
                | Effect::Closed(_)
                | Effect::Declined(_)
                | Effect::Alarm(_)
                | Effect::BadAnnotation { .. } => {}
            }
        }
    }

    fn tell_breach(&self, Breach { container, limit, figure, allowed, .. }: Breach) {
        let Some(pod) = self.judge.pod(container) else { return };
        let said = format!("it sends {figure} B/s, and {allowed} B/s are allowed");
        self.tell(pod, What::LimitExceeded { limit, said, destinations: vec![] });
        self.teller.flag(Arc::clone(pod), &Timestamp::now().to_string(), limit.name());
    }

    fn tell(&self, pod: &Arc<Pod>, what: What) {
        self.teller.tell(Tell { pod: Arc::clone(pod), container: String::new(), what });
    }

    fn on_end(&mut self, ended: Ended) {
        match ended {
            Ended::Attempt(id, pod, attempt) => {
                let (at, result) = (Timestamp::now(), attempt.outcome.name());
                self.notes.lock().attempts.push(Attempted { at, result, said: attempt.to_string() });
                if let Some(what) = attempt.event() {
                    self.tell(&pod, what);
                }
                let now = self.now();
                let effects = self.judge.evicted(now, id, attempt.ended(now));
                self.carry_out(effects);
                if let Outcome::Done(evicted) = attempt.outcome {
                    let responder = Arc::clone(&self.responder);
                    self.ended.spawn(async move { Ended::Replaced(pod, responder.await_replacement(&evicted).await) });
                }
            }
            Ended::Replaced(pod, Replacement::Ready { name, .. }) => {
                self.tell(&pod, What::Replaced { how: format!("pod {name} has taken its place") });
            }
            Ended::Replaced(..) => {}
        }
    }
}
