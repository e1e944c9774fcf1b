//! Three containers with real traffic; one of them starts to send a hundred times its normal.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use guard_tests::{
    net::{CLUSTER_V4, EXTERNAL_V4, Interface, NODE, run},
    pods::Container,
    process::Traffic,
    sibling,
    world::World,
};
use signal_hook::consts::{SIGINT, SIGTERM};

#[derive(Parser)]
#[command(about = "Shows a container that sends a hundred times its normal: found, held, thrown away, started afresh")]
struct Cli {
    /// Engage the kill switch before it starts: it is found and said, and nothing is done
    #[arg(long)]
    kill_switch: bool,
}

/// How long the traffic would go on by itself.
const LONG: &str = "86400";

/// What the leaky container sends normally, and what it sends when it is taken over.
const NORMAL: u64 = 40_000;
const HUNDREDFOLD: u64 = 4_000_000;

const CONFIG: &str = r#"mode: evict
sample: {interval: 250ms}
meters: {extra: ["SERVICES"]}
policies:
  - name: default
    match: {}
    egress:
      baseline: {factor: 100, floor: 1MB/s, learn: 5s}
    onBreach:
      contain: {throttle: 100KB/s, for: 10m}
      evict: {after: 6s, grace: 1s}
"#;

fn main() -> Result<()> {
    let cli = Cli::parse();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    println!("Making two network namespaces, three containers' cgroups and an agent with this configuration:\n");
    let mut world = World::new("")?;
    let config = CONFIG.replace("SERVICES", &world.pods.services());
    println!("{config}");
    // Other meters take a restart.
    drop(world.agent.take());
    world.setup.configure(&config)?;
    world.setup.set("--orchestrator", "local");
    world.agent = Some(world.setup.start()?);
    let demo = Demo { stage: Stage::new(&world)?, world: &world, stop: &stop };
    demo.play(cli.kill_switch)
}

/// The containers and what stays around them.
struct Stage {
    web: Container,
    chatty: Container,
    leaky: Container,
}

impl Stage {
    fn new(world: &World) -> Result<Self> {
        let service = |name| {
            let container = world.pods.service(name)?;
            world.agent().wait_for(&container)?;
            Ok::<_, anyhow::Error>(container)
        };
        Ok(Self { web: service("web")?, chatty: service("chatty")?, leaky: service("leaky")? })
    }
}

struct Demo<'a> {
    world: &'a World,
    stage: Stage,
    stop: &'a AtomicBool,
}

