//! The agent on the node, as its users install it.

use anyhow::{Context as _, Result, ensure};
use guard_agent::snapshot::Container;
use guard_e2e::{eventually, space::is_ready};
use guard_tests::{agent::Metrics, net::Wire};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{Node, SOON, stages::logged_at};

/// The namespace of the installation, the name of its objects, and the label of its pods.
pub const NAME: &str = "egress-guard";

/// The image as `cargo xtask image` names it.
pub const IMAGE: &str = concat!("localhost/egress-guard:", env!("CARGO_PKG_VERSION"));

/// An image of an agent whose pins have another layout.
pub const OLDER: &str = "localhost/egress-guard:older";

/// What is installed.
#[derive(Clone, Debug)]
pub struct Installation<'a> {
    /// The overlay: `observe`, `contain` or `evict`.
    pub overlay: &'a str,
    /// Components besides, such as `hardened`.
    pub components: &'a [&'a str],
    /// The policy file.
    pub config: &'a str,
    /// The image.
    pub image: &'a str,
}

impl<'a> Installation<'a> {
    /// An overlay with a policy file.
    pub fn of(overlay: &'a str, config: &'a str) -> Self {
        Self { overlay, components: &[], config, image: IMAGE }
    }

    /// What `kubectl apply -k` sends.
    pub fn render(&self) -> Result<String> {
        let Self { overlay, components, config, image } = self;
        guard_deploy::installation(overlay, components, image, config)
    }
}

/// The agent of the node's DaemonSet, whichever pod that is.
#[derive(Clone, Copy, Debug)]
pub struct Agent<'a> {
    node: &'a Node,
}

impl Node {
    /// Installs the agent on a node that has never seen one, and waits until it is Ready.
    pub async fn install(&self, installation: &Installation<'_>) -> Result<Agent<'_>> {
        self.uninstall().await?;
        self.apply(&installation.render()?)?;
        let agent = self.agent();
        agent.ready().await?;
        Ok(agent)
    }

    /// Removes the installation and everything that agents have left on the node.
    pub async fn uninstall(&self) -> Result<()> {
        self.remove_namespace(NAME).await?;
        self.run("rm -rf /sys/fs/bpf/egress-guard /var/lib/egress-guard").map(drop)
    }

    /// The agent that is installed.
    pub fn agent(&self) -> Agent<'_> {
        Agent { node: self }
    }

    /// The pods of the agent, and the ends of their logs and of the kubelet's: what to tell if one does not come up.
    pub fn describe_agent(&self) -> String {
        let seen = ["describe", "logs"].map(|verb| {
            let selector = format!("app.kubernetes.io/name={NAME}");
            let more = if verb == "describe" { vec!["describe", "pods"] } else { vec!["logs", "--tail=40"] };
            self.kubectl(&[&more[..], &["-n", NAME, "-l", &selector]].concat())
                .unwrap_or_else(|error| format!("{error:#}"))
        });
        let kubelet = self.run("journalctl --unit kubelet --no-pager --output cat --lines 60 | cut -c 1-300");
        format!("{}\n{}", seen.join("\n"), kubelet.unwrap_or_else(|error| format!("{error:#}")))
    }
}

