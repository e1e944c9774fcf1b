//! Two network namespaces joined by a veth pair: the node with its containers, and the world outside.

use std::{ffi::CString, fs::File, os::fd::AsRawFd as _, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::{eventually, unique};

/// Runs a command, which must succeed, and returns what it printed.
pub fn run(command: &str) -> Result<String> {
    let mut words = command.split_whitespace();
    let program = words.next().context("an empty command")?;
    let output = Command::new(program).args(words).output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("`{command}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A network namespace with one end of the wire.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    device: String,
}

/// What an interface counted, from the IP header on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// Bytes without the Ethernet headers.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// What an interface counted in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Sent.
    pub tx: Wire,
    /// Received.
    pub rx: Wire,
    /// Packets dropped in either direction: they would make the comparison worthless.
    pub dropped: u64,
}

impl std::ops::Sub for Interface {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let less = |a: Wire, b: Wire| Wire { bytes: a.bytes - b.bytes, packets: a.packets - b.packets };
        Self { tx: less(self.tx, other.tx), rx: less(self.rx, other.rx), dropped: self.dropped - other.dropped }
    }
}

const ETHERNET_HEADER: u64 = 14;

impl Namespace {
    /// An open descriptor of the namespace, to enter it.
    pub fn open(&self) -> Result<File> {
        let path = PathBuf::from("/run/netns").join(&self.name);
        File::open(&path).with_context(|| format!("open {}", path.display()))
    }

    /// Takes the calling thread into the namespace, for good; returns the interface's index there.
    #[expect(unsafe_code, reason = "setns(2), if_nametoindex(3)")]
    pub fn enter(&self) -> Result<u32> {
        let device = CString::new(self.device.as_str())?;
        // SAFETY: a descriptor that is open, and a C string.
        unsafe {
            let done = libc::setns(self.open()?.as_raw_fd(), libc::CLONE_NEWNET);
            ensure!(done == 0, "setns: {}", std::io::Error::last_os_error());
            let index = libc::if_nametoindex(device.as_ptr());
            ensure!(index != 0, "no interface {}", self.device);
            Ok(index)
        }
    }

    /// The interface's index.
    pub fn index(&self) -> Result<u32> {
        #[derive(Deserialize)]
        struct Link {
            ifindex: u32,
        }
        let json = run(&format!("ip -n {} -j link show dev {}", self.name, self.device))?;
        let [Link { ifindex }] = serde_json::from_str::<[Link; 1]>(&json)?;
        Ok(ifindex)
    }

    /// What the interface counts itself.
    pub fn interface(&self) -> Result<Interface> {
        #[derive(Deserialize)]
        struct Link {
            stats64: Stats,
        }
        #[derive(Deserialize)]
        struct Stats {
            rx: Direction,
            tx: Direction,
        }
        #[derive(Deserialize)]
        struct Direction {
            bytes: u64,
            packets: u64,
            dropped: u64,
        }
        let json = run(&format!("ip -n {} -j -s link show dev {}", self.name, self.device))?;
        let [Link { stats64: Stats { rx, tx } }] = serde_json::from_str::<[Link; 1]>(&json)?;
        let wire = |d: &Direction| Wire { bytes: d.bytes - ETHERNET_HEADER * d.packets, packets: d.packets };
        Ok(Interface { tx: wire(&tx), rx: wire(&rx), dropped: rx.dropped + tx.dropped })
    }

    /// A counter of `/proc/net/snmp`, like `Icmp OutMsgs`.
    pub fn snmp(&self, protocol: &str, counter: &str) -> Result<u64> {
        let text = run(&format!("ip netns exec {} cat /proc/net/snmp", self.name))?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(": "));
        let (names, values) = (lines.next().context("no such protocol")?, lines.next().context("no values")?);
        let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == counter);
        Ok(found.context("no such counter")?.1.parse()?)
    }
}

/// Both ends of the wire, each with addresses inside and outside the default CIDRs of the cluster.
#[derive(Debug)]
pub struct Wires {
    /// Where the containers are.
    pub node: Namespace,
    /// Where their traffic goes.
    pub world: Namespace,
}

