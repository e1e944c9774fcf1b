//! Pods that serve, poll and send: `load/src/main.rs` says what they understand.

use anyhow::{Context as _, Result, ensure};
use guard_e2e::{Space, eventually, objects::merge, space::is_ready};
use guard_tests::net::Wire;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Node, SOON, image::NAME};

/// A `Deployment` of pods with the label `app: <name>`, whose one container, `main`, runs `load` with these arguments and is
/// Ready while it answers on port 8080.
#[must_use]
pub fn deployment(name: &str, replicas: u32, arguments: &[&str]) -> Value {
    let template = merge(template(name, arguments), json!({"spec": {"containers": [served(arguments)]}}));
    let selector = json!({"matchLabels": {"app": name}});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": selector, "template": template},
    })
}

/// A pod without a controller; no probe asks it.
#[must_use]
pub fn pod(name: &str, arguments: &[&str]) -> Value {
    merge(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}), template(name, arguments))
}

/// A `Job` whose pods run to their end.
#[must_use]
pub fn job(name: &str, arguments: &[&str]) -> Value {
    let template = merge(template(name, arguments), json!({"spec": {"restartPolicy": "Never"}}));
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template},
    })
}

/// A service in front of the pods with this label.
#[must_use]
pub fn service(name: &str) -> Value {
    let spec = json!({"selector": {"app": name}, "ports": [{"port": 8080, "protocol": "TCP"}]});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// A container that runs `load` with these arguments.
#[must_use]
pub fn container(name: &str, arguments: &[&str]) -> Value {
    json!({
        "name": name,
        "image": NAME,
        "imagePullPolicy": "Never",
        "args": arguments,
        "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
    })
}

fn served(arguments: &[&str]) -> Value {
    let probe = json!({
        "httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 3,
    });
    merge(container("main", arguments), json!({"readinessProbe": probe}))
}

fn template(app: &str, arguments: &[&str]) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "enableServiceLinks": false,
            "containers": [container("main", arguments)],
        },
    })
}

/// A pod whose container `serve`s.
#[derive(Clone, Debug)]
pub struct Load<'a> {
    node: &'a Node,
    address: String,
    port: u16,
    /// The pod as it was when it was found.
    pub pod: Pod,
}

/// What a pod has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Sent {
    /// Payload.
    pub bytes: u64,
    /// Datagrams, or writes.
    pub count: u64,
    /// Further ones, of which the kernel let nothing go.
    pub refused: u64,
}

impl Sent {
    /// What that is on the wire if all of it were datagrams no larger than the MTU, over IPv4.
    pub fn datagrams(&self) -> Wire {
        let packets = self.count;
        Wire { bytes: self.bytes + packets * 28, packets }
    }
}

/// What a pod that polls has found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Polled {
    /// Requests with an answer 200.
    pub answered: u64,
    /// Requests without.
    pub failed: u64,
    /// The longest wait for an answer.
    pub longest_millis: u64,
    /// Why the last one failed.
    pub error: String,
}

impl Node {
    /// Waits until there are exactly so many pods of an app in a namespace, all of them Ready, and returns them by name.
    pub async fn loads(&self, space: &Space, app: &str, count: usize) -> Result<Vec<Load<'_>>> {
        let pods = eventually(&format!("{count} pods of {app} are Ready"), SOON, async || {
            let pods = space.pods(app).await?;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            let seen = || pods.iter().map(|pod| (pod.name_any(), pod.status.clone())).collect::<Vec<_>>();
            ensure!(pods.len() == count && ready == count, "{ready} of {}: {:?}", pods.len(), seen());
            Ok(pods)
        })
        .await?;
        pods.into_iter().map(|pod| self.load(pod)).collect()
    }

    /// What a container that `send`s to its end has sent; waits for that end.
    pub async fn sent_in_all(&self, pod: &Pod, container: &str) -> Result<Sent> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        eventually(&format!("{name}/{container} has sent all"), SOON, async || {
            let said = self.kubectl(&["logs", "-n", &namespace, &name, "-c", container])?;
            serde_json::from_str(said.trim()).with_context(|| format!("it says {said:?}"))
        })
        .await
    }

    /// A pod that runs.
    pub fn load(&self, pod: Pod) -> Result<Load<'_>> {
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        let address = address.with_context(|| format!("{} has no address", pod.name_any()))?;
        Ok(Load { node: self, address, port: 8080, pod })
    }
}

impl Load<'_> {
    /// Its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same pod's container that serves on another port.
    #[must_use]
    pub fn on(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// What it answers to a path.
    pub fn ask(&self, path: &str) -> Result<String> {
        self.node.run(&format!("/run/node/load get '{}:{}{path}'", self.address, self.port))
    }

    /// Begins to send (`udp:IP:PORT,SIZE,RATE`, or `tcp:`), in the place of what it sends to the same address. Returns when,
    /// by the guest's clock.
    pub fn send(&self, order: &str) -> Result<Timestamp> {
        let began = self.ask(&format!("/send?{order}"))?;
        Ok(Timestamp::from_nanosecond(began.trim().parse().with_context(|| format!("not a time: {began}"))?)?)
    }

    /// Sends nothing more once this returns.
    pub fn stop(&self) -> Result<()> {
        self.ask("/stop").map(drop)
    }

    /// What it has sent so far.
    pub fn sent(&self) -> Result<Sent> {
        Ok(serde_json::from_str(&self.ask("/sent")?)?)
    }

    /// What its poll has found so far.
    pub fn polled(&self) -> Result<Polled> {
        Ok(serde_json::from_str(&self.ask("/polled")?)?)
    }
}
