//! Which kernel this is.

use std::fs;

use anyhow::{Context as _, Result};

/// The running kernel's version: major and minor.
pub fn release() -> Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => anyhow::bail!("kernel {release:?} has no version"),
    }
}
