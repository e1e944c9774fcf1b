//! Nanoseconds per packet, by `BPF_PROG_TEST_RUN`.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use guard_agent::core::ledger::Slot;
use guard_agent::kernel::{
    controls::{Controls, Orders},
    object::{BENCH_OBJECT, Options, Parameters, Programs},
    sys::{self, Hook, TestPacket},
};
use guard_common::{Class, Containment, Limit, NODE_SLOT, containment_kind};
use guard_tests::{meter, net::Wires};
use ipnet::IpNet;
use serde::Serialize;

use super::{judge, median, table};

/// Runs of each program in a round.
const REPEAT: u32 = 200_000;

/// Slot that the meters of the benchmark charge.
const SLOT: u32 = 7;

/// Slots with orders of their own.
const ARMED: u32 = 8;
const BREACHED: u32 = 9;
const THROTTLED: u32 = 10;
const BLOCKED: u32 = 11;
const SLOTS: u32 = 12;

#[derive(Serialize)]
pub(crate) struct Row {
    name: &'static str,
    nanos: f64,
    over_empty: f64,
    of_hash: f64,
}

#[derive(Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
    program_load_micros: f64,
    program_jited_bytes: u32,
    program_memlock_bytes: u64,
}

struct Variant {
    name: &'static str,
    program: OwnedFd,
    frame: Vec<u8>,
    times: Vec<f64>,
}

pub(crate) fn run(rounds: usize) -> Result<Report> {
    // A test run borrows an interface of this namespace, and lo is not counted.
    let wires = Wires::new()?;
    let ifindex = wires.node.enter()?;
    let programs = Programs::load(Options { object: BENCH_OBJECT, slots: SLOTS, log: false, pins: None })?;
    let controls = Controls::open(programs.map("CONTROLS")?, SLOTS)?;
    orders(&controls);
    programs.load_police(&parameters(4).with_dropped_mark(1))?;
    let (v4, v6) = (frame_v4([203, 0, 113, 2]), frame_v6());
    let load_for = |slot, name: &'static str, program: &str, cidrs: u8, hook, frame: &Vec<u8>| -> Result<Variant> {
        let parameters = parameters(cidrs).with_dropped_mark(1).with_slot(slot);
        let program = programs.load_program(program, &parameters, hook)?;
        Ok(Variant { name, program, frame: frame.clone(), times: vec![] })
    };
    let load = |name, program, cidrs, hook, frame| load_for(SLOT, name, program, cidrs, hook, frame);
    let mut variants = [
        load("empty program", "empty", 0, Hook::Egress, &v4)?,
        load("meter, egress, IPv4, 4 CIDRs", "meter_egress", 4, Hook::Egress, &v4)?,
        load("meter, egress, IPv6, 4 CIDRs", "meter_egress", 4, Hook::Egress, &v6)?,
        load("meter, ingress, IPv4, 4 CIDRs", "meter_ingress", 4, Hook::Ingress, &v4)?,
        load("meter, egress, IPv4, no CIDR", "meter_egress", 0, Hook::Egress, &v4)?,
        load("meter, egress, IPv4, 16 CIDRs", "meter_egress", 16, Hook::Egress, &v4)?,
        load("one program, slot in cgroup storage", "storage", 4, Hook::Egress, &v4)?,
        load("per-CPU hash by cgroup id", "hash", 0, Hook::Egress, &v4)?,
        load("two atomic counters (systemd)", "accounting", 0, Hook::Egress, &v4)?,
        load_for(ARMED, "meter, egress, IPv4, limits armed, 4 CIDRs", "meter_egress", 4, Hook::Egress, &v4)?,
        load_for(BREACHED, "in breach, not contained", "meter_egress", 4, Hook::Egress, &v4)?,
        load_for(THROTTLED, "throttled, most dropped", "meter_egress", 4, Hook::Egress, &v4)?,
        load_for(BLOCKED, "blocked", "meter_egress", 4, Hook::Egress, &v4)?,
    ];
    let before = counted(&programs)?;
    for _ in 0..rounds {
        for variant in &mut variants {
            let packet = TestPacket { frame: &variant.frame, ifindex, gso: None };
            let (verdict, nanos) = sys::prog_test_run(variant.program.as_fd(), packet, REPEAT)?;
            let passes = !variant.name.contains("throttled") && !variant.name.contains("blocked");
            ensure!(!passes || verdict == 1, "{} does not let the packet pass", variant.name);
            variant.times.push(f64::from(nanos));
        }
    }
    // Five variants charge the slot for egress: had one returned early, its packets would be missing here.
    let moved = counted(&programs)? - before;
    let expected = 5 * rounds as u64 * u64::from(REPEAT);
    ensure!(moved == expected, "the meters counted {moved} packets instead of {expected}");

    let medians: Vec<f64> = variants.iter().map(|variant| median(variant.times.clone())).collect();
    let (empty, hash) = (medians[0], medians[7]);
    let rows = variants.iter().zip(&medians).map(|(variant, nanos)| Row {
        name: variant.name,
        nanos: *nanos,
        over_empty: nanos - empty,
        of_hash: (nanos - empty) / (hash - empty),
    });
    let rows: Vec<Row> = rows.collect();
    let cells = |row: &Row| {
        let figures = [format!("{:.0}", row.nanos), format!("{:.1}", row.over_empty), format!("{:.2}", row.of_hash)];
        std::iter::once(row.name.to_owned()).chain(figures).collect()
    };
    table(&["ns per packet (median)", "ns", "over empty", "of hash's"], rows.iter().map(cells));
    for row in rows.iter().filter(|row| row.name.starts_with("meter") && row.name.ends_with(" 4 CIDRs")) {
        judge(row.name, row.over_empty, 12.0, "ns over empty");
        judge(row.name, row.of_hash, 0.35, "of the hash's");
    }
    load_costs(&programs, rows)
}

