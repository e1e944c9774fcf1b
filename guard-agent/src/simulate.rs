//! `guard-agent simulate`: what limits would have said and done to the samples of a trace.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use comfy_table::{CellAlignment, Table, presets};

use crate::{
    breaches::Time,
    client::{bytes, printable},
    config::Config,
    core::{
        breach::Limit,
        budget::{Alarm, Refused},
        identity::Labels,
        judge::Settings,
        policy::{Containment, Mode},
        replay::{Breached, Container, Deed, Replay, Report},
        trace::Reader,
        verdict::{Refusal, Release},
        watch::Closing,
    },
};

mod json;

pub use json::json;

/// What came of a trace under a configuration.
#[derive(Debug)]
pub struct Simulated {
    /// All that would have happened.
    pub report: Report,
    /// Why the trace was not used to its end, if it was not.
    pub notice: Option<String>,
}

/// Replays a trace. One that breaks off or is damaged is used up to there.
pub fn run(trace: &Path, config: &Config) -> Result<Simulated> {
    let file = trace.display();
    let bytes = fs::read(trace)
        .with_context(|| format!("cannot read the trace {file} (`guard-agent record --output FILE` makes one)"))?;
    let mut reader = Reader::new(&bytes).with_context(|| file.to_string())?;
    let mut replay = Replay::new(reader.header(), Settings::from(config), config.kill_switch);
    let mut notice = None;
    for record in reader.by_ref() {
        match record {
            Ok(record) => replay.take(record),
            Err(damaged) => notice = Some(format!("{file}: {damaged}, and the rest is left out")),
        }
    }
    let notice = notice.or_else(|| reader.truncated().map(|cut| format!("{file}: {cut}")));
    let report = replay.finish();
    if report.span.is_none() {
        bail!("{file} has no sample{}: record for longer", notice.map(|why| format!(" ({why})")).unwrap_or_default());
    }
    Ok(Simulated { report, notice })
}

/// What came of it, for a terminal.
pub fn text(report: &Report, config: &Config) -> String {
    let mut said = String::new();
    if !report.breaches.is_empty() {
        said = format!("{}\n\n", breaches(report));
    }
    let mut line = |line: fmt::Arguments<'_>| {
        said.push_str(&line.to_string());
        said.push('\n');
    };
    if let Some((first, last)) = report.span {
        let length = humantime::format_duration(length(first, last));
        let (samples, containers) = (report.samples, report.containers.len());
        let (from, to) = (seconds(report, first), seconds(report, last));
        line(format_args!("{samples} samples of {containers} containers over {length}, {from} to {to}"));
    }
    line(format_args!("{}", acting(config)));
    line(format_args!("\n{}\n", policies(report, config)));
    for ((what, why), times) in declined(report) {
        line(format_args!("not {what} ({times}): {why}"));
    }
    for (at, alarm) in &report.alarms {
        let at = seconds(report, *at);
        match alarm {
            Alarm::Storm { workloads, .. } => {
                line(format_args!("{at}: storm, {workloads} workloads breach; from here on nothing is evicted"));
            }
            Alarm::NotCured { workload } => {
                line(format_args!("{at}: {workload} breaches again after its evictions; it is not evicted any more"));
            }
            Alarm::Calm => line(format_args!("{at}: the storm is over")),
        }
    }
    let unlearned = report.containers.iter().filter(|container| container.unlearned).count();
    if unlearned > 0 {
        line(format_args!(
            "containers that never had a baseline ({unlearned}): the trace does not watch their workloads for as long as \
             their policy's `learn`"
        ));
    }
    said
}

/// What may be done at all.
fn acting(config: &Config) -> String {
    match config.policies.mode {
        _ if config.kill_switch => "killSwitch is true: nothing would have been contained or evicted".to_owned(),
        Mode::Observe => {
            "mode observe: nothing would have been contained or evicted; see what would with --mode contain \
                          or --mode evict"
                .to_owned()
        }
        mode => format!("mode {mode}"),
    }
}

fn table<const N: usize>(header: [&str; N], right: std::ops::Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for column in table.column_iter_mut().take(right.end).skip(right.start) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn breaches(report: &Report) -> Table {
    let header = ["OPENED", "CLOSED", "CONTAINER", "POLICY", "LIMIT", "FIGURE", "ALLOWED", "WOULD HAVE BEEN DONE"];
    let mut table = table(header, 5..7);
    for Breached { container, policy, breach, closed, deeds } in &report.breaches {
        let after = |at: u64| match length(breach.since, at) {
            Duration::ZERO => "at once".to_owned(),
            length => format!("after {}", humantime::format_duration(length)),
        };
        let closed = match closed {
            Some((at, why)) => format!("{}: {}", after(*at), closing(*why)),
            None => "still open".to_owned(),
        };
        let deeds: Vec<String> =
            deeds.iter().map(|(at, deed)| format!("{} {}", after(*at), words(*at, deed))).collect();
        table.add_row([
            seconds(report, breach.since),
            closed,
            name(&report.containers[*container].names),
            policy.clone(),
            breach.limit.to_string(),
            measured(breach.limit, breach.figure),
            measured(breach.limit, breach.allowed),
            if deeds.is_empty() { "nothing".to_owned() } else { deeds.join("\n") },
        ]);
    }
    table
}

/// The limits that a trace can say something of: it knows no interfaces, so nothing of what bypasses the meters.
const LIMITS: [Limit; 4] = [Limit::Rate, Limit::Quota, Limit::Baseline, Limit::Ingress];

/// What came of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sum {
    containers: usize,
    /// By [`LIMITS`].
    breaches: [usize; LIMITS.len()],
    contained: usize,
    evicted: usize,
    declined: usize,
    /// Bytes.
    dropped: u64,
}

