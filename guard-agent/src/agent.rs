//! Wires the tasks together, and knows which of them may fail.

use std::{
    future::Future,
    mem,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use guard_cluster::connect::{Clients, Identity};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    sync::{mpsc, watch},
    time,
};
use tracing::{error, info, warn};

use crate::{
    alerts::Alerts,
    breaches::Breaches,
    config::{Config, ConfigError},
    core::fleet::{Ruling, Switch},
    fleet::{self, Fleet, Heard},
    guard::{
        Guard, Parts,
        commands::{self, Command},
        hammer::{Arm, Hammer, Struck},
        keep::Keeper,
        voice::Voice,
    },
    http::{self, Shared, Socket},
    kernel::{events::KernelEvents, kill_switch::KillSwitch, meters::Meters, pins::Pins, probe},
    kill_switch::{Gauge, View},
    metrics::Metrics,
    node::{
        hierarchy,
        tree::{self, Watched},
    },
    orchestrator::{Orchestrator, cluster::Cluster, local::Local},
    reload::Reload,
    snapshot::Snapshot,
    watching::{self, Watching},
    webhook::Webhook,
};

/// The time between two walks of the tree, which repair what was lost.
const WALK: Duration = Duration::from_secs(30);

/// The time between two looks at the meters of removed cgroups.
const SETTLE: Duration = Duration::from_millis(100);

/// The time between two looks at the kill switch, and at the tree if events said too little. What is contained is let go by the programs themselves, at once.
const LOOK: Duration = Duration::from_millis(100);

/// The time between two renewals of the containments in force, whatever the interval of samples.
const RENEW: Duration = Duration::from_secs(1);

/// The time between two tellings of a breach that lasts. What was told longer ago is no longer counted in the same Event (kube's
/// recorder: 6 minutes).
const TELL_AGAIN: Duration = Duration::from_mins(5);

/// The time between two writes of the state file.
const KEEP: Duration = Duration::from_mins(1);

/// Descriptors that the agent needs beside those of the meters: connections above all.
const OTHER_FILES: u64 = 256;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The root of the cgroup v2 hierarchy, if it is not to be found.
    pub cgroup_root: Option<PathBuf>,
    /// The pods' root, if it is not to be found.
    pub pods_root: Option<PathBuf>,
    /// The pins' folder.
    pub bpffs: PathBuf,
    /// Where metrics are served.
    pub listen: SocketAddr,
    /// Where everything else is served.
    pub socket: PathBuf,
    /// Where the state file is.
    pub state_dir: PathBuf,
    /// Who starts containers afresh.
    pub orchestrator: Orchestrator,
    /// Which node this is, and which pod of it the agent.
    pub identity: Identity,
    /// The configuration file.
    pub config: PathBuf,
    /// It was asked for, so it must be there.
    pub config_asked: bool,
    /// A process whose network namespace is the node's.
    pub node_process: u32,
    /// Show the programs' diagnostics.
    pub log_kernel: bool,
}

