//! Does to a node what a hostile container would: traffic past the usual calls, and what it takes rights to do.

use std::{
    io::{BufRead as _, IoSlice, IoSliceMut, Write as _},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use guard_tests::{
    agent::pins,
    hostile::{self, Ring},
};
use rustix::net::{
    AddressFamily, Protocol, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketType, ipproto, recvmsg, sendmsg, socket, sockopt,
};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes IPv4 headers of its own (`IPPROTO_RAW`)
    Raw(Packets),
    /// Sends ICMP echo requests from a raw socket
    Ping(Packets),
    /// Writes IPv6 packets with an extension header of its own
    RawV6(Packets),
    /// Datagrams put together from two calls (`UDP_CORK`)
    Cork(Packets),
    /// Datagrams whose payload the kernel does not copy (`MSG_ZEROCOPY`)
    Zerocopy(Packets),
    /// A stream that never passes through this process' memory (`splice`)
    Splice(Packets),
    /// Datagrams sent by the kernel's own threads (`io_uring`)
    Uring(Packets),
    /// To a group, or to all of the subnet
    Many(Packets),
    /// The same, and hears it itself
    Heard(Packets),
    /// Has raw sockets take copies of all pings and datagrams, and waits
    Copy(Copies),
    /// Makes a socket, and hands it to whoever connects
    Lend(Lend),
    /// Takes a socket from there, and sends through it when told to
    Borrow(Borrow),
    /// Tries all that takes rights, without any; prints what succeeded
    Powerless(Powerless),
}

#[derive(Args)]
struct Packets {
    #[arg(long)]
    to: SocketAddr,
    /// Packets
    #[arg(long, default_value_t = 50)]
    count: u16,
    /// Bytes of payload of each
    #[arg(long, default_value_t = 700)]
    size: usize,
}

#[derive(Args)]
struct Copies {
    /// Sockets of each protocol
    #[arg(long)]
    sockets: usize,
}

#[derive(Args)]
struct Lend {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    path: PathBuf,
}

#[derive(Args)]
struct Borrow {
    #[arg(long)]
    path: PathBuf,
    #[arg(long)]
    count: usize,
    #[arg(long, default_value_t = 700)]
    size: usize,
    /// Bytes of payload per second
    #[arg(long)]
    rate: Option<u64>,
}

#[derive(Args)]
struct Powerless {
    /// The agent's socket
    #[arg(long)]
    socket: PathBuf,
    /// The agent's pins
    #[arg(long)]
    bpffs: PathBuf,
    /// A cgroup that it is not in
    #[arg(long)]
    cgroup: PathBuf,
    /// In a user namespace of its own, with all capabilities there
    #[arg(long)]
    user_namespace: bool,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Raw(to) => raw(&to),
        Command::Ping(to) => ping(&to),
        Command::RawV6(to) => raw_v6(&to),
        Command::Cork(to) => cork(&to),
        Command::Zerocopy(to) => zerocopy(&to),
        Command::Splice(to) => splice(&to),
        Command::Uring(to) => uring(&to),
        Command::Many(to) => many(&to),
        Command::Heard(to) => heard(&to),
        Command::Copy(copies) => copy(&copies),
        Command::Lend(lend) => lend_out(&lend),
        Command::Borrow(borrow) => borrow_from(&borrow),
        Command::Powerless(powerless) => try_all(&powerless),
    }
}

/// The receiver's side of a veth pair has a short queue.
fn pause(index: u16) {
    if index % 16 == 15 {
        thread::sleep(Duration::from_micros(200));
    }
}

fn raw_socket(family: AddressFamily, protocol: Option<Protocol>) -> Result<OwnedFd> {
    socket(family, SocketType::RAW, protocol).context("a raw socket")
}

fn v4(address: SocketAddr) -> Result<Ipv4Addr> {
    match address {
        SocketAddr::V4(address) => Ok(*address.ip()),
        SocketAddr::V6(_) => anyhow::bail!("an IPv4 address is wanted"),
    }
}

