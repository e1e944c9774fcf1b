//! Nanoseconds per packet, by `BPF_PROG_TEST_RUN`. Packets are external: all CIDRs are compared, and none matches.

use std::{
    mem::offset_of,
    os::fd::{AsFd as _, OwnedFd},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use guard_agent::core::ledger::Slot;
use guard_agent::kernel::{
    controls::{Controls, Orders},
    object::{BENCH_OBJECT, Options, Parameters, Programs},
    sys::{self, Hook, TestPacket},
};
use guard_common::{Class, Containment, Control, Limit, NODE_SLOT, containment_kind};
use guard_tests::{meter, net::Wires};
use ipnet::IpNet;
use serde::Serialize;

use super::{judge, median, table};

/// Runs of each program in a round.
const REPEAT: u32 = 200_000;

/// Runs, one by one, in which the police programs' are counted.
const SINGLE: u64 = 20_000;

/// An IPv4 or IPv6 packet's bytes from the IP header on.
const LEN: usize = 1500;

/// The mean credit that the agent gives at once where a limit is high, or none.
const QUANTUM: u64 = 64 << 10;

/// What a meter's egress programs are told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// There is no limit, and credit for longer than the benchmark lasts: the packet path alone.
    Unlimited,
    /// A limit that nothing breaches, with the credit that the agent gives. Without a limit it gives the same.
    Armed,
    /// The same, with credit for no more than the packet that asks for it.
    NoCredit,
    /// A limit that everything breaches, and nothing to do about it.
    Breached,
    /// So much less passes than comes that most is dropped.
    Throttled,
    /// Nothing passes.
    Blocked,
}

/// A row: its name, the program, the packet, the CIDRs of each version, and what a meter is told.
struct Case(&'static str, &'static str, Hook, Ip, u8, Option<Told>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ip {
    V4,
    V6,
}

const EMPTY: &str = "empty program";
const METER: &str = "meter, egress, IPv4, 4 CIDRs";
const ARMED: &str = "limits armed, egress, IPv4, 4 CIDRs";
const NO_CREDIT: &str = "limits armed, the police at every packet";
const STORAGE: &str = "one program, slot in cgroup storage, no limits";
const HASH: &str = "per-CPU hash by cgroup id";

#[rustfmt::skip]
const CASES: [Case; 19] = {
    use {Hook::{Egress, Ingress}, Ip::{V4, V6}, Told::{Armed, Blocked, Breached, NoCredit, Throttled, Unlimited}};
    [
        Case(EMPTY, "empty", Egress, V4, 0, None),
        Case(METER, "meter_egress", Egress, V4, 4, Some(Unlimited)),
        Case("meter, egress, IPv6, 4 CIDRs", "meter_egress", Egress, V6, 4, Some(Unlimited)),
        Case("meter, ingress, IPv4, 4 CIDRs", "meter_ingress", Ingress, V4, 4, Some(Unlimited)),
        Case("meter, egress, IPv4, no CIDR", "meter_egress", Egress, V4, 0, Some(Unlimited)),
        Case("meter, egress, IPv4, 16 CIDRs of each version", "meter_egress", Egress, V4, 16, Some(Unlimited)),
        Case("meter, egress, IPv6, 16 CIDRs of each version", "meter_egress", Egress, V6, 16, Some(Unlimited)),
        Case(ARMED, "meter_egress", Egress, V4, 4, Some(Armed)),
        Case("limits armed, egress, IPv6, 4 CIDRs", "meter_egress", Egress, V6, 4, Some(Armed)),
        Case("limits armed, ingress, IPv4, 4 CIDRs", "meter_ingress", Ingress, V4, 4, Some(Armed)),
        Case("limits armed, egress, IPv4, 16 CIDRs of each version", "meter_egress", Egress, V4, 16, Some(Armed)),
        Case("limits armed, egress, IPv6, 16 CIDRs of each version", "meter_egress", Egress, V6, 16, Some(Armed)),
        Case(NO_CREDIT, "meter_egress", Egress, V4, 4, Some(NoCredit)),
        Case("in breach, not contained, 4 CIDRs", "meter_egress", Egress, V4, 4, Some(Breached)),
        Case("throttled, most dropped, 4 CIDRs", "meter_egress", Egress, V4, 4, Some(Throttled)),
        Case("blocked, 4 CIDRs", "meter_egress", Egress, V4, 4, Some(Blocked)),
        Case(STORAGE, "storage", Egress, V4, 4, None),
        Case(HASH, "hash", Egress, V4, 0, None),
        Case("two atomic counters (systemd)", "accounting", Egress, V4, 0, None),
    ]
};

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
    packets_per_police_run: f64,
    meter: Load,
    police: Load,
}

/// What loading a program costs.
#[derive(Serialize)]
struct Load {
    micros: f64,
    jited_bytes: u32,
    memlock_bytes: u64,
}

