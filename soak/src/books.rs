//! What an agent's `/metrics` say of traffic.

use std::collections::BTreeMap;

/// Bytes and packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// From the IP header on.
    pub bytes: u64,
    /// As they are on the wire.
    pub packets: u64,
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, packets: self.packets + other.packets }
    }
}

/// A container's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    /// Empty while the agent does not know it.
    pub namespace: String,
    /// The pod's name; its UID while that is unknown.
    pub pod: String,
    /// The container's.
    pub container: String,
}

/// Each class of destinations, in the order of its name: cluster, external.
pub type Classes<T> = [T; 2];

/// What the agent counts of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Series {
    /// Sent.
    pub egress: Classes<Count>,
    /// Received.
    pub ingress: Classes<Count>,
    /// Bytes that a containment has dropped.
    pub dropped: u64,
}

impl Series {
    /// All that is counted, with a name for each.
    pub fn figures(&self) -> [(&'static str, u64); 9] {
        let [(out_cluster, out_external), (in_cluster, in_external)] =
            [self.egress, self.ingress].map(|[cluster, external]| (cluster, external));
        [
            ("egress bytes, cluster", out_cluster.bytes),
            ("egress bytes, external", out_external.bytes),
            ("egress packets, cluster", out_cluster.packets),
            ("egress packets, external", out_external.packets),
            ("ingress bytes, cluster", in_cluster.bytes),
            ("ingress bytes, external", in_external.bytes),
            ("ingress packets, cluster", in_cluster.packets),
            ("ingress packets, external", in_external.packets),
            ("dropped bytes", self.dropped),
        ]
    }
}

/// One scrape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// What all pods sent, in bytes.
    pub node: Classes<u64>,
    /// What all pods received, in bytes.
    pub node_ingress: Classes<u64>,
    /// What pods sent and no container's meter saw, in bytes.
    pub unattributed: Classes<u64>,
    /// Each container's.
    pub containers: BTreeMap<Labels, Series>,
    /// Meters in use: slots.
    pub meters: u64,
    /// Samples that this agent has taken.
    pub samples: u64,
    /// What passed by the meters of each pod that anything passed by, in bytes, since this agent began.
    pub bypassed: BTreeMap<Labels, u64>,
    /// How many pods' interfaces are compared with their meters.
    pub watched: u64,
    /// How often this agent did not evict because a budget was spent.
    pub over_budget: u64,
}

/// Metrics that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMetrics {
    /// Not the text format.
    #[error("not a line of the agent's metrics: {0:?}")]
    Line(String),
    /// A family is missing: no sample was taken yet, or it has another name now.
    #[error("the agent's metrics have no {0}")]
    Missing(&'static str),
}

impl Books {
    /// Reads the text format.
    pub fn parse(text: &str) -> Result<Self, BadMetrics> {
        let mut books = Self::default();
        let mut seen = [false; 3];
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let bad = || BadMetrics::Line(line.to_owned());
            let (series, value) = line.rsplit_once(' ').ok_or_else(bad)?;
            // Counters are whole and below 2^53, which a float holds.
            let value: f64 = value.parse().map_err(|_| bad())?;
            let value = value as u64;
            let (name, labels) = match series.split_once('{') {
                Some((name, rest)) => (name, labels(rest.strip_suffix('}').ok_or_else(bad)?).ok_or_else(bad)?),
                None => (series, BTreeMap::new()),
            };
            let Some(name) = name.strip_prefix("egress_guard_") else { continue };
            let class = || match labels.get("class").map(String::as_str) {
                Some("cluster") => Ok(0),
                Some("external") => Ok(1),
                _ => Err(bad()),
            };
            match name {
                "node_egress_bytes_total" => (books.node[class()?], seen[0]) = (value, true),
                "node_ingress_bytes_total" => books.node_ingress[class()?] = value,
                "unattributed_egress_bytes_total" => (books.unattributed[class()?], seen[1]) = (value, true),
                "meters" => books.meters = value,
                "sample_seconds_count" => (books.samples, seen[2]) = (value, true),
                "container_egress_bytes_total" => books.series(&labels).egress[class()?].bytes = value,
                "container_egress_packets_total" => books.series(&labels).egress[class()?].packets = value,
                "container_ingress_bytes_total" => books.series(&labels).ingress[class()?].bytes = value,
                "container_ingress_packets_total" => books.series(&labels).ingress[class()?].packets = value,
                "bypass_bytes_total" if value > 0 => drop(books.bypassed.insert(names(&labels), value)),
                "bypass_watched" => books.watched += value,
                "declined_total" | "evictions_total" if is_budget(&labels) => books.over_budget += value,
                "dropped_bytes_total" => books.series(&labels).dropped = value,
                _ => {}
            }
        }
        let names = ["node_egress_bytes_total", "unattributed_egress_bytes_total", "sample_seconds_count"];
        match names.into_iter().zip(seen).find(|(_, seen)| !seen) {
            Some((name, _)) => Err(BadMetrics::Missing(name)),
            None => Ok(books),
        }
    }

    fn series(&mut self, labels: &BTreeMap<&str, String>) -> &mut Series {
        self.containers.entry(names(labels)).or_default()
    }

    /// What the containers of a pod sent and received, all classes together.
    #[must_use]
    pub fn pod(&self, namespace: &str, pod: &str) -> (Count, Count) {
        let of_pod = self.containers.iter().filter(|(labels, _)| labels.namespace == namespace && labels.pod == pod);
        of_pod.fold((Count::default(), Count::default()), |(sent, received), (_, series)| {
            let [out_cluster, out_external] = series.egress;
            let [in_cluster, in_external] = series.ingress;
            (sent + out_cluster + out_external, received + in_cluster + in_external)
        })
    }

    /// What all containers that are shown sent of a class, in bytes.
    #[must_use]
    pub fn attributed(&self, class: usize) -> u64 {
        self.containers.values().map(|series| series.egress[class].bytes).sum()
    }
}

