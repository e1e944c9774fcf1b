//! The manifests of `deploy/` as kubectl and Helm render them. `cargo xtask manifests` says where those two are.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// The environment variable with the path of kubectl, 1.21 or newer.
pub const KUBECTL: &str = "EGRESS_GUARD_KUBECTL";
/// The environment variable with the path of helm.
pub const HELM: &str = "EGRESS_GUARD_HELM";
/// The environment variable with the path of promtool.
pub const PROMTOOL: &str = "EGRESS_GUARD_PROMTOOL";

/// The overlays, one for each mode.
pub const MODES: [&str; 3] = ["observe", "contain", "evict"];

/// What can be added to any overlay.
pub const COMPONENTS: [&str; 4] = ["hardened", "own-node", "prometheus-operator", "grafana-dashboard"];

/// A folder or file of the project.
///
/// # Panics
///
/// Never: the crate lies in the workspace.
pub fn path(of: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(of)
}

/// The text of a file of the project.
pub fn read(file: &str) -> Result<String> {
    let path = path(file);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// Runs one of the tools to its end and returns what it wrote to stdout.
pub fn run(tool: &str, arguments: &[&str]) -> Result<String> {
    let Some(program) = env::var_os(tool) else {
        bail!("{tool} is not set: run these tests through `cargo xtask manifests`");
    };
    let output = Command::new(&program).args(arguments).output();
    let output = output.with_context(|| format!("start {}", program.display()))?;
    let (said, complaint) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{} {}: {complaint}{said}", program.display(), arguments.join(" "));
    Ok(said)
}

/// The objects in the text of some manifests.
pub fn objects(text: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(text).map_err(|error| anyhow::anyhow!("{error}"))
}

/// An overlay with components, as `kubectl apply -k` sends it.
pub fn kustomize(overlay: &str, components: &[&str]) -> Result<String> {
    render(overlay, components, "", None)
}

/// As [`kustomize`], with an image of one's own (`NAME:TAG`) and another policy file, as a user's own overlay says them.
pub fn installation(overlay: &str, components: &[&str], image: &str, config: &str) -> Result<String> {
    let (name, tag) = image.rsplit_once(':').with_context(|| format!("no tag: {image}"))?;
    let more = format!(
        "images:\n  - name: egress-guard\n    newName: {name}\n    newTag: {tag:?}\nconfigMapGenerator:\n  - name: \
         egress-guard\n    namespace: egress-guard\n    behavior: merge\n    files: [config.yaml]\n"
    );
    render(overlay, components, &more, Some(config))
}

fn render(overlay: &str, components: &[&str], more: &str, config: Option<&str>) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().canonicalize()?;
    // A kustomization may name other folders, but only from where it is.
    let up = "../".repeat(place.components().count() - 1);
    let from_here = |what: &str| -> Result<String> {
        let there = path("deploy/kustomize").join(what).canonicalize()?;
        Ok(format!("  - {up}{}\n", there.strip_prefix("/")?.display()))
    };
    let mut text = format!("resources:\n{}", from_here(&format!("overlays/{overlay}"))?);
    if !components.is_empty() {
        text.push_str("components:\n");
    }
    for component in components {
        text.push_str(&from_here(&format!("components/{component}"))?);
    }
    text.push_str(more);
    if let Some(config) = config {
        fs::write(place.join("config.yaml"), config)?;
    }
    fs::write(place.join("kustomization.yaml"), text)?;
    run(KUBECTL, &["kustomize", &place.display().to_string()])
}

/// The chart with these values (`key=value`), as `helm install` sends it.
pub fn helm(values: &[&str]) -> Result<String> {
    let chart = path("deploy/helm/egress-guard").display().to_string();
    let mut arguments = vec!["template", "egress-guard", &chart, "--namespace", "egress-guard"];
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    run(HELM, &arguments)
}
