//! `cargo xtask vm`: every whole-system test on every kernel that is promised, in guests.

mod figures;
mod programs;
mod report;
mod run;
mod suite;

use std::{num::NonZero, sync::Mutex, thread, time::Instant};

use anyhow::{Result, bail};
use guard_vm::{Kernel, SERIES};

use crate::{
    process::{self, cargo},
    setup,
};
use programs::Programs;
pub(crate) use programs::older;
use report::Row;
use suite::{Part, Which};

/// What boots the guests. Its own tests boot one, so they are run here.
pub(crate) const LIBRARY: &str = "guard-vm";

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Matrix {
    /// A series of kernels (5.10, 6.1, 6.12, 6.18, newest), or all
    #[arg(long, default_value = "all")]
    kernel: String,
    /// How many guests at once; each takes a CPU. As many as there are CPUs if nothing is said
    #[arg(long)]
    guests: Option<NonZero<usize>>,
    /// Take the verifier's figures over into tests/verifier.txt
    #[arg(long)]
    figures: bool,
    /// Write what came of the whole matrix into docs/kernels.md
    #[arg(long, conflicts_with_all = ["userland", "file", "args"])]
    docs: bool,
    /// With the tests that ask the kernel for nothing that others do not ask for
    #[arg(long)]
    userland: bool,
    /// Only this file of tests; may be said again
    #[arg(long, conflicts_with = "userland")]
    file: Vec<String>,
    /// What the tests' programs get: a filter
    #[arg(last = true)]
    args: Vec<String>,
}

pub(crate) fn run(matrix: &Matrix) -> Result<()> {
    let Matrix { kernel, guests, figures, docs, userland, file, args } = matrix;
    if *docs && kernel != "all" {
        bail!("--docs is for the whole matrix: leave --kernel {kernel} out");
    }
    let series: Vec<&str> = SERIES.into_iter().filter(|series| kernel == "all" || kernel == series).collect();
    if series.is_empty() {
        bail!("there is no kernel `{kernel}`: choose one of {}, or all", SERIES.join(", "));
    }
    setup::toolchain()?;
    let cache = setup::emulation()?;
    let kernels = series.iter().map(|series| Ok(Kernel::get(series, &cache)?)).collect::<Result<Vec<_>>>()?;
    if kernel == "all" && args.is_empty() {
        process::run(cargo().args(["test", "-p", LIBRARY]))?;
    }
    let start = Instant::now();
    let programs = Programs::build(file)?;
    println!("vm: the programs were built in {:.0} s", start.elapsed().as_secs_f64());
    let guests = guests.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZero::get);
    let which = match (&file[..], userland) {
        ([], false) => Which::Kernels,
        ([], true) => Which::All,
        (files, _) => Which::Named(files.to_vec()),
    };
    let parts = suite::parts(&kernels, &programs, &which, guests)?;
    if parts.is_empty() {
        bail!("no file of tests that is wanted runs on that kernel");
    }
    let rows = all(&parts, guests, |part| run::part(part, &programs, args));
    let failed = report::show(rows.iter());
    if rows.iter().all(|row| row.passed() == 0) && failed == 0 {
        bail!("no test has that name: nothing was run");
    }
    if *docs {
        report::document(&rows)?;
    }
    // Also of guests that failed: a figure that has grown fails a test until it is taken over.
    if *figures {
        figures::write(&rows)?;
    }
    if failed > 0 {
        bail!("{failed} of {} guests failed", rows.len());
    }
    Ok(())
}

/// Runs all parts, so many at a time, and returns what they came to in the same order.
fn all(parts: &[Part<'_>], guests: usize, run: impl Fn(&Part<'_>) -> Row + Sync) -> Vec<Row> {
    let next = Mutex::new(parts.iter().enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..guests.min(parts.len()) {
            scope.spawn(|| {
                loop {
                    // Not held while the part runs.
                    let taken = next.lock().ok().and_then(|mut next| next.next());
                    let Some((index, part)) = taken else { break };
                    let row = run(part);
                    println!("{}", report::line(&row));
                    if let Ok(mut done) = done.lock() {
                        done.push((index, row));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, row)| row).collect()
}
