//! Wires the tasks together, and knows which of them may fail.

use std::{future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{sync::watch, time};
use tracing::{info, warn};

use crate::{
    config::Config,
    guard::Guard,
    http::{self, Shared, Socket},
    kernel::{events::KernelEvents, kill_switch::KillSwitch, meters::Meters, pins::Pins, probe},
    kill_switch::Gauge,
    metrics::Metrics,
    node::{
        hierarchy,
        tree::{self, Watched},
    },
    snapshot::Snapshot,
};

/// The time between two walks of the tree, which repair what was lost.
const WALK: Duration = Duration::from_secs(30);

/// The time between two looks at the meters of removed cgroups.
const SETTLE: Duration = Duration::from_millis(100);

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
    /// Show the programs' diagnostics.
    pub log_kernel: bool,
}

/// Runs the agent until `shutdown` is done. An error means that it could not start, or that it could no longer tell
/// the truth.
pub async fn run(options: Options, config: Config, shutdown: impl Future<Output = ()>) -> Result<()> {
    probe::privileges()?;
    let root = hierarchy::cgroup_root(options.cgroup_root.as_deref())?;
    probe::features()?;
    raise_file_limit(config.meters.max)?;
    let listener = http::listen(options.listen).await?;
    let mut socket = Socket::open(&options.socket)?;

    let pods_root = match &options.pods_root {
        Some(path) => Some(tree::relative(&root, path).with_context(|| {
            format!("--pods-root {} does not lie in the cgroup v2 hierarchy at {}", path.display(), root.display())
        })?),
        None => None,
    };
    let watched = Watched { root, pods_root, extra: config.meters.extra.clone() };
    let pins = Pins::open(&options.bpffs)?;
    // Before the programs: they take over what is pinned without a look at what it is.
    let kill_switch = Arc::new(KillSwitch::open(&options.bpffs, None)?);

    let (snapshots, latest) = watch::channel(Arc::new(Snapshot::default()));
    let (ready, is_ready) = watch::channel(false);
    let metrics = Arc::new(Metrics::new(latest.clone())?);
    metrics.register(Box::new(Gauge::new(Arc::clone(&kill_switch))?))?;
    let stale_after = (config.sample.interval * 5).max(Duration::from_secs(10));
    let shared = Shared { metrics: Arc::clone(&metrics), snapshots: latest, ready: is_ready, stale_after };
    let mut public = tokio::spawn(http::serve(listener, http::public(shared.clone())));
    let private = socket.take().context("a new socket has its listener")?;
    let mut private = tokio::spawn(http::serve(private, http::private(shared).merge(http::orders(kill_switch))));

    for replaced in pins.prepare(config.meters.max + 1)? {
        warn!("replaced {replaced}: all totals start from nothing");
    }
    let mut kernel = Meters::load(pins, &config.destinations.cluster, config.meters.max, options.log_kernel)?;
    if options.log_kernel {
        tokio::spawn(kernel.log()?.run());
    }
    // Before the first walk, so that no cgroup is missed between the two.
    let events = kernel.events()?;
    let mut guard = Guard::new(kernel, watched, config.meters.max, metrics, snapshots)?;
    guard.try_walk()?;
    guard.say_if_idle();
    guard.sample()?;
    ready.send_replace(true);
    info!(listen = %options.listen, socket = %options.socket.display(), "ready");

    tokio::select! {
        result = watch_node(&mut guard, events, config.sample.interval) => result,
        result = &mut public => bail!("the metrics port is no longer served: {result:?}"),
        result = &mut private => bail!("the socket is no longer served: {result:?}"),
        () = shutdown => {
            info!("stopping; the meters go on counting");
            Ok(())
        }
    }
}

/// The guard's life: it ends only with an error.
async fn watch_node(guard: &mut Guard, mut events: KernelEvents, interval: Duration) -> Result<()> {
    let every = |period: Duration| {
        let mut timer = time::interval_at(time::Instant::now() + period, period);
        timer.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        timer
    };
    let (mut sample, mut walk, mut settle) = (every(interval), every(WALK), every(SETTLE));
    loop {
        tokio::select! {
            biased;
            happened = events.next() => happened.into_iter().try_for_each(|event| guard.on_event(event))?,
            _ = sample.tick() => guard.sample()?,
            _ = settle.tick(), if guard.is_draining() => guard.settle()?,
            _ = walk.tick() => guard.walk()?,
            // When nothing else is to be done.
            Some(slot) = std::future::ready(guard.missing_spare()) => guard.load_spare(slot),
        }
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