/// Addresses of the world: inside and outside the default CIDRs of the cluster.
pub const CLUSTER_V4: &str = "10.77.0.2";
/// See [`CLUSTER_V4`].
pub const EXTERNAL_V4: &str = "203.0.113.2";
/// See [`CLUSTER_V4`].
pub const CLUSTER_V6: &str = "fd77::2";
/// See [`CLUSTER_V4`].
pub const EXTERNAL_V6: &str = "2001:db8::2";
/// The node's addresses, in the order of the world's.
pub const NODE: [&str; 4] = ["10.77.0.1", "203.0.113.1", "fd77::1", "2001:db8::1"];
const WORLD: [&str; 4] = [CLUSTER_V4, EXTERNAL_V4, CLUSTER_V6, EXTERNAL_V6];
const PREFIX: [u8; 4] = [24, 24, 64, 64];
const NODE_MAC: &str = "02:00:00:00:00:01";
const WORLD_MAC: &str = "02:00:00:00:00:02";

impl Wires {
    /// Makes the namespaces and the wire, with segmentation offload off (so that the interfaces count packets as they
    /// are on a wire) and static neighbours (so that nothing else is on it).
    pub fn new() -> Result<Self> {
        let end = |device: &str| Namespace { name: unique(), device: device.into() };
        let wires = Self { node: end("node0"), world: end("world0") };
        let (node, world) = (&wires.node.name, &wires.world.name);
        run(&format!("ip netns add {node}"))?;
        run(&format!("ip netns add {world}"))?;
        for name in [node, world] {
            // No duplicate address detection, no solicitations, no link-local addresses: nothing that sends by itself.
            for key in ["default.accept_dad=0", "default.router_solicitations=0", "default.addr_gen_mode=1"] {
                run(&format!("ip netns exec {name} sysctl -qw net.ipv6.conf.{key}"))?;
            }
            run(&format!("ip -n {name} link set lo up"))?;
        }
        run(&format!(
            "ip -n {node} link add node0 address {NODE_MAC} type veth peer name world0 address {WORLD_MAC} netns {world}"
        ))?;
        for (end, own, peers, peer_mac) in
            [(&wires.node, NODE, WORLD, WORLD_MAC), (&wires.world, WORLD, NODE, NODE_MAC)]
        {
            let Namespace { name, device } = end;
            run(&format!("ip netns exec {name} ethtool -K {device} tso off gso off gro off tx-udp-segmentation off"))?;
            run(&format!("ip -n {name} link set {device} multicast off arp off up"))?;
            for ((address, peer), prefix) in own.iter().zip(peers).zip(PREFIX) {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                run(&format!("ip -n {name} addr add {address}/{prefix} dev {device} {nodad}"))?;
                run(&format!("ip -n {name} neigh replace {peer} lladdr {peer_mac} dev {device} nud permanent"))?;
            }
        }
        Ok(wires)
    }

    /// Turns segmentation offload on, as it is on a real node: the hook then sees super-packets.
    pub fn offload(&self) -> Result<()> {
        for Namespace { name, device } in [&self.node, &self.world] {
            run(&format!("ip netns exec {name} ethtool -K {device} tso on gso on gro on tx-udp-segmentation on"))?;
        }
        Ok(())
    }

    /// Lets nobody send a segment again because its acknowledgement is a few milliseconds late (tail loss probes), or 200. On a
    /// busy machine it may be, and whoever sends a FIN twice gets two acknowledgements: if the second one comes when the socket
    /// is gone, the kernel answers it with a reset, and neither is in a meter.
    pub fn patient(&self) -> Result<()> {
        for (Namespace { name, device }, own, peers) in [(&self.node, NODE, WORLD), (&self.world, WORLD, NODE)] {
            run(&format!("ip netns exec {name} sysctl -qw net.ipv4.tcp_early_retrans=0"))?;
            for (address, peer) in own.iter().zip(peers) {
                run(&format!("ip -n {name} route replace {peer} dev {device} src {address} rto_min 5s"))?;
            }
        }
        Ok(())
    }

    /// Makes every packet take so many milliseconds longer in each direction.
    pub fn delay(&self, millis: u32) -> Result<()> {
        for Namespace { name, device } in [&self.node, &self.world] {
            run(&format!("ip netns exec {name} tc qdisc add dev {device} root netem delay {millis}ms limit 100000"))?;
        }
        Ok(())
    }

    /// Waits until nothing moves on the wire.
    pub fn quiet(&self) -> Result<()> {
        let mut last = self.node.interface()?;
        eventually("the wire is quiet", Duration::from_secs(10), || {
            std::thread::sleep(Duration::from_millis(100));
            let before = std::mem::replace(&mut last, self.node.interface()?);
            ensure!(before == last, "{before:?} became {last:?}");
            Ok(())
        })
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        for end in [&self.node, &self.world] {
            if let Err(error) = run(&format!("ip netns del {}", end.name)) {
                eprintln!("left behind: {error:#}");
            }
        }
    }
}
