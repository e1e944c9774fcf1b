//! The soak's workloads and their pods.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use guard_e2e::objects::merge;
use guard_node::{Node, WORLD, Wire, load};
use guard_soak::plan::Kind;
use serde_json::{Value, json};

/// Payload bytes per second that are normal.
const NORMAL: u64 = 4_800;
/// How many times as much a breach is.
const BREACH: u64 = 100;

/// The objects of a workload.
pub(crate) fn objects(namespace: &str, name: &str, kind: Kind) -> Value {
    let mut object = match kind {
        Kind::Deployment(replicas) => {
            let mut object = load::deployment(name, replicas, &["serve"]);
            // Whoever probes a pod moves its counters.
            if let Some(container) = object["spec"]["template"]["spec"]["containers"][0].as_object_mut() {
                container.remove("readinessProbe");
            }
            object
        }
        Kind::Bare => load::pod(name, &["serve"]),
        Kind::Job(seconds) => load::job(name, &["send", &format!("{},{seconds}", order(Protocol::Udp, 1))]),
        Kind::HostNetwork => {
            let port = port(name).to_string();
            let pod = load::pod(name, &["serve", "--port", &port]);
            merge(pod, json!({"spec": {"hostNetwork": true}}))
        }
        Kind::Nested => {
            let mut pod = load::pod(name, &["nest", "inner/most", "serve"]);
            pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
            pod
        }
    };
    object["metadata"]["namespace"] = namespace.into();
    object
}

/// The resource of a kind, for `kubectl delete`.
pub(crate) fn resource(kind: Kind) -> &'static str {
    match kind {
        Kind::Deployment(_) => "deployment",
        Kind::Job(_) => "job",
        Kind::Bare | Kind::HostNetwork | Kind::Nested => "pod",
    }
}

/// A port of the node's own network, another one for each workload.
fn port(name: &str) -> u16 {
    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
    18_000 + digits.parse::<u16>().unwrap_or_default() % 1000
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Udp,
    Tcp,
}

fn order(protocol: Protocol, times: u64) -> String {
    let rate = NORMAL * times;
    match protocol {
        Protocol::Udp => format!("udp:{WORLD}:9100,1200,{rate}"),
        Protocol::Tcp => format!("tcp:{WORLD}:9101,4800,{rate}"),
    }
}

/// A pod that can be told what to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Talker {
    /// The workload.
    pub(crate) app: String,
    /// Where it serves: `IP:PORT`.
    address: String,
    /// Its network namespace, and the node's end of its interface; none in the node's own network.
    pub(crate) wire: Option<(String, String)>,
    protocol: Protocol,
}

impl Talker {
    /// What it is asked to send: what is normal, or so many times as much.
    pub(crate) fn send(&self, breach: bool) -> String {
        self.ask(&format!("/send?{}", order(self.protocol, if breach { BREACH } else { 1 })))
    }

    /// What has it stop.
    pub(crate) fn stop(&self) -> String {
        self.ask("/stop")
    }

    /// A script that ends its process (SIGKILL); it succeeds if there was one.
    pub(crate) fn kill(&self) -> String {
        let port = self.address.rsplit(':').next().unwrap_or_default();
        match &self.wire {
            Some((namespace, _)) => format!(
                "killed=1\nfor pid in $(ip netns pids {namespace}); do
    grep -q serve /proc/$pid/cmdline && kill -KILL $pid && killed=0\ndone\nexit $killed\n"
            ),
            // The brackets are there for this script not to find itself.
            None => format!("pkill -KILL -f 'serve --port[ ]{port}'\n"),
        }
    }

    /// A line of shell; it succeeds if the pod answers.
    fn ask(&self, path: &str) -> String {
        format!("/run/node/load get '{}{path}' >/dev/null 2>&1\n", self.address)
    }
}

/// The pods that there are, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pods(pub(crate) BTreeMap<String, Talker>);

impl Pods {
    /// Finds out which pods run; those that are new are made ready to be compared.
    pub(crate) fn refresh(&mut self, node: &Node, namespace: &str) -> Result<()> {
        let list = node.kubectl(&["get", "pods", "-n", namespace, "-o", "json"])?;
        let list: Value = serde_json::from_str(&list)?;
        let mut found = BTreeMap::new();
        for pod in list["items"].as_array().context("a list of pods")? {
            let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (name, app, address) = (text("/metadata/name"), text("/metadata/labels/app"), text("/status/podIP"));
            let leaves = pod.pointer("/metadata/deletionTimestamp").is_some();
            if leaves || text("/status/phase") != "Running" || address.is_empty() || app.starts_with("job") {
                continue;
            }
            let talker = match self.0.remove(&name) {
                Some(known) => known,
                None => adopt(node, &app, &address, found.len())?,
            };
            found.insert(name, talker);
        }
        self.0 = found;
        Ok(())
    }

    /// The pods of a workload, by name.
    pub(crate) fn of(&self, app: &str) -> Vec<(&String, &Talker)> {
        self.0.iter().filter(|(_, talker)| talker.app == app).collect()
    }

    /// `NAME,NETNS,DEVICE` of all that have an interface of their own.
    pub(crate) fn wires(&self) -> String {
        let wires = self.0.iter().filter_map(|(name, talker)| {
            let (namespace, device) = talker.wire.as_ref()?;
            Some(format!("{name},{namespace},{device}"))
        });
        wires.collect::<Vec<_>>().join(" ")
    }
}

/// The bridge sends a pod what is for it and nothing else: no broadcasts, nothing for pods whose port it has forgotten.
const ALONE: &str = "set -e
bridge link set dev DEVICE flood off mcast_flood off bcast_flood off
bridge fdb replace $(ip netns exec NETNS cat /sys/class/net/eth0/address) dev DEVICE master static
";

fn adopt(node: &Node, app: &str, address: &str, index: usize) -> Result<Talker> {
    let protocol = if index.is_multiple_of(2) { Protocol::Udp } else { Protocol::Tcp };
    let (port, wire) = if app.starts_with("host") {
        (port(app), None)
    } else {
        let Wire { namespace, device, .. } = Wire::of(node, address)?;
        node.run(&ALONE.replace("NETNS", &namespace).replace("DEVICE", &device))?;
        (8080, Some((namespace, device)))
    };
    Ok(Talker { app: app.to_owned(), address: format!("{address}:{port}"), wire, protocol })
}

/// What is done once to the node: the wire to the world counts what is on a wire, queues have room for a slow CPU, and the
/// node asks nobody on the pods' bridge for an address: what a bridge itself broadcasts goes to every pod, whatever its port is
/// told, and a pod tells its address when it comes.
pub(crate) fn prepare(node: &Node) -> Result<()> {
    node.run(
        "sysctl -qw net.core.netdev_max_backlog=100000 net.ipv4.conf.cni0.arp_accept=1 net.ipv4.neigh.cni0.mcast_solicit=0",
    )?;
    Wire::world(node).map(drop)
}

/// How long the guest may take for a script that asks each pod something.
pub(crate) const PATIENCE: Duration = Duration::from_mins(5);
