//! What a wire counted, and how that must agree with what the meters counted.
//!
//! The wires have segmentation offload off and neighbours that are known for good, so an interface counts packets as they are
//! on a wire, 14 bytes of Ethernet more for each, and carries no ARP. The meters see the same packets, some of them before
//! they are cut, and count what the cut ones will be. So at an instant at which nothing moves
//!
//! ```text
//! wire = metered + unmetered - lost
//! ```
//!
//! in packets and in bytes, where
//!
//! - *unmetered* is what the pod's network stack sends without a socket of any container: the last ACK of a TCP connection
//!   that the pod closed first, out of `TIME_WAIT` (IPv4 and TCP headers with timestamps: 52 bytes), and resets for what has
//!   no socket (40 bytes). There are at most two of the former for each connection that the stack has opened or accepted
//!   (two, for the peer may repeat its FIN), and no more of the latter than the stack itself counts as resets or ICMP. UDP has
//!   none of it: there wire and meter are equal;
//! - *lost* is what a queue behind the meter dropped. The kernel counts these packets; mostly there are none.
//!
//! In the other direction the same holds of what the stack takes without a socket: the peer's last FIN, and what is answered
//! with a reset.

use crate::books::Count;

/// An IPv4 header: no packet is smaller.
const IP: u64 = 20;
/// IPv4 and TCP headers without options: a reset.
const LEAST: u64 = 40;
/// With timestamps: an ACK.
const ACK: u64 = 52;
/// A SYN has the most options of those without data: 60 bytes. ICMP quotes at most 576.
const SYN: u64 = 60;
const ICMP: u64 = 576;
/// The largest packet.
const MTU: u64 = 1500;
/// How often a peer may repeat its FIN before it hears the last ACK, and once.
const FINS: u64 = 2;

/// What the stack of a network namespace says of itself (`/proc/net/snmp`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// TCP connections that it has opened or accepted.
    pub connections: u64,
    /// Resets sent.
    pub resets: u64,
    /// ICMP messages sent.
    pub icmp: u64,
}

/// What an interface counted. A pod's, as the pod sees it: `sent` is its egress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// From the IP header on.
    pub sent: Count,
    /// From the IP header on.
    pub received: Count,
    /// Packets that were dropped on the way to the interface or in it.
    pub lost: u64,
    /// The stack's own figures.
    pub stack: Stack,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What was sent.
    Egress,
    /// What was received.
    Ingress,
}

/// How wire and meters differ, and that they must not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{direction:?}: the wire has {wire:?}, the meters {metered:?}: {packets} packets of {bytes} bytes are on the wire only, and \
     there may be {fewest} to {most} of {least_bytes} to {most_bytes} bytes ({stack:?}, {lost} packets lost)"
)]
pub struct Disagreement {
    direction: Direction,
    wire: Count,
    metered: Count,
    packets: i64,
    bytes: i64,
    fewest: i64,
    most: i64,
    least_bytes: i64,
    most_bytes: i64,
    stack: Stack,
    lost: u64,
}

/// Counters are far from where a sign would be.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Compares what was counted since the same instant. What the meters saw must be on the wire and the other way round, but for
/// what is said above.
pub fn compare(direction: Direction, wire: Count, metered: Count, stack: Stack, lost: u64) -> Result<(), Disagreement> {
    let packets = signed(wire.packets) - signed(metered.packets);
    let bytes = signed(wire.bytes) - signed(metered.bytes);
    let most = FINS * stack.connections + stack.resets + stack.icmp;
    let largest = match direction {
        Direction::Egress => ACK,
        // What is answered with a reset may be a SYN, or may have data.
        Direction::Ingress if stack.resets == 0 => SYN,
        Direction::Ingress => MTU,
    };
    let (fewest, most) = (-signed(lost), signed(most));
    // Of so many lost packets at most as many unmetered ones have made up for them.
    let hidden = (most - packets).clamp(0, signed(lost));
    let unmetered = packets + hidden;
    let [least, largest, icmp] = [LEAST, largest, (ICMP - LEAST) * stack.icmp].map(signed);
    let least_bytes = least * unmetered - signed(MTU) * hidden;
    let most_bytes = largest * unmetered - signed(IP) * hidden + if unmetered > 0 { icmp } else { 0 };
    let agree = (fewest..=most).contains(&packets) && (least_bytes..=most_bytes).contains(&bytes);
    if agree {
        return Ok(());
    }
    Err(Disagreement { direction, wire, metered, packets, bytes, fewest, most, least_bytes, most_bytes, stack, lost })
}

/// The same of bytes alone, for which packets were not counted.
pub fn compare_bytes(wire: Count, metered: u64, stack: Stack, lost: u64) -> Result<(), Disagreement> {
    let bytes = signed(wire.bytes) - signed(metered);
    let most = FINS * stack.connections + stack.resets + stack.icmp;
    let least_bytes = -signed(MTU * lost);
    let most_bytes = signed(ACK * (FINS * stack.connections + stack.resets) + ICMP * stack.icmp);
    if (least_bytes..=most_bytes).contains(&bytes) {
        return Ok(());
    }
    Err(Disagreement {
        direction: Direction::Egress,
        wire,
        metered: Count { bytes: metered, packets: 0 },
        packets: 0,
        bytes,
        fewest: -signed(lost),
        most: signed(most),
        least_bytes,
        most_bytes,
        stack,
        lost,
    })
}

impl std::ops::Sub for Count {
    type Output = Self;

    /// An interface that began anew has counted nothing since.
    fn sub(self, before: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(before.bytes), packets: self.packets.saturating_sub(before.packets) }
    }
}

impl std::ops::Sub for Wire {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        let (now, then) = (self.stack, before.stack);
        Self {
            sent: self.sent - before.sent,
            received: self.received - before.received,
            lost: self.lost.saturating_sub(before.lost),
            stack: Stack {
                connections: now.connections.saturating_sub(then.connections),
                resets: now.resets.saturating_sub(then.resets),
                icmp: now.icmp.saturating_sub(then.icmp),
            },
        }
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