/// Runs the agent until `shutdown` is done. An error means that it could not start, or that it could no longer tell
/// the truth.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<()> {
    let (config, reload) = Reload::open(&options.config, options.config_asked)?;
    probe::privileges()?;
    let root = hierarchy::cgroup_root(options.cgroup_root.as_deref())?;
    probe::features()?;
    raise_file_limit(config.meters.max)?;
    let listener = http::listen(options.listen).await?;
    let mut socket = Socket::open(&options.socket)?;

    let pods_root = pods_root(&options, &root)?;
    let clients = options.orchestrator.clients().await?;
    let watched = Watched { root: root.clone(), pods_root, extra: config.meters.extra.clone() };
    let (state_file, mut remembered) = Keeper::open(&options.state_dir)?;
    let pins = Pins::open(&options.bpffs)?;
    // Before the programs: they take over what is pinned without a look at what it is.
    let engaged = remembered.as_ref().map(|remembered| remembered.kept.engaged()).unwrap_or_default();
    let kill_switch = Arc::new(KillSwitch::open(&options.bpffs, &engaged)?);

    let (snapshots, latest) = watch::channel(Arc::new(Snapshot::default()));
    let (ready, is_ready) = watch::channel(false);
    let metrics = Arc::new(Metrics::new(latest.clone())?);
    metrics.register(Box::new(Gauge::new(Arc::clone(&kill_switch))?))?;
    let stale_after = (config.sample.interval * 5).max(Duration::from_secs(10));
    let breaches = Breaches::default();
    let shared = Shared {
        metrics: Arc::clone(&metrics),
        snapshots: latest.clone(),
        breaches: breaches.clone(),
        ready: is_ready,
        config: reload.status(),
        stale_after,
    };
    let (commands, asked) = commands::channel();
    let mut public = tokio::spawn(http::serve(listener, http::public(shared.clone())));
    let private = socket.take().context("a new socket has its listener")?;
    let orders = http::orders(Arc::clone(&kill_switch), commands);
    let mut private = tokio::spawn(http::serve(private, http::private(shared).merge(orders)));

    for replaced in pins.prepare(config.meters.max + 1)? {
        warn!("replaced {replaced}: all totals start from nothing");
    }
    let mut kernel = Meters::load(pins, &config.destinations.cluster, config.meters.max, options.log_kernel)?;
    if options.log_kernel {
        tokio::spawn(kernel.log()?.run());
    }
    // Before the first walk, so that no cgroup is missed between the two.
    let events = kernel.events()?;
    let arm = arm(&options, clients.as_ref(), root)?;
    for collector in arm.collectors() {
        metrics.register(collector)?;
    }
    let (hammer, struck) = Hammer::new(arm, Arc::clone(&kill_switch), latest);
    let webhook = Webhook::new()?;
    webhook.collectors().into_iter().try_for_each(|collector| metrics.register(collector))?;
    let kill_switch = View::new(kill_switch);
    kill_switch.set_file(config.kill_switch, &options.config)?;
    let mut voice = Voice::new(breaches, options.identity.node.clone());
    voice.tell_pods(clients.as_ref(), &options.identity, &metrics)?;
    let keeper = state_file.keep(Arc::clone(&metrics));
    let known = remembered.as_mut().map(|remembered| mem::take(&mut remembered.kept.pods));
    let (roster, mut pods) = watching::begin(clients.as_ref(), &options.identity, known.unwrap_or_default(), &metrics)?;
    let mut fleet = fleet::begin(clients.as_ref(), &options.identity, &options.config, &metrics)?;
    let protected = fleet.heard().rule(None).nothing;
    let parts = Parts {
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
        node_process: options.node_process,
    };
    let mut guard = Guard::new(parts, &config)?;
    settle_in(&mut guard, &mut pods).await?;
    ready.send_replace(true);
    info!(listen = %options.listen, socket = %options.socket.display(), mode = %config.policies.mode, "ready");

    let mut life = Life { guard, config, reload, alerts: Alerts::new(webhook), pods, fleet, engaged_by: None };
    life.tell();
    let result = tokio::select! {
        result = life.lead(events, struck, asked) => result,
        result = &mut public => bail!("the metrics port is no longer served: {result:?}"),
        result = &mut private => bail!("the socket is no longer served: {result:?}"),
        () = shutdown => {
            info!("stopping; the meters go on counting");
            Ok(())
        }
    };
    life.guard.keep_and_wait();
    result
}

/// The pods' root that was asked for, from the hierarchy's root.
fn pods_root(options: &Options, root: &Path) -> Result<Option<String>> {
    let Some(path) = &options.pods_root else { return Ok(None) };
    let relative = tree::relative(root, path).with_context(|| {
        format!("--pods-root {} does not lie in the cgroup v2 hierarchy at {}", path.display(), root.display())
    })?;
    Ok(Some(relative))
}

/// Meters all that is there, and shows it.
async fn settle_in(guard: &mut Guard, pods: &mut Watching) -> Result<()> {
    guard.try_walk()?;
    // All is metered and held; only what is shown waits a little, so that it begins with the pods' names.
    guard.renew();
    if guard.has_strangers()
        && let Some(told) = pods.first().await
    {
        guard.on_pods(told)?;
    }
    guard.settled_in();
    guard.say_if_idle();
    guard.sample()?;
    // A state folder that cannot be written to is said at once.
    drop(guard.keep_now());
    Ok(())
}

/// Who starts afresh what is evicted.
fn arm(options: &Options, clients: Option<&Clients>, root: PathBuf) -> Result<Arm> {
    Ok(match (options.orchestrator, clients) {
        (Orchestrator::Local, _) => Arm::Local(Local::new(root)?),
        (Orchestrator::Kubernetes, Some(clients)) => Arm::Cluster(Cluster::new(clients, &options.identity)?),
        (Orchestrator::None | Orchestrator::Kubernetes, _) => Arm::Nobody,
    })
}

/// What a running agent works on.
struct Life {
    guard: Guard,
    config: Config,
    reload: Reload,
    alerts: Alerts,
    pods: Watching,
    fleet: Fleet,
    /// Who was said last to engage the kill switch for the cluster, by this agent.
    engaged_by: Option<String>,
}

