//! A receiver of alerts with a name, as far as its clients can come without knowing its certificate.

use std::{
    io::{ErrorKind, Read as _},
    net::{TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use guard_tests::eventually;

/// An address on which nothing else of a machine serves names.
pub(crate) const NAMESERVER: &str = "127.77.0.1";

/// Listens, and answers who asks for its address; ends when dropped.
pub(crate) struct Receiver {
    name: &'static str,
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    names: Option<JoinHandle<()>>,
}

impl Receiver {
    pub(crate) fn listen(name: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
        listener.set_nonblocking(true)?;
        let socket = UdpSocket::bind((NAMESERVER, 53)).with_context(|| format!("serve names on {NAMESERVER}"))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let names = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                serve(&socket, name);
            }
        });
        Ok(Self { name, listener, stop, names: Some(names) })
    }

    /// What `alerts.webhook` has to say.
    pub(crate) fn url(&self) -> String {
        let port = self.listener.local_addr().map_or(0, |address| address.port());
        format!("https://{}:{port}/api/v2/alerts", self.name)
    }

    /// Waits until somebody begins to speak TLS with it, by its name.
    pub(crate) fn wait_for_hello(&self, limit: Duration) -> Result<()> {
        let (mut connection, _) = eventually("somebody connects", limit, || Ok(self.listener.accept()?))?;
        connection.set_nonblocking(false)?;
        connection.set_read_timeout(Some(limit))?;
        let mut hello = [0; 4096];
        let length = connection.read(&mut hello).context("read what it says")?;
        let hello = &hello[..length];
        let name = self.name.as_bytes();
        // RFC 8446: a record of the type handshake (22) with a message of the type client_hello (1).
        let is_hello = hello.first() == Some(&22) && hello.get(5) == Some(&1);
        ensure!(is_hello && hello.windows(name.len()).any(|window| window == name), "this is no hello: {hello:?}");
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(Err(error)) = self.names.take().map(JoinHandle::join) {
            eprintln!("the nameserver failed: {error:?}");
        }
    }
}

/// Answers one question, if there is one.
fn serve(socket: &UdpSocket, name: &str) {
    let mut question = [0; 512];
    let served = match socket.recv_from(&mut question) {
        Ok((length, client)) => match answer(&question[..length], name) {
            Some(answer) => socket.send_to(&answer, client).map(drop),
            None => Ok(()),
        },
        Err(error) if is_nothing(error.kind()) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        eprintln!("the nameserver failed: {error}");
    }
}

/// Nobody has asked yet.
fn is_nothing(error: ErrorKind) -> bool {
    matches!(error, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// RFC 1035, 4.1: 127.0.0.1 for `name` (type A), nothing else of it, and no other name.
fn answer(question: &[u8], name: &str) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let labels: Vec<u8> = name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    let asked = question.get(HEADER..)?;
    let known = asked.get(..labels.len())?.eq_ignore_ascii_case(&labels) && asked.get(labels.len()) == Some(&0);
    // The question ends with its type and class, whatever follows it.
    let length = asked.iter().position(|&byte| byte == 0)? + 5;
    let is_a = asked.get(length - 4..length)? == [0, 1, 0, 1];
    let answers = u8::from(known && is_a);
    let mut text = question[..2].to_vec();
    // A response, recursion desired and available; NXDOMAIN (3) for others.
    text.extend([0x81, if known { 0x80 } else { 0x83 }, 0, 1, 0, answers, 0, 0, 0, 0]);
    text.extend(&asked[..length]);
    if answers == 1 {
        // The name as in the question, A, IN, for no time, four bytes.
        text.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
    }
    Some(text)
}