/// In the order of the file; at the end, without a name, what no policy held for, if there was any.
fn sums<'a>(report: &Report, config: &'a Config) -> Vec<(Option<&'a str>, Sum)> {
    let named = config.policies.policies.iter().map(|policy| (Some(policy.name.as_str()), Sum::default()));
    let mut sums: Vec<_> = named.chain([(None, Sum::default())]).collect();
    let place = |sums: &[(Option<&str>, Sum)], policy: Option<&str>| sums.iter().position(|(name, _)| *name == policy);
    for Container { policy, totals, .. } in &report.containers {
        if let Some(place) = place(&sums, policy.as_ref().map(|policy| policy.name.as_str())) {
            sums[place].1.containers += 1;
            sums[place].1.dropped += totals.dropped();
        }
    }
    for Breached { policy, breach, deeds, .. } in &report.breaches {
        let Some(place) = place(&sums, Some(policy)) else { continue };
        let sum = &mut sums[place].1;
        if let Some(limit) = LIMITS.iter().position(|limit| *limit == breach.limit) {
            sum.breaches[limit] += 1;
        }
        for (_, deed) in deeds {
            match deed {
                Deed::Contained { .. } => sum.contained += 1,
                Deed::Released(_) => {}
                Deed::Evicted => sum.evicted += 1,
                Deed::Declined { .. } => sum.declined += 1,
            }
        }
    }
    sums.retain(|(name, sum)| name.is_some() || sum.containers > 0);
    sums
}

fn policies(report: &Report, config: &Config) -> Table {
    let limits = LIMITS.map(|limit| limit.name().to_uppercase());
    let [rate, quota, baseline, ingress] = limits.each_ref().map(String::as_str);
    let columns = ["CONTAINERS", rate, quota, baseline, ingress, "CONTAINED", "EVICTED", "DECLINED", "DROPPED"];
    let mut header = ["POLICY"; 10];
    header[1..].copy_from_slice(&columns);
    let mut table = table(header, 1..10);
    for (name, Sum { containers, breaches, contained, evicted, declined, dropped }) in sums(report, config) {
        let counts = [containers].into_iter().chain(breaches).chain([contained, evicted, declined]);
        let counts = counts.map(|count| count.to_string());
        let name = name.unwrap_or("(no policy)").to_owned();
        table.add_row([name].into_iter().chain(counts).chain([bytes(dropped as f64)]));
    }
    table
}

/// How often what was declined, and why.
fn declined(report: &Report) -> BTreeMap<(&'static str, String), usize> {
    let mut times = BTreeMap::new();
    for (_, deed) in report.breaches.iter().flat_map(|breached| &breached.deeds) {
        if let Deed::Declined { what, why } = deed {
            *times.entry((done(*what), refusal(why))).or_default() += 1;
        }
    }
    times
}

/// Namespace, pod and container, as far as they are known.
fn name(Labels { namespace, pod, container }: &Labels) -> String {
    let parts = [namespace, pod, container].into_iter().filter(|part| !part.is_empty());
    parts.map(String::as_str).map(printable).collect::<Vec<_>>().join("/")
}

fn measured(limit: Limit, figure: f64) -> String {
    let unit = if limit == Limit::Quota { "" } else { "/s" };
    format!("{}{unit}", bytes(figure))
}

fn words(at: u64, deed: &Deed) -> String {
    match deed {
        Deed::Contained { how, until } => {
            let how = match how {
                Containment::Throttle(rate) => format!("throttled to {rate}"),
                Containment::Block => "blocked".to_owned(),
            };
            format!("{how} for {}", humantime::format_duration(length(at, *until)))
        }
        Deed::Released(why) => format!("released: {}", release(*why)),
        Deed::Evicted => "evicted".to_owned(),
        Deed::Declined { what, why } => format!("not {}: {}", done(*what), refusal(why)),
    }
}

const fn done(what: Mode) -> &'static str {
    match what {
        Mode::Observe => "observed",
        Mode::Contain => "contained",
        Mode::Evict => "evicted",
    }
}

const fn release(why: Release) -> &'static str {
    match why {
        Release::KillSwitch => "killSwitch is true",
        Release::Operator => "by the operator",
        Release::Mode => "the mode was lowered",
        Release::Policy => "no policy that contains holds any more",
        Release::Over => "its time was over",
    }
}

fn refusal(why: &Refusal) -> String {
    match why {
        Refusal::KillSwitch => "killSwitch is true".to_owned(),
        Refusal::Protected(why) => why.to_string(),
        Refusal::Bypass => "what passes by the meters no containment holds".to_owned(),
        Refusal::NotCured => "its workload is not cured by evictions".to_owned(),
        Refusal::Budget(Refused::Storm) => "too many workloads breach (storm)".to_owned(),
        Refusal::Budget(Refused::Node) => "budgets.node is spent".to_owned(),
        Refusal::Budget(Refused::Workload) => "budgets.workload is spent".to_owned(),
    }
}

const fn closing(why: Closing) -> &'static str {
    match why {
        Closing::Clear => "within the limit",
        Closing::Gone => "gone",
        Closing::Unlimited => "no such limit any more",
        Closing::LetGo => "released",
    }
}

/// In whole seconds.
const fn length(from: u64, to: u64) -> Duration {
    Duration::from_secs(to.saturating_sub(from).saturating_add(500_000_000) / 1_000_000_000)
}

fn time(report: &Report, at: u64) -> Time {
    Time(UNIX_EPOCH + Duration::from_nanos(report.wall(at)))
}

fn seconds(report: &Report, at: u64) -> String {
    humantime::format_rfc3339_seconds(time(report, at).0).to_string()
}

#[cfg(test)]
#[path = "simulate_tests.rs"]
mod tests;
