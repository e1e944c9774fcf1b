//! The image of the tests' pods: one program.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

/// The image's name; it is the sandboxes' too.
pub(crate) const NAME: &str = "localhost/load:1";

/// Writes an archive as `docker save` would, of an image with this program in it, under these names.
pub(crate) fn write(program: &Path, names: &[&str], folder: &Path, archive: &Path) -> Result<()> {
    let layer = folder.join("layer");
    fs::create_dir_all(layer.join("tmp"))?;
    fs::copy(program, layer.join("load")).with_context(|| format!("copy {}", program.display()))?;
    let content = folder.join("content");
    fs::create_dir_all(&content)?;
    tar(&content.join("layer.tar"), &layer, &["load", "tmp"])?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/load"], "Cmd": ["pause"], "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&content.join("layer.tar"))?)]},
        "history": [{"created_by": "guard-node"}],
    });
    fs::write(content.join("config.json"), config.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": names, "Layers": ["layer.tar"]}]);
    fs::write(content.join("manifest.json"), manifest.to_string())?;
    tar(archive, &content, &["config.json", "layer.tar", "manifest.json"])
}

/// With times and owners that are always the same, so that the digests are.
fn tar(archive: &Path, folder: &Path, members: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=ustar", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]);
    tar.args(["--mode=u=rwX,go=rX", "--file"]).arg(archive).arg("--directory").arg(folder).args(members);
    let output = tar.output().context("start tar")?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output().context("start sha256sum")?;
    let text = String::from_utf8(output.stdout)?;
    let digest = text.split(' ').next().filter(|digest| digest.len() == 64);
    Ok(digest.with_context(|| format!("sha256sum says {text:?}"))?.to_owned())
}
