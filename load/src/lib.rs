//! What the senders of the tests share: frames past the IP stack, as whoever has `CAP_NET_RAW` can send them
//! (`AF_PACKET`, packet(7)).

use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};

/// Bytes of Ethernet's header, in front of the payload.
pub const ETHERNET: usize = 14;

/// For experiments within a site (IEEE 802): no stack takes it.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// A frame with so many bytes of payload, for nobody.
pub fn experiment(size: usize) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + size];
    frame[12..ETHERNET].copy_from_slice(&EXPERIMENT);
    frame
}

/// Where frames leave.
pub struct PacketSocket {
    fd: OwnedFd,
    to: libc::sockaddr_ll,
}

impl PacketSocket {
    /// Out of this interface.
    ///
    /// # Errors
    ///
    /// There is no such interface, or `CAP_NET_RAW` is missing.
    #[expect(unsafe_code, reason = "socket(2), if_nametoindex(3)")]
    pub fn open(interface: &str) -> Result<Self> {
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
        Ok(Self { fd, to })
    }

    /// Sends a frame, its Ethernet header included.
    ///
    /// # Errors
    ///
    /// The kernel's; `ENOBUFS` when the interface's queue is full.
    #[expect(unsafe_code, reason = "sendto(2)")]
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let length = size_of_val(&self.to) as libc::socklen_t;
        // SAFETY: a descriptor that is open, bytes and an address of these lengths.
        let sent = unsafe {
            let (bytes, to) = (frame.as_ptr().cast(), (&raw const self.to).cast());
            libc::sendto(self.fd.as_raw_fd(), bytes, frame.len(), 0, to, length)
        };
        // A frame goes as a whole or not at all.
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
