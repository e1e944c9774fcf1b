//! The kernel's statistics of programs.

use std::fs;

use anyhow::Result;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The kernel's statistics of all programs, on as long as this lives.
#[derive(Debug)]
pub struct Statistics(String);

impl Statistics {
    /// Turns them on.
    pub fn on() -> Result<Self> {
        let was = fs::read_to_string(SWITCH)?;
        fs::write(SWITCH, "1")?;
        Ok(Self(was))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, &self.0) {
            eprintln!("{SWITCH} is still 1: {error}");
        }
    }
}
