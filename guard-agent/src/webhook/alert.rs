//! An alert, as Alertmanager's v2 API takes it (`postableAlert` in its api/v2/openapi.yaml).

use std::{collections::BTreeMap, time::SystemTime};

use serde::Serialize;

use crate::{
    breaches::{Done, Held, Report, Time},
    client::bytes,
    core::breach::Limit,
};

/// An alert. Alertmanager knows it again by its labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// Which it is: the same from its beginning to its end.
    pub labels: BTreeMap<String, String>,
    /// What is to be said about it.
    pub annotations: BTreeMap<String, String>,
    /// Since when.
    pub starts_at: Time,
    /// When it ended; a time to come lets it end by itself. `None`: it is told again until it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Time>,
}

impl Alert {
    /// An alert about the node, with these labels and a summary.
    pub fn new(name: &str, severity: &str, node: &str, summary: &str, starts_at: SystemTime) -> Self {
        let labels = [("alertname", name), ("severity", severity), ("node", node)];
        Self {
            labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            annotations: [("summary".to_owned(), summary.to_owned())].into(),
            starts_at: Time(starts_at),
            ends_at: None,
        }
    }

    /// What is to be said about a breach: critical where something may be done about it, a warning where it is only said.
    pub fn of(report: &Report, node: &str) -> Self {
        let (name, severity) = match report.limit {
            Limit::Rate | Limit::Quota | Limit::Baseline => ("EgressLimitExceeded", "critical"),
            Limit::Ingress => ("IngressLimitExceeded", "warning"),
            Limit::Bypass => ("EgressBypassed", "critical"),
        };
        let mut alert = Self::new(name, severity, node, &summary(report), report.opened.0);
        let names = &report.labels;
        let labels = [
            ("limit", report.limit.name()),
            ("namespace", &names.namespace),
            ("pod", &names.pod),
            ("container", &names.container),
        ];
        let annotations = [
            ("policy", report.policy.clone()),
            ("cgroup", report.cgroup_path.clone()),
            ("container_id", report.container_id.clone()),
            ("destinations", list(&report.destinations, ToString::to_string)),
            ("done", list(&report.done, done)),
        ];
        // An empty value is the same as none, to Alertmanager.
        let told = labels.into_iter().filter(|(_, value)| !value.is_empty());
        alert.labels.extend(told.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let told = annotations.into_iter().filter(|(_, value)| !value.is_empty());
        alert.annotations.extend(told.map(|(name, value)| (name.to_owned(), value)));
        match report.closed {
            Some(Time(at)) => alert.resolved(at),
            None => alert,
        }
    }

    /// The same alert at its end. Alertmanager refuses one that is before the beginning, as a step of the clock may
    /// have it.
    #[must_use]
    pub fn resolved(self, at: SystemTime) -> Self {
        Self { ends_at: Some(Time(at).max(self.starts_at)), ..self }
    }
}

/// What happened, in one sentence.
pub(crate) fn summary(report: &Report) -> String {
    if report.limit == Limit::Bypass {
        return format!(
            "{} is in a pod that sends past every meter (AF_PACKET, which takes CAP_NET_RAW): {}/s, and {}/s is allowed. No \
             containment holds that; an eviction ends it",
            report.labels,
            bytes(report.figure),
            bytes(report.allowed)
        );
    }
    let per = if report.limit == Limit::Quota { "" } else { "/s" };
    format!(
        "{} crossed its {} limit: {}{per}, and {}{per} is allowed",
        report.labels,
        report.limit,
        bytes(report.figure),
        bytes(report.allowed)
    )
}

fn list<T>(items: &[T], say: fn(&T) -> String) -> String {
    items.iter().map(say).collect::<Vec<_>>().join("; ")
}

/// What was done, in words.
pub(crate) fn done(done: &Done) -> String {
    match done {
        Done::Contained { how: Held::Throttle(rate), until } => {
            format!("throttled to {}/s until {until}", bytes(*rate as f64))
        }
        Done::Contained { how: Held::Block, until } => format!("blocked until {until}"),
        Done::Evicted { at } => format!("evicted at {at}"),
        Done::Nothing { why } => format!("nothing: {why}"),
    }
}
