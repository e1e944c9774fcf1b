//! The metrics, in Prometheus' text format.

use std::sync::Arc;

use guard_common::{Class, Tally, Totals};
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, Registry, TextEncoder,
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};
use tokio::sync::watch;

use crate::snapshot::Snapshot;

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
    /// Cgroup events that found no room in the ring buffer.
    pub events_lost: IntCounter,
    /// Walks of the cgroup tree that could not read it.
    pub walk_failures: IntCounter,
}

impl Metrics {
    /// Registers all metrics; those of the traffic are made from the latest snapshot.
    pub fn new(snapshots: watch::Receiver<Arc<Snapshot>>) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        };
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
            events_lost: IntCounter::new(
                "egress_guard_events_lost_total",
                "Cgroup events that found no room in the ring buffer; a walk of the tree makes up for them.",
            )?,
            walk_failures: IntCounter::new(
                "egress_guard_walk_failures_total",
                "Walks of the cgroup tree that could not read it.",
            )?,
        };
        let collectors: [Box<dyn Collector>; 7] = [
            Box::new(metrics.attach_seconds.clone()),
            Box::new(metrics.sample_seconds.clone()),
            Box::new(metrics.refused.clone()),
            Box::new(metrics.attach_failures.clone()),
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

fn build_info() -> Result<Desc, prometheus::Error> {
    let help = "The version and commit of the agent; always 1.";
    Desc::new("egress_guard_build_info".into(), help.into(), vec![], std::collections::HashMap::new())
}

/// The metrics that are made from the latest snapshot.
struct Traffic {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    desc: Desc,
}

impl Collector for Traffic {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let build = [("version", env!("CARGO_PKG_VERSION")), ("commit", env!("GIT_COMMIT"))];
        let build = vec![gauge(&build, 1.0)];
        let mut families = vec![family("egress_guard_build_info", &self.desc.help, MetricType::GAUGE, build)];
        // Before the first sample nothing is known: a 0 would be taken for a counter that was reset.
        if snapshot.at == 0 {
            return families;
        }
        families.extend(containers(&snapshot));
        families.extend(node(&snapshot));
        families.extend(programs(&snapshot));
        families.push(family(
            "egress_guard_meters",
            "Meters in use, those of removed cgroups that linger among them.",
            MetricType::GAUGE,
            vec![gauge(&[], snapshot.meters as f64)],
        ));
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

/// Picks a direction, and of it bytes or packets.
type Pick = fn(&Totals) -> [u64; 2];

fn containers(snapshot: &Snapshot) -> Vec<MetricFamily> {
    let picks: [(&str, &str, Pick); 4] = [
        ("egress_bytes", "Wire bytes, from the IP header on, that the container sent.", |t| t.egress.bytes),
        ("egress_packets", "Packets that the container sent, as they are on the wire.", |t| t.egress.packets),
        ("ingress_bytes", "Wire bytes, from the IP header on, that the container received.", |t| t.ingress.bytes),
        ("ingress_packets", "Packets that the container received.", |t| t.ingress.packets),
    ];
    let families = picks.into_iter().map(|(name, help, pick)| {
        let metrics = snapshot.series.iter().flat_map(|(labels, totals)| {
            classes(pick(totals)).map(|(class, value)| {
                let labels = [
                    ("class", class),
                    ("container", labels.container.as_str()),
                    ("namespace", labels.namespace.as_str()),
                    ("pod", labels.pod.as_str()),
                ];
                counter(&labels, value as f64)
            })
        });
        family(&format!("egress_guard_container_{name}_total"), help, MetricType::COUNTER, metrics.collect())
    });
    families.collect()
}

fn node(snapshot: &Snapshot) -> [MetricFamily; 3] {
    let by_class = |name: &str, help: &str, tally: &Tally| {
        let metrics = classes(tally.bytes).map(|(class, value)| counter(&[("class", class)], value as f64));
        family(name, help, MetricType::COUNTER, metrics.into())
    };
    [
        by_class(
            "egress_guard_node_egress_bytes_total",
            "Wire bytes, from the IP header on, that all pods sent.",
            &snapshot.node.egress,
        ),
        by_class(
            "egress_guard_node_ingress_bytes_total",
            "Wire bytes, from the IP header on, that all pods received.",
            &snapshot.node.ingress,
        ),
        by_class(
            "egress_guard_unattributed_egress_bytes_total",
            "Wire bytes that pods sent and no container's meter counted.",
            &snapshot.unattributed,
        ),
    ]
}

fn programs(snapshot: &Snapshot) -> [MetricFamily; 2] {
    let each = |value: fn(&crate::kernel::sys::ProgStats) -> f64| {
        let programs = ["egress", "ingress"].into_iter().zip(snapshot.programs.iter().flatten());
        programs.map(|(program, stats)| counter(&[("program", program)], value(stats))).collect()
    };
    [
        family(
            "egress_guard_program_runs_total",
            "Runs of the meters' programs while kernel.bpf_stats_enabled is on.",
            MetricType::COUNTER,
            each(|stats| stats.runs as f64),
        ),
        family(
            "egress_guard_program_run_seconds_total",
            "Time in the meters' programs while kernel.bpf_stats_enabled is on.",
            MetricType::COUNTER,
            each(|stats| stats.run_nanos as f64 / 1e9),
        ),
    ]
}

fn classes(values: [u64; 2]) -> [(&'static str, u64); 2] {
    [("cluster", values[Class::Cluster as usize]), ("external", values[Class::External as usize])]
}

pub(crate) fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).into());
        pair.set_value((*value).into());
        pair
    });
    Metric::from_label(pairs.collect())
}

fn counter(labels: &[(&str, &str)], value: f64) -> Metric {
    let (mut metric, mut counter) = (labelled(labels), Counter::default());
    counter.set_value(value);
    metric.set_counter(counter);
    metric
}

pub(crate) fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let (mut metric, mut gauge) = (labelled(labels), Gauge::default());
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

#[cfg(test)]
mod tests {
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
            Snapshot { at: 1, series, node: totals(), unattributed, meters: 14, programs, containers: vec![] };
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