/// A case with its program, on a slot of its own.
struct Variant {
    case: &'static Case,
    slot: Slot,
    program: OwnedFd,
    frame: Vec<u8>,
    times: Vec<f64>,
}

pub(crate) fn run(rounds: usize) -> Result<Report> {
    // A test run borrows an interface of this namespace, and lo is not counted.
    let wires = Wires::new()?;
    let ifindex = wires.node.enter()?;
    let slots = CASES.len() as u32 + 1;
    let programs = Programs::load(Options { object: BENCH_OBJECT, slots, log: false, pins: None })?;
    let controls = Controls::open(programs.map("CONTROLS")?, slots)?;
    programs.load_police(&parameters(4))?;
    let variants = (1..).zip(&CASES).map(|(slot, case)| Variant::new(case, Slot(slot), &programs, &controls));
    let mut variants = variants.collect::<Result<Vec<_>>>()?;
    for _ in 0..rounds {
        for variant in &mut variants {
            let nanos = variant.run(ifindex, REPEAT)?;
            variant.times.push(nanos);
        }
    }
    let runs = rounds as u64 * u64::from(REPEAT);
    for variant in &variants {
        variant.proves_itself(&programs, &controls, runs)?;
    }
    let rows = rows(&variants)?;
    let packets_per_police_run = packets_per_police_run(&programs, &variants, ifindex)?;
    let [meter, police] = ["meter_egress", "police_egress"].map(|name| load(&programs, name));
    let report = Report { rows, packets_per_police_run, meter: meter?, police: police? };
    report.print()?;
    Ok(report)
}

impl Variant {
    fn new(case: &'static Case, slot: Slot, programs: &Programs, controls: &Controls) -> Result<Self> {
        let Case(_, program, hook, ip, cidrs, told) = *case;
        if let Some(told) = told {
            tell(controls, slot, told);
        }
        let program = programs.load_program(program, &parameters(cidrs).with_slot(slot.0), hook)?;
        let frame = if ip == Ip::V4 { frame_v4([203, 0, 113, 2]) } else { frame_v6() };
        Ok(Self { case, slot, program, frame, times: vec![] })
    }

    /// Runs it so often; returns nanoseconds of each run.
    fn run(&self, ifindex: u32, repeat: u32) -> Result<f64> {
        let packet = TestPacket { frame: &self.frame, ifindex, gso: None };
        Ok(sys::prog_test_run(self.program.as_fd(), packet, repeat)?.1.into())
    }

    /// Fails unless each run counted its packet as passed or dropped, and what was to happen to it did: a program that
    /// returns early is fast.
    fn proves_itself(&self, programs: &Programs, controls: &Controls, runs: u64) -> Result<()> {
        let Case(name, _, hook, _, _, told) = *self.case;
        let slot = match (told, name) {
            (Some(_), _) => self.slot.0,
            // A test run's storage is 0.
            (None, STORAGE) => NODE_SLOT,
            _ => return Ok(()),
        };
        let counted = meter::counters(programs, slot)?;
        let counted = if hook == Hook::Egress { counted.egress } else { counted.ingress };
        let passed = counted.packets[Class::External as usize];
        let dropped = counted.other / LEN as u64;
        ensure!(passed + dropped == runs, "{name}: {passed} packets passed and {dropped} were dropped of {runs}");
        let report = controls.report(Slot(slot));
        let empty = report.egress_empty.max(report.ingress_empty) > 0;
        let as_told = match told {
            Some(Told::Breached) => dropped == 0 && empty,
            Some(Told::Throttled) => passed > 0 && dropped > passed,
            Some(Told::Blocked) => passed == 0,
            None | Some(Told::Unlimited | Told::Armed | Told::NoCredit) => dropped == 0 && !empty,
        };
        ensure!(as_told, "{name}: {passed} packets passed and {dropped} were dropped; {report:?}");
        Ok(())
    }
}

fn tell(controls: &Controls, slot: Slot, told: Told) {
    let limit = |rate, quantum| Limit { rate, depth: 1_000_000_000, quantum, classes: 3 };
    // A bucket of a TiB.
    let far = |quantum| limit(1 << 40, quantum);
    let (egress, held) = match told {
        Told::Unlimited => (limit(0, 1 << 30), None),
        Told::Armed => (far(QUANTUM), None),
        Told::NoCredit => (far(1), None),
        Told::Breached => (limit(1000, QUANTUM), None),
        Told::Throttled => (far(QUANTUM), Some(containment_kind::THROTTLE)),
        Told::Blocked => (far(QUANTUM), Some(containment_kind::BLOCK)),
    };
    controls.assign(slot, slot.0.into(), Orders { egress, ingress: egress, ..Orders::default() });
    if let Some(kind) = held {
        controls.contain(slot, Containment { kind, rate: 1 << 20, until: u64::MAX, since: 1 });
    }
}