fn raw(Packets { to, count, size }: &Packets) -> Result<()> {
    let socket = raw_socket(AddressFamily::INET, Some(ipproto::RAW))?;
    let mut packet = vec![0x5a; 20 + size];
    packet[..20].fill(0);
    // A protocol that nobody knows (RFC 3692); the kernel fills in source, length and checksum.
    (packet[0], packet[8], packet[9]) = (0x45, 64, 253);
    packet[16..20].copy_from_slice(&v4(*to)?.octets());
    let to = SocketAddrV4::new(v4(*to)?, 0);
    for index in 0..*count {
        rustix::net::sendto(&socket, &packet, SendFlags::empty(), &to)?;
        pause(index);
    }
    Ok(())
}

fn ping(Packets { to, count, size }: &Packets) -> Result<()> {
    let socket = raw_socket(AddressFamily::INET, Some(ipproto::ICMP))?;
    let mut packet = vec![0; 8 + size];
    // An echo reply, which nobody answers: the kernel's answers are another matter. Its checksum, for all else is zero.
    (packet[2], packet[3]) = (0xff, 0xff);
    let to = SocketAddrV4::new(v4(*to)?, 0);
    for index in 0..*count {
        rustix::net::sendto(&socket, &packet, SendFlags::empty(), &to)?;
        pause(index);
    }
    Ok(())
}

fn raw_v6(Packets { to, count, size }: &Packets) -> Result<()> {
    let SocketAddr::V6(to) = to else { anyhow::bail!("an IPv6 address is wanted") };
    let socket = raw_socket(AddressFamily::INET6, Some(ipproto::RAW))?;
    // The header included is IPV6_HDRINCL's own way: destination options before an unknown protocol.
    let mut packet = vec![0x5a; 48 + size];
    packet[..48].fill(0);
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&u16::try_from(8 + size)?.to_be_bytes());
    (packet[6], packet[7]) = (60, 64);
    packet[8..24].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>()?.octets());
    packet[24..40].copy_from_slice(&to.ip().octets());
    // The option PadN of four bytes.
    (packet[40], packet[42], packet[43]) = (253, 1, 4);
    for index in 0..*count {
        rustix::net::sendto(&socket, &packet, SendFlags::empty(), to)?;
        pause(index);
    }
    Ok(())
}

fn connected(to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    Ok(socket)
}

fn cork(Packets { to, count, size }: &Packets) -> Result<()> {
    let socket = connected(*to)?;
    for index in 0..*count {
        let half = vec![0x33; size / 2];
        hostile::cork(&socket, true)?;
        socket.send(&half)?;
        socket.send(&half)?;
        hostile::cork(&socket, false)?;
        pause(index);
    }
    Ok(())
}

fn zerocopy(Packets { to, count, size }: &Packets) -> Result<()> {
    let socket = connected(*to)?;
    hostile::zerocopy(&socket)?;
    let payload = vec![0x44; *size];
    for index in 0..*count {
        hostile::send_zerocopy(&socket, &payload)?;
        pause(index);
    }
    Ok(())
}

fn splice(Packets { to, count, size }: &Packets) -> Result<()> {
    let (file, write) = rustix::pipe::pipe()?;
    let stream = TcpStream::connect(to)?;
    for _ in 0..*count {
        let mut left = rustix::io::write(&write, &vec![0x55; *size])?;
        while left > 0 {
            left -= rustix::pipe::splice(&file, None, &stream, None, left, rustix::pipe::SpliceFlags::empty())?;
        }
    }
    // The sink closes once it has all: its last packet is not missed.
    let rest = std::io::Read::read(&mut &stream, &mut [0])?;
    ensure!(rest == 0, "the sink answered");
    Ok(())
}

fn uring(Packets { to, count, size }: &Packets) -> Result<()> {
    let socket = connected(*to)?;
    let payload = vec![0x66; *size];
    let mut ring = Ring::new()?;
    for index in 0..*count {
        let sent = ring.send(socket.as_fd(), &payload)?;
        ensure!(sent == *size, "{sent} bytes of {size}");
        pause(index);
    }
    Ok(())
}

fn many(Packets { to, count, size }: &Packets) -> Result<()> {
    let own = if to.is_ipv4() { "203.0.113.1:0" } else { "[2001:db8::1]:0" };
    let socket = UdpSocket::bind(own)?;
    socket.set_broadcast(true)?;
    sockopt::set_ip_multicast_if(&socket, &Ipv4Addr::new(203, 0, 113, 1))?;
    for index in 0..*count {
        socket.send_to(&vec![0x77; *size], to)?;
        pause(index);
    }
    Ok(())
}

