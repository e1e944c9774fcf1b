//! What left by a pod's interface past every meter, such as frames sent through `AF_PACKET`.
//!
//! An interface and the meters are never read at the same instant, they count differently, and the kernel sends a little by
//! itself. So what is told is a lower bound: nothing is told that ordinary traffic could have been. Left out are
//!
//! - what the interface received and no socket took, with the headers that coalescing (GRO) hides, and what came between the
//!   two readings: the kernel answers it without a socket (echo replies, resets, the last ACK of a connection) or forwards
//!   it, with no more but for the headers of its errors. What is copied to sockets (a group's, raw ones) is answered all the
//!   same, or counted several times;
//! - [`NOISE`], and one part in [`SHARE`] of what the meters counted;
//! - what the meters counted and the interface did not: the headers of segments that are cut later, and what was lost
//!   before it came to the interface. It is forgiven as it comes in, and not saved up: [`SLACK`] and what may have been
//!   sent between the two readings, no more. So a queue behind the meters may hold no more than that from one reading to the
//!   next.
//!
//! So `told >= bypass - received for nobody - headers - lost - metered / SHARE - NOISE * t - SLACK - sent between the readings`,
//! and `told <= bypass`.

use guard_common::{Class, Tally, Totals};

/// An Ethernet header: an interface counts it, a meter does not. A VLAN's tag lies beside the frame on a veth.
const ETHERNET: u64 = 14;

/// The longest headers of a segment: IPv6's, TCP's, and timestamps. Of a super-packet an interface counts them once.
const HEADERS: u64 = 72;

/// What the kernel's errors are longer than what they answer, at the most: the headers of IPv6 and `ICMPv6` (RFC 4443).
const ERROR: u64 = 48;

/// What the kernel sends by itself, in bytes per second: ARP and neighbour discovery above all.
pub const NOISE: u64 = 1 << 10;

/// One part in so many of what the meters counted: they may miss fragments' headers, 48 in 1,280 bytes at the most (IPv6's, and
/// the least that it lets a link carry).
pub const SHARE: u64 = 25;

/// Bytes that are forgiven at any time.
pub const SLACK: u64 = 64 << 10;

/// What an interface has received and no socket has taken yet, at the most: a veth's queues are full of super-packets.
const BACKLOG: u64 = 64 << 20;

/// No container sends more than this, in bytes per nanosecond: 100 Gbit/s.
const FASTEST: u64 = 12;

/// What an interface has counted in one direction, from the Ethernet header on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Bytes.
    pub bytes: u64,
    /// Frames; a super-packet is one.
    pub packets: u64,
}

/// What a pod's interface has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// Sent by the pod.
    pub sent: Frames,
    /// Received by it.
    pub received: Frames,
}

/// An interface and the meters behind it, read one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// `CLOCK_BOOTTIME` nanoseconds after the meters were read.
    pub at: u64,
    /// Nanoseconds from before the interface was read until then. It is read first: what is sent in between is in the
    /// meters alone.
    pub skew: u64,
    /// What the interface says.
    pub uplink: Uplink,
    /// What all meters behind it counted since the reading before.
    pub moved: Totals,
}

/// The running difference between a pod's interface and its meters.
#[derive(Clone, Debug)]
pub struct Gap {
    at: u64,
    uplink: Uplink,
    /// What the interface sent more than can be explained. Below zero: what is forgiven yet.
    balance: i128,
    /// What the interface received more than the meters did.
    surplus: i128,
    silence: Silence,
}

/// Whether an interface received nothing at all, for readings on end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    /// In the last one it received a frame.
    No,
    /// In the last one it received none.
    Once,
    /// In the last two it received none, and in the last one a socket took something: the interface counts that a little
    /// later, or it never does.
    Taken,
}

/// Why an interface and its meters cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incomparable {
    /// The interface counts less than before, so it is another one. The comparison has begun anew.
    Another,
    /// The meters saw more come in than the interface: something hands it over past the interface (`bpf_redirect_peer`), and
    /// so may what the kernel answers by itself have been.
    Past,
}

impl std::ops::AddAssign for Frames {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.packets = self.packets.saturating_add(other.packets);
    }
}

impl std::ops::AddAssign for Uplink {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.received += other.received;
    }
}

