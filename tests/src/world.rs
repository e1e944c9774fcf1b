//! Everything together: a wire, pods and an agent.

use anyhow::{Result, ensure};

use crate::{
    agent::{Agent, Metrics, Setup},
    net::{EXTERNAL_V4, Interface, Wire, Wires, run},
    pods::{Container, Pods},
    process::Traffic,
    require_root, sibling,
};

/// A wire, a tree of pods and a running agent. Fields are dropped in this order.
#[derive(Debug)]
pub struct World {
    /// The agent; none while it is stopped.
    pub agent: Option<Agent>,
    /// How it is started.
    pub setup: Setup,
    /// The pods.
    pub pods: Pods,
    /// The wire.
    pub wires: Wires,
}

/// A quick sampler.
pub const CONFIG: &str = "sample: {interval: 100ms}\n";

/// IPv4's and UDP's.
pub const HEADERS: u64 = 28;

/// What a container's meter and the wire said at one time.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// What the containers' series say together.
    pub metered: Interface,
    /// What the interface says.
    pub wire: Interface,
    /// What the node's series say: bytes of egress and ingress.
    pub node: [u64; 2],
}

impl World {
    /// Makes it all and starts the agent.
    pub fn new(config: &str) -> Result<Self> {
        Self::prepared(|_, setup| setup.configure(config))
    }

    /// As [`Self::new`], with what has to be known or changed before the agent starts.
    pub fn prepared(prepare: impl FnOnce(&Pods, &mut Setup) -> Result<()>) -> Result<Self> {
        require_root()?;
        let (wires, pods) = (Wires::new()?, Pods::new()?);
        let mut setup = Setup::new(&pods, "")?;
        prepare(&pods, &mut setup)?;
        let agent = Some(setup.start()?);
        Ok(Self { agent, setup, pods, wires })
    }

    /// As [`Self::prepared`], and the agent takes the world outside for the node's network: there are the other ends of the
    /// containers' interfaces.
    pub fn uplinked(prepare: impl FnOnce(&Pods, &mut Setup) -> Result<()>) -> Result<(Self, Traffic)> {
        require_root()?;
        let (wires, pods) = (Wires::new()?, Pods::new()?);
        let node = Traffic::shell(&wires.world, None, "echo listening; exec sleep 600")?;
        let mut setup = Setup::new(&pods, "")?;
        setup.set("--node-process", node.pid().to_string());
        prepare(&pods, &mut setup)?;
        let agent = Some(setup.start()?);
        Ok((Self { agent, setup, pods, wires }, node))
    }

    /// The running agent.
    ///
    /// # Panics
    ///
    /// If it is stopped.
    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("the agent runs")
    }

    /// A container that has its meter.
    pub fn container(&self, pod: u32, container: u32) -> Result<Container> {
        let container = self.pods.container(pod, container)?;
        self.agent().wait_for(&container)?;
        Ok(container)
    }

    /// A service that has its meter.
    pub fn service(&self, name: &str) -> Result<Container> {
        let service = self.pods.service(name)?;
        self.agent().wait_for(&service)?;
        Ok(service)
    }

    /// Takes what [`Self::send`] sends.
    pub fn sink(&self) -> Result<Traffic> {
        Traffic::serve(&self.wires.world, None, &format!("udp-sink --bind {EXTERNAL_V4}:9100"))
    }

    /// Sends datagrams no larger than the MTU from a container; returns what they are on the wire.
    pub fn send(&self, container: &Container, size: u64, count: u64) -> Result<Wire> {
        let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes {size} --count {count}");
        Traffic::run(&self.wires.node, Some(container), &send)?;
        Ok(Wire { bytes: count * (size + HEADERS), packets: count })
    }

    /// `guard-agent kill-switch` with this word. `off` fails if another source still engages it.
    pub fn kill_switch(&self, word: &str) -> Result<()> {
        let (agent, bpffs, socket) = (sibling("guard-agent")?, &self.setup.bpffs, self.agent().socket());
        let (agent, bpffs, socket) = (agent.display(), bpffs.display(), socket.display());
        run(&format!("{agent} kill-switch {word} --bpffs {bpffs} --socket {socket}")).map(drop)
    }

    /// Reads the wire and these containers' series, once nothing moves any more.
    pub fn read(&self, containers: &[&Container]) -> Result<Reading> {
        self.wires.quiet()?;
        let mut wire = self.wires.node.interface()?;
        // What the other end's queue dropped, this end has counted all the same; its sender may have seen the error.
        wire.dropped += self.wires.world.interface()?.dropped;
        let metrics = self.agent().metrics()?;
        let node = |direction: &str| {
            let class =
                |class: &str| metrics.get(&format!("egress_guard_node_{direction}_bytes_total{{class=\"{class}\"}}"));
            class("cluster").unwrap_or(0) + class("external").unwrap_or(0)
        };
        Ok(Reading { metered: metered(&metrics, containers), wire, node: [node("egress"), node("ingress")] })
    }

    /// Fails unless the containers' series and the wire moved by the same since `before`, to the byte. Returns by how
    /// much.
    pub fn assert_exact(&self, before: Reading, containers: &[&Container]) -> Result<Interface> {
        let after = self.read(containers)?;
        let wire = after.moved(before)?;
        let node = [after.node[0] - before.node[0], after.node[1] - before.node[1]];
        ensure!(node == [wire.tx.bytes, wire.rx.bytes], "the node's meter says {node:?}, the wire says {wire:?}");
        Ok(wire)
    }
}

impl Reading {
    /// Fails unless the containers' series and the wire moved by the same since `before`, whatever the node's meter says:
    /// it has no part in services. Returns by how much.
    pub fn moved(&self, before: Self) -> Result<Interface> {
        let (metered, wire) = (self.metered - before.metered, self.wire - before.wire);
        ensure!(wire.dropped == 0, "the wire dropped {} packets: the machine is too busy for this test", wire.dropped);
        ensure!(metered == wire, "the meters say {metered:?},\nthe wire says   {wire:?}");
        Ok(wire)
    }
}

/// What the containers' series say together.
fn metered(metrics: &Metrics, containers: &[&Container]) -> Interface {
    let sum = |direction: &str| {
        let each = containers
            .iter()
            .flat_map(|container| ["cluster", "external"].map(|class| metrics.container(container, direction, class)));
        each.fold(Wire::default(), |a, b| Wire { bytes: a.bytes + b.bytes, packets: a.packets + b.packets })
    };
    Interface { tx: sum("egress"), rx: sum("ingress"), dropped: 0 }
}
