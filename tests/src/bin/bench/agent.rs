//! What the agent costs with many containers, and how fast it meters a new one.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    agent::{Agent, Setup},
    net::{Wires, run as command},
    pods::Pods,
    process::Traffic,
};
use serde::Serialize;

use super::{judge, table};

/// The time between two scrapes, as Prometheus is often set up.
const SCRAPE: Duration = Duration::from_secs(15);

/// What an operator might ask for: all kinds of limits, for all containers.
const CONFIG: &str = "
mode: contain
policies:
  - name: default
    match: {}
    egress:
      rate: 50MiB/s
      burst: 500MiB
      quota: {bytes: 20GiB, per: 1h}
      baseline: {factor: 100, floor: 1MiB/s, learn: 1h}
    ingress: {rate: 200MiB/s}
    onBreach:
      contain: {throttle: 1MiB/s, for: 10m}
";

#[derive(Serialize)]
pub(crate) struct Row {
    containers: u32,
    interfaces: u32,
    cpu_percent_of_a_core: f64,
    rss_mib: f64,
    start_seconds: f64,
    sample_micros: f64,
}

#[derive(Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
    attached: u64,
    attach_micros_mean: f64,
    attach_within_10_ms: f64,
}

pub(crate) fn run(seconds: u64) -> Result<Report> {
    let cases = [(10, false), (250, false), (250, true), (1000, false)];
    let rows = cases.into_iter().map(|(containers, peopled)| loaded(containers, peopled, seconds));
    let rows = rows.collect::<Result<Vec<_>>>()?;
    let cells = |row: &Row| {
        vec![
            row.containers.to_string(),
            row.interfaces.to_string(),
            format!("{:.2} %", row.cpu_percent_of_a_core),
            format!("{:.1} MiB", row.rss_mib),
            format!("{:.0} us", row.sample_micros),
            format!("{:.2} s", row.start_seconds),
        ]
    };
    table(&["containers", "interfaces", "CPU of a core", "RSS", "a sample", "start"], rows.iter().map(cells));
    for row in rows.iter().filter(|row| row.containers == 250) {
        let what = format!("at 250 containers with {} interfaces", row.interfaces);
        judge(&format!("CPU {what}"), row.cpu_percent_of_a_core, 0.3, "% of a core");
        judge(&format!("RSS {what}"), row.rss_mib, 20.0, "MiB");
    }
    attach(rows)
}

/// The agent with a sample each second, a scrape each [`SCRAPE`] and [`CONFIG`]. `peopled`: each container has a process, and
/// each pod an interface, which is compared with the meters; otherwise they are empty cgroups.
fn loaded(containers: u32, peopled: bool, seconds: u64) -> Result<Row> {
    let (wires, pods) = (Wires::new()?, Pods::new()?);
    let node = Traffic::shell(&wires.world, None, "exec sleep infinity")?;
    let mut processes: Vec<Traffic> = Vec::new();
    for n in 0..containers {
        let (pod, nth) = (n / 2, n % 2);
        let container = pods.container(pod, nth)?;
        if !peopled {
            continue;
        }
        let network = match processes.last() {
            Some(first) if nth == 1 => format!("nsenter --net=/proc/{}/ns/net", first.pid()),
            _ => "unshare --net".to_owned(),
        };
        let script = format!("exec {network} sh -c 'echo there; exec sleep infinity'");
        let mut process = Traffic::shell(&wires.node, Some(&container), &script)?;
        process.line()?;
        if nth == 0 {
            let (node, pod_process) = (&wires.world.name, process.pid());
            command(&format!("ip -n {node} link add pod{pod} type veth peer name eth0 netns {pod_process}"))?;
        }
        processes.push(process);
    }
    let mut setup = Setup::new(&pods, CONFIG)?;
    setup.set("--node-process", node.pid().to_string());
    let start = Instant::now();
    let agent = setup.start()?;
    let start_seconds = start.elapsed().as_secs_f64();
    agent.get("/metrics")?;
    thread::sleep(Duration::from_secs(2));
    let watched =
        agent.metrics()?.0.into_iter().filter(|(series, _)| series.starts_with("egress_guard_bypass_watched{"));
    let interfaces = watched.map(|(_, value)| value as u32).sum();
    ensure!(interfaces == if peopled { containers / 2 } else { 0 }, "{interfaces} interfaces are watched");
    let sampled = |agent: &Agent| -> Result<(f64, f64)> {
        let metrics = agent.metrics()?;
        let of = |name: &str| metrics.0.get(name).copied().with_context(|| format!("no {name}"));
        Ok((of("egress_guard_sample_seconds_sum")?, of("egress_guard_sample_seconds_count")?))
    };
    let before = sampled(&agent)?;
    let (cpu, watched) = (cpu_nanos(agent.pid())?, Instant::now());
    while watched.elapsed() < Duration::from_secs(seconds) {
        thread::sleep(SCRAPE.min(Duration::from_secs(seconds).saturating_sub(watched.elapsed())));
        agent.get("/metrics")?;
    }
    let (cpu, watched) = (cpu_nanos(agent.pid())? - cpu, watched.elapsed());
    let after = sampled(&agent)?;
    Ok(Row {
        containers,
        interfaces,
        cpu_percent_of_a_core: 100.0 * cpu as f64 / watched.as_nanos() as f64,
        rss_mib: rss_mib(agent.pid())?,
        start_seconds,
        sample_micros: 1e6 * (after.0 - before.0) / (after.1 - before.1),
    })
}

/// New containers, one after the other, on a machine that does nothing else.
fn attach(rows: Vec<Row>) -> Result<Report> {
    let pods = Pods::new()?;
    let setup = Setup::new(&pods, CONFIG)?;
    let agent = setup.start()?;
    for n in 0..300 {
        pods.container(n, 1)?;
        thread::sleep(Duration::from_millis(10));
    }
    let metrics = agent.metrics()?;
    let of = |series: &str| metrics.0.get(&format!("egress_guard_attach_seconds{series}")).copied().unwrap_or(0.0);
    let (count, within) = (of("_count"), of("_bucket{le=\"0.01\"}"));
    let report = Report {
        rows,
        attached: count as u64,
        attach_micros_mean: 1e6 * of("_sum") / count,
        attach_within_10_ms: within / count,
    };
    println!(
        "mkdir to attached: {} containers, mean {:.0} us, {:.1} % within 10 ms, {:.1} % within 4 ms",
        report.attached,
        report.attach_micros_mean,
        100.0 * report.attach_within_10_ms,
        100.0 * of("_bucket{le=\"0.004\"}") / count,
    );
    judge("containers not attached within 10 ms", 100.0 * (count - within) / count, 1.0, "%");
    Ok(report)
}

/// Time on a CPU of all threads, in nanoseconds (`/proc/<pid>/task/<tid>/schedstat`).
fn cpu_nanos(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += stat.split(' ').next().context("no schedstat")?.parse::<u64>()?;
    }
    Ok(sum)
}

fn rss_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
