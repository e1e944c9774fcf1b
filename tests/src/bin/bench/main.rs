//! What counting costs: a packet, a container, a node. And how soon a breach is said.
//!
//! Rounds are interleaved and medians compared, for machines are noisy: the differences and ratios are what counts.

mod agent;
mod breach;
mod packet;
mod real;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use guard_tests::require_root;
use serde::Serialize;

#[derive(Parser)]
struct Cli {
    /// Write the figures to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds of the packet benchmark
    #[arg(long, default_value_t = 31)]
    rounds: usize,
    /// Seconds that the agent is watched with each number of containers
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

#[derive(Serialize)]
struct Report {
    kernel: String,
    cpus: usize,
    packet: packet::Report,
    real_traffic: real::Report,
    breach: breach::Report,
    agent: agent::Report,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    require_root()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let cpus = std::thread::available_parallelism()?.get();
    println!("kernel {kernel}, {cpus} CPUs\n");
    let packet = packet::run(cli.rounds)?;
    let real_traffic = real::run()?;
    let breach = breach::run()?;
    let agent = agent::run(cli.seconds)?;
    if let Some(path) = cli.json {
        let report = Report { kernel, cpus, packet, real_traffic, breach, agent };
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Says whether a figure is what it has to be.
fn judge(what: &str, figure: f64, most: f64, unit: &str) {
    let verdict = if figure <= most { "reached" } else { "MISSED" };
    println!("{verdict}: {what} {figure:.2} {unit}, at most {most} {unit}");
}

/// The middle of some figures.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    println!("{table}\n");
}
