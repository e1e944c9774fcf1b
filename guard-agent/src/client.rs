//! Asks a running agent, through its socket.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::{
    breaches::Destination,
    core::usage::{PerClass, Traffic},
    snapshot::{Container, Standing},
};

/// `GET`s a path and returns the body.
pub async fn get(socket: &Path, path: &str) -> Result<Bytes> {
    Ok(open(socket, path).await?.collect().await?.to_bytes())
}

/// `POST`s to a path and returns the body.
pub async fn post(socket: &Path, path: &str) -> Result<Bytes> {
    Ok(request(socket, Request::post(path), path).await?.collect().await?.to_bytes())
}

/// `GET`s a path and returns the body as it comes in.
pub async fn open(socket: &Path, path: &str) -> Result<Incoming> {
    request(socket, Request::get(path), path).await
}

async fn request(socket: &Path, request: hyper::http::request::Builder, path: &str) -> Result<Incoming> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "no agent answers at {}: is `guard-agent run` up, with this --socket, and are you root?",
            socket.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the body; what fails is said there.
    tokio::spawn(connection);
    let request = request.header(HOST, "agent").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    if !status.is_success() {
        let body = response.into_body().collect().await?.to_bytes();
        bail!("the agent answers {status} to {path}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(response.into_body())
}

/// The containers of a running agent.
pub async fn containers(socket: &Path) -> Result<Vec<Container>> {
    let body = get(socket, "/containers").await?;
    serde_json::from_slice(&body).context("the agent's answer is not of this version's form")
}

/// Lets go of the container that a text names; what came of it, in words.
pub async fn release(socket: &Path, container: &str) -> Result<String> {
    let body = post(socket, &about("/release", container)).await?;
    serde_json::from_slice(&body).context("the agent's answer is not of this version's form")
}

/// Ends the storm in which nothing is evicted; what came of it, in words.
pub async fn resume(socket: &Path) -> Result<String> {
    let body = post(socket, "/resume").await?;
    serde_json::from_slice(&body).context("the agent's answer is not of this version's form")
}

/// Where the bytes of the container went that a text names, as JSON.
pub async fn destinations(socket: &Path, container: &str) -> Result<Bytes> {
    get(socket, &about("/destinations", container)).await
}

fn about(path: &str, container: &str) -> String {
    let container = percent_encoding::utf8_percent_encode(container, percent_encoding::NON_ALPHANUMERIC);
    format!("{path}?container={container}")
}

/// Destinations as a table for a terminal.
pub fn destinations_table(destinations: &[Destination]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["ADDRESS", "PORT", "PROTOCOL", "BYTES", "SHARE"]);
    for Destination { address, port, protocol, bytes: sent, share } in destinations {
        let share = format!("{:.1} %", share * 100.0);
        table.add_row([address.to_string(), port.to_string(), protocol.clone(), bytes(*sent as f64), share]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The containers as a table for a terminal, the busiest sender first.
pub fn table(containers: &[Container]) -> Table {
    let mut rows: Vec<&Container> = containers.iter().collect();
    let sent = |container: &Container| container.rates.egress.cluster + container.rates.egress.external;
    rows.sort_by(|a, b| sent(b).total_cmp(&sent(a)).then_with(|| a.cgroup_path.cmp(&b.cgroup_path)));
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "NAMESPACE",
        "POD",
        "CONTAINER",
        "EGRESS/s",
        "EXTERNAL",
        "CLUSTER",
        "PACKETS",
        "INGRESS/s",
        "INGRESS",
        "STATE",
    ]);
    for row in rows {
        let received = row.rates.ingress.cluster + row.rates.ingress.external;
        table.add_row([
            or_dash(&row.namespace),
            or_dash(&row.pod),
            or_dash(&row.container),
            format!("{}/s", bytes(sent(row))),
            bytes(row.egress.external.bytes as f64),
            bytes(row.egress.cluster.bytes as f64),
            sum(row.egress, |traffic| traffic.packets).to_string(),
            format!("{}/s", bytes(received)),
            bytes(sum(row.ingress, |traffic| traffic.bytes) as f64),
            state(row.standing).into(),
        ]);
    }
    for column in table.column_iter_mut().skip(3).take(6) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn state(Standing { breached, contained }: Standing) -> &'static str {
    match (breached, contained) {
        (false, false) => "-",
        (true, false) => "breach",
        (false, true) => "contained",
        (true, true) => "breach, contained",
    }
}

fn sum(traffic: PerClass<Traffic>, of: fn(Traffic) -> u64) -> u64 {
    of(traffic.cluster) + of(traffic.external)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { printable(text) }
}

/// A name as a terminal may show it: whoever may make cgroups may put commands to it into theirs.
pub(crate) fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A number of bytes with a unit of 1000s.
pub(crate) fn bytes(bytes: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_commands_no_terminal() {
        let container = "user.slice/\u{1b}]0;gone\u{7}\u{1b}[2J.service".to_owned();
        let listed = table(&[Container { container, ..Container::default() }]).to_string();
        assert!(!listed.chars().any(|c| c.is_control() && c != '\n'), "{listed:?}");
        assert!(listed.contains("user.slice/\u{fffd}]0;gone"), "{listed:?}");
    }

    #[test]
    fn bytes_have_a_unit_that_fits() {
        let cases = [
            (0.0, "0 B"),
            (999.0, "999 B"),
            (1000.0, "1.0 kB"),
            (999_960.0, "1.0 MB"),
            (1.25e9, "1.2 GB"),
            (7e15, "7000.0 TB"),
        ];
        for (value, text) in cases {
            assert_eq!(bytes(value), text);
        }
    }
}
