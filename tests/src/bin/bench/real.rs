//! Real packets, timed by the kernel's own program statistics (whose two clock reads are in every figure).

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::Result;
use guard_agent::{
    core::ledger::Slot,
    kernel::{
        controls::{Controls, Orders},
        object::{BENCH_OBJECT, Options, Parameters, Programs},
        sys::{self, Hook},
    },
};
use guard_common::Limit;
use guard_tests::{
    net::{EXTERNAL_V4, Wires},
    pods::{Container, Pods},
    process::Traffic,
    statistics::Statistics,
};
use serde::Serialize;

use super::{median, table};

const ROUNDS: usize = 9;
const PACKETS: u64 = 20_000;
const SLOTS: u32 = 128;

#[derive(Serialize)]
pub(crate) struct Row {
    name: String,
    nanos: f64,
    over_empty: f64,
}

#[derive(Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

pub(crate) fn run() -> Result<Report> {
    let (wires, pods) = (Wires::new()?, Pods::new()?);
    let _statistics = Statistics::on()?;
    let sink = format!("udp-sink --bind {EXTERNAL_V4}:9200");
    let _sink = Traffic::serve(&wires.world, None, &sink)?;
    let programs = Programs::load(Options { object: BENCH_OBJECT, slots: SLOTS, log: false, pins: None })?;
    arm(&programs)?;
    let mut rows = Vec::new();
    for containers in [1u32, 64] {
        let cgroups = (0..containers).map(|n| pods.container(containers, n)).collect::<Result<Vec<_>>>()?;
        let names = ["empty", "meter_egress", "storage", "hash"];
        let mut times = names.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for (name, times) in names.iter().zip(&mut times) {
                times.push(measure(&programs, name, &wires, &cgroups)?);
            }
        }
        let medians = times.map(median);
        let shown = [
            "empty program",
            "meter (a program each), limits armed",
            "one program, slot in storage, no limits",
            "per-CPU hash",
        ];
        rows.extend(shown.iter().zip(medians).map(|(name, nanos)| Row {
            name: format!("{name}, {containers} container{}", if containers == 1 { "" } else { "s in turn" }),
            nanos,
            over_empty: nanos - medians[0],
        }));
    }
    let cells = |row: &Row| vec![row.name.clone(), format!("{:.0}", row.nanos), format!("{:.1}", row.over_empty)];
    table(&["ns per real packet, with the kernel's clock", "ns", "over empty"], rows.iter().map(cells));
    Ok(Report { rows })
}

/// Gives each slot limits that nothing breaches: without orders a meter would ask for credit at every packet.
fn arm(programs: &Programs) -> Result<()> {
    programs.load_police(&Parameters::new(&[]))?;
    let controls = Controls::open(programs.map("CONTROLS")?, SLOTS)?;
    let limit = Limit { rate: 1 << 40, depth: 1_000_000_000, quantum: 64 << 10, classes: 3 };
    for slot in 1..SLOTS {
        controls.assign(Slot(slot), slot.into(), Orders { egress: limit, ingress: limit, ..Orders::default() });
    }
    Ok(())
}

/// Attaches a program to all cgroups, sends from each in turn, and returns the nanoseconds of a run.
fn measure(programs: &Programs, name: &str, wires: &Wires, cgroups: &[Container]) -> Result<f64> {
    let cidrs = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"].map(str::parse);
    let parameters = Parameters::new(&cidrs.into_iter().collect::<Result<Vec<_>, _>>()?);
    let shared = name != "meter_egress";
    let mut attached: Vec<(OwnedFd, Vec<OwnedFd>)> = Vec::new();
    for (slot, cgroup) in cgroups.iter().enumerate() {
        if attached.is_empty() || !shared {
            let parameters = parameters.clone().with_slot(slot as u32 + 1);
            attached.push((programs.load_program(name, &parameters, Hook::Egress)?, vec![]));
        }
        let directory = File::open(&cgroup.path)?;
        if let Some((program, links)) = attached.last_mut() {
            links.push(sys::link_create(program.as_fd(), directory.as_fd(), Hook::Egress)?);
        }
    }
    let paths: Vec<String> = cgroups.iter().map(|cgroup| cgroup.path.display().to_string()).collect();
    let send = format!("udp-round --to {EXTERNAL_V4}:9200 --count {PACKETS} --cgroups {}", paths.join(","));
    Traffic::run(&wires.node, None, &send)?;
    let mut sums = (0, 0);
    for (program, _) in &attached {
        let stats = sys::prog_stats(program.as_fd())?;
        sums = (sums.0 + stats.run_nanos, sums.1 + stats.runs);
    }
    anyhow::ensure!(sums.1 == PACKETS, "{name} ran {} times for {PACKETS} packets", sums.1);
    Ok(sums.0 as f64 / sums.1 as f64)
}