impl Agent<'_> {
    /// Its pod.
    pub async fn pod(&self) -> Result<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.node.client().await?, NAME);
        let pods = pods.list(&ListParams::default().labels(&format!("app.kubernetes.io/name={NAME}"))).await?;
        let mut here = pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        here.next().context("there is no pod of the agent")
    }

    /// Waits until it is Ready.
    pub async fn ready(&self) -> Result<Pod> {
        eventually("the agent is Ready", SOON, async || {
            let pod = self.pod().await?;
            ensure!(is_ready(&pod), "{:?}", pod.status.and_then(|status| status.container_statuses));
            Ok(pod)
        })
        .await
        .with_context(|| self.node.describe_agent())
    }

    /// Runs `guard-agent` with these arguments in it, by `kubectl exec`.
    pub async fn verb(&self, arguments: &[&str]) -> Result<String> {
        let pod = self.pod().await?.name_any();
        self.node.kubectl(&[&["exec", "-n", NAME, &pod, "--", "/guard-agent"], arguments].concat())
    }

    /// What `guard-agent list` says.
    pub async fn list(&self) -> Result<Vec<Container>> {
        Ok(serde_json::from_str(&self.verb(&["list", "--json"]).await?)?)
    }

    /// What it lists of a pod's container.
    pub async fn listed(&self, pod: &Pod, container: &str) -> Result<Container> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let listed = self.list().await?;
        let found = listed.iter().find(|it| it.namespace == namespace && it.pod == name && it.container == container);
        found.cloned().with_context(|| format!("there is no {namespace}/{name}/{container} in {listed:?}"))
    }

    /// Waits until it has a meter for a pod's container and knows its names.
    pub async fn named(&self, pod: &Pod, container: &str) -> Result<Container> {
        let what = format!("the agent knows {}/{container}", pod.name_any());
        eventually(&what, SOON, async || self.listed(pod, container).await).await
    }

    /// Its log, from its start: JSON lines.
    pub async fn log(&self) -> Result<String> {
        let pod = self.pod().await?.name_any();
        self.node.kubectl(&["logs", "-n", NAME, &pod])
    }

    /// Waits until a line of the log has all of these texts, and returns it.
    pub async fn says(&self, texts: &[&str]) -> Result<String> {
        self.says_since(Timestamp::MIN, texts).await
    }

    /// Waits until a line of the log that is no older than this, by the guest's clock, has all of these texts, and returns it.
    pub async fn says_since(&self, since: Timestamp, texts: &[&str]) -> Result<String> {
        eventually(&format!("the agent says {texts:?}"), SOON, async || {
            let log = self.log().await?;
            let mut lines = log.lines().filter(|line| texts.iter().all(|text| line.contains(text)));
            let found = lines.find(|line| logged_at(line).is_ok_and(|at| at >= since));
            Ok(found.with_context(|| format!("since {since} it says:\n{log}"))?.to_owned())
        })
        .await
    }

    /// `/metrics`, as they are.
    pub async fn scrape(&self) -> Result<Metrics> {
        let pod = self.pod().await?;
        let address = pod.status.and_then(|status| status.pod_ip).context("the agent has no address")?;
        Metrics::parse(&self.node.run(&format!("/run/node/load get {address}:9469/metrics"))?)
    }

    /// The metrics of a sample that was taken after this call.
    pub async fn metrics(&self) -> Result<Metrics> {
        let samples = |metrics: &Metrics| metrics.get("egress_guard_sample_seconds_count").unwrap_or(0);
        let before = samples(&self.scrape().await?);
        eventually("a new sample", SOON, async || {
            let metrics = self.scrape().await?;
            // The sample that is being taken may have begun before: the one after it has not.
            ensure!(samples(&metrics) >= before + 2, "still sample {before}");
            Ok(metrics)
        })
        .await
    }

    /// The value of a series; 0 if there is none.
    pub async fn series(&self, series: &str) -> Result<u64> {
        Ok(self.scrape().await?.get(series).unwrap_or(0))
    }

    /// How many evictions ended so.
    pub async fn evictions(&self, result: &str) -> Result<u64> {
        self.series(&format!("egress_guard_evictions_total{{result=\"{result}\"}}")).await
    }

    /// What the README's one-liner does.
    pub fn kill_switch(&self, word: &str) -> Result<()> {
        let patch = json!({"data": {"kill-switch": word}}).to_string();
        self.node.kubectl(&["patch", "configmap", NAME, "-n", NAME, "--type=merge", "-p", &patch]).map(drop)
    }

    /// Replaces the policy file; it is in force seconds later.
    pub async fn configure(&self, config: &str) -> Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.node.client().await?, NAME);
        let patch = Patch::Merge(json!({"data": {"config.yaml": config}}));
        maps.patch(NAME, &PatchParams::default(), &patch).await.context("patch the ConfigMap")?;
        Ok(())
    }
}

/// What a pod's container sent to external destinations.
pub fn external(metrics: &Metrics, pod: &Pod, container: &str) -> Wire {
    sum(metrics, pod, container, "egress", "class=\"external\"")
}

/// What the series of a pod's container say; direction is `egress` or `ingress`, all classes together.
pub fn counted(metrics: &Metrics, pod: &Pod, container: &str, direction: &str) -> Wire {
    sum(metrics, pod, container, direction, "")
}

fn sum(metrics: &Metrics, pod: &Pod, container: &str, direction: &str, class: &str) -> Wire {
    let (namespace, pod) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let labels = format!("container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\"");
    let sum = |unit: &str| {
        let name = format!("egress_guard_container_{direction}_{unit}_total{{");
        let series = metrics
            .0
            .iter()
            .filter(|(series, _)| series.starts_with(&name) && series.contains(class) && series.contains(&labels));
        series.map(|(_, value)| *value as u64).sum()
    };
    Wire { bytes: sum("bytes"), packets: sum("packets") }
}