fn names(labels: &BTreeMap<&str, String>) -> Labels {
    let [namespace, pod, container] =
        ["namespace", "pod", "container"].map(|name| labels.get(name).cloned().unwrap_or_default());
    Labels { namespace, pod, container }
}

/// Whether it is about an eviction that a budget did not allow: the agent's own, or one that all agents share.
fn is_budget(labels: &BTreeMap<&str, String>) -> bool {
    let is = |label: &str, values: &[&str]| labels.get(label).is_some_and(|value| values.contains(&value.as_str()));
    is("result", &["budget"]) || is("action", &["evict"]) && is("reason", &["node_budget", "workload_budget"])
}

/// `a="x",b="y"`. What is escaped (a backslash, a quote, a new line) stands for itself.
fn labels(text: &str) -> Option<BTreeMap<&str, String>> {
    let (mut labels, mut rest) = (BTreeMap::new(), text);
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"")?;
        let (mut value, mut escaped, mut end) = (String::new(), false, None);
        for (index, letter) in after.char_indices() {
            match letter {
                '\\' if !escaped => escaped = true,
                '"' if !escaped => {
                    end = Some(index);
                    break;
                }
                letter => {
                    value.push(letter);
                    escaped = false;
                }
            }
        }
        labels.insert(name, value);
        rest = &after[end? + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP egress_guard_container_egress_bytes_total Wire bytes
# TYPE egress_guard_container_egress_bytes_total counter
egress_guard_container_egress_bytes_total{class="cluster",container="main",namespace="soak",pod="a"} 100
egress_guard_container_egress_bytes_total{class="external",container="main",namespace="soak",pod="a"} 4503599627370496
egress_guard_container_egress_packets_total{class="external",container="main",namespace="soak",pod="a"} 7
egress_guard_container_egress_bytes_total{class="external",container="si\"de",namespace="soak",pod="a"} 5
egress_guard_container_ingress_packets_total{class="cluster",container="main",namespace="soak",pod="a"} 3
egress_guard_container_egress_bytes_total{class="external",container="main",namespace="soak",pod="b"} 1000
egress_guard_dropped_bytes_total{container="main",namespace="soak",pod="b"} 11
egress_guard_node_egress_bytes_total{class="cluster"} 100
egress_guard_node_egress_bytes_total{class="external"} 4503599627371505
egress_guard_node_ingress_bytes_total{class="external"} 9
egress_guard_unattributed_egress_bytes_total{class="cluster"} 0
egress_guard_unattributed_egress_bytes_total{class="external"} 4
egress_guard_bypass_bytes_total{namespace="soak",pod="a"} 0
egress_guard_bypass_bytes_total{namespace="soak",pod="b"} 120
egress_guard_bypass_watched{namespace="soak",pod="a"} 1
egress_guard_bypass_watched{namespace="soak",pod="b"} 1
egress_guard_bypass_watched{namespace="soak",pod="host"} 0
egress_guard_declined_total{action="contain",reason="node_budget"} 1
egress_guard_declined_total{action="evict",reason="node_budget"} 2
egress_guard_declined_total{action="evict",reason="workload_budget"} 4
egress_guard_declined_total{action="evict",reason="storm"} 8
egress_guard_evictions_total{result="budget"} 16
egress_guard_evictions_total{result="done"} 32
egress_guard_meters 3
egress_guard_sample_seconds_bucket{le="+Inf"} 12
egress_guard_sample_seconds_count 12
process_resident_memory_bytes 1.5e+07
"#;

    #[test]
    fn figures_are_found_under_their_names() {
        let books = Books::parse(TEXT).expect("metrics");
        assert_eq!((books.node, books.unattributed), ([100, 4_503_599_627_371_505], [0, 4]));
        assert_eq!((books.node_ingress, books.meters, books.samples), ([0, 9], 3, 12));
        let (sent, received) = books.pod("soak", "a");
        assert_eq!(sent, Count { bytes: 100 + 4_503_599_627_370_496 + 5, packets: 7 });
        assert_eq!(received, Count { bytes: 0, packets: 3 });
        assert!(books.containers.keys().any(|labels| labels.container == "si\"de"));
        assert_eq!(books.attributed(1) + 4, books.node[1]);
        let b = Labels { namespace: "soak".into(), pod: "b".into(), container: "main".into() };
        assert_eq!(books.containers[&b].dropped, 11);
        let b = Labels { container: String::new(), ..b };
        assert_eq!((books.bypassed, books.watched, books.over_budget), ([(b, 120)].into(), 2, 22));
    }

    #[test]
    fn before_the_first_sample_there_are_no_books() {
        let text = "egress_guard_sample_seconds_count 0\n";
        assert_eq!(Books::parse(text), Err(BadMetrics::Missing("node_egress_bytes_total")));
        assert_eq!(Books::parse("<html>"), Err(BadMetrics::Line("<html>".into())));
    }
}
