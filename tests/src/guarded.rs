//! A container whose meter has the test's orders, without an agent: what the programs do by themselves.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use guard_agent::{
    clock,
    core::ledger::Slot,
    kernel::{
        controls::{Controls, Orders, Report},
        evidence::{self, Sample},
        object::{KILL_SWITCH, OBJECT, Options, Parameters, Programs},
        sys::{self, Hook},
    },
};
use guard_common::{Class, Containment, Engagement, Limit, Totals};
use ipnet::IpNet;

use crate::{
    meter,
    net::Wires,
    pods::{Container, Pods},
};

const SLOT: Slot = Slot(1);

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;

/// The wire, the container and its meter. Fields are dropped in this order.
#[derive(Debug)]
pub struct Guarded {
    _links: [OwnedFd; 2],
    programs: Programs,
    parameters: Parameters,
    /// The meter's limits and containment.
    pub controls: Controls,
    /// The container.
    pub container: Container,
    _pods: Pods,
    /// The wire.
    pub wires: Wires,
}

/// A limit of external traffic.
pub fn external(rate: u64, burst: u64, quantum: u64) -> Limit {
    Limit { rate, depth: burst * SECOND / rate, quantum, classes: 1 << Class::External as u64 }
}

impl Guarded {
    /// Makes it all; 10.0.0.0/8 is the cluster.
    pub fn new(orders: Orders) -> Result<Self> {
        Self::with_cluster(&["10.0.0.0/8".parse()?], orders)
    }

    /// Makes it all; these are the cluster.
    pub fn with_cluster(cluster: &[IpNet], orders: Orders) -> Result<Self> {
        crate::require_root()?;
        let (wires, pods) = (Wires::new()?, Pods::new()?);
        let container = pods.container(1, 1)?;
        let programs = Programs::load(Options { object: OBJECT, slots: SLOT.0 + 1, log: false, pins: None })?;
        let controls = Controls::open(programs.map("CONTROLS")?, SLOT.0 + 1)?;
        let parameters = Parameters::new(cluster).with_dropped_mark(controls.dropped_mark());
        programs.load_police(&parameters)?;
        controls.assign(SLOT, container.cgroup_id()?, orders);
        controls.arm(SLOT, u64::MAX);
        let cgroup = File::open(&container.path)?;
        let [egress, ingress] = Hook::ALL.map(|hook| -> Result<OwnedFd> {
            let program = programs.load_program(hook.program(), &parameters.clone().with_slot(SLOT.0), hook)?;
            Ok(sys::link_create(program.as_fd(), cgroup.as_fd(), hook)?)
        });
        let links = [egress.context("egress")?, ingress.context("ingress")?];
        Ok(Self { _links: links, programs, parameters, controls, container, _pods: pods, wires })
    }

    /// Gives other orders.
    pub fn order(&self, orders: Orders) {
        self.controls.order(SLOT, orders);
    }

    /// Until when the programs may contain by themselves.
    pub fn arm(&self, until: u64) {
        self.controls.arm(SLOT, until);
    }

    /// Puts a containment in force.
    pub fn contain(&self, containment: Containment) {
        self.controls.contain(SLOT, containment);
    }

    /// Lifts it.
    pub fn release(&self) {
        self.controls.release(SLOT);
    }

    /// What the programs say.
    pub fn report(&self) -> Report {
        self.controls.report(SLOT)
    }

    /// A word of what they keep, by its offset in [`Control`](guard_common::Control).
    pub fn word(&self, offset: usize) -> Result<u64> {
        meter::control(&self.programs, SLOT.0, offset)
    }

    /// Where the bytes went that they noted.
    pub fn evidence(&self) -> Result<Vec<Sample>> {
        Ok(evidence::read(&self.programs, clock::boottime())?)
    }

    /// Loads the meter's egress program once more, for test runs.
    pub fn egress_program(&self) -> Result<OwnedFd> {
        let parameters = self.parameters.clone().with_slot(SLOT.0);
        Ok(self.programs.load_program(Hook::Egress.program(), &parameters, Hook::Egress)?)
    }

    /// Engages the kill switch, or releases it.
    pub fn kill_switch(&self, engaged: bool) -> Result<()> {
        let mut value = [0; size_of::<Engagement>()];
        value[0] = u8::from(engaged);
        Ok(sys::array_set(self.programs.map(KILL_SWITCH)?, 0, &value)?)
    }

    /// What they counted.
    pub fn counters(&self) -> Result<Totals> {
        meter::counters(&self.programs, SLOT.0)
    }
}