/// The medians, and what is said of them.
fn rows(variants: &[Variant]) -> Result<Vec<Row>> {
    let medians: Vec<f64> = variants.iter().map(|variant| median(variant.times.clone())).collect();
    let of = |name: &str| {
        let found = CASES.iter().position(|case| case.0 == name).map(|index| medians[index]);
        found.with_context(|| format!("no row {name}"))
    };
    let (empty, hash) = (of(EMPTY)?, of(HASH)?);
    let rows = CASES.iter().zip(&medians).map(|(case, nanos)| Row {
        name: case.0,
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
    for (row, Case(_, _, _, _, cidrs, told)) in rows.iter().zip(&CASES) {
        match told {
            Some(Told::Unlimited) if *cidrs == 4 => {
                judge(row.name, row.over_empty, 12.0, "ns over empty");
                judge(row.name, row.of_hash, 0.35, "of the hash's");
            }
            Some(Told::Armed) if *cidrs == 4 => judge(row.name, row.over_empty, 14.0, "ns over empty"),
            _ => {}
        }
    }
    Ok(rows)
}

/// How many packets of the armed row there are to each run of the police program: each run, and nothing else, spends
/// tokens.
fn packets_per_police_run(programs: &Programs, variants: &[Variant], ifindex: u32) -> Result<f64> {
    let variant = variants.iter().find(|variant| variant.case.0 == ARMED).context("no armed row")?;
    let spent = || meter::control(programs, variant.slot.0, offset_of!(Control, egress_state.spent));
    let (mut police, mut last) = (0u64, spent()?);
    for _ in 0..SINGLE {
        variant.run(ifindex, 1)?;
        let before = std::mem::replace(&mut last, spent()?);
        police += u64::from(before != last);
    }
    Ok(SINGLE as f64 / police as f64)
}

impl Report {
    fn print(&self) -> Result<()> {
        for (name, Load { micros, jited_bytes, memlock_bytes }) in
            [("a meter's program", &self.meter), ("a police program, one for all meters", &self.police)]
        {
            println!(
                "{name}: {micros:.0} us to load, {jited_bytes} bytes of machine code, {memlock_bytes} bytes of memory"
            );
        }
        let nanos = |name: &str| self.rows.iter().find(|row| row.name == name).map(|row| row.nanos);
        let police = nanos(NO_CREDIT).context("no row")? - nanos(METER).context("no row")?;
        println!(
            "limits armed: the police program runs once in {:.1} packets of {LEN} bytes, that is for each {:.0} bytes \
             with a quantum of {QUANTUM}; a run adds {police:.0} ns\n",
            self.packets_per_police_run,
            self.packets_per_police_run * LEN as f64,
        );
        Ok(())
    }
}

/// Loads a program again and again.
fn load(programs: &Programs, name: &str) -> Result<Load> {
    let mut times = Vec::new();
    let (mut jited_bytes, mut memlock_bytes) = (0, 0);
    for slot in 0..50 {
        let start = Instant::now();
        let slot = slot % CASES.len() as u32 + 1;
        let program = programs.load_program(name, &parameters(4).with_slot(slot), Hook::Egress)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        jited_bytes = sys::prog_stats(program.as_fd())?.jited_len;
        memlock_bytes = memlock_of(&program)?;
    }
    Ok(Load { micros: median(times), jited_bytes, memlock_bytes })
}

fn memlock_of(program: &OwnedFd) -> Result<u64> {
    use std::os::fd::AsRawFd as _;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
    let memlock = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(memlock.context("no memlock")?.trim().parse()?)
}

fn parameters(cidrs: u8) -> Parameters {
    let nets = (0..cidrs).flat_map(|i| [format!("10.{i}.0.0/16"), format!("fd{i:02x}::/16")]);
    Parameters::new(&nets.filter_map(|net| net.parse::<IpNet>().ok()).collect::<Vec<_>>()).with_dropped_mark(1)
}

/// A full-sized UDP packet behind an Ethernet header.
fn frame_v4(to: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; 14 + LEN];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14] = 0x45;
    frame[14 + 2..14 + 4].copy_from_slice(&(LEN as u16).to_be_bytes());
    frame[14 + 9] = 17;
    frame[14 + 12..14 + 16].copy_from_slice(&to);
    frame[14 + 16..14 + 20].copy_from_slice(&to);
    frame
}

fn frame_v6() -> Vec<u8> {
    let mut frame = vec![0; 14 + LEN];
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    frame[14] = 0x60;
    frame[14 + 4..14 + 6].copy_from_slice(&(LEN as u16 - 40).to_be_bytes());
    frame[14 + 6] = 17;
    for at in [14 + 8, 14 + 24] {
        frame[at..at + 4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    }
    frame
}
