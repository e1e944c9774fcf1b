//! Takes alerts as Alertmanager does.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::eventually;

/// Keeps all alerts that are posted to it; ends when dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    alerts: Mutex<Vec<Value>>,
}

/// An address at which nobody listens.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Receiver {
    /// Listens.
    pub fn listen(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        let (address, shared) = (listener.local_addr()?, Arc::new(Shared::default()));
        let taker = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for connection in listener.incoming() {
                if taker.stop.load(Ordering::SeqCst) {
                    return;
                }
                match connection.map_err(Into::into).and_then(take) {
                    Ok(alerts) => taker.lock().extend(alerts),
                    Err(error) => eprintln!("the receiver understands nothing: {error:#}"),
                }
            }
        });
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// What `alerts.webhook` has to say.
    pub fn url(&self) -> String {
        format!("http://{}/api/v2/alerts", self.address)
    }

    /// All that it was told.
    pub fn alerts(&self) -> Vec<Value> {
        self.shared.lock().clone()
    }

    /// Waits for the first alert that is `wanted`.
    pub fn wait(&self, what: &str, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(what, limit, || {
            let alerts = self.alerts();
            let found = alerts.iter().find(|alert| wanted(alert));
            found.cloned().with_context(|| format!("not among {alerts:#?}"))
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Value>> {
        self.alerts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes one request.
fn take(mut connection: TcpStream) -> Result<Vec<Value>> {
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().to_ascii_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse()?,
            None if line.trim().is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    serde_json::from_slice(&body).with_context(|| String::from_utf8_lossy(&body).into_owned())
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes it up.
        let woken = TcpStream::connect(self.address).map(drop).map_err(anyhow::Error::from);
        let ended = self.thread.take().map(JoinHandle::join);
        if woken.is_err() || !matches!(ended, Some(Ok(()))) {
            eprintln!("the receiver failed: {woken:?}, {ended:?}");
        }
    }
}
