//! Limits and actions in words, as an operator reads them in a log or from `check-config`.

use std::fmt;

use humantime::format_duration;

use super::{BaselineLimit, Contain, Containment, Count, Evict, Globs, Matcher, Mode, Quota, RateLimit};
use crate::safety::Leave;

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Observe => "observe",
            Self::Contain => "contain",
            Self::Evict => "evict",
        })
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::External => "external",
            Self::All => "all",
        })
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespaces, pods, containers, labels } = self;
        let names = [("namespaces", namespaces), ("pods", pods), ("containers", containers)];
        let said = |(what, globs): (&str, &Option<Globs>)| globs.as_ref().map(|globs| format!("{what} {globs}"));
        let mut all: Vec<String> = names.into_iter().filter_map(said).collect();
        all.extend(labels.iter().map(|(key, value)| format!("label {key}={value}")));
        f.write_str(if all.is_empty() { "all containers" } else { "" })?;
        f.write_str(&all.join("; "))
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with a burst of {}", self.rate, self.burst)
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in any {}", self.bytes, format_duration(self.per))
    }
}

impl fmt::Display for BaselineLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { factor, floor, learn } = self;
        write!(f, "{factor} times its normal but never under {floor}, learnt for {}", format_duration(*learn))
    }
}

impl fmt::Display for Contain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.how, format_duration(self.length))
    }
}

impl fmt::Display for Containment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Throttle(rate) => write!(f, "throttle to {rate}"),
            Self::Block => f.write_str("block"),
        }
    }
}

impl fmt::Display for Evict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after, grace, leave } = self;
        write!(f, "evict after {}", format_duration(*after))?;
        if let Some(grace) = grace {
            write!(f, ", with {} to end", format_duration(*grace))?;
        }
        write!(f, "{leave}")
    }
}

/// What differs from the default.
impl fmt::Display for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = Self::default();
        let Self { unmanaged, daemon_sets, last_replica, min_ready, min_age, empty_dir, local_volumes } = *self;
        let flags = [
            ("unmanaged", unmanaged, usual.unmanaged),
            ("daemonSets", daemon_sets, usual.daemon_sets),
            ("lastReplica", last_replica, usual.last_replica),
            ("emptyDir", empty_dir, usual.empty_dir),
            ("localVolumes", local_volumes, usual.local_volumes),
        ];
        for (key, value, _) in flags.into_iter().filter(|(_, value, usual)| value != usual) {
            write!(f, ", {key}: {value}")?;
        }
        if min_ready != usual.min_ready {
            write!(f, ", minReady: {min_ready}")?;
        }
        if min_age != usual.min_age {
            write!(f, ", minAge: {}", format_duration(min_age))?;
        }
        Ok(())
    }
}
