//! The interfaces by which pods send, seen from the node's end of them: what a pod does to its own end changes nothing of it.

use std::{collections::HashMap, fs, io, path::Path};

use rustix::io::Errno;

pub use super::netlink::{Link, Netns};
use super::{netlink::Netlink, processes};
use crate::core::bypass::{Frames, Uplink};

/// Where a cgroup's processes send from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has no process (yet), or none that could be asked.
    Nowhere,
    /// It has, and this process cannot see them.
    Unseen,
    /// The node's own network.
    Node,
    /// A network namespace that an interface of the node leads to.
    In(Netns),
    /// Another one.
    Apart,
}

/// Reads the node's interfaces.
#[derive(Debug)]
pub struct Uplinks {
    netlink: Netlink,
    node: u32,
}

impl Uplinks {
    /// `node`: a process whose network namespace is the node's. Nothing is asked of it yet.
    pub fn open(node: u32) -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()?, node })
    }

    /// The node's network namespace, and its interfaces. Takes `CAP_NET_ADMIN`. What is numbered keeps its number for as long as
    /// the namespace is there.
    pub fn links(&mut self) -> io::Result<(Netns, Vec<Link>)> {
        let unnumbered = || io::Error::other(format!("the network namespace of process {} gets no number", self.node));
        let node = self.netlink.number(self.node)?.ok_or_else(unnumbered)?;
        Ok((node, self.netlink.links(node)?))
    }

    /// The interfaces of another network namespace. Takes `CAP_NET_ADMIN`, too. `None`: it has just ended.
    pub fn links_of(&mut self, netns: Netns) -> io::Result<Option<Vec<Link>>> {
        match self.netlink.links(netns) {
            Ok(links) => Ok(Some(links)),
            // No namespace has the number any more (`rtnl_get_net_ns_capable`).
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where a cgroup's processes send from. To be asked after [`Self::links`], which numbers all namespaces that matter.
    pub fn place(&mut self, node: Netns, cgroup: &Path) -> io::Result<Place> {
        let processes = processes::of(cgroup)?;
        let mut place = if processes.foreign { Place::Unseen } else { Place::Nowhere };
        for pid in processes.pids {
            match self.netlink.netns(pid) {
                Ok(Some(found)) if found == node => return Ok(Place::Node),
                Ok(Some(found)) => return Ok(Place::In(found)),
                // Another of them may not have gone apart.
                Ok(None) => place = Place::Apart,
                // It has just ended.
                Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(place)
    }

    /// What all of the node's interfaces have counted, by name and from the pods' side: what the node received they sent.
    /// `proc_pid_net(5)`; takes no rights.
    pub fn read(&self) -> io::Result<HashMap<String, Uplink>> {
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.node))?;
        Ok(text.lines().filter_map(line).map(|(name, uplink)| (name.to_owned(), uplink)).collect())
    }
}

/// An interface's line: its name, eight figures of what it received, eight of what it sent.
fn line(line: &str) -> Option<(&str, Uplink)> {
    let (name, figures) = line.rsplit_once(':')?;
    let figures: Vec<u64> = figures.split_ascii_whitespace().map_while(|figure| figure.parse().ok()).collect();
    let frames = |from: usize| Some(Frames { bytes: *figures.get(from)?, packets: *figures.get(from + 1)? });
    Some((name.trim_start(), Uplink { sent: frames(0)?, received: frames(8)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_received_the_pod_has_sent() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1 2 0 0 0 0 0 0 1 2 0 0 0 0 0 0
cali1a2b3c4d5e6:18446744073709551615      20    0    0    0     0          0         0 30 40    0    0    0     0       0          0
";
        let found: Vec<_> = text.lines().filter_map(line).collect();
        let frames = |bytes, packets| Frames { bytes, packets };
        assert_eq!(found.len(), 2, "{found:?}");
        let expected = Uplink { sent: frames(u64::MAX, 20), received: frames(30, 40) };
        assert_eq!(found[1], ("cali1a2b3c4d5e6", expected));
        assert_eq!(line("short: 1 2 3"), None);
    }
}
