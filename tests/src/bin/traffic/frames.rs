//! Frames that no IP stack has seen.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use guard_load::{ETHERNET, PacketSocket};

const IPV4: usize = 20;

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
    let socket = PacketSocket::open(&send.device)?;
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
        patiently(&socket, &frame)?;
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
    let mut frame = guard_load::experiment(send.size);
    let mac = send.mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    ensure!(mac.len() == 6, "{} is no MAC address", send.mac);
    frame[..6].copy_from_slice(&mac);
    let [from, to] = send.echo[..] else { return Ok(frame) };
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

/// A full queue is waited for, never skipped.
fn patiently(socket: &PacketSocket, frame: &[u8]) -> Result<()> {
    loop {
        match socket.send(frame) {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => thread::sleep(Duration::from_micros(100)),
            sent => return sent.context("send a frame"),
        }
    }
}
