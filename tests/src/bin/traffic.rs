//! Makes real traffic: senders, sinks and echoes.

use std::{
    io::BufRead as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};

#[path = "traffic/frames.rs"]
mod frames;
#[path = "traffic/tcp.rs"]
mod tcp;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends datagrams
    UdpSend(UdpSend),
    /// Sends datagrams from sockets of several cgroups in turn
    UdpRound(UdpRound),
    /// Sends a small datagram to each of many ports
    UdpScan(UdpScan),
    /// Sends datagrams and waits for the echo of each
    UdpCall(UdpCall),
    /// Sends every datagram back
    UdpEcho(Bind),
    /// Receives datagrams
    UdpSink(Bind),
    /// Sends a stream and waits until the other side closes
    TcpSend(tcp::TcpSend),
    /// Receives streams; closes each after `--bytes`
    TcpSink(tcp::TcpSink),
    /// Sends frames through `AF_PACKET`, past the IP stack
    FrameSend(frames::FrameSend),
}

#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
struct UdpSend {
    #[arg(long)]
    to: Vec<SocketAddr>,
    /// From each of these addresses in turn, to the first of `--to`
    #[arg(long, value_delimiter = ',')]
    from: Vec<IpAddr>,
    /// Payload sizes, sent in turn
    #[arg(long, value_delimiter = ',', default_value = "100")]
    sizes: Vec<usize>,
    /// Datagrams of each thread
    #[arg(long, default_value_t = 1)]
    count: usize,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Let the kernel cut each payload into segments of this size
    #[arg(long)]
    gso: Option<usize>,
    /// Bytes of payload per second; as fast as possible without
    #[arg(long)]
    rate: Option<u64>,
    /// Go on for so many seconds instead of `--count`
    #[arg(long)]
    seconds: Option<f64>,
    /// Or until a line comes on stdin
    #[arg(long, requires = "seconds")]
    until_told: bool,
    /// Wait for a line on stdin once the sockets are made
    #[arg(long)]
    wait: bool,
    /// Go on when the kernel refuses a datagram (EPERM)
    #[arg(long)]
    stubborn: bool,
    /// End when the kernel refuses a datagram (EPERM), and print the Unix time in nanoseconds just before it was sent
    #[arg(long, conflicts_with = "stubborn")]
    stamp: bool,
}

#[derive(Args)]
struct UdpRound {
    #[arg(long)]
    to: SocketAddr,
    /// Folders of the cgroups
    #[arg(long, value_delimiter = ',')]
    cgroups: Vec<std::path::PathBuf>,
    /// Datagrams of all together
    #[arg(long)]
    count: usize,
}

#[derive(Args)]
struct UdpScan {
    #[arg(long)]
    address: IpAddr,
    /// How many, from 10000 on
    #[arg(long)]
    ports: u16,
    /// How often, from another source port each time
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

#[derive(Args)]
struct UdpCall {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = 100)]
    size: usize,
    #[arg(long, default_value_t = 1)]
    count: usize,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Go on for so many seconds instead of `--count`
    #[arg(long)]
    seconds: Option<f64>,
    /// Or until a line comes on stdin
    #[arg(long, requires = "seconds")]
    until_told: bool,
}

#[derive(Args)]
struct Bind {
    #[arg(long)]
    bind: SocketAddr,
}

/// Room for what arrives while the receiver does not run.
const BUFFER: usize = 64 << 20;

/// A line came on stdin.
static TOLD: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    let command = Cli::parse().command;
    if let Command::UdpSend(UdpSend { until_told: true, .. }) | Command::UdpCall(UdpCall { until_told: true, .. }) =
        &command
    {
        thread::spawn(|| {
            // Nobody who could still say it is as good.
            let _said = std::io::stdin().lock().read_line(&mut String::new());
            TOLD.store(true, Relaxed);
        });
    }
    match command {
        Command::UdpSend(send) => udp_send(send),
        Command::UdpRound(round) => udp_round(&round),
        Command::UdpScan(scan) => udp_scan(&scan),
        Command::UdpCall(call) => udp_call(&call),
        Command::UdpEcho(Bind { bind }) => udp_serve(bind, true),
        Command::UdpSink(Bind { bind }) => udp_serve(bind, false),
        Command::TcpSend(send) => tcp::send(&Arc::new(send)),
        Command::TcpSink(sink) => tcp::sink(&sink),
        Command::FrameSend(send) => frames::send(&send),
    }
}

fn listening() {
    println!("listening");
}

fn socket_to(to: SocketAddr) -> Result<UdpSocket> {
    socket_between(if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }, to)
}

fn socket_between(from: IpAddr, to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((from, 0)).with_context(|| format!("bind {from}"))?;
    socket.connect(to).with_context(|| format!("connect to {to}"))?;
    Ok(socket)
}

fn join(threads: Vec<thread::JoinHandle<Result<()>>>) -> Result<()> {
    threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
}

