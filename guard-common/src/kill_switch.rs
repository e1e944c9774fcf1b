//! The kill switch, in a map of its own that outlives agents and their versions: this never changes.

/// Who may engage it, each by an [`Engagement`] of its own: 0 the operator on the node, 1 the configuration file, 2 the
/// cluster; the last is spare.
pub const SOURCES: usize = 4;

/// Room for who did it.
pub const WHO: usize = 120;

/// One source's say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Engagement {
    /// Unix time in nanoseconds since when it is engaged. 0: it is not.
    pub since: u64,
    /// Who did it, UTF-8 up to the first NUL.
    pub who: [u8; WHO],
}

/// The value of the kill switch's map. It is engaged as long as any source says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct KillSwitch {
    /// By source.
    pub engagements: [Engagement; SOURCES],
}
const _: () = assert!(size_of::<KillSwitch>() == 512);
