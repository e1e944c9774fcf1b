//! What an agent's `/metrics` say.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use crate::{net::Wire, pods::Container};

/// The series of `/metrics` with their values.
#[derive(Clone, Debug, Default)]
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    /// Reads the text format.
    pub fn parse(text: &str) -> Result<Self> {
        let series = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').with_context(|| format!("not a series: {line}"))?;
            Ok((series.to_owned(), value.parse()?))
        });
        Ok(Self(series.collect::<Result<_>>()?))
    }

    /// The value of a series, written as in the text format.
    pub fn get(&self, series: &str) -> Option<u64> {
        self.0.get(series).map(|value| *value as u64)
    }

    /// What a container's series say; direction is `egress` or `ingress`.
    pub fn container(&self, container: &Container, direction: &str, class: &str) -> Wire {
        self.labelled(container.label(), direction, class)
    }

    /// What a container sent to external destinations.
    pub fn external(&self, container: &Container) -> Wire {
        self.container(container, "egress", "external")
    }

    /// Fails if a counter is smaller in `later`, or no longer there.
    pub fn assert_not_above(&self, later: &Self) -> Result<()> {
        for (series, was) in self.0.iter().filter(|(series, _)| series.contains("_total")) {
            let now = later.0.get(series).with_context(|| format!("{series} is gone"))?;
            ensure!(now >= was, "{series} went down from {was} to {now}");
        }
        Ok(())
    }

    /// As [`Self::container`], by the label.
    pub fn labelled(&self, container: &str, direction: &str, class: &str) -> Wire {
        let sum = |unit: &str| {
            let name = format!(
                "egress_guard_container_{direction}_{unit}_total{{class=\"{class}\",container=\"{container}\","
            );
            self.0.iter().filter(|(series, _)| series.starts_with(&name)).map(|(_, value)| *value as u64).sum()
        };
        Wire { bytes: sum("bytes"), packets: sum("packets") }
    }

    /// The sum of all containers' bytes.
    pub fn all_containers(&self, class: &str) -> u64 {
        let name = format!("egress_guard_container_egress_bytes_total{{class=\"{class}\",");
        self.0.iter().filter(|(series, _)| series.starts_with(&name)).map(|(_, value)| *value as u64).sum()
    }
}
