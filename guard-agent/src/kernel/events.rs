//! What the kernel tells by itself: cgroups made and removed, and the programs' diagnostics.

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use aya_log::EbpfLogger;
use bytes::Buf;
use guard_common::{CgroupEvent, EVENT_PATH, event_kind};
use tokio::io::{Interest, unix::AsyncFd};

use super::object::ObjectError;

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

/// A record of the ring buffer is not what the programs write: agent and programs are not of one build.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a kernel event of {len} bytes and kind {kind} is not one of this agent's")]
pub struct DecodeError {
    len: usize,
    kind: u32,
}

/// Decodes a record of the ring buffer.
pub fn decode(mut record: impl Buf) -> Result<CgroupChange, DecodeError> {
    let len = record.remaining();
    if len != size_of::<CgroupEvent>() {
        return Err(DecodeError { len, kind: 0 });
    }
    let at = record.get_u64_ne();
    let kind = record.get_u32_ne();
    let path_len = record.get_u32_ne() as usize;
    let mut path = [0; EVENT_PATH];
    record.copy_to_slice(&mut path);
    let path = match path.get(..path_len) {
        Some([]) => None,
        Some(path) => Some(String::from_utf8_lossy(path).trim_start_matches('/').to_owned()),
        None => return Err(DecodeError { len, kind }),
    };
    match kind {
        event_kind::MKDIR | event_kind::RMDIR => Ok(CgroupChange { at, made: kind == event_kind::MKDIR, path }),
        _ => Err(DecodeError { len, kind }),
    }
}

/// The ring buffer of cgroup events.
pub struct CgroupEvents(AsyncFd<RingBuf<MapData>>);

impl CgroupEvents {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, ObjectError> {
        let broken = |what: &dyn std::fmt::Display| ObjectError::Object(format!("the ring buffer: {what}"));
        let map = ebpf.take_map("EVENTS").ok_or_else(|| broken(&"missing"))?;
        let ring = RingBuf::try_from(map).map_err(|e| broken(&e))?;
        // SAFETY: the ring owns its descriptor and keeps it open as long as it lives.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self(ring.map_err(|e| broken(&e))?))
    }

    /// Waits until there are events and hands over all of them.
    pub async fn next(&mut self) -> Vec<Result<CgroupChange, DecodeError>> {
        loop {
            let Ok(mut ready) = self.0.readable_mut().await else { continue };
            let ring = ready.get_inner_mut();
            let mut events = Vec::new();
            while let Some(record) = ring.next() {
                events.push(decode(&*record));
            }
            ready.clear_ready();
            if !events.is_empty() {
                return events;
            }
        }
    }
}

/// The programs' diagnostics (`--log-kernel`).
pub struct KernelLog(AsyncFd<EbpfLogger<&'static dyn log::Log>>);

impl KernelLog {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, ObjectError> {
        let broken = |what: &dyn std::fmt::Display| ObjectError::Object(format!("the kernel log: {what}"));
        let logger = EbpfLogger::init(ebpf).map_err(|e| broken(&e))?;
        // SAFETY: the logger owns its ring, and the ring its descriptor.
        let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
        Ok(Self(logger.map_err(|e| broken(&e))?))
    }

    /// Passes records on to the log, for ever.
    pub async fn run(mut self) {
        while let Ok(mut ready) = self.0.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, Bytes, BytesMut};

    use super::*;

    fn record(kind: u32, path: &[u8], path_len: u32) -> Bytes {
        let mut record = BytesMut::new();
        record.put_u64_ne(42);
        record.put_u32_ne(kind);
        record.put_u32_ne(path_len);
        record.put_slice(path);
        record.put_bytes(0, EVENT_PATH - path.len());
        record.freeze()
    }

    #[test]
    fn events_are_decoded() {
        let made = decode(record(event_kind::MKDIR, b"/a/b", 4));
        assert_eq!(made, Ok(CgroupChange { at: 42, made: true, path: Some("a/b".into()) }));
        let removed = decode(record(event_kind::RMDIR, b"/a", 2));
        assert_eq!(removed, Ok(CgroupChange { at: 42, made: false, path: Some("a".into()) }));
        let untold = decode(record(event_kind::MKDIR, b"/long", 0));
        assert_eq!(untold, Ok(CgroupChange { at: 42, made: true, path: None }));
    }

    #[test]
    fn foreign_records_are_refused() {
        assert_eq!(decode(&b"short"[..]), Err(DecodeError { len: 5, kind: 0 }));
        assert_eq!(decode(record(9, b"/a", 2)), Err(DecodeError { len: 504, kind: 9 }));
        let too_long = decode(record(event_kind::MKDIR, b"/a", EVENT_PATH as u32 + 1));
        assert_eq!(too_long, Err(DecodeError { len: 504, kind: event_kind::MKDIR }));
    }
}
