//! Frames past the IP stack, as whoever has `CAP_NET_RAW` can send them: `AF_PACKET`, packet(7).

use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};

/// Of Ethernet, in front of the payload.
const HEADER: usize = 14;
/// For experiments within a site (IEEE 802): no stack takes it.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// Where frames leave, and what is in each.
pub(crate) struct Frames {
    fd: OwnedFd,
    to: libc::sockaddr_ll,
    frame: Vec<u8>,
}

impl Frames {
    /// Of so many bytes of payload each, to nobody, out of this interface.
    #[expect(unsafe_code, reason = "socket(2), if_nametoindex(3)")]
    pub(crate) fn open(interface: &str, size: usize) -> Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: a C string, and a struct of plain numbers.
        let (fd, index, mut to) = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            (fd, libc::if_nametoindex(name.as_ptr()), mem::zeroed::<libc::sockaddr_ll>())
        };
        ensure!(fd >= 0, "a packet socket: {}", io::Error::last_os_error());
        // SAFETY: it is open, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        ensure!(index != 0, "there is no interface {interface}");
        to.sll_family = u16::try_from(libc::AF_PACKET)?;
        to.sll_ifindex = i32::try_from(index).context("the interface's number")?;
        to.sll_halen = 6;
        let mut frame = vec![0; HEADER + size];
        frame[12..HEADER].copy_from_slice(&EXPERIMENT);
        Ok(Self { fd, to, frame })
    }

    /// Sends one; returns its payload's bytes.
    #[expect(unsafe_code, reason = "sendto(2)")]
    pub(crate) fn send(&self) -> io::Result<usize> {
        let Self { fd, to, frame } = self;
        let length = size_of_val(to) as libc::socklen_t;
        // SAFETY: a descriptor that is open, bytes and an address of these lengths.
        let sent = unsafe {
            libc::sendto(fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const *to).cast(), length)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(frame.len() - HEADER) }
    }
}
