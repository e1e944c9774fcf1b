//! Streams: senders and sinks.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::{join, listening};

#[derive(Args)]
pub(super) struct TcpSend {
    #[arg(long)]
    to: SocketAddr,
    /// Bytes of each connection
    #[arg(long, default_value_t = usize::MAX)]
    bytes: usize,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// End after so many seconds, however much was sent
    #[arg(long)]
    seconds: Option<f64>,
    /// Size of each write
    #[arg(long, default_value_t = 65536)]
    write: usize,
    /// Close at once instead of waiting for the other side
    #[arg(long)]
    close_first: bool,
}

#[derive(Args)]
pub(super) struct TcpSink {
    #[arg(long)]
    bind: SocketAddr,
    /// Bytes after which a connection is closed
    #[arg(long, default_value_t = usize::MAX)]
    bytes: usize,
    /// How many connections are taken
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Close only when the other side has, and so many milliseconds later
    #[arg(long)]
    after_end: Option<u64>,
    /// Take what comes until the other side closes, and fail if nothing comes for so many milliseconds
    #[arg(long)]
    patience: Option<u64>,
}

pub(super) fn send(send: &Arc<TcpSend>) -> Result<()> {
    let threads = (0..send.connections).map(|_| {
        let send = Arc::clone(send);
        thread::spawn(move || send_thread(&send))
    });
    join(threads.collect())
}

fn send_thread(send: &TcpSend) -> Result<()> {
    let mut stream = TcpStream::connect(send.to).with_context(|| format!("connect to {}", send.to))?;
    let chunk = vec![0xc3; send.write];
    let mut left = send.bytes;
    let start = Instant::now();
    while left > 0 && send.seconds.is_none_or(|seconds| start.elapsed().as_secs_f64() < seconds) {
        let len = left.min(chunk.len());
        stream.write_all(&chunk[..len])?;
        left -= len;
    }
    if !send.close_first {
        let rest = stream.read(&mut [0])?;
        ensure!(rest == 0, "the sink answered");
    }
    Ok(())
}

fn take_all(stream: &mut TcpStream, buffer: &mut [u8], patience: Duration) -> Result<()> {
    stream.set_read_timeout(Some(patience))?;
    loop {
        match stream.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                // At once, whatever the other connections do.
                eprintln!("nothing came for {patience:?}: {error}");
                std::process::exit(1);
            }
        }
    }
}

pub(super) fn sink(sink: &TcpSink) -> Result<()> {
    let listener = TcpListener::bind(sink.bind).with_context(|| format!("bind {}", sink.bind))?;
    listening();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..sink.connections {
            let (mut stream, _) = listener.accept()?;
            threads.push(scope.spawn(move || -> Result<()> {
                let mut buffer = vec![0; 1 << 18];
                if let Some(patience) = sink.patience {
                    return take_all(&mut stream, &mut buffer, Duration::from_millis(patience));
                }
                let mut left = sink.bytes;
                while left > 0 {
                    let len = stream.read(&mut buffer)?;
                    ensure!(len > 0, "closed {left} bytes too early");
                    left -= len;
                }
                if let Some(pause) = sink.after_end {
                    ensure!(stream.read(&mut buffer)? == 0, "more than was announced");
                    thread::sleep(Duration::from_millis(pause));
                }
                Ok(())
            }));
        }
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })
}
