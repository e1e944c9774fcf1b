//! What the image promises.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Archive, NAME, libraries};
use crate::{
    kernel,
    process::{self, at_root, cargo, output, program, root, target_dir, with_agent_at},
    setup::Unpacked,
};

/// Nothing in the program says where it was built.
pub(super) fn is_anonymous(agent: &Path) -> Result<()> {
    let program = fs::read(agent).with_context(|| format!("{} could not be read", agent.display()))?;
    for folder in libraries().into_iter().chain([root().to_owned()]) {
        let text = folder.to_str().with_context(|| format!("{} is not text", folder.display()))?;
        let found = program.windows(text.len()).any(|window| window == text.as_bytes());
        ensure!(!found, "{} names the folder {text}: another one would give another program", agent.display());
    }
    Ok(())
}

/// containerd takes it as it is, and it does its work there.
pub(super) fn runs(archive: &Archive, agent: &Path, containerd: &Unpacked) -> Result<()> {
    process::run(cargo().args(["build", "-p", "guard-tests", "--bins"]))?;
    let mut image = Command::new(program("debug", "image"));
    image.arg(&archive.path).args([NAME, &archive.digest]);
    image.env("PATH", containerd.programs()?).env("LD_LIBRARY_PATH", containerd.libraries()?);
    process::run(with_agent_at(&mut image, agent))
}

/// The same program gives the same archive.
pub(super) fn is_packed_the_same(archive: &Archive, pack: impl Fn() -> Result<Archive>) -> Result<()> {
    let again = pack()?;
    same(&archive.path, &again.path)?;
    println!("image: packed again it is the same");
    fs::remove_file(&again.path).with_context(|| format!("{} could not be removed", again.path.display()))
}

/// The same sources in another folder, built from clean there, give the same program and the same archive.
pub(super) fn is_built_the_same(
    archive: &Archive,
    agent: &Path,
    build: impl Fn(&Path) -> Result<(Archive, PathBuf)>,
) -> Result<()> {
    println!("image: building everything once more, in another folder (minutes)");
    let elsewhere = copy_sources()?;
    let (archive_again, agent_again) = build(&elsewhere)?;
    same(agent, &agent_again)?;
    same(&archive.path, &archive_again.path)?;
    println!("image: built again in another folder it is the same");
    fs::remove_dir_all(&elsewhere).with_context(|| format!("{} could not be removed", elsewhere.display()))
}

fn same(first: &Path, second: &Path) -> Result<()> {
    if fs::read(first)? != fs::read(second)? {
        bail!("{} and {} differ; `diffoscope` would say where", first.display(), second.display());
    }
    Ok(())
}

/// Copies the sources as they are here to another folder, which takes the compiler of the kernel programs from here.
fn copy_sources() -> Result<PathBuf> {
    let folder = target_dir().join("image-check/elsewhere");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("{} could not be removed", folder.display()))?;
    }
    let files = output(at_root("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    // What was removed and not committed yet is listed too.
    for file in files.split_terminator('\0').filter(|file| root().join(file).exists()) {
        let copy = folder.join(file);
        fs::create_dir_all(copy.parent().context("a file lies in a folder")?)?;
        fs::copy(root().join(file), &copy).with_context(|| format!("{file} could not be copied"))?;
    }
    let toolchain = folder.join("target/toolchain");
    fs::create_dir_all(folder.join("target"))?;
    symlink(kernel::own_folder(), &toolchain)
        .with_context(|| format!("{} could not be linked", toolchain.display()))?;
    Ok(folder)
}
