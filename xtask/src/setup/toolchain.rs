//! The compiler and the linker of the kernel programs, in a folder of their own beneath `target`.

use std::{
    env, fs,
    fs::File,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{apt, linker, recipe::Recipe, say};
use crate::{kernel, process::output};

/// A folder in which finished toolchains are kept for other checkouts.
const CACHE: &str = "EGRESS_GUARD_CACHE";

/// Calls the unpacked compiler as if it were installed.
const WRAPPER: &str = r#"#!/bin/sh
here=$(cd "$(dirname "$0")/.." && pwd)
export LD_LIBRARY_PATH="$here/usr/lib/x86_64-linux-gnu"
exec "$here/usr/bin/rustc" --sysroot "$here/usr" "$@"
"#;

/// The least that needs compiler, `core`, linker and LLVM to be there and to go together.
const PROBE: &str = "#![no_std]\n#![no_main]\n\
    #[panic_handler]\nfn panic(_: &core::panic::PanicInfo) -> ! { loop {} }\n\
    #[unsafe(no_mangle)]\npub extern \"C\" fn probe() -> u64 { 0 }\n";

/// Sees to it that the kernel programs can be compiled.
pub(super) fn ensure() -> Result<()> {
    let (own, recipe) = (kernel::own_folder(), Recipe::toolchain());
    if recipe.is_done(&own) {
        return Ok(());
    }
    let apt = apt::is_available();
    if !(apt && apt::knows_compiler()) && kernel::find_system_compiler().is_some() {
        return ensure_linker(&own);
    }
    if !apt {
        bail!(
            "no compiler for the kernel programs, and no apt-get to fetch Debian's for x86-64: \
             run `rustup toolchain install nightly --component rust-src`"
        );
    }
    match cache() {
        Some(cache) => link_cached(&own, &recipe, &cache),
        None => locked(&own, || if recipe.is_done(&own) { Ok(()) } else { build(&own, &recipe) }),
    }
}

/// The folder for what other checkouts may use as well, if there is one.
pub(super) fn cache() -> Option<PathBuf> {
    env::var_os(CACHE).filter(|cache| !cache.is_empty()).map(PathBuf::from)
}

/// To go with a compiler that is not ours; our own toolchain brings its linker along.
fn ensure_linker(own: &Path) -> Result<()> {
    if kernel::has_linker() { Ok(()) } else { locked(own, || linker::install(own)) }
}

/// Takes the toolchain from the cache, after making it there if it is missing or does not run on this system.
fn link_cached(own: &Path, recipe: &Recipe, cache: &Path) -> Result<()> {
    let kept = std::path::absolute(cache.join(recipe.file_name()))?;
    locked(&kept, || if recipe.is_done(&kept) && probe(&kept).is_ok() { Ok(()) } else { build(&kept, recipe) })?;
    locked(own, || {
        let link = own.with_extension("partial");
        clear(&link)?;
        symlink(&kept, &link).with_context(|| format!("{} could not be linked", kept.display()))?;
        replace(own, &link)
    })?;
    say(format_args!("toolchain linked from {}", kept.display()));
    Ok(())
}

/// Does something to `folder` while no other setup does.
pub(super) fn locked(folder: &Path, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let lock = folder.with_extension("lock");
    let parent = folder.parent().context("a toolchain lies in some folder")?;
    fs::create_dir_all(parent).with_context(|| format!("{} could not be made", parent.display()))?;
    let file = File::create(&lock)
        .with_context(|| format!("{} could not be opened (if root made it, remove it as root)", lock.display()))?;
    file.lock().with_context(|| format!("{} could not be locked", lock.display()))?;
    work()
}

/// Makes the toolchain beside its place and moves it there when it is proven, so that no half of one is ever found.
fn build(place: &Path, recipe: &Recipe) -> Result<()> {
    let staging = place.with_extension("partial");
    clear(&staging)?;
    let packages = fetch(&staging)?;
    wrap(&staging)?;
    linker::install(&staging)?;
    probe(&staging)?;
    recipe.mark_done(&staging, &packages).context("the toolchain could not be marked as complete")?;
    replace(place, &staging)?;
    say(format_args!("toolchain complete in {}", place.display()));
    Ok(())
}

/// Moves, rather than removes, what was in `place`: half removed it would still be marked as complete.
pub(super) fn replace(place: &Path, new: &Path) -> Result<()> {
    let old = place.with_extension("old");
    clear(&old)?;
    if fs::symlink_metadata(place).is_ok() {
        fs::rename(place, &old).with_context(|| format!("{} could not be moved away", place.display()))?;
    }
    fs::rename(new, place).with_context(|| format!("{} could not be moved into place", new.display()))?;
    clear(&old)
}

/// Unpacks the compiler beneath `folder` and returns the packages' names with their versions, one a line.
fn fetch(folder: &Path) -> Result<String> {
    let folder_for_packages = folder.join("packages");
    say("downloading Debian's compiler for the kernel programs");
    let packages = apt::with_current_lists(|| download(&folder_for_packages))?;
    let mut names = String::new();
    for package in &packages {
        apt::unpack(package, folder)?;
        names.extend([&*package.file_stem().unwrap_or_default().to_string_lossy(), "\n"]);
    }
    clear(&folder_for_packages)?;
    say(format_args!("{} packages unpacked", packages.len()));
    Ok(names)
}

fn download(folder: &Path) -> Result<Vec<PathBuf>> {
    let packages = apt::packages()?
        .ok_or_else(|| anyhow!("apt knows no compiler for the kernel programs (the package {})", apt::BPF_PACKAGES))?;
    empty(folder)?;
    apt::download(&packages, folder)
}

fn wrap(folder: &Path) -> Result<()> {
    let bin = folder.join("bin");
    let wrapper = bin.join("rustc");
    fs::create_dir_all(&bin)
        .and_then(|()| fs::write(&wrapper, WRAPPER))
        .and_then(|()| fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("{} could not be written", wrapper.display()))
}

/// Compiles and links a program for the kernel.
fn probe(folder: &Path) -> Result<()> {
    let (source, object) = (folder.join("probe.rs"), folder.join("probe"));
    fs::write(&source, PROBE).with_context(|| format!("{} could not be written", source.display()))?;
    let mut rustc = Command::new(folder.join("bin/rustc"));
    rustc
        // As the release profile does: linking all of an unoptimised `core` takes seconds.
        .args(["-C", "lto", "-C", "opt-level=3", "-C", "panic=abort", "--edition", "2024", "--target", kernel::TARGET])
        .args(kernel::FLAGS)
        .arg("-C")
        .arg(format!("linker={}", folder.join("bin/bpf-linker").display()))
        .arg("-o")
        .args([&object, &source]);
    output(&mut rustc).with_context(|| {
        format!("the compiler in Debian's packages does not go with bpf-linker {}", linker::VERSION)
    })?;
    clear(&source)?;
    clear(&object)
}

/// Makes it an empty folder, whatever it was.
pub(super) fn empty(folder: &Path) -> Result<()> {
    clear(folder)?;
    fs::create_dir_all(folder).with_context(|| format!("{} could not be made", folder.display()))
}

/// Removes whatever is there; of a link only the link.
pub(super) fn clear(path: &Path) -> Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let removed = if found.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("{} could not be removed", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_toolchain_takes_the_place_of_the_old() {
        let folder = env::temp_dir().join(format!("xtask-replace-{}", std::process::id()));
        let (place, new) = (folder.join("toolchain"), folder.join("toolchain.partial"));
        for content in ["first", "second"] {
            fs::create_dir_all(&new).expect("a folder to test in");
            fs::write(new.join(content), "").expect("a file in it");
            replace(&place, &new).expect("the new one moves");
        }
        let left: Vec<_> = fs::read_dir(&folder).expect("ours").map(|entry| entry.expect("ours").file_name()).collect();
        assert_eq!(left, ["toolchain"], "something else is left over");
        assert!(place.join("second").exists() && !place.join("first").exists(), "the old one is still there");
        clear(&folder).expect("the folder is ours");
    }

    #[test]
    fn clearing_a_link_spares_what_it_points_to() {
        let folder = env::temp_dir().join(format!("xtask-clear-{}", std::process::id()));
        let (kept, link) = (folder.join("kept"), folder.join("link"));
        fs::create_dir_all(&kept).expect("a folder to test in");
        symlink(&kept, &link).expect("a link to it");
        clear(&link).expect("the link can go");
        assert!(kept.exists(), "the cache was emptied through its link");
        assert!(fs::symlink_metadata(&link).is_err(), "the link is still there");
        clear(&folder).expect("the folder is ours");
        clear(&folder).expect("nothing to remove is no failure");
    }
}
