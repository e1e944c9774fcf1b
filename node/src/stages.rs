//! How long things took, and the tables of that in the docs.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use guard_e2e::{ControlPlane, Space, eventually, space::is_ready};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::SOON;

/// The file with the tables.
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/node.md");

/// With this in the environment, the tables are written (`cargo xtask node --docs`).
const WRITE: &str = "EGRESS_GUARD_NODE_DOCS";

/// Stages of one scenario, all on the host's clock, since one moment.
#[derive(Clone, Debug)]
pub struct Stages {
    since: Timestamp,
    reached: Vec<(String, Timestamp)>,
    others: Vec<(String, Duration)>,
}

impl Stages {
    /// Counted from this moment: the first byte over the limit.
    pub fn since(moment: Timestamp) -> Self {
        Self { since: moment, reached: vec![], others: vec![] }
    }

    /// One that is reached.
    pub fn reached(&mut self, stage: &str, at: Timestamp) {
        self.reached.push((stage.into(), at));
    }

    /// What else is to be told in the same table: how long something lasted.
    pub fn lasted(&mut self, what: &str, time: Duration) {
        self.others.push((what.into(), time));
    }

    /// Each with the time that it took.
    pub fn all(&self) -> Result<Vec<(&str, Duration)>> {
        let each = self.reached.iter().map(|(stage, at)| {
            let took = at.duration_since(self.since);
            let took = took.try_into().with_context(|| format!("{stage} came {took:?} after the beginning"))?;
            Ok((stage.as_str(), took))
        });
        each.collect()
    }

    /// Prints the table, and writes it into the docs under this name if that was asked for.
    pub fn tell(&self, name: &str) -> Result<()> {
        let mut table = String::from("| from the first byte over the limit to | seconds |\n| --- | --- |\n");
        for (stage, took) in self.all()? {
            writeln!(table, "| {stage} | {:.1} |", took.as_secs_f64())?;
        }
        for (what, time) in &self.others {
            writeln!(table, "| ({what}) | {:.1} |", time.as_secs_f64())?;
        }
        document(name, &table)
    }
}

/// Prints a table, and writes it into `docs/node.md` between `<!-- NAME -->` and `<!-- end -->` if that was asked for.
pub fn document(name: &str, table: &str) -> Result<()> {
    eprintln!("{name}:\n{table}");
    if std::env::var_os(WRITE).is_none() {
        return Ok(());
    }
    let docs = fs::read_to_string(DOCS).with_context(|| format!("read {DOCS}"))?;
    let begin = format!("<!-- {name} -->\n");
    let (before, rest) = docs.split_once(&begin).with_context(|| format!("{DOCS} has no {begin:?}"))?;
    let (_, after) = rest.split_once("<!-- end -->").with_context(|| format!("{DOCS} has no end of {name}"))?;
    fs::write(Path::new(DOCS), format!("{before}{begin}{table}<!-- end -->{after}"))?;
    Ok(())
}

/// The time of a line of the agent's log, by the guest's clock.
pub fn logged_at(line: &str) -> Result<Timestamp> {
    let line: serde_json::Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
    let at = line["timestamp"].as_str().with_context(|| format!("no timestamp: {line}"))?;
    at.parse().with_context(|| format!("not a time: {at}"))
}

/// When the API server took an eviction of this pod, by its own account.
pub async fn eviction_of(plane: &ControlPlane, pod: &Pod) -> Result<Timestamp> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    eventually(&format!("{name} is evicted"), SOON, async || {
        let requests = plane.requests()?;
        let mut asked = requests.iter().filter(|it| it.resource == "pods/eviction" && it.name == name);
        let taken = asked.find(|it| it.namespace == namespace && it.code == 201);
        Ok(taken.with_context(|| format!("{name} was not evicted"))?.at)
    })
    .await
}

/// When a pod that takes the place of another was seen to run, and to be Ready.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// The pod, Ready.
    pub pod: Pod,
    /// Its containers run.
    pub running: Timestamp,
    /// It is Ready.
    pub ready: Timestamp,
}

/// Waits until an app has a pod that is none of these, and that is Ready.
pub async fn replacement(space: &Space, app: &str, before: &[&Pod]) -> Result<Replacement> {
    let mut running = None;
    eventually(&format!("{app} has a new pod that is Ready"), SOON, async || {
        let pods = space.pods(app).await?;
        let new = pods.into_iter().find(|pod| before.iter().all(|old| old.uid() != pod.uid()));
        let pod = new.context("there is no new pod")?;
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        let runs = statuses
            .is_some_and(|all| all.iter().all(|one| one.state.as_ref().is_some_and(|state| state.running.is_some())));
        ensure!(runs, "{} does not run yet", pod.name_any());
        let since = *running.get_or_insert_with(Timestamp::now);
        ensure!(is_ready(&pod), "{} is not Ready yet", pod.name_any());
        Ok(Replacement { pod, running: since, ready: Timestamp::now() })
    })
    .await
}

/// The digest, or the id, of the image that a pod's container runs.
pub fn image_of(pod: &Pod, container: &str) -> Result<String> {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let found = statuses.and_then(|all| all.iter().find(|one| one.name == container));
    let image = &found.with_context(|| format!("{} has no container {container}", pod.name_any()))?.image_id;
    ensure!(image.contains("sha256:"), "{} runs the image {image:?}", pod.name_any());
    Ok(image.clone())
}
