//! An OCI archive, by buildah from Debian's packages.

use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{ARCHITECTURE, NAME, Source};
use crate::{
    process::{at_root, is_root, output, root},
    setup::Unpacked,
};

/// An image has to be on every node before anything is guarded there: unpacked it is no larger than this, and the archive
/// is smaller.
const LARGEST: u64 = 25 << 20;

/// Where rustls-native-certs looks for the system's roots.
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";

/// Mount points, for a root filesystem that is read-only.
const FOLDERS: [&str; 3] = ["etc/egress-guard", "run/egress-guard", "var/lib/egress-guard"];

/// An archive that was made.
pub(super) struct Archive {
    pub(super) path: PathBuf,
    /// The manifest's, by which a registry and a runtime will know it.
    pub(super) digest: String,
    size: u64,
    unpacked: u64,
}

impl Archive {
    /// Makes an image of the agent and the certificate authorities that it may need, and nothing else.
    pub(super) fn make(buildah: &Unpacked, source: &Source, agent: &Path, path: PathBuf) -> Result<Self> {
        let work = path.with_extension("work");
        if work.exists() {
            fs::remove_dir_all(&work).with_context(|| format!("{} could not be removed", work.display()))?;
        }
        let filesystem = work.join("root");
        let unpacked = fill(&filesystem, agent, &buildah.path("usr/share/ca-certificates"))?;
        output(&mut commit(buildah, source, &work)?).context("buildah made no image")?;
        let digest = rename(&work.join("layout/index.json"))?;
        let mut tar = at_root("tar");
        tar.args(["--create", "--format=ustar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
        tar.arg("--mode=u=rwX,go=rX").arg(format!("--mtime=@{}", source.seconds()));
        tar.arg("--directory").arg(work.join("layout")).arg("--file").arg(&path);
        output(tar.args(["blobs", "index.json", "oci-layout"]))?;
        fs::remove_dir_all(&work).with_context(|| format!("{} could not be removed", work.display()))?;
        let size = fs::metadata(&path)?.len();
        let archive = Self { path, digest, size, unpacked };
        ensure!(size.max(unpacked) <= LARGEST, "the image is larger than {} MiB: {archive}", LARGEST >> 20);
        Ok(archive)
    }
}

impl fmt::Display for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (size, unpacked) = (mebibytes(self.size), mebibytes(self.unpacked));
        write!(f, "{}, {size:.1} MiB, {unpacked:.1} MiB unpacked\n  {NAME}@{}", self.path.display(), self.digest)
    }
}

/// The image's files, with the permissions that they have there; returns how many bytes they are.
fn fill(filesystem: &Path, agent: &Path, authorities: &Path) -> Result<u64> {
    let roots = filesystem.join(ROOTS);
    let parent = roots.parent().context("the roots lie in a folder")?;
    for folder in FOLDERS.map(|folder| filesystem.join(folder)).iter().map(PathBuf::as_path).chain([parent]) {
        fs::create_dir_all(folder).with_context(|| format!("{} could not be made", folder.display()))?;
    }
    fs::write(&roots, bundle(authorities)?)?;
    let copy = filesystem.join("guard-agent");
    fs::copy(agent, &copy).with_context(|| format!("{} could not be copied", agent.display()))?;
    for (path, mode) in [(&roots, 0o644), (&copy, 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    output(at_root("chmod").args(["--recursive", "u=rwX,go=rX"]).arg(filesystem))?;
    Ok(fs::metadata(&roots)?.len() + fs::metadata(&copy)?.len())
}

/// All certificates of Debian's package. Not the file that this machine has: it may trust others besides, who are nobody
/// else's business.
fn bundle(authorities: &Path) -> Result<String> {
    let mut files = Vec::new();
    find(authorities, &mut files)?;
    files.sort();
    ensure!(!files.is_empty(), "no certificates in {}", authorities.display());
    let texts = files.iter().map(|file| {
        let text = fs::read_to_string(file).with_context(|| format!("{} could not be read", file.display()))?;
        Ok(format!("{}\n", text.trim_end()))
    });
    texts.collect()
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{} could not be read", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "crt") {
            files.push(path);
        }
    }
    Ok(())
}

/// buildah, with mounts of its own; without root also as the root of a user namespace.
fn commit(buildah: &Unpacked, source: &Source, work: &Path) -> Result<Command> {
    let labels = [
        ("title", "egress-guard".to_owned()),
        ("description", "Counts every container's traffic, finds and holds floods of egress, evicts".to_owned()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("revision", source.revision().to_owned()),
        ("created", source.created()?),
        ("licenses", "MIT OR Apache-2.0".to_owned()),
    ];
    let mut unshare = at_root("unshare");
    if !is_root() {
        unshare.arg("--map-root-user");
    }
    unshare.args(["--mount", "sh"]).arg(root().join("xtask/src/image/commit.sh")).arg(work);
    unshare.args([NAME, ARCHITECTURE, &source.seconds().to_string()]);
    unshare.args(labels.map(|(key, value)| format!("org.opencontainers.image.{key}={value}")));
    unshare.env("PATH", buildah.programs()?).env("LD_LIBRARY_PATH", buildah.libraries()?);
    Ok(unshare)
}

/// Has containerd know the image by its whole name too, which it takes from an annotation of its own; returns the digest.
fn rename(index: &Path) -> Result<String> {
    let text = fs::read_to_string(index).with_context(|| format!("{} could not be read", index.display()))?;
    let mut value: Value = serde_json::from_str(&text)?;
    let Some([manifest]) = value["manifests"].as_array_mut().map(Vec::as_mut_slice) else {
        bail!("{} should have one manifest: {text}", index.display());
    };
    manifest["annotations"]["io.containerd.image.name"] = json!(NAME);
    let digest = manifest["digest"].as_str().with_context(|| format!("no digest: {text}"))?.to_owned();
    fs::write(index, value.to_string()).with_context(|| format!("{} could not be written", index.display()))?;
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_has_every_certificate_in_an_order_of_its_own() {
        let folder = std::env::temp_dir().join(format!("xtask-bundle-{}", std::process::id()));
        fs::create_dir_all(folder.join("b")).expect("a folder to test in");
        assert!(bundle(&folder).is_err(), "nobody to trust goes unsaid");
        for (file, text) in [("c.crt", "third\n"), ("a.crt", "first"), ("b/b.crt", "second\n\n"), ("b/README", "x")] {
            fs::write(folder.join(file), text).expect("a file to test with");
        }
        assert_eq!(bundle(&folder).expect("a bundle"), "first\nsecond\nthird\n");
        fs::remove_dir_all(&folder).expect("the folder is ours");
    }
}
