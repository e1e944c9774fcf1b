//! Streams of bytes at a rate.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use guard_load::PacketSocket;

/// So long is waited between two bursts, at least.
const TICK: Duration = Duration::from_millis(5);

/// What is late by more than this is not sent: a stream that was held does not make up for it.
const LATE: Duration = Duration::from_millis(200);

/// Where a stream leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Udp(SocketAddr),
    Tcp(SocketAddr),
    /// Out of this interface, past the IP stack.
    Frames(String),
}

/// `udp:IP:PORT,SIZE,RATE`, `tcp:IP:PORT,SIZE,RATE` or `frames:INTERFACE,SIZE,RATE`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Order {
    to: To,
    size: usize,
    rate: f64,
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || format!("not a stream: {text:?}");
        let [to, size, rate] = text.split(',').collect::<Vec<_>>()[..] else { return Err(anyhow!(wrong())) };
        let (protocol, to) = to.split_once(':').with_context(wrong)?;
        let to = match protocol {
            "udp" => To::Udp(to.parse().with_context(wrong)?),
            "tcp" => To::Tcp(to.parse().with_context(wrong)?),
            "frames" => To::Frames(to.to_owned()),
            _ => return Err(anyhow!(wrong())),
        };
        let order = Self { to, size: size.parse().with_context(wrong)?, rate: rate.parse().with_context(wrong)? };
        ensure!((1..=65_000).contains(&order.size) && order.rate > 0.0, wrong());
        Ok(order)
    }
}

/// What was sent by all streams: payload bytes; datagrams, writes or frames; and how many of them the kernel refused.
#[derive(Default)]
struct Sent {
    bytes: AtomicU64,
    count: AtomicU64,
    refused: AtomicU64,
}

/// The streams of this process.
#[derive(Default)]
pub(crate) struct Streams {
    running: Mutex<BTreeMap<To, Running>>,
    sent: Arc<Sent>,
}

struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Running {
    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a stream panicked"))
    }
}

impl Streams {
    /// Begins a stream, in the place of the one to the same end; returns when it did, in nanoseconds since 1970.
    pub(crate) fn begin(&self, order: Order) -> Result<u128> {
        let mut running = self.lock();
        if let Some(old) = running.remove(&order.to) {
            old.end()?;
        }
        let (stop, sent, to) = (Arc::new(AtomicBool::new(false)), Arc::clone(&self.sent), order.to.clone());
        let (stopped, began) = (Arc::clone(&stop), SystemTime::now());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = run(&order, &stopped, &sent) {
                    eprintln!("the stream to {:?} broke: {error:#}", order.to);
                    thread::sleep(LATE);
                }
            }
        });
        running.insert(to, Running { stop, thread });
        Ok(began.duration_since(SystemTime::UNIX_EPOCH)?.as_nanos())
    }

    /// Ends all of them; nothing is sent after this returns.
    pub(crate) fn stop(&self) -> Result<()> {
        std::mem::take(&mut *self.lock()).into_values().try_for_each(Running::end)
    }

    pub(crate) fn json(&self) -> String {
        let Sent { bytes, count, refused } = &*self.sent;
        let [bytes, count, refused] = [bytes, count, refused].map(|counter| counter.load(Ordering::Relaxed));
        format!("{{\"bytes\": {bytes}, \"count\": {count}, \"refused\": {refused}}}\n")
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<To, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(order: &Order, stop: &AtomicBool, sent: &Sent) -> Result<()> {
    let payload = vec![0xa5; order.size];
    match &order.to {
        To::Tcp(to) => {
            let mut stream = TcpStream::connect_timeout(to, Duration::from_secs(10))?;
            // One that is held for good must hear that it is to stop.
            stream.set_write_timeout(Some(LATE))?;
            pace(order, stop, || sent.of(stream.write(&payload)))
        }
        To::Udp(to) => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            pace(order, stop, || sent.of(socket.send(&payload)))
        }
        To::Frames(interface) => {
            let (socket, frame) = (PacketSocket::open(interface)?, guard_load::experiment(order.size));
            pace(order, stop, || sent.of(socket.send(&frame).map(|()| order.size)))
        }
    }
}

/// Calls `send` as often as the rate asks for, until it is to stop.
fn pace(order: &Order, stop: &AtomicBool, mut send: impl FnMut() -> Result<()>) -> Result<()> {
    let each = Duration::from_secs_f64(order.size as f64 / order.rate);
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now < due {
            thread::sleep((due - now).min(LATE));
            continue;
        }
        if now - due > LATE {
            due = now;
        }
        // At high rates a burst for each tick.
        let until = now + TICK;
        while due < until {
            send()?;
            due += each;
        }
    }
    Ok(())
}

impl Sent {
    /// What is held in the kernel, has no room, or is told that nobody listens, is refused and goes on.
    fn of(&self, written: io::Result<usize>) -> Result<()> {
        let error = match written {
            Ok(bytes) => {
                self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                self.count.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Err(error) => error,
        };
        self.refused.fetch_add(1, Ordering::Relaxed);
        match error.kind() {
            ErrorKind::PermissionDenied
            | ErrorKind::ConnectionRefused
            | ErrorKind::WouldBlock
            | ErrorKind::TimedOut => Ok(()),
            // ENOBUFS: a queue is full.
            _ if error.raw_os_error() == Some(105) => Ok(()),
            _ => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_says_what_to_send_where() {
        let order: Order = "udp:198.51.100.2:9100,972,20000".parse().expect("an order");
        assert_eq!(order, Order { to: To::Udp(([198, 51, 100, 2], 9100).into()), size: 972, rate: 20_000.0 });
        let order: Order = "frames:eth0,1000,500000".parse().expect("an order");
        assert_eq!(order, Order { to: To::Frames("eth0".into()), size: 1000, rate: 500_000.0 });
        for wrong in
            ["", "udp:1.2.3.4:5,0,1", "udp:1.2.3.4:5,10,0", "1.2.3.4:5,10,1", "icmp:1.2.3.4:5,10,1", "tcp:x,1,1"]
        {
            assert!(wrong.parse::<Order>().is_err(), "{wrong:?} is taken for an order");
        }
    }

    #[test]
    fn a_stream_sends_at_its_rate_until_it_is_stopped() {
        let sink = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let to = sink.local_addr().expect("its address");
        let streams = Streams::default();
        streams.begin(format!("udp:{to},1000,10000").parse().expect("an order")).expect("it begins");
        // In the place of the first.
        streams.begin(format!("udp:{to},1000,50000").parse().expect("an order")).expect("it begins");
        let start = Instant::now();
        thread::sleep(Duration::from_secs(1));
        streams.stop().expect("it stops");
        let most = start.elapsed().as_secs_f64() * 50_000.0 + 1_000.0;
        let sent = streams.sent.bytes.load(Ordering::Relaxed);
        assert!((10_000..=most as u64).contains(&sent), "{sent} bytes in {:?}", start.elapsed());
        let mut received = 0;
        sink.set_nonblocking(true).expect("a socket");
        while let Ok(bytes) = sink.recv(&mut [0; 2000]) {
            received += bytes as u64;
        }
        assert_eq!(received, sent, "received and said to be sent");
        assert_eq!(streams.json(), format!("{{\"bytes\": {sent}, \"count\": {}, \"refused\": 0}}\n", sent / 1000));
    }
}