impl Life {
    /// The guard's life: it ends only with an error.
    async fn lead(
        &mut self,
        mut events: KernelEvents,
        mut struck: mpsc::UnboundedReceiver<Struck>,
        mut asked: mpsc::Receiver<Command>,
    ) -> Result<()> {
        let every = |period: Duration| {
            let mut timer = time::interval_at(time::Instant::now() + period, period);
            timer.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
            timer
        };
        let (mut sample, mut walk) = (every(self.config.sample.interval), every(WALK));
        let (mut settle, mut look, mut keep) = (every(SETTLE), every(LOOK), every(KEEP));
        let (mut renew, mut tell_again) = (every(RENEW), every(TELL_AGAIN));
        loop {
            let Self { guard, reload, pods, fleet, .. } = self;
            tokio::select! {
                biased;
                happened = events.next() => happened.into_iter().try_for_each(|event| guard.on_event(event))?,
                _ = look.tick() => guard.look()?,
                heard = fleet.changed() => self.hear(&heard?)?,
                _ = renew.tick() => guard.renew(),
                Some(command) = asked.recv() => guard.command(command),
                Some(struck) = struck.recv() => guard.struck(struck),
                told = pods.changed() => guard.on_pods(told?)?,
                _ = sample.tick() => guard.sample()?,
                _ = settle.tick(), if guard.is_draining() => guard.settle()?,
                changed = reload.changed() => self.take(changed)?,
                _ = walk.tick() => guard.walk()?,
                _ = keep.tick() => drop(guard.keep_now()),
                _ = tell_again.tick() => guard.tell_again(),
                // When nothing else is to be done.
                Some(slot) = std::future::ready(guard.missing_spare()) => guard.load_spare(slot),
            }
        }
    }

    /// Another configuration, or why it is refused.
    fn take(&mut self, changed: Result<Config, ConfigError>) -> Result<()> {
        let metrics = self.guard.metrics();
        metrics.config_ok.set(i64::from(changed.is_ok()));
        let config = match changed {
            Ok(config) => config,
            Err(error) => {
                metrics.config_refused.inc();
                error!("the configuration is refused, and the one before stays in force: {error}");
                return Ok(());
            }
        };
        let restart = self.config.needs_restart(&config);
        let later =
            if restart.is_empty() { String::new() } else { format!("; at the next start: {}", restart.join(", ")) };
        info!(mode = %config.policies.mode, "the configuration has changed and is in force{later}");
        self.config = config;
        self.tell();
        // What stops goes first, and what lets go on goes last: nothing is done by policies that hold no longer.
        let Self { guard, config, reload, .. } = self;
        if config.kill_switch {
            guard.kill_switch_in_file(true, reload.source())?;
            guard.reload(config);
        } else {
            guard.reload(config);
            guard.kill_switch_in_file(false, reload.source())?;
        }
        Ok(())
    }

    /// Takes over what is said for the whole fleet, in the same order.
    fn hear(&mut self, heard: &Heard) -> Result<()> {
        let engaged = self.guard.kill_switch_of_cluster()?;
        let Ruling { switch, nothing } = heard.rule(engaged.as_ref().map(|engaged| engaged.since));
        if let Switch::Engaged(who) = &switch
            && (engaged.is_none() || self.engaged_by.as_ref() != Some(who))
        {
            self.guard.kill_switch_in_cluster(Some(who))?;
            self.engaged_by = Some(who.clone());
        }
        if nothing.is_some() {
            self.guard.protect(nothing.clone());
        }
        if let Some(changed) = self.reload.told(heard.config()) {
            self.take(changed)?;
        }
        if switch == Switch::Released && engaged.is_some() {
            self.guard.kill_switch_in_cluster(None)?;
        }
        if nothing.is_none() {
            self.guard.protect(None);
        }
        Ok(())
    }

    /// Tells alerts to whom the configuration says.
    fn tell(&mut self) {
        let to = self.config.alerts.webhook.as_ref().map(ToString::to_string);
        self.guard.tell(self.alerts.send_to(to));
    }
}

/// Every meter takes two programs and two links; the usual limit of 1,024 files is too low for them.
fn raise_file_limit(meters: u32) -> Result<()> {
    let needed = (u64::from(meters) + 1) * 4 + OTHER_FILES;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if maximum.is_some_and(|maximum| maximum < needed) {
        bail!(
            "the limit of {} open files is too low for {meters} meters, which take {needed}: \
             raise it (LimitNOFILE=, ulimit -Hn) or lower meters.max",
            maximum.unwrap_or_default()
        );
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum })
        .with_context(|| format!("cannot raise the limit of open files to {needed}"))
}
