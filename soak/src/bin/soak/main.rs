//! The soak: makes a node, does the steps of a plan to it, and says what did not hold.
//!
//! `cargo xtask soak` makes all that it takes and runs it.

mod checkpoints;
mod look;
mod pods;
mod report;
mod steps;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use guard_node::Node;
use guard_soak::{
    plan::{self, Step},
    violation::{Soak, Violation},
};

use crate::{report::Report, steps::Stage};

/// Soaks the agent on a whole node.
#[derive(Parser)]
#[command(name = "soak", bin_name = "cargo xtask soak")]
struct Cli {
    /// How long, about.
    #[arg(long)]
    minutes: u32,
    /// Which steps; without it, another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Print the steps and do nothing.
    #[arg(long)]
    plan: bool,
    /// Write the result into this file, in the place of the one that is there.
    #[arg(long)]
    docs: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let Cli { minutes, seed, plan, docs } = Cli::parse();
    let seed = match seed {
        Some(seed) => seed,
        None => u64::from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.subsec_nanos()),
    };
    let soak = Soak { seed, minutes };
    let steps = plan::plan(seed, minutes);
    if plan {
        for Step { round, at, action } in steps {
            println!("round {round} {:>3} s  {action:?}", at.as_secs());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (report, violations) = runtime.block_on(run(soak, &steps))?;
    println!("{report}");
    if let Some(path) = docs {
        report.document(&path)?;
    }
    for violation in &violations {
        println!("{violation}");
    }
    if let Some(reason) = report.proves_nothing() {
        println!("the soak proves nothing: {reason}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run(soak: Soak, steps: &[Step]) -> Result<(Report, Vec<Violation>)> {
    say(Duration::ZERO, &format!("seed {}, {} steps; a node comes up", soak.seed, steps.len()));
    let node = Node::start().await?;
    say(Duration::ZERO, &format!("the node is there: {:?}", node.timing()));
    let mut stage = Stage::new(&node, soak).await?;
    for round in steps.chunk_by(|one, other| one.round == other.round) {
        // A guest that does not answer any more has nothing to say of the agent.
        stage.round(round).await.with_context(|| format!("in round {}", round[0].round))?;
    }
    ensure!(stage.rounds() > 0, "no round was gone through");
    Ok(stage.end())
}

/// Tells what goes on.
fn say(at: Duration, what: &str) {
    eprintln!("{:>6.1} s  {what}", at.as_secs_f64());
}
