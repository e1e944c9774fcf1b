//! The metrics, in Prometheus' text format.

use std::sync::Arc;

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    core::Collector,
};
use tokio::sync::watch;

use self::traffic::{Traffic, build_info};
pub(crate) use self::traffic::{family, gauge};
use crate::{core::breach::Limit, snapshot::Snapshot};

mod traffic;

/// Content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Seconds from a cgroup's mkdir to its meter: 100 µs to 3 s.
const ATTACH_BUCKETS: [f64; 12] = [1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 7e-3, 1e-2, 3e-2, 1e-1, 5e-1, 3.0];
/// Seconds to read all counters and publish them: 10 µs to 0.3 s.
const SAMPLE_BUCKETS: [f64; 10] = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1];

/// What is counted where it happens, and the registry of everything.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// From the mkdir of a cgroup to its meter.
    pub attach_seconds: Histogram,
    /// The time a sample takes.
    pub sample_seconds: Histogram,
    /// Containers that found no free meter.
    pub refused: IntCounter,
    /// Cgroups that could not be attached to.
    pub attach_failures: IntCounter,
    /// Meters that somebody else had put out of action, and police programs.
    pub mended: IntCounter,
    /// Cgroup events that found no room in the ring buffer.
    pub events_lost: IntCounter,
    /// Walks of the cgroup tree that could not read it.
    pub walk_failures: IntCounter,
    /// From the packet that found a bucket empty to the breach in the log.
    pub breach_seconds: Histogram,
    /// Breaches, by `limit`.
    pub breaches: IntCounterVec,
    /// What was done, by `action`.
    pub actions: IntCounterVec,
    /// What a policy asks for and was not done, by `action` and `reason`.
    pub declined: IntCounterVec,
    /// 1: nothing is evicted because too many breach.
    pub storm: IntGauge,
    /// Times that the evidence map could not be read.
    pub evidence_failures: IntCounter,
    /// Times that the state file could not be written.
    pub state_failures: IntCounter,
    /// 1: the configuration file as it is now is in force.
    pub config_ok: IntGauge,
    /// Configurations that were refused.
    pub config_refused: IntCounter,
}

