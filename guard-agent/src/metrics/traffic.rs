//! The metrics that are made from the latest snapshot.

use std::{collections::BTreeMap, sync::Arc};

use guard_common::{Class, Tally, Totals};
use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};
use tokio::sync::watch;

use crate::{
    core::identity::Labels,
    snapshot::{Snapshot, Standing},
};

pub(super) fn build_info() -> Result<Desc, prometheus::Error> {
    let help = "The version and commit of the agent; always 1.";
    Desc::new("egress_guard_build_info".into(), help.into(), vec![], std::collections::HashMap::new())
}

/// The metrics that are made from the latest snapshot.
pub(super) struct Traffic {
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) desc: Desc,
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
        families.extend(standings(&snapshot));
        families.extend(bypass(&snapshot));
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

fn standings(snapshot: &Snapshot) -> [MetricFamily; 3] {
    // Two containers with the same labels, the old and the new, are one series.
    let mut standings: BTreeMap<Labels, Standing> = BTreeMap::new();
    for container in &snapshot.containers {
        let (namespace, pod) = (container.namespace.clone(), container.pod.clone());
        let standing = standings.entry(Labels { namespace, pod, container: container.container.clone() }).or_default();
        standing.breached |= container.standing.breached;
        standing.contained |= container.standing.contained;
    }
    let each = |of: fn(&Standing) -> bool| {
        standings.iter().map(|(labels, standing)| gauge(&pairs(labels), f64::from(u8::from(of(standing))))).collect()
    };
    let dropped = snapshot.series.iter().map(|(labels, totals)| counter(&pairs(labels), totals.dropped() as f64));
    [
        family(
            "egress_guard_container_breached",
            "1 while the container breaches a limit.",
            MetricType::GAUGE,
            each(|standing| standing.breached),
        ),
        family(
            "egress_guard_contained",
            "1 while the container's egress is throttled or blocked.",
            MetricType::GAUGE,
            each(|standing| standing.contained),
        ),
        family(
            "egress_guard_dropped_bytes_total",
            "Wire bytes that the container's containment did not let go.",
            MetricType::COUNTER,
            dropped.collect(),
        ),
    ]
}

fn bypass(snapshot: &Snapshot) -> [MetricFamily; 2] {
    // A pod that is gone and its successor of the same name are one series.
    let (mut bytes, mut watched) = (BTreeMap::<&Labels, u64>::new(), BTreeMap::<&Labels, bool>::new());
    for unit in &snapshot.bypass {
        if let Some(more) = unit.bytes {
            *bytes.entry(&unit.labels).or_default() += more;
        }
        if unit.is_there {
            *watched.entry(&unit.labels).or_insert(true) &= unit.watched;
        }
    }
    [
        family(
            "egress_guard_bypass_bytes_total",
            "Bytes on the pod's interface that no meter saw and ordinary traffic cannot have been.",
            MetricType::COUNTER,
            bytes.into_iter().map(|(labels, bytes)| counter(&pairs(labels), bytes as f64)).collect(),
        ),
        family(
            "egress_guard_bypass_watched",
            "1 while the pod's interface is compared with its meters.",
            MetricType::GAUGE,
            watched.into_iter().map(|(labels, is)| gauge(&pairs(labels), f64::from(u8::from(is)))).collect(),
        ),
    ]
}

fn pairs(labels: &Labels) -> [(&'static str, &str); 3] {
    [("container", &labels.container), ("namespace", &labels.namespace), ("pod", &labels.pod)]
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
