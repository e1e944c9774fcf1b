//! Three containers with real traffic, and the agent that counts them.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use guard_tests::{
    net::{CLUSTER_V4, EXTERNAL_V4, Interface, NODE},
    pods::{Container, uid},
    process::Traffic,
    world::World,
};
use signal_hook::consts::{SIGINT, SIGTERM};

#[derive(Parser)]
#[command(about = "Shows three containers' traffic, counted by the kernel, until Ctrl-C")]
struct Cli {
    /// Stop after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
}

/// How long the traffic would go on by itself.
const LONG: &str = "86400";

fn main() -> Result<()> {
    let cli = Cli::parse();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    println!("Making two network namespaces, a tree of pods' cgroups and an agent ...");
    let world = World::new("")?;
    let containers = [world.container(1, 1)?, world.container(1, 2)?, world.container(2, 1)?];
    let before = world.read(&containers.each_ref())?;
    let _servers = serve(&world, &containers)?;
    let senders = send(&world, &containers)?;
    show(&world, &containers, cli.seconds.map(Duration::from_secs), &stop)?;
    // The servers stay until all has arrived: a datagram that finds no socket is on the wire and nobody's.
    drop(senders);
    let after = world.read(&containers.each_ref())?;
    println!("\nThe traffic has stopped. The agent's final table:\n{}", world.agent().table()?);
    compare(after.metered - before.metered, after.wire - before.wire)
}

/// A web-like container answers requests; the database and the world outside take what they get.
fn serve(world: &World, [web, ..]: &[Container; 3]) -> Result<[Traffic; 3]> {
    let (node, outside) = (&world.wires.node, &world.wires.world);
    Ok([
        Traffic::serve(node, Some(web), &format!("udp-echo --bind {}:8080", NODE[1]))?,
        Traffic::serve(outside, None, &format!("udp-sink --bind {CLUSTER_V4}:5432"))?,
        Traffic::serve(outside, None, &format!("udp-sink --bind {EXTERNAL_V4}:443"))?,
    ])
}

/// Requests to the web-like container, a chatty container, and one that sends 100 times as much.
fn send(world: &World, [_, chatty, leaky]: &[Container; 3]) -> Result<Vec<Traffic>> {
    let (node, outside) = (&world.wires.node, &world.wires.world);
    let senders = [
        (outside, None, format!("--to {}:8080 --sizes 120,900,300 --rate 15000", NODE[1])),
        (node, Some(chatty), format!("--to {CLUSTER_V4}:5432 --sizes 60,200,1000 --rate 40000")),
        (node, Some(leaky), format!("--to {EXTERNAL_V4}:443 --sizes 1200 --rate 4000000")),
    ];
    let start = |(namespace, container, arguments): (_, _, String)| {
        Traffic::start(namespace, container, &format!("udp-send {arguments} --seconds {LONG}"))
    };
    senders.into_iter().map(start).collect()
}

/// Shows the table until the time is over or somebody stops it.
fn show(world: &World, containers: &[Container; 3], limit: Option<Duration>, stop: &AtomicBool) -> Result<()> {
    let roles = ["web: answers requests", "chatty: talks to its database", "leaky: sends 100 times as much"];
    let rows = containers.iter().zip(roles).zip([1, 1, 2]);
    let rows = rows.map(|((container, role), pod)| format!("  {}  {}  {role}\n", uid(pod), container.label()));
    let legend: String = rows.collect();
    println!("Three containers of two pods:\n{legend}");
    let live = std::io::stdout().is_terminal();
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) && limit.is_none_or(|limit| start.elapsed() < limit) {
        thread::sleep(Duration::from_secs(1));
        let table = world.agent().table()?;
        if live {
            // Home, and clear what was there.
            println!("\x1b[H\x1b[J{legend}");
        }
        println!("{table}");
        if live {
            println!("Ctrl-C stops it and compares with the interface's own counters.");
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Prints the agent's figures beside the interface's; they must be equal.
fn compare(agent: Interface, interface: Interface) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["WIRE BYTES (IP)", "EGRESS BYTES", "PACKETS", "INGRESS BYTES", "PACKETS"]);
    for (name, figures) in [("interface", interface), ("agent", agent)] {
        let Interface { tx, rx, dropped: _ } = figures;
        let figures = [tx.bytes, tx.packets, rx.bytes, rx.packets].map(|figure| figure.to_string());
        table.add_row(std::iter::once(name.to_owned()).chain(figures));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("\n{table}\n");
    if agent != interface {
        bail!("the agent's figures are not the interface's");
    }
    println!("Equal to the byte.");
    Ok(())
}
