//! The kill switch, in a map of its own that outlives agents and their versions: this never changes.

/// Who may engage it, each by an [`Engagement`] of its own: 0 the operator on the node, 1 the configuration file, 2 the
/// cluster; the last is spare. It is engaged as long as any of them says so.
pub const SOURCES: u32 = 4;

/// Room for who did it.
pub const WHO: usize = 120;

/// The value of the kill switch's map, one per source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Engagement {
    /// Unix time in nanoseconds since when it is engaged. 0: it is not.
    pub since: u64,
    /// Who did it, UTF-8 up to the first NUL.
    pub who: [u8; WHO],
}
const _: () = assert!(size_of::<Engagement>() == 128);
