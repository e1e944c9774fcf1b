//! What agent and programs tell each other of a meter: its limits and what has become of them.

/// The instant of boot in the time that buckets are kept in, in nanoseconds: a bucket may hold more time than has passed
/// since.
pub const BUCKET_EPOCH: u64 = 1 << 62;

/// Bit of [`Control::gate`]: the meter is contained, and every packet that it sends takes the slow path.
pub const CONTAINED: u64 = 1 << 63;

/// The kinds of a [`Containment`].
pub mod containment_kind {
    /// None.
    pub const NONE: u64 = 0;
    /// So much passes.
    pub const THROTTLE: u64 = 1;
    /// Nothing passes.
    pub const BLOCK: u64 = 2;
}

/// A limit as the programs check it: a token bucket in units of time (the generic cell rate algorithm, ITU-T I.371).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Limit {
    /// Bytes per second. 0: there is no limit.
    pub rate: u64,
    /// Nanoseconds that it takes to fill the bucket.
    pub depth: u64,
    /// Mean of the credit, in bytes, that a CPU takes at once.
    pub quantum: u64,
    /// The classes that it is about: bit 1 << [`Class`](super::Class).
    pub classes: u64,
}

/// How a meter's egress is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Containment {
    /// One of [`containment_kind`].
    pub kind: u64,
    /// Bytes per second of a throttle.
    pub rate: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds when it lapses by itself. Of [`Control::on_breach`]: after how many nanoseconds.
    pub until: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds since when. Of [`Control::on_breach`]: until when the programs may use it, which
    /// the agent renews too.
    pub since: u64,
}

/// What the programs keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    /// The instant up to which the bucket's tokens are spent: nanoseconds of `CLOCK_BOOTTIME` plus [`BUCKET_EPOCH`].
    pub spent: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds when the bucket was last found empty. 0: never.
    pub empty: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds when the agent was last told so.
    pub told: u64,
    /// Spare.
    pub spare: u64,
}

/// The value of the controls' map, one per slot, shared by all CPUs and mapped into the agent: every field is a word
/// that is read and written whole.
///
/// Who writes what: the agent `owner` and the limits; both sides `gate` and `containment`; the programs the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Control {
    /// The limits' generation, and [`CONTAINED`]. Every packet reads it: it has a cache line to itself and what seldom
    /// changes.
    pub gate: u64,
    /// The cgroup that the slot belongs to.
    pub owner: u64,
    /// The limit of what is sent.
    pub egress: Limit,
    /// Of the node's slot: [`parameter::DROPPED_MARK`](super::parameter::DROPPED_MARK), the same for all agents.
    pub dropped_mark: u64,
    /// Spare.
    pub spare: u64,
    /// The limit of what is received.
    pub ingress: Limit,
    /// What the program does by itself when the egress bucket is empty.
    pub on_breach: Containment,
    /// The containment in force.
    pub containment: Containment,
    /// The instant up to which a throttle's tokens are spent: nanoseconds of `CLOCK_BOOTTIME` plus [`BUCKET_EPOCH`].
    pub throttle_spent: u64,
    /// Spare.
    pub spare2: [u64; 3],
    /// Of the egress bucket.
    pub egress_state: State,
    /// Of the ingress bucket.
    pub ingress_state: State,
}
const _: () = assert!(size_of::<Control>() == 256);