impl Demo<'_> {
    fn play(&self, kill_switch: bool) -> Result<()> {
        let Stage { web, chatty, leaky } = &self.stage;
        let containers = [web, chatty, leaky];
        let before = self.world.read(&containers)?;
        let _servers = self.serve()?;
        let senders = self.send()?;
        if kill_switch {
            self.act("The kill switch is engaged", &self.agent("kill-switch on --reason demo")?)?;
        }
        self.act("All is normal, and the agent learns what that is", "")?;
        self.watch(Duration::from_secs(8), |_| false)?;

        self.act("leaky is taken over: it sends a hundred times its normal", "")?;
        let normal = self.start(leaky, NORMAL)?;
        let attack = self.start(leaky, HUNDREDFOLD)?;
        let started = Instant::now();
        let found = |demo: &Self| demo.logged("breach ").is_some();
        ensure!(self.watch(Duration::from_secs(10), found)?, "the breach was not found");
        self.act(&format!("Found after {:.1?}", started.elapsed()), &self.logged("breach ").unwrap_or_default())?;
        if kill_switch {
            self.held_back()?;
            drop((normal, attack));
        } else {
            self.held_and_thrown_away(normal, attack)?;
        }
        // The servers stay until all has arrived: a datagram that finds no socket is on the wire and nobody's.
        drop(senders);
        let after = self.world.read(&containers)?;
        println!("\nThe traffic has stopped. The agent's final table:\n{}", self.world.agent().table()?);
        compare(after.metered - before.metered, after.wire - before.wire)
    }

    /// What the kill switch is for.
    fn held_back(&self) -> Result<()> {
        self.watch(Duration::from_secs(10), |_| false)?;
        let metrics = self.world.agent().scrape()?;
        for action in ["contain", "evict"] {
            let times = metrics.get(&format!("egress_guard_actions_total{{action=\"{action}\"}}"));
            ensure!(times == Some(0), "it was not held back: {action} {times:?} times");
        }
        self.act("Held back by the kill switch: said, and nothing done", &self.agent("kill-switch status")?)?;
        self.agent("kill-switch off").map(drop)
    }

    fn held_and_thrown_away(&self, normal: Traffic, attack: Traffic) -> Result<()> {
        let leaky = &self.stage.leaky;
        let line = self.logged(": contained ").context("it was not contained")?;
        self.act("Held: the kernel lets 100 KB of it pass each second", &line)?;
        let evicted = |demo: &Self| demo.logged("evicted").is_some();
        ensure!(self.watch(Duration::from_secs(20), evicted)?, "it was not evicted");
        self.act("Thrown away: its breach went on for 6 s", &self.logged("evicting").unwrap_or_default())?;
        // What a supervisor like systemd or podman does: the processes are gone, so the container is made anew.
        let old = leaky.cgroup_id()?;
        drop((normal, attack));
        leaky.remove()?;
        let fresh = self.world.pods.service("leaky")?;
        ensure!(fresh.cgroup_id()? != old, "the supervisor made no new cgroup");
        // Its series is the old one's: its meter is what has to be waited for.
        let metered = |demo: &Self| {
            let list = demo.world.agent().list().unwrap_or_default();
            list.iter().any(|row| fresh.cgroup_id().is_ok_and(|id| id == row.cgroup_id))
        };
        ensure!(self.watch(Duration::from_secs(5), metered)?, "the fresh container was not metered");
        let _fresh = self.start(&fresh, NORMAL)?;
        let replaced = |demo: &Self| demo.logged("has taken the place").is_some();
        ensure!(self.watch(Duration::from_secs(10), replaced)?, "the fresh container was not noticed");
        self.act("Its supervisor has started it afresh", &self.logged("has taken the place").unwrap_or_default())?;
        self.watch(Duration::from_secs(4), |_| false)?;
        let list = self.world.agent().list()?;
        let row =
            list.iter().find(|row| row.container == fresh.label()).context("the fresh container is not listed")?;
        ensure!(
            !row.standing.breached && !row.standing.contained && row.dropped_bytes == 0,
            "it is not clean: {row:?}"
        );
        Ok(())
    }

    /// A web-like container answers requests; the database and the world outside take what they get.
    fn serve(&self) -> Result<[Traffic; 3]> {
        let (node, outside) = (&self.world.wires.node, &self.world.wires.world);
        Ok([
            Traffic::serve(node, Some(&self.stage.web), &format!("udp-echo --bind {}:8080", NODE[1]))?,
            Traffic::serve(outside, None, &format!("udp-sink --bind {CLUSTER_V4}:5432"))?,
            Traffic::serve(outside, None, &format!("udp-sink --bind {EXTERNAL_V4}:443"))?,
        ])
    }

    /// Requests to the web-like container, a chatty container, and one that will leak.
    fn send(&self) -> Result<Vec<Traffic>> {
        let (node, outside) = (&self.world.wires.node, &self.world.wires.world);
        let web = format!("udp-send --to {}:8080 --sizes 120,900,300 --rate 15000 --seconds {LONG}", NODE[1]);
        let chatty = format!("udp-send --to {CLUSTER_V4}:5432 --sizes 60,200,1000 --rate 40000 --seconds {LONG}");
        Ok(vec![
            Traffic::start(outside, None, &web)?,
            Traffic::start(node, Some(&self.stage.chatty), &chatty)?,
            self.start(&self.stage.leaky, NORMAL)?,
        ])
    }

    fn start(&self, container: &Container, rate: u64) -> Result<Traffic> {
        let send = format!("udp-send --to {EXTERNAL_V4}:443 --sizes 1200 --rate {rate} --seconds {LONG}");
        Traffic::start(&self.world.wires.node, Some(container), &send)
    }

    /// Says what happens now.
    fn act(&self, title: &str, said: &str) -> Result<()> {
        println!("\n== {title}\n{}", said.trim());
        std::io::stdout().flush()?;
        ensure!(!self.stop.load(Ordering::Relaxed), "stopped");
        Ok(())
    }

    /// Shows the table each second until something holds, or the time is over; whether it holds.
    fn watch(&self, limit: Duration, holds: impl Fn(&Self) -> bool) -> Result<bool> {
        let (start, mut shown) = (Instant::now(), Instant::now());
        while start.elapsed() < limit {
            if self.stop.load(Ordering::Relaxed) {
                bail!("stopped");
            }
            if holds(self) {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(20));
            if shown.elapsed() >= Duration::from_secs(1) {
                shown = Instant::now();
                println!("{}\n", self.world.agent().table()?);
            }
        }
        Ok(false)
    }

    /// The last line of the agent's log with this text.
    fn logged(&self, text: &str) -> Option<String> {
        let log = self.world.agent().log().ok()?;
        log.lines().rfind(|line| line.contains(text)).map(str::to_owned)
    }

    fn agent(&self, verb: &str) -> Result<String> {
        let agent = sibling("guard-agent")?;
        let (bpffs, socket) = (&self.world.setup.bpffs, self.world.agent().socket());
        run(&format!("{} {verb} --bpffs {} --socket {}", agent.display(), bpffs.display(), socket.display()))
    }
}

/// Prints the agent's figures beside the interface's; they must be equal.
fn compare(agent: Interface, interface: Interface) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["WIRE BYTES (IP)", "EGRESS BYTES", "PACKETS", "INGRESS BYTES", "PACKETS"]);
    for (name, figures) in [("interface", interface), ("agent", agent)] {
        let Interface { tx, rx, dropped: _ } = figures;
        let figures = [tx.bytes, tx.packets, rx.bytes, rx.packets].map(|figure| figure.to_string());
        table.add_row(std::iter::once(name.to_owned()).chain(figures));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("\n{table}\n");
    if agent != interface {
        bail!("the agent's figures are not the interface's");
    }
    println!("Equal to the byte.");
    Ok(())
}