/// What each slot's programs are told.
fn orders(controls: &Controls) {
    let limit = |rate: u64, quantum| Limit { rate, depth: 1_000_000_000, quantum, classes: 3 };
    let unlimited = limit(0, 1 << 30);
    let far = limit(1 << 40, 64 << 10);
    for (slot, egress) in
        [(SLOT, unlimited), (ARMED, far), (BREACHED, limit(1000, 4096)), (THROTTLED, far), (BLOCKED, far)]
    {
        controls.assign(Slot(slot), slot.into(), Orders { egress, ingress: unlimited, ..Orders::default() });
    }
    let hold = |slot, kind| {
        controls.contain(Slot(slot), Containment { kind, rate: 1 << 20, until: u64::MAX, since: 1 });
    };
    hold(THROTTLED, containment_kind::THROTTLE);
    hold(BLOCKED, containment_kind::BLOCK);
}

/// What a meter's programs cost when they are loaded.
fn load_costs(programs: &Programs, rows: Vec<Row>) -> Result<Report> {
    let mut times = Vec::new();
    let (mut jited, mut memlock) = (0, 0);
    for slot in 0..50 {
        let start = std::time::Instant::now();
        let program = programs.load_program("meter_egress", &parameters(4).with_slot(slot % SLOT), Hook::Egress)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        jited = sys::prog_stats(program.as_fd())?.jited_len;
        memlock = memlock_of(&program)?;
    }
    let micros = median(times);
    println!("a meter's program: {micros:.0} us to load, {jited} bytes of machine code, {memlock} bytes of memory\n");
    Ok(Report { rows, program_load_micros: micros, program_jited_bytes: jited, program_memlock_bytes: memlock })
}

fn memlock_of(program: &OwnedFd) -> Result<u64> {
    use std::os::fd::AsRawFd as _;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
    let memlock = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(memlock.context("no memlock")?.trim().parse()?)
}

fn parameters(cidrs: u8) -> Parameters {
    let nets = (0..cidrs).flat_map(|i| [format!("10.{i}.0.0/16"), format!("fd{i:02x}::/16")]);
    Parameters::new(&nets.filter_map(|net| net.parse::<IpNet>().ok()).collect::<Vec<_>>())
}

/// Egress packets that the meters' slots counted as external. The storage variant charges the node's slot, for a test
/// run's storage is 0.
fn counted(programs: &Programs) -> Result<u64> {
    let packets = |slot| anyhow::Ok(meter::counters(programs, slot)?.egress.packets[Class::External as usize]);
    Ok(packets(SLOT)? + packets(NODE_SLOT)?)
}

/// A full-sized UDP packet behind an Ethernet header.
fn frame_v4(to: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; 14 + 1500];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14] = 0x45;
    frame[14 + 2..14 + 4].copy_from_slice(&1500u16.to_be_bytes());
    frame[14 + 9] = 17;
    frame[14 + 12..14 + 16].copy_from_slice(&to);
    frame[14 + 16..14 + 20].copy_from_slice(&to);
    frame
}

fn frame_v6() -> Vec<u8> {
    let mut frame = vec![0; 14 + 1500];
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    frame[14] = 0x60;
    frame[14 + 4..14 + 6].copy_from_slice(&1460u16.to_be_bytes());
    frame[14 + 6] = 17;
    for at in [14 + 8, 14 + 24] {
        frame[at..at + 4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    }
    frame
}
