//! A meter that is attached to nothing and runs on packets of our making (`BPF_PROG_TEST_RUN`).

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Result, anyhow, ensure};
use guard_agent::kernel::{
    meters,
    object::{OBJECT, Options, Parameters, Programs},
    sys::{self, Hook, TestPacket},
};
use guard_common::{Control, Counters, Totals};
use ipnet::IpNet;

use crate::net::Wires;

const SLOT: u32 = 1;

/// What a slot counted, by the map itself.
pub fn counters(programs: &Programs, slot: u32) -> Result<Totals> {
    let cpus = aya::util::nr_cpus().map_err(|(file, error)| anyhow!("{file}: {error}"))?;
    let stride = size_of::<Counters>() * cpus;
    let mut values = vec![0; stride];
    sys::array_lookup_batch(programs.map("COUNTERS")?, slot, 1, stride, &mut [0], &mut values)?;
    Ok(meters::sum(&values))
}

/// A word of a slot's [`Control`], by its offset.
pub fn control(programs: &Programs, slot: u32, offset: usize) -> Result<u64> {
    let mut value = [0; size_of::<Control>()];
    sys::array_lookup_batch(programs.map("CONTROLS")?, slot, 1, value.len(), &mut [0], &mut value)?;
    let (words, _) = value.as_chunks::<8>();
    Ok(u64::from_ne_bytes(words[offset / 8]))
}

/// The meter.
#[derive(Debug)]
pub struct Meter {
    programs: Programs,
    egress: OwnedFd,
    ingress: OwnedFd,
    ifindex: u32,
    _wires: Wires,
}

impl Meter {
    /// Loads it. The calling thread moves into a namespace of its own, whose interface a test run borrows.
    pub fn new(cidrs: &[IpNet]) -> Result<Self> {
        crate::require_root()?;
        let wires = Wires::new()?;
        let ifindex = wires.node.enter()?;
        let programs = Programs::load(Options { object: OBJECT, slots: SLOT + 1, log: false, pins: None })?;
        let parameters = Parameters::new(cidrs).with_slot(SLOT);
        let load = |hook: Hook| programs.load_program(hook.program(), &parameters, hook);
        let (egress, ingress) = (load(Hook::Egress)?, load(Hook::Ingress)?);
        Ok(Self { programs, egress, ingress, ifindex, _wires: wires })
    }

    /// Runs a program on an IP packet; `gso` is the number of segments (0: left open) and the payload of each. Returns
    /// what was counted.
    pub fn run(&self, hook: Hook, packet: &[u8], gso: Option<(u32, u32)>) -> Result<Totals> {
        // A test run refuses a frame that is cut within the header that it announces.
        let protocol = match (packet.first().map(|first| first >> 4), packet.len()) {
            (Some(4), 20..) => [0x08, 0x00],
            (Some(6), 40..) => [0x86, 0xdd],
            _ => [0x88, 0xb5],
        };
        let frame: Vec<u8> = [0; 12].into_iter().chain(protocol).chain(packet.iter().copied()).collect();
        let program = match hook {
            Hook::Egress => &self.egress,
            Hook::Ingress => &self.ingress,
        };
        let before = counters(&self.programs, SLOT)?;
        let packet = TestPacket { frame: &frame, ifindex: self.ifindex, gso };
        let (verdict, _) = sys::prog_test_run(program.as_fd(), packet, 1)?;
        ensure!(verdict == 1, "the packet was not passed: {verdict}");
        Ok(counters(&self.programs, SLOT)? - before)
    }
}
