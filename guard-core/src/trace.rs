//! A node's samples as bytes: what is recorded today can be decided on again tomorrow.
//!
//! A trace is a header and then frames, each a length and a checksum (both four bytes, little endian) before one
//! [`Record`]. Numbers are LEB128 varints. A sample tells only of containers whose counts moved, and by how much since
//! the sample before it in the trace: so most counts take two bytes or three, and a recorder that missed a sample loses
//! the instant but no byte. A trace that ends in the middle of a frame is good up to there.

mod read;
mod write;

use guard_common::{Tally, Totals};

pub use self::{
    read::{Decoder, Reader, Truncated},
    write::Writer,
};
use crate::{breach::ContainerId, policy::Subject};

/// How a trace begins.
const MAGIC: [u8; 8] = *b"EGTRACE\n";

/// Of all that follows.
const VERSION: u8 = 1;

/// Bytes of a header: magic, version, wall clock, boot clock, checksum.
pub const HEADER: usize = MAGIC.len() + 1 + 8 + 8 + CHECKSUM;

const CHECKSUM: usize = 4;

/// Bytes before each record: its length and its checksum.
const FRAME: usize = 4 + CHECKSUM;

/// The largest record. A sample in which 65,535 containers moved takes 3 MiB at the very most.
pub const MAX_RECORD: usize = 16 << 20;

const APPEARS: u8 = 1;
const GONE: u8 = 2;
const SAMPLE: u8 = 3;

/// An instant on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Wall clock: nanoseconds since 1970.
    pub wall: u64,
    /// `CLOCK_BOOTTIME` nanoseconds of the same instant. No sample is earlier.
    pub at: u64,
}

/// What a trace tells, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A container is there. One that is there already is known better now: this takes the place of what was known.
    Appears(Container),
    /// A container is no longer there.
    Gone(ContainerId),
    /// The counters were read.
    Sample(Sample),
}

/// A container of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its cgroup.
    pub id: ContainerId,
    /// What a policy is matched with.
    pub subject: Subject,
    /// The workload that it belongs to. Empty while unknown.
    pub workload: String,
    /// What it had counted before the first sample that tells of it. Bytes only, as in [`Sample::moved`].
    pub totals: Totals,
}

/// What was counted since the sample before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// `CLOCK_BOOTTIME` nanoseconds.
    pub at: u64,
    /// The containers that counted anything, in the order in which they appeared. Packets are not recorded: they are 0.
    pub moved: Vec<(ContainerId, Totals)>,
}

/// Why bytes are not a trace, or not one any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It begins in another way.
    #[error("not a trace: byte 0 and on are not how a file of `guard-agent record` begins")]
    Foreign,
    /// It was written by a program that this one does not know.
    #[error("a trace of version {0}, and this guard-agent reads version {VERSION}: use the one that recorded it")]
    Version(u8),
    /// There is not even a header.
    #[error("the trace ends within its header, at byte {0}: nothing was recorded, record it again")]
    Empty(usize),
    /// What is there cannot have been written so.
    #[error("the trace is damaged at byte {offset}: {what}; all before that byte is whole")]
    Damaged {
        /// Where in the trace the frame begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Why a record cannot be written. Nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A container that never appeared, or is gone.
    #[error("cgroup {} is not in the trace", .0.0)]
    Unknown(ContainerId),
    /// A sample that is earlier than the one before.
    #[error("a sample at {at} ns of boot time cannot follow one at {before} ns")]
    Backwards {
        /// When the sample was taken.
        at: u64,
        /// When the one before was.
        before: u64,
    },
    /// Larger than [`MAX_RECORD`].
    #[error("a record of {0} bytes, and a trace takes at most {MAX_RECORD}")]
    TooLarge(usize),
}

/// How many counts a container has.
const COUNTS: usize = 4;

fn counts(totals: &Totals) -> [u64; COUNTS] {
    let Totals { egress, ingress } = totals;
    let Tally { bytes: egress, packets: _, other: _ } = egress;
    let Tally { bytes: ingress, packets: _, other: _ } = ingress;
    [egress[0], egress[1], ingress[0], ingress[1]]
}

fn totals([cluster_out, external_out, cluster_in, external_in]: [u64; COUNTS]) -> Totals {
    let tally = |bytes| Tally { bytes, ..Tally::default() };
    Totals { egress: tally([cluster_out, external_out]), ingress: tally([cluster_in, external_in]) }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
