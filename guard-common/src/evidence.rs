//! Where a meter's bytes went.

/// How many destinations of all meters together are remembered; the least recently seen give way.
pub const EVIDENCE_ROOM: u32 = 16_384;

/// An epoch is so many bits of nanoseconds long: about 69 s.
pub const EVIDENCE_EPOCH: u32 = 36;

/// Added to [`Destination::class`]: the bytes came from there.
pub const INGRESS: u8 = 2;

/// The key of the evidence map. Its value is the estimated bytes, a `u64`: each time a CPU takes credit, the packet for
/// which it does so is charged with all of it, so that a destination's share of the samples is its share of the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Destination {
    /// The meter's [`Control::owner`](super::Control::owner).
    pub owner: u64,
    /// The peer's address, IPv4 as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
    /// `CLOCK_BOOTTIME` in units of 2^[`EVIDENCE_EPOCH`] ns: what is old can be told from what is new.
    pub epoch: u32,
    /// The peer's port; 0 where the protocol has none or the packet does not say.
    pub port: u16,
    /// The IP protocol's number.
    pub protocol: u8,
    /// The [`Class`](super::Class), plus [`INGRESS`] if the bytes came from there.
    pub class: u8,
}
const _: () = assert!(size_of::<Destination>() == 32);
