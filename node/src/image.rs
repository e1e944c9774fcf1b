//! Images of one program each: that of the tests' pods, and an older agent.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

/// The image's name; it is the sandboxes' too.
pub(crate) const NAME: &str = "localhost/load:1";

/// What an image consists of.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// Under this name it is known.
    pub(crate) name: &'a str,
    /// On the host.
    pub(crate) program: &'a Path,
    /// In the image, without the slash before it.
    pub(crate) entrypoint: &'a str,
    /// What it is started with if nothing is said.
    pub(crate) command: &'a str,
    /// Where volumes are mounted.
    pub(crate) folders: &'a [&'a str],
}

/// Writes an archive as `docker save` would.
pub(crate) fn write(image: &Image<'_>, folder: &Path, archive: &Path) -> Result<()> {
    let Image { name, program, entrypoint, command, folders } = image;
    let layer = folder.join("layer");
    for path in ["tmp"].iter().chain(*folders) {
        fs::create_dir_all(layer.join(path))?;
    }
    fs::copy(program, layer.join(entrypoint)).with_context(|| format!("copy {}", program.display()))?;
    let content = folder.join("content");
    fs::create_dir_all(&content)?;
    tar(&content.join("layer.tar"), &layer, &["."])?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [format!("/{entrypoint}")], "Cmd": [command], "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&content.join("layer.tar"))?)]},
        "history": [{"created_by": "guard-node"}],
    });
    fs::write(content.join("config.json"), config.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    fs::write(content.join("manifest.json"), manifest.to_string())?;
    tar(archive, &content, &["config.json", "layer.tar", "manifest.json"])
}

/// With times and owners that are always the same, so that the digests are.
fn tar(archive: &Path, folder: &Path, members: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=ustar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]);
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
