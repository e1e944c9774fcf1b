//! How long it takes from the packet that crosses a limit to the breach in the agent's log, seen from outside.

use std::{
    fs::File,
    io::Read as _,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    agent::Setup,
    net::{EXTERNAL_V4, Wires},
    pods::{Container, Pods},
    process::Traffic,
    world::World,
};
use serde::Serialize;

use super::{judge, table};

const BREACHES: u32 = 300;

/// Each container's first packet beyond 100 KB is refused, so that its sender knows which one it was.
const CONFIG: &str = "
mode: contain
storm: {workloads: 1000, per: 10s}
policies:
  - name: small
    match: {}
    egress: {rate: 1KB/s, burst: 100KB}
    onBreach: {contain: {block: true, for: 10m}}
";

/// The time between two looks at the log.
const LOOK: Duration = Duration::from_micros(100);

#[derive(Serialize)]
pub(crate) struct Report {
    seen_millis: Quantiles,
    stamped_millis: Quantiles,
    agents_own_mean_millis: f64,
    agents_own_within_10_ms: f64,
}

#[derive(Serialize)]
struct Quantiles {
    p50: f64,
    p90: f64,
    p99: f64,
    most: f64,
}

pub(crate) fn run() -> Result<Report> {
    let (wires, pods) = (Wires::new()?, Pods::new()?);
    let mut setup = Setup::new(&pods, CONFIG)?;
    setup.set("--log-format", "json");
    let world = World { agent: Some(setup.start()?), setup, pods, wires };
    let _sink = world.sink()?;
    let mut log = Log { file: File::open(world.setup.log())?, text: String::new() };
    let (mut seen, mut stamped) = (Vec::new(), Vec::new());
    for n in 0..BREACHES {
        let container = world.container(n, 1)?;
        let (in_file, in_line) = breach(&world, &container, &mut log)?;
        seen.push(in_file);
        stamped.push(in_line);
    }
    let metrics = world.agent().scrape()?;
    let own = |series: &str| metrics.0.get(&format!("egress_guard_breach_seconds{series}")).copied().unwrap_or(0.0);
    let count = own("_count");
    ensure!(count as u32 == BREACHES, "the agent says that it said {count} breaches instead of {BREACHES}");
    let report = Report {
        seen_millis: Quantiles::of(seen),
        stamped_millis: Quantiles::of(stamped),
        agents_own_mean_millis: 1e3 * own("_sum") / count,
        agents_own_within_10_ms: own("_bucket{le=\"0.01\"}") / count,
    };
    report.print();
    Ok(report)
}

impl Report {
    fn print(&self) {
        let Self { seen_millis, stamped_millis, agents_own_mean_millis, agents_own_within_10_ms } = self;
        let rows = [("the line is in the log", seen_millis), ("the line's own time", stamped_millis)];
        let cells = rows.map(|(name, Quantiles { p50, p90, p99, most })| {
            let figures = [p50, p90, p99, most].map(|millis| format!("{millis:.2} ms"));
            std::iter::once(name.to_owned()).chain(figures).collect()
        });
        table(&["from the packet that crosses until", "p50", "p90", "p99", "most"], cells);
        println!(
            "the agent's own figures of {BREACHES} breaches: mean {agents_own_mean_millis:.2} ms, {:.1} % within 10 ms",
            100.0 * agents_own_within_10_ms
        );
        judge("packet to breach in the log, p99,", seen_millis.p99, 10.0, "ms");
        println!();
    }
}

/// Has a container cross its limit; returns the milliseconds until its breach was found in the log, and until the time
/// that the line says.
fn breach(world: &World, container: &Container, log: &mut Log) -> Result<(f64, f64)> {
    let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 972 --count 1000 --stamp");
    let mut sender = Traffic::start(&world.wires.node, Some(container), &send)?;
    let (seen, line) = log.breach_of(container)?;
    let crossed = sender.line()?.parse::<u64>().context("no packet was refused")?;
    let crossed = SystemTime::UNIX_EPOCH + Duration::from_nanos(crossed);
    let stamp = line["timestamp"].as_str().context("a line without its time")?;
    let stamp = humantime::parse_rfc3339(stamp).with_context(|| format!("the time {stamp}"))?;
    let millis = |at: SystemTime| anyhow::Ok(at.duration_since(crossed)?.as_secs_f64() * 1e3);
    Ok((millis(seen)?, millis(stamp)?))
}

/// The agent's log.
struct Log {
    file: File,
    /// What was read of it and is not yet a line.
    text: String,
}

impl Log {
    /// Waits for the breach of a container; returns when it was found, and its line.
    fn breach_of(&mut self, container: &Container) -> Result<(SystemTime, serde_json::Value)> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            self.file.read_to_string(&mut self.text)?;
            let now = SystemTime::now();
            while let Some(end) = self.text.find('\n') {
                let line: serde_json::Value = serde_json::from_str(&self.text[..end])?;
                self.text.drain(..=end);
                let fields = &line["fields"];
                if fields["message"] == "breach" && fields["container"] == container.label() {
                    return Ok((now, line));
                }
            }
            thread::sleep(LOOK);
        }
        anyhow::bail!("the agent said nothing of {}'s breach for 10 s", container.label());
    }
}

impl Quantiles {
    fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let at = |part: f64| figures[((figures.len() as f64 * part).ceil() as usize).clamp(1, figures.len()) - 1];
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), most: at(1.0) }
    }
}