impl Metrics {
    /// Registers all metrics; those of the traffic are made from the latest snapshot.
    pub fn new(snapshots: watch::Receiver<Arc<Snapshot>>) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        };
        let counters = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let metrics = Self {
            registry: Registry::new(),
            attach_seconds: histogram(
                "egress_guard_attach_seconds",
                "Time from the mkdir of a container's cgroup to its meter being attached.",
                &ATTACH_BUCKETS,
            )?,
            sample_seconds: histogram(
                "egress_guard_sample_seconds",
                "Time to read all counters and publish them.",
                &SAMPLE_BUCKETS,
            )?,
            refused: IntCounter::new(
                "egress_guard_meters_refused_total",
                "Containers that found all meters (meters.max) in use.",
            )?,
            attach_failures: IntCounter::new(
                "egress_guard_attach_failures_total",
                "Attempts to meter a container that the kernel refused.",
            )?,
            mended: IntCounter::new(
                "egress_guard_meters_mended_total",
                "Meters whose programs somebody else had detached or replaced, and that were put right.",
            )?,
            events_lost: IntCounter::new(
                "egress_guard_events_lost_total",
                "Cgroup events that found no room in the ring buffer; a walk of the tree makes up for them.",
            )?,
            walk_failures: IntCounter::new(
                "egress_guard_walk_failures_total",
                "Walks of the cgroup tree that could not read it.",
            )?,
            breach_seconds: histogram(
                "egress_guard_breach_seconds",
                "Time from the packet that found a rate's bucket empty to the breach being said.",
                &ATTACH_BUCKETS,
            )?,
            breaches: counters("egress_guard_breaches_total", "Breaches that were opened.", &["limit"])?,
            actions: counters("egress_guard_actions_total", "What was done about breaches.", &["action"])?,
            declined: counters(
                "egress_guard_declined_total",
                "What a policy asks for and was not done.",
                &["action", "reason"],
            )?,
            storm: IntGauge::new(
                "egress_guard_storm",
                "1 while nothing is evicted because too many workloads or pods breach at once.",
            )?,
            evidence_failures: IntCounter::new(
                "egress_guard_evidence_failures_total",
                "Times that the destinations of a breach could not be read.",
            )?,
            state_failures: IntCounter::new(
                "egress_guard_state_failures_total",
                "Times that the state file could not be written.",
            )?,
            config_ok: IntGauge::new(
                "egress_guard_config_ok",
                "1 while the configuration file as it is now is in force; 0: it was refused, and the one before holds.",
            )?,
            config_refused: IntCounter::new(
                "egress_guard_config_refused_total",
                "Changes of the configuration file that were refused.",
            )?,
        };
        metrics.config_ok.set(1);
        for limit in Limit::ALL {
            metrics.breaches.with_label_values(&[limit.name()]);
        }
        for action in ["contain", "release", "evict"] {
            metrics.actions.with_label_values(&[action]);
        }
        let collectors: [Box<dyn Collector>; 17] = [
            Box::new(metrics.breach_seconds.clone()),
            Box::new(metrics.breaches.clone()),
            Box::new(metrics.actions.clone()),
            Box::new(metrics.declined.clone()),
            Box::new(metrics.storm.clone()),
            Box::new(metrics.evidence_failures.clone()),
            Box::new(metrics.state_failures.clone()),
            Box::new(metrics.config_ok.clone()),
            Box::new(metrics.config_refused.clone()),
            Box::new(metrics.attach_seconds.clone()),
            Box::new(metrics.sample_seconds.clone()),
            Box::new(metrics.refused.clone()),
            Box::new(metrics.attach_failures.clone()),
            Box::new(metrics.mended.clone()),
            Box::new(metrics.events_lost.clone()),
            Box::new(metrics.walk_failures.clone()),
            Box::new(Traffic { snapshots, desc: build_info()? }),
        ];
        collectors.into_iter().try_for_each(|collector| metrics.registry.register(collector))?;
        Ok(metrics)
    }

    /// Has another's metrics shown as well.
    pub fn register(&self, collector: Box<dyn Collector>) -> Result<(), prometheus::Error> {
        self.registry.register(collector)
    }

    /// All metrics as text.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use guard_common::{Tally, Totals};

    use super::*;
    use crate::{core::identity::Labels, kernel::sys::ProgStats};

    fn text(snapshot: Snapshot) -> String {
        let (_sender, receiver) = watch::channel(Arc::new(snapshot));
        let metrics = Metrics::new(receiver).expect("metrics");
        String::from_utf8(metrics.render().expect("text")).expect("UTF-8")
    }

    fn totals() -> Totals {
        let mut totals = Totals::default();
        (totals.egress.bytes, totals.egress.packets) = ([1 << 52, 3], [4, 5]);
        (totals.ingress.bytes, totals.ingress.packets) = ([6, 7], [8, 9]);
        totals
    }

    #[test]
    fn figures_appear_whole_under_their_labels() {
        let labels = Labels { namespace: String::new(), pod: "uid".into(), container: "a\"b".into() };
        let unattributed = Tally { bytes: [10, 11], ..Tally::default() };
        let programs = Some([
            ProgStats { runs: 12, run_nanos: 1_500_000_000, ..ProgStats::default() },
            ProgStats { runs: 13, ..ProgStats::default() },
        ]);
        let series = vec![(labels, totals())];
        let snapshot =
            Snapshot { at: 1, series, node: totals(), unattributed, meters: 14, programs, ..Snapshot::default() };
        let text = text(snapshot);
        let container = "container=\"a\\\"b\",namespace=\"\",pod=\"uid\"";
        for line in [
            format!("egress_guard_container_egress_bytes_total{{class=\"cluster\",{container}}} 4503599627370496"),
            format!("egress_guard_container_egress_bytes_total{{class=\"external\",{container}}} 3"),
            format!("egress_guard_container_egress_packets_total{{class=\"external\",{container}}} 5"),
            format!("egress_guard_container_ingress_bytes_total{{class=\"cluster\",{container}}} 6"),
            format!("egress_guard_container_ingress_packets_total{{class=\"external\",{container}}} 9"),
            "egress_guard_node_egress_bytes_total{class=\"cluster\"} 4503599627370496".into(),
            "egress_guard_node_ingress_bytes_total{class=\"external\"} 7".into(),
            "egress_guard_unattributed_egress_bytes_total{class=\"external\"} 11".into(),
            "egress_guard_program_runs_total{program=\"ingress\"} 13".into(),
            "egress_guard_program_run_seconds_total{program=\"egress\"} 1.5".into(),
            "egress_guard_meters 14".into(),
            "egress_guard_meters_refused_total 0".into(),
            "# TYPE egress_guard_container_egress_bytes_total counter".into(),
            "egress_guard_attach_seconds_count 0".into(),
            "egress_guard_sample_seconds_count 0".into(),
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
        assert!(text.contains("egress_guard_build_info{version="), "{text}");
    }

    #[test]
    fn before_the_first_sample_no_counter_is_told() {
        let text = text(Snapshot::default());
        assert!(!text.contains("egress_guard_node") && text.contains("egress_guard_build_info"), "{text}");
    }

    #[test]
    fn without_the_kernels_statistics_there_is_no_program_metric() {
        let text = text(Snapshot { at: 1, ..Snapshot::default() });
        assert!(!text.contains("egress_guard_program"), "{text}");
    }
}
