//! What the kernel programs tell through the ring buffer.

use bytes::Buf;
use guard_common::{BreachEvent, CgroupEvent, EVENT_PATH, event_kind};

use crate::{breach::ContainerId, breach::Limit, ledger::Slot};

/// Something happened in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A cgroup was made or removed.
    Cgroup(CgroupChange),
    /// A packet found a bucket empty.
    Crossed(Crossing),
}

/// A cgroup was made or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupChange {
    /// `CLOCK_MONOTONIC` of the event, in nanoseconds.
    pub at: u64,
    /// It was made; else removed.
    pub made: bool,
    /// Its path from the root of its hierarchy, without the leading slash. `None`: too long to be told.
    pub path: Option<String>,
}

/// A packet found a bucket empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// `CLOCK_MONOTONIC` at the packet, in nanoseconds.
    pub at: u64,
    /// [`Limit::Rate`] or [`Limit::Ingress`].
    pub limit: Limit,
    /// The meter's slot.
    pub slot: Slot,
    /// Whose the slot was then.
    pub owner: ContainerId,
}

/// A record of the ring buffer is not what the programs write: agent and programs are not of one build.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a kernel event of {len} bytes and kind {kind} is not one of this agent's")]
pub struct DecodeError {
    len: usize,
    kind: u32,
}

/// Decodes a record of the ring buffer.
pub fn decode(mut record: impl Buf) -> Result<Event, DecodeError> {
    let len = record.remaining();
    if len < size_of::<BreachEvent>() {
        return Err(DecodeError { len, kind: 0 });
    }
    let at = record.get_u64_ne();
    let kind = record.get_u32_ne();
    let word = record.get_u32_ne();
    match (kind, len) {
        (event_kind::MKDIR | event_kind::RMDIR, CGROUP_EVENT) => {
            let mut room = [0; EVENT_PATH];
            record.copy_to_slice(&mut room);
            let path = room.get(..word as usize).ok_or(DecodeError { len, kind })?;
            let path = (!path.is_empty()).then(|| String::from_utf8_lossy(path).trim_start_matches('/').to_owned());
            Ok(Event::Cgroup(CgroupChange { at, made: kind == event_kind::MKDIR, path }))
        }
        (event_kind::EGRESS | event_kind::INGRESS, BREACH_EVENT) => {
            let limit = if kind == event_kind::EGRESS { Limit::Rate } else { Limit::Ingress };
            Ok(Event::Crossed(Crossing { at, limit, slot: Slot(word), owner: ContainerId(record.get_u64_ne()) }))
        }
        _ => Err(DecodeError { len, kind }),
    }
}

const CGROUP_EVENT: usize = size_of::<CgroupEvent>();
const BREACH_EVENT: usize = size_of::<BreachEvent>();

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, Bytes, BytesMut};

    use super::*;

    fn cgroup(kind: u32, path: &[u8], path_len: u32) -> Bytes {
        let mut record = BytesMut::new();
        record.put_u64_ne(42);
        record.put_u32_ne(kind);
        record.put_u32_ne(path_len);
        record.put_slice(path);
        record.put_bytes(0, EVENT_PATH - path.len());
        record.freeze()
    }

    fn crossing(kind: u32) -> Bytes {
        let mut record = BytesMut::new();
        record.put_u64_ne(42);
        record.put_u32_ne(kind);
        record.put_u32_ne(7);
        record.put_u64_ne(77);
        record.freeze()
    }

    #[test]
    fn events_are_decoded() {
        let change =
            |made, path: Option<&str>| Ok(Event::Cgroup(CgroupChange { at: 42, made, path: path.map(str::to_owned) }));
        assert_eq!(decode(cgroup(event_kind::MKDIR, b"/a/b", 4)), change(true, Some("a/b")));
        assert_eq!(decode(cgroup(event_kind::RMDIR, b"/a", 2)), change(false, Some("a")));
        assert_eq!(decode(cgroup(event_kind::MKDIR, b"/long", 0)), change(true, None));
        for (kind, limit) in [(event_kind::EGRESS, Limit::Rate), (event_kind::INGRESS, Limit::Ingress)] {
            let crossed = Crossing { at: 42, limit, slot: Slot(7), owner: ContainerId(77) };
            assert_eq!(decode(crossing(kind)), Ok(Event::Crossed(crossed)));
        }
    }

    #[test]
    fn foreign_records_are_refused() {
        assert_eq!(decode(&b"short"[..]), Err(DecodeError { len: 5, kind: 0 }));
        assert_eq!(decode(cgroup(9, b"/a", 2)), Err(DecodeError { len: 504, kind: 9 }));
        assert_eq!(decode(crossing(event_kind::MKDIR)), Err(DecodeError { len: 24, kind: event_kind::MKDIR }));
        let too_long = decode(cgroup(event_kind::MKDIR, b"/a", EVENT_PATH as u32 + 1));
        assert_eq!(too_long, Err(DecodeError { len: 504, kind: event_kind::MKDIR }));
    }
}
