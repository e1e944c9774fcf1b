//! As much of HTTP/1.1 as a readiness probe and a poll take: one request for each connection.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// A peer that says nothing for so long is left alone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers for ever; `answer` gets a request's path and its query. What it fails with is answered with status 400.
pub(crate) fn serve(
    listener: &TcpListener,
    answer: impl Fn(&str, &str) -> Result<String> + Send + Sync + 'static,
) -> Result<()> {
    let answer = Arc::new(answer);
    loop {
        let (stream, _) = listener.accept()?;
        let answer = Arc::clone(&answer);
        thread::spawn(move || {
            if let Err(error) = exchange(&stream, &*answer) {
                eprintln!("a request came to nothing: {error:#}");
            }
        });
    }
}

fn exchange(mut stream: &TcpStream, answer: &impl Fn(&str, &str) -> Result<String>) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().context("no request")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let target = first.split(' ').nth(1).with_context(|| format!("not a request: {first:?}"))?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (status, body) = match answer(path, query) {
        Ok(body) => ("200 OK", body),
        Err(error) => ("400 Bad Request", format!("{error:#}\n")),
    };
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")?;
    Ok(())
}

/// The body of the answer to `IP:PORT/PATH`, which must be 200.
pub(crate) fn get(url: &str, limit: Duration) -> Result<String> {
    let (address, path) = url.split_once('/').unwrap_or((url, ""));
    let address: SocketAddr = address.parse().with_context(|| format!("not an address: {address}"))?;
    let mut stream = TcpStream::connect_timeout(&address, limit).context("connect")?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").context("send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receive")?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("not an answer: {answer:?}"))?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{}: {body}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}
