//! What the kernel tells by itself: events, and the programs' diagnostics.

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};

use super::object::ObjectError;
use crate::core::event::{DecodeError, Event, decode};

/// The ring buffer of the programs' events.
pub struct KernelEvents(AsyncFd<RingBuf<MapData>>);

impl KernelEvents {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, ObjectError> {
        let broken = |what: &dyn std::fmt::Display| ObjectError::Object(format!("the ring buffer: {what}"));
        let map = ebpf.take_map("EVENTS").ok_or_else(|| broken(&"missing"))?;
        let ring = RingBuf::try_from(map).map_err(|e| broken(&e))?;
        // SAFETY: the ring owns its descriptor and keeps it open as long as it lives.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self(ring.map_err(|e| broken(&e))?))
    }

    /// Waits until there are events and hands over all of them.
    pub async fn next(&mut self) -> Vec<Result<Event, DecodeError>> {
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
