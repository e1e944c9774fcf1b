//! Frames that no IP stack has seen.

use std::{
    ffi::CString,
    io, mem,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
/// For experiments within a site (IEEE 802): no stack takes it.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

#[derive(Args)]
pub(crate) struct FrameSend {
    #[arg(long)]
    device: String,
    /// Bytes of each from behind its Ethernet header on
    #[arg(long, default_value_t = 1000)]
    size: usize,
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Bytes per second, without the Ethernet headers; as fast as possible without
    #[arg(long)]
    rate: Option<u64>,
    /// Go on for so many seconds instead of `--count`
    #[arg(long)]
    seconds: Option<f64>,
    /// Ask for an echo (ICMP): from which address, and of which, instead of a frame that nobody takes
    #[arg(long, num_args = 2)]
    echo: Vec<Ipv4Addr>,
    /// The MAC address of the other end
    #[arg(long, default_value = "ff:ff:ff:ff:ff:ff")]
    mac: String,
}

pub(crate) fn send(send: &FrameSend) -> Result<()> {
    let socket = Socket::open(&send.device)?;
    let frame = frame(send)?;
    let start = Instant::now();
    for index in 0_u64.. {
        let over = match send.seconds {
            Some(seconds) => start.elapsed().as_secs_f64() >= seconds,
            None => index >= send.count as u64,
        };
        if over {
            break;
        }
        socket.send(&frame)?;
        match send.rate {
            Some(rate) => {
                let due = Duration::from_secs_f64((index + 1) as f64 * send.size as f64 / rate as f64);
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
            None if index % 16 == 15 => thread::sleep(Duration::from_micros(50)),
            None => {}
        }
    }
    Ok(())
}

fn frame(send: &FrameSend) -> Result<Vec<u8>> {
    let mut frame = vec![0; ETHERNET + send.size];
    let mac = send.mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    ensure!(mac.len() == 6, "{} is no MAC address", send.mac);
    frame[..6].copy_from_slice(&mac);
    let [from, to] = send.echo[..] else {
        frame[12..14].copy_from_slice(&EXPERIMENT);
        return Ok(frame);
    };
    frame[12..14].copy_from_slice(&[8, 0]);
    let (header, message) = frame[ETHERNET..].split_at_mut_checked(IPV4).context("too small for an echo")?;
    ensure!(message.len() >= 8, "too small for an echo");
    header[0] = 0x45;
    header[2..4].copy_from_slice(&u16::try_from(send.size)?.to_be_bytes());
    (header[8], header[9]) = (64, 1);
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    let sum = checksum(header);
    header[10..12].copy_from_slice(&sum);
    message[0] = 8;
    let sum = checksum(message);
    message[2..4].copy_from_slice(&sum);
    Ok(frame)
}

/// The Internet's (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

struct Socket {
    fd: OwnedFd,
    to: libc::sockaddr_ll,
}

impl Socket {
    #[expect(unsafe_code, reason = "socket(2), if_nametoindex(3)")]
    fn open(device: &str) -> Result<Self> {
        let name = CString::new(device)?;
        // SAFETY: a new descriptor, a C string, and a struct of plain numbers.
        let (fd, index, mut to) = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            ensure!(fd >= 0, "a packet socket: {}", io::Error::last_os_error());
            (OwnedFd::from_raw_fd(fd), libc::if_nametoindex(name.as_ptr()), mem::zeroed::<libc::sockaddr_ll>())
        };
        ensure!(index != 0, "no interface {device}");
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = i32::try_from(index)?;
        to.sll_halen = 6;
        Ok(Self { fd, to })
    }

    /// A full queue is waited for, never skipped.
    #[expect(unsafe_code, reason = "sendto(2)")]
    fn send(&self, frame: &[u8]) -> Result<()> {
        loop {
            let length = size_of_val(&self.to) as libc::socklen_t;
            // SAFETY: a descriptor that is open, bytes and an address of these lengths.
            let sent = unsafe {
                let (bytes, to) = (frame.as_ptr().cast(), (&raw const self.to).cast());
                libc::sendto(self.fd.as_raw_fd(), bytes, frame.len(), 0, to, length)
            };
            if sent == frame.len() as isize {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            ensure!(error.raw_os_error() == Some(libc::ENOBUFS), "send: {error}");
            thread::sleep(Duration::from_micros(100));
        }
    }
}