impl Frames {
    fn since(self, before: Self) -> Option<Self> {
        let bytes = self.bytes.checked_sub(before.bytes)?;
        Some(Self { bytes, packets: self.packets.checked_sub(before.packets)? })
    }
}

fn bytes(tally: &Tally) -> u64 {
    tally.bytes[Class::Cluster as usize].saturating_add(tally.bytes[Class::External as usize])
}

impl Gap {
    /// Begins: what was before is nobody's.
    #[must_use]
    pub fn new(first: &Reading) -> Self {
        let Reading { at, skew, uplink, moved: _ } = *first;
        let balance = -i128::from(SLACK.saturating_add(between(skew, u64::MAX)));
        Self { at, uplink, balance, surplus: 0, silence: Silence::No }
    }

    /// Takes the next reading; returns how many bytes bypassed the meters, as far as that is certain now.
    pub fn take(&mut self, reading: &Reading) -> Result<u64, Incomparable> {
        let Reading { at, skew, uplink, moved } = *reading;
        let sent = uplink.sent.since(self.uplink.sent);
        let Some((sent, received)) = sent.zip(uplink.received.since(self.uplink.received)) else {
            *self = Self::new(reading);
            return Err(Incomparable::Another);
        };
        let (metered, taken) = (bytes(&moved.egress), bytes(&moved.ingress).saturating_sub(moved.copied()));
        // In whole bytes: rounded up, so that many short times leave no less out than a long one.
        let noise = (u128::from(at.saturating_sub(self.at)) * u128::from(NOISE)).div_ceil(1_000_000_000);
        let packets = moved.ingress.packets.iter().fold(0, |sum: u64, &packets| sum.saturating_add(packets));
        let hidden = u128::from(packets) * u128::from(HEADERS);
        let came = u128::from(received.bytes) + hidden;
        // Headers that are hidden of what was taken let nobody answer more than came.
        let unmetered = came.saturating_sub(u128::from(taken)).min(u128::from(received.bytes));
        // A copy is of a packet that may be answered with an error yet.
        let others = if moved.copied() > 0 { 0 } else { packets };
        let errors = u128::from(received.packets.saturating_sub(others)) * u128::from(ERROR);
        let frames = u128::from(sent.packets) * u128::from(ETHERNET);
        let explained = u128::from(metered) + u128::from(metered.div_ceil(SHARE)) + unmetered + errors + noise + frames;
        let signed = |bytes: u128| i128::try_from(bytes).unwrap_or(i128::MAX);
        let balance = self.balance.saturating_add(i128::from(sent.bytes)).saturating_sub(signed(explained));
        // With the headers that the meters may have missed: they are on the interface with the rest, in the next reading.
        let late = between(skew, metered.saturating_add(metered.div_ceil(SHARE)));
        let least = -i128::from(SLACK.saturating_add(late));
        // What was received between the readings may still be missing from what explains an answer.
        let most = i128::from(between(skew, taken));
        let told = balance.saturating_sub(most).max(0);
        (self.at, self.uplink, self.balance) = (at, uplink, balance.clamp(least, most));
        let surplus = self.surplus.saturating_add(signed(came)).saturating_sub(i128::from(taken));
        self.surplus = surplus.min(i128::from(BACKLOG));
        let is_past = self.silence.is_broken_by(received.packets, taken);
        if is_past || self.surplus < -i128::from(SLACK.saturating_add(between(skew, taken))) {
            return Err(Incomparable::Past);
        }
        Ok(u64::try_from(told).unwrap_or(u64::MAX))
    }
}

impl Silence {
    /// Goes on with a reading. Whether what a socket took has not come by the interface, be it counted a reading earlier or
    /// later.
    fn is_broken_by(&mut self, frames: u64, taken: u64) -> bool {
        let (before, is_silent) = (*self, frames == 0);
        *self = match before {
            _ if !is_silent => Self::No,
            Self::Once | Self::Taken if taken > 0 => Self::Taken,
            Self::No | Self::Once | Self::Taken => Self::Once,
        };
        before == Self::Taken && is_silent
    }
}

/// How much may have moved between two readings, of what moved since the reading before.
fn between(skew: u64, moved: u64) -> u64 {
    moved.min(skew.saturating_mul(FASTEST))
}

#[cfg(test)]
#[path = "bypass_tests.rs"]
mod tests;
