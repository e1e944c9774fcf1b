//! Sizes and rates: whole, not zero, with the units that operators write.

use std::{
    fmt,
    num::{NonZeroU8, NonZeroU64},
    str::FromStr,
    time::Duration,
};

/// A number of bytes, at least one. Written as a number and a unit: `500MB` (1000), `500MiB` or `500Mi` (1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(NonZeroU64);

/// Bytes per second, at least one. Written as a size and `/s`, or in bits: `50MiB/s`, `400Mbit/s` (1000).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(NonZeroU64);

/// A part of a whole: 1 to 100 percent. Written `25%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(NonZeroU8);

/// Why a text is no size, rate, part or duration; it says what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

/// The longest duration: none that is longer is meant, and in nanoseconds it is far from an overflow.
const LONGEST: Duration = Duration::from_hours(365 * 24);

const K: u64 = 1000;
const KI: u64 = 1024;

/// Bytes in each unit; of a figure's possible units the first is shown.
const BYTES: [(&str, u64); 14] = [
    ("TiB", KI * KI * KI * KI),
    ("Ti", KI * KI * KI * KI),
    ("TB", K * K * K * K),
    ("GiB", KI * KI * KI),
    ("Gi", KI * KI * KI),
    ("GB", K * K * K),
    ("MiB", KI * KI),
    ("Mi", KI * KI),
    ("MB", K * K),
    ("KiB", KI),
    ("Ki", KI),
    ("KB", K),
    ("kB", K),
    ("B", 1),
];

/// Bits in each unit.
const BITS: [(&str, u64); 5] = [("Gbit", K * K * K), ("Mbit", K * K), ("Kbit", K), ("kbit", K), ("bit", 1)];

impl Size {
    /// `None`: zero.
    #[must_use]
    pub const fn new(bytes: u64) -> Option<Self> {
        match NonZeroU64::new(bytes) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.get()
    }
}

impl Rate {
    /// `None`: zero.
    #[must_use]
    pub const fn new(bytes_per_second: u64) -> Option<Self> {
        match NonZeroU64::new(bytes_per_second) {
            Some(rate) => Some(Self(rate)),
            None => None,
        }
    }

    /// Bytes per second.
    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        self.0.get()
    }
}

impl Percent {
    /// `None`: not from 1 to 100.
    #[must_use]
    pub const fn new(percent: u8) -> Option<Self> {
        match NonZeroU8::new(percent) {
            Some(percent) if percent.get() <= 100 => Some(Self(percent)),
            _ => None,
        }
    }

    /// Whether so many of a whole are more than this part of it.
    #[must_use]
    pub const fn is_exceeded(self, part: u64, whole: u64) -> bool {
        part as u128 * 100 > whole as u128 * self.0.get() as u128
    }

    /// So much of a whole, rounded down.
    #[must_use]
    pub const fn of(self, whole: u64) -> u64 {
        // No more than the whole.
        (whole as u128 * self.0.get() as u128 / 100) as u64
    }
}

impl FromStr for Percent {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let percent = text.strip_suffix('%').and_then(|number| number.trim_end().parse().ok()).and_then(Self::new);
        percent.ok_or_else(|| UnitError(format!("{text:?} is not a part from 1% to 100%, like 25%")))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    /// Fractions are rounded to whole bytes.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refused = |why: &str| UnitError(format!("{text:?} is not a size like 500MiB, 20GB or 1Gi: {why}"));
        let (number, unit) = split(text).ok_or_else(|| refused("it must begin with a number"))?;
        let bytes = lookup(&BYTES, unit).ok_or_else(|| refused(&hint(unit)))?;
        whole(number, bytes, 1).map_err(refused).map(Self)
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    /// Fractions are rounded to whole bytes per second.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refused = |why: &str| UnitError(format!("{text:?} is not a rate like 50MiB/s, 50MB/s or 400Mbit/s: {why}"));
        let (number, unit) = split(text).ok_or_else(|| refused("it must begin with a number"))?;
        let known = |unit| {
            let bytes = lookup(&BYTES, unit).map(|bytes| (bytes, 1));
            bytes.or_else(|| lookup(&BITS, unit).map(|bits| (bits, 8)))
        };
        let (factor, divisor) = match unit.strip_suffix("/s").map(|unit| (unit, known(unit))) {
            Some((_, Some(found))) => found,
            Some((unit, None)) => return Err(refused(&hint(unit))),
            None if known(unit).is_some() => return Err(refused("add /s")),
            None => return Err(refused(&hint(unit))),
        };
        whole(number, factor, divisor).map_err(refused).map(Self)
    }
}

/// In the largest unit that gives a whole number, so that nothing is lost.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes();
        let whole = BYTES.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
        whole.map_or(Ok(()), |(name, unit)| write!(f, "{}{name}", bytes / unit))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.0))
    }
}

/// A duration such as `500ms`, `30s`, `10m`, `1h`, `1d` or `1h 30m`, at most a year.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let parsed = humantime::parse_duration(text).ok().filter(|duration| *duration <= LONGEST);
    parsed.ok_or_else(|| UnitError(format!("{text:?} is not a duration like 500ms, 30s, 10m, 1h or 1d (at most 365d)")))
}

/// Number and unit.
fn split(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    number.starts_with(|c: char| c.is_ascii_digit()).then(|| (number, unit.trim_start()))
}

fn lookup(units: &[(&str, u64)], name: &str) -> Option<u64> {
    units.iter().find(|(unit, _)| *unit == name).map(|(_, factor)| *factor)
}

/// `number * factor / divisor`, rounded; exact, for a float would not hold all of a `u64`.
fn whole(number: &str, factor: u64, divisor: u64) -> Result<NonZeroU64, &'static str> {
    let (digits, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.ends_with('.') || fraction.contains('.') {
        return Err("its number is none");
    }
    let scale = 10_u128.checked_pow(fraction.len() as u32);
    let units = format!("{digits}{fraction}").parse::<u128>().ok();
    let result = scale.zip(units).and_then(|(scale, units)| {
        let divisor = scale.checked_mul(u128::from(divisor))?;
        let rounded = units.checked_mul(u128::from(factor))?.checked_add(divisor / 2)? / divisor;
        u64::try_from(rounded).ok()
    });
    NonZeroU64::new(result.ok_or("it is too large")?).ok_or("it is less than one byte")
}

/// What is wrong with a unit, and what to write instead.
fn hint(unit: &str) -> String {
    match unit {
        "" => "say the unit, B for bytes".to_owned(),
        "k" | "K" | "m" | "M" | "g" | "G" | "t" | "T" => {
            format!("{unit:?} alone may mean bytes or bits, 1000 or 1024; write MB, MiB or Mbit/s")
        }
        _ if unit.ends_with("ps") => "write MB/s for bytes, Mbit/s for bits".to_owned(),
        _ if unit.ends_with('b') => "\"b\" may mean bytes or bits; write MB for bytes, Mbit/s for bits".to_owned(),
        _ if unit.ends_with("bit") => "bits are for rates, as bit/s, Kbit/s, Mbit/s or Gbit/s".to_owned(),
        _ => "its unit must be B, KB, MB, GB, TB (1000), KiB, MiB, GiB, TiB, Ki, Mi, Gi or Ti (1024)".to_owned(),
    }
}

#[cfg(test)]
#[path = "units_tests.rs"]
mod tests;
