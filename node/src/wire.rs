//! What a pod's interface counted: the host's end of its veth pair, read in the guest.

use anyhow::{Context as _, Result, ensure};
use guard_tests::net::{Interface, Wire as Counted};

use crate::{Node, WORLD};

const ETHERNET_HEADER: u64 = 14;

/// The interface of a pod.
#[derive(Clone, Debug)]
pub struct Wire<'a> {
    node: &'a Node,
    /// The host's end.
    pub device: String,
    /// The pod's network namespace, in `/run/netns`.
    pub namespace: String,
}

/// Finds the network namespace that has the address, and the other end of its `eth0`. Then sees to it that nothing is on that
/// wire but what the pod's processes send and receive, and as a wire has it: no segmentation offload, and no ARP, for the
/// neighbours are known for good.
const FIND: &str = r#"
set -eu
for path in /run/netns/cni-*; do
    ns=${path##*/}
    ip -n "$ns" -4 -o address show dev eth0 | grep -q " inet $ADDRESS/" || continue
    peer=$(ip -n "$ns" -o link show dev eth0 | sed 's/^[0-9]*: eth0@if\([0-9]*\):.*/\1/')
    device=$(ip -o link | sed -n "s/^$peer: \([^@]*\)@.*/\1/p")
    for offload in tso gso gro tx-udp-segmentation; do
        ip netns exec "$ns" ethtool -K eth0 $offload off
        ethtool -K "$device" $offload off
    done >/dev/null 2>&1
    ip neigh replace "$ADDRESS" lladdr "$(ip netns exec "$ns" cat /sys/class/net/eth0/address)" dev cni0 nud permanent
    gateway=$(ip -n "$ns" -4 route show default | sed 's/.* via \([0-9.]*\) .*/\1/')
    ip -n "$ns" neigh replace "$gateway" lladdr "$(cat /sys/class/net/cni0/address)" dev eth0 nud permanent
    echo "$ns $device"
    exit
done
exit 1
"#;

const ALONE: &str = r#"
set -e
for offload in tso gso gro tx-udp-segmentation; do
    ethtool -K world0 $offload off
    ip netns exec world ethtool -K eth0 $offload off
done >/dev/null 2>&1
ip neigh replace WORLD lladdr "$(ip netns exec world cat /sys/class/net/eth0/address)" dev world0 nud permanent
ip -n world neigh replace 198.51.100.1 lladdr "$(cat /sys/class/net/world0/address)" dev eth0 nud permanent
"#;

impl<'a> Wire<'a> {
    /// The wire of the pod with this address.
    pub fn of(node: &'a Node, address: &str) -> Result<Self> {
        let found = node.run(&format!("ADDRESS={address}\n{FIND}"));
        let found = found.with_context(|| format!("no interface has the address {address}"))?;
        let (namespace, device) = found.trim().split_once(' ').with_context(|| format!("not found: {found}"))?;
        Ok(Self { node, device: device.into(), namespace: namespace.into() })
    }

    /// The wire to the world outside, as the world's: what it received is what the node has sent there. From now on nothing
    /// else is on it, as for a pod.
    pub fn world(node: &'a Node) -> Result<Self> {
        node.run(&ALONE.replace("WORLD", WORLD)).context("the wire to the world")?;
        Ok(Self { node, device: "world0".into(), namespace: "world".into() })
    }

    /// What the pod sent (`tx`) and received (`rx`), from the IP header on.
    pub fn read(&self) -> Result<Interface> {
        Ok(self.read_at()?.1)
    }

    /// The same, and when that was: seconds since the guest's start, by its own clock.
    pub fn read_at(&self) -> Result<(f64, Interface)> {
        let folder = format!("/sys/class/net/{}/statistics", self.device);
        let files = "rx_bytes rx_packets tx_bytes tx_packets rx_dropped tx_dropped";
        let text = self.node.run(&format!("cat /proc/uptime && cd {folder} && cat {files}"))?;
        let (uptime, text) = text.split_once(' ').with_context(|| format!("no uptime: {text}"))?;
        let text = text.split_once('\n').map_or("", |(_idle, figures)| figures);
        let numbers = text.lines().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let [sent, sent_packets, received, received_packets, rx_dropped, tx_dropped] = numbers[..] else {
            anyhow::bail!("the statistics of {}: {text}", self.device);
        };
        let wire = |bytes: u64, packets: u64| Counted { bytes: bytes - ETHERNET_HEADER * packets, packets };
        let interface = Interface {
            tx: wire(sent, sent_packets),
            rx: wire(received, received_packets),
            dropped: rx_dropped + tx_dropped,
        };
        Ok((uptime.parse().with_context(|| format!("no uptime: {uptime}"))?, interface))
    }

    /// What it counted since then, of which nothing may have been dropped.
    pub fn since(&self, before: Interface) -> Result<Interface> {
        let moved = self.read()? - before;
        ensure!(moved.dropped == 0, "{} dropped {} packets", self.device, moved.dropped);
        Ok(moved)
    }
}