/// How many sockets hear what is sent to many.
const EARS: usize = 3;

fn heard(packets @ Packets { to, count, size }: &Packets) -> Result<()> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let any: SocketAddr =
        (if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) }, to.port())
            .into();
    let ear = || -> Result<UdpSocket> {
        let socket = socket(family, SocketType::DGRAM, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &any)?;
        let socket = UdpSocket::from(socket);
        match to {
            SocketAddr::V4(to) if to.ip().is_multicast() => {
                socket.join_multicast_v4(to.ip(), &Ipv4Addr::new(203, 0, 113, 1))?;
            }
            SocketAddr::V4(_) => {}
            SocketAddr::V6(to) => socket.join_multicast_v6(to.ip(), to.scope_id())?,
        }
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(socket)
    };
    let ears = (0..EARS).map(|_| ear()).collect::<Result<Vec<_>>>()?;
    many(packets)?;
    for ear in ears {
        for index in 0..*count {
            let heard = ear.recv(&mut vec![0; 1 << 16]).with_context(|| format!("{index} of {count} are heard"))?;
            ensure!(heard == *size, "{heard} bytes of {size}");
        }
    }
    Ok(())
}

fn copy(Copies { sockets }: &Copies) -> Result<()> {
    for protocol in [ipproto::ICMP, ipproto::UDP].repeat(*sockets) {
        let socket = raw_socket(AddressFamily::INET, Some(protocol))?;
        // One that is full gets none.
        thread::spawn(move || while rustix::net::recv(&socket, &mut [0; 2048], RecvFlags::empty()).is_ok() {});
    }
    println!("waiting");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

fn lend_out(Lend { to, path }: &Lend) -> Result<()> {
    let socket = connected(*to)?;
    let listener = UnixListener::bind(path)?;
    println!("waiting");
    let (stream, _) = listener.accept()?;
    let fds = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(control.push(SendAncillaryMessage::ScmRights(&fds)), "no room for a descriptor");
    sendmsg(&stream, &[IoSlice::new(b"x")], &mut control, SendFlags::empty())?;
    Ok(())
}

fn borrow_from(Borrow { path, count, size, rate }: &Borrow) -> Result<()> {
    let stream = UnixStream::connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&stream, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::empty())?;
    let taken = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let socket = UdpSocket::from(taken.context("no socket came")?);
    println!("waiting");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    for index in 0..*count {
        // Refused by a containment, it was tried.
        let _sent = socket.send(&vec![0x88; *size]);
        match rate {
            Some(rate) => thread::sleep(Duration::from_secs_f64(*size as f64 / *rate as f64)),
            None => pause(index as u16),
        }
    }
    Ok(())
}

fn try_all(powerless: &Powerless) -> Result<()> {
    let Powerless { socket: agent, bpffs, cgroup, user_namespace } = powerless;
    hostile::drop_all_rights()?;
    // In a namespace of its own a packet socket is of no use: there is no wire.
    let namespaced: &[(&str, bool)] = &[
        ("AF_PACKET", hostile::packet_socket().is_ok()),
        ("AF_XDP", socket(AddressFamily::XDP, SocketType::RAW, None).is_ok()),
        ("SOCK_RAW", raw_socket(AddressFamily::INET, Some(ipproto::RAW)).is_ok()),
    ];
    if *user_namespace {
        hostile::own_user_namespace()?;
    }
    let procs = cgroup.join("cgroup.procs");
    let others: &[(&str, bool)] = &[
        ("a link by its id", hostile::any_link().is_ok()),
        ("a map by its id", hostile::any_map().is_ok()),
        ("a pin", hostile::pinned(&pins(bpffs).join("COUNTERS")).is_ok()),
        ("the kill switch", hostile::pinned(&bpffs.join("kill-switch")).is_ok()),
        ("the agent's socket", UnixStream::connect(agent).is_ok()),
        ("another cgroup", std::fs::write(procs, "0").is_ok()),
        ("a cgroup of its own", std::fs::create_dir(cgroup.join("mine")).is_ok()),
    ];
    for (what, _) in namespaced.iter().chain(others).filter(|(_, done)| *done) {
        println!("{what}");
    }
    println!("tried all");
    Ok(())
}