fn udp_send(send: UdpSend) -> Result<()> {
    let send = Arc::new(send);
    let threads = (0..send.threads).map(|_| {
        let send = Arc::clone(&send);
        thread::spawn(move || udp_send_thread(&send))
    });
    join(threads.collect())
}

fn udp_send_thread(send: &UdpSend) -> Result<()> {
    let sockets = match (send.from.as_slice(), send.to.as_slice()) {
        ([], to) => to.iter().map(|to| socket_to(*to)).collect::<Result<Vec<_>>>()?,
        (from, to) => {
            let to = *to.first().context("whom to send to")?;
            from.iter().map(|from| socket_between(*from, to)).collect::<Result<_>>()?
        }
    };
    if let Some(size) = send.gso {
        sockets.iter().try_for_each(|socket| set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, size))?;
    }
    if send.wait {
        println!("waiting");
        std::io::stdin().lock().read_line(&mut String::new())?;
    }
    let payload = vec![0xa5; send.sizes.iter().copied().max().unwrap_or(0)];
    let start = Instant::now();
    let mut bytes = 0;
    for (index, size) in send.sizes.iter().cycle().enumerate() {
        let over = match send.seconds {
            Some(seconds) => start.elapsed().as_secs_f64() >= seconds || TOLD.load(Relaxed),
            None => index >= send.count,
        };
        if over {
            return Ok(());
        }
        let socket = &sockets[index % sockets.len()];
        let mut before = SystemTime::now();
        // A full queue is waited for, never skipped: what was asked for is sent.
        while let Err(error) = socket.send(&payload[..*size]) {
            if error.kind() == std::io::ErrorKind::PermissionDenied {
                if send.stamp {
                    println!("{}", before.duration_since(SystemTime::UNIX_EPOCH)?.as_nanos());
                    return Ok(());
                }
                if send.stubborn {
                    break;
                }
            }
            ensure!(
                error.raw_os_error() == Some(libc::ENOBUFS) || error.kind() == std::io::ErrorKind::ConnectionRefused,
                "send: {error}"
            );
            thread::sleep(Duration::from_micros(100));
            before = SystemTime::now();
        }
        bytes += *size as u64;
        match send.rate {
            Some(rate) => {
                let due = Duration::from_secs_f64(bytes as f64 / rate as f64);
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
            // The receiver's side of a veth pair has a short queue.
            None if index % 16 == 15 => thread::sleep(Duration::from_micros(50)),
            None => {}
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "socket options that std does not know")]
fn set_option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: usize) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let value = libc::c_int::try_from(value)?;
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: these options take an int.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    ensure!(done == 0, "socket option {name}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// A socket belongs for good to the cgroup in which it was made.
fn udp_round(round: &UdpRound) -> Result<()> {
    let sockets = round.cgroups.iter().map(|cgroup| {
        std::fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("enter {}", cgroup.display()))?;
        socket_to(round.to)
    });
    let sockets = sockets.collect::<Result<Vec<_>>>()?;
    for index in 0..round.count {
        sockets[index % sockets.len()].send(&[0x3c; 400])?;
        if index % 16 == 15 {
            thread::sleep(Duration::from_micros(20));
        }
    }
    Ok(())
}

fn udp_scan(scan: &UdpScan) -> Result<()> {
    for _ in 0..scan.rounds {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for port in 0..scan.ports {
            // Refused or lost, it was sent.
            let _sent = socket.send_to(&[0x11; 20], (scan.address, 10_000 + port));
            if port % 16 == 15 {
                thread::sleep(Duration::from_micros(50));
            }
        }
    }
    Ok(())
}

fn udp_call(call: &UdpCall) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..call.threads).map(|_| scope.spawn(|| udp_call_thread(call))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })
}

fn udp_call_thread(call: &UdpCall) -> Result<()> {
    let socket = socket_to(call.to)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (payload, mut answer) = (vec![0x5a; call.size], vec![0; 65536]);
    let start = Instant::now();
    for index in 0.. {
        let over = match call.seconds {
            Some(seconds) => start.elapsed().as_secs_f64() >= seconds || TOLD.load(Relaxed),
            None => index >= call.count,
        };
        if over {
            break;
        }
        socket.send(&payload)?;
        let len = socket.recv(&mut answer).with_context(|| format!("no echo of datagram {index}"))?;
        ensure!(len == call.size, "an echo of {len} bytes instead of {}", call.size);
    }
    Ok(())
}

/// Receives for ever; ended by whoever started it.
fn udp_serve(bind: SocketAddr, echo: bool) -> Result<()> {
    let socket = UdpSocket::bind(bind).with_context(|| format!("bind {bind}"))?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
    listening();
    let mut buffer = vec![0; 65536];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        if echo {
            socket.send_to(&buffer[..len], from)?;
        }
    }
}
