//! A guest and what it runs.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guard_vm::{Guest, Output, Running};

use super::{
    programs::Programs,
    report::{Outcome, Row},
    suite::Part,
};

/// Programs of the host that the tests call.
const TOOLS: [&str; 8] = ["tc", "ethtool", "sysctl", "mount", "findmnt", "unshare", "setpriv", "date"];

/// Half a gigahertz, an instruction a cycle: that is about what the emulation does. Less, and it would be idle; more, and
/// the waits in the tests would not be free.
const TIME_SHIFT: u8 = 1;

/// MiB: the programs lie in it too.
const MEMORY: u32 = 1536;

/// In the guest's time, a file of tests.
const LIMIT: Duration = Duration::from_mins(30);

pub(crate) fn part(part: &Part<'_>, programs: &Programs, args: &[String]) -> Row {
    let start = Instant::now();
    let mut row = Row::of(part);
    row.error = fill(&mut row, part, programs, args).err().map(|error| format!("{error:#}"));
    row.took = start.elapsed();
    row
}

fn fill(row: &mut Row, part: &Part<'_>, programs: &Programs, args: &[String]) -> Result<()> {
    let running = guest(part, programs).boot()?;
    let prepared = running.shell(part.variant.prepare(), LIMIT)?;
    ensure!(prepared.status == 0, "{} could not be had: {}", part.variant.name(), prepared.text);
    let log = programs.folder.join("log").join(part.name());
    fs::create_dir_all(&log).with_context(|| format!("make {}", log.display()))?;
    for file in &part.files {
        let outcome =
            file_of(&running, file, args, &log).with_context(|| format!("{file}: {}", running.last_words()))?;
        row.files.push(outcome);
    }
    Ok(())
}

fn guest(part: &Part<'_>, programs: &Programs) -> Guest {
    let (cpus, own_time) = part.machine();
    let mut guest = Guest::new(part.kernel).cpus(cpus).memory(MEMORY);
    if own_time {
        guest = guest.own_time(TIME_SHIFT);
    }
    for tool in TOOLS {
        guest = guest.program(tool);
    }
    if let Some(parameters) = part.variant.parameters() {
        guest = guest.append(parameters);
    }
    let tests = programs.tests.iter().filter(|(name, _)| part.files.contains(&name.as_str()));
    for (name, path) in tests.chain(&programs.helpers) {
        guest = guest.file(format!("/job/{name}"), 0o755, path);
    }
    guest
}

/// Runs a file of tests. What it prints goes to a log besides, each line with the host's seconds at which it came: with those
/// of a test's name and of its result one sees where the time goes.
fn file_of(running: &Running, file: &str, args: &[String], log: &Path) -> Result<Outcome> {
    let start = Instant::now();
    let quoted: String =
        args.iter().map(|arg| format!(" '{}'", arg.replace('\'', r"'\''"))).collect::<Vec<_>>().concat();
    // One at a time: in the guest's time waiting costs nothing.
    let script = format!("exec ./{file} --test-threads 1 --show-output{quoted}");
    let log = log.join(format!("{file}.log"));
    let mut log = File::create(&log).with_context(|| format!("write {}", log.display()))?;
    let (mut bytes, mut written) = (vec![], Ok(()));
    let status = running.stream(&script, LIMIT, |piece| {
        for line in piece.split_inclusive(|byte| *byte == b'\n') {
            if bytes.last().is_none_or(|byte| *byte == b'\n') && written.is_ok() {
                written = write!(log, "{:7.1} ", start.elapsed().as_secs_f64());
            }
            bytes.extend_from_slice(line);
            written = std::mem::replace(&mut written, Ok(())).and_then(|()| log.write_all(line));
        }
    })?;
    written.context("write the log")?;
    let said = Output { status, text: String::from_utf8_lossy(&bytes).into_owned() };
    Ok(Outcome::read(file, said, start.elapsed()))
}
