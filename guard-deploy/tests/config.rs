//! The policy files as they are deployed are read by the agent's own parser.

use std::path::Path;

use anyhow::{Context as _, Result};
use guard_core::config::Config;
use guard_deploy::{MODES, helm, kustomize, objects, path, read};
use serde_json::Value;

/// The fleet's map in what was rendered.
fn map(rendered: &str) -> Result<Value> {
    let is_it = |object: &Value| object["kind"] == "ConfigMap" && object["metadata"]["name"] == "egress-guard";
    let found = objects(rendered)?.into_iter().find(is_it);
    Ok(found.context("no ConfigMap egress-guard")?["data"].clone())
}

#[test]
fn each_overlay_has_a_valid_policy_file_of_its_mode() -> Result<()> {
    for mode in MODES {
        for rendered in [kustomize(mode, &[])?, helm(&[&format!("mode={mode}")])?] {
            let data = map(&rendered)?;
            let text = data["config.yaml"].as_str().context("no config.yaml")?;
            let config = Config::parse(text, Path::new("config.yaml"))?;
            assert_eq!(config.policies.mode.to_string(), mode);
            assert_eq!(config.policies.policies.len(), 2, "{mode}: policies");
            assert!(!config.kill_switch);
            assert_eq!(data["kill-switch"], "off");
            assert_eq!(data.as_object().map(serde_json::Map::len), Some(2), "{mode}: keys");
        }
    }
    Ok(())
}

#[test]
fn the_overlays_policy_files_differ_in_the_mode_alone() -> Result<()> {
    let [observe, contain, evict] = MODES.map(|mode| {
        let text = read(&format!("deploy/kustomize/overlays/{mode}/config.yaml"))?;
        let line = format!("\nmode: {mode}\n");
        assert_eq!(text.matches(&line).count(), 1, "{mode}");
        Ok::<_, anyhow::Error>(text.replace(&line, "\n"))
    });
    let observe = observe?;
    assert_eq!(observe, contain?);
    assert_eq!(observe, evict?);
    Ok(())
}

#[test]
fn the_charts_values_may_say_all_that_the_file_may() -> Result<()> {
    let chart = path("deploy/helm/egress-guard").display().to_string();
    let file = tempfile::NamedTempFile::new()?;
    let text = read("deploy/config.yaml")?;
    let mut whole: Value = serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{error}"))?;
    whole.as_object_mut().context("a map")?.remove("mode");
    std::fs::write(file.path(), serde_json::json!({ "config": whole }).to_string())?;
    let rendered = guard_deploy::run(
        guard_deploy::HELM,
        &["template", "egress-guard", &chart, "--values", &file.path().display().to_string()],
    )?;
    let text = map(&rendered)?;
    Config::parse(text["config.yaml"].as_str().context("no config.yaml")?, Path::new("config.yaml"))?;
    Ok(())
}
