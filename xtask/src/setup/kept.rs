//! What takes minutes to make is made once and kept: beneath `target`, or in a cache for other checkouts as well.

use std::{
    env, fs,
    fs::File,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{recipe::Recipe, say};

/// A folder in which finished things are kept for other checkouts.
const CACHE: &str = "EGRESS_GUARD_CACHE";

/// How a thing is made.
pub(super) struct Kept<'a> {
    pub(super) recipe: &'a Recipe,
    /// Puts it into a folder and returns what there is to say of its parts.
    pub(super) make: fn(&Path) -> Result<String>,
    /// Fails if it does not run on this system.
    pub(super) probe: fn(&Path) -> Result<()>,
}

impl Kept<'_> {
    /// Sees to it that `own`, a folder or a link into the cache, holds the thing.
    pub(super) fn ensure(&self, own: &Path) -> Result<()> {
        if self.recipe.is_done(own) {
            return Ok(());
        }
        match cache() {
            Some(cache) => self.link_cached(own, &cache),
            None => locked(own, || if self.recipe.is_done(own) { Ok(()) } else { self.build(own) }),
        }
    }

    /// Takes it from the cache, after making it there if it is missing or does not run on this system.
    fn link_cached(&self, own: &Path, cache: &Path) -> Result<()> {
        let kept = std::path::absolute(cache.join(self.recipe.file_name()))?;
        let runs = || self.recipe.is_done(&kept) && (self.probe)(&kept).is_ok();
        locked(&kept, || if runs() { Ok(()) } else { self.build(&kept) })?;
        locked(own, || {
            let link = own.with_extension("partial");
            clear(&link)?;
            symlink(&kept, &link).with_context(|| format!("{} could not be linked", kept.display()))?;
            replace(own, &link)
        })?;
        say(format_args!("{} linked from {}", self.recipe.name(), kept.display()));
        Ok(())
    }

    /// Makes it beside its place and moves it there when it is proven, so that no half of one is ever found.
    fn build(&self, place: &Path) -> Result<()> {
        let staging = place.with_extension("partial");
        empty(&staging)?;
        let parts = (self.make)(&staging)?;
        (self.probe)(&staging)?;
        let name = self.recipe.name();
        self.recipe.mark_done(&staging, &parts).with_context(|| format!("{name} could not be marked as complete"))?;
        replace(place, &staging)?;
        say(format_args!("{name} complete in {}", place.display()));
        Ok(())
    }
}

/// The folder for what other checkouts may use as well, if there is one.
pub(super) fn cache() -> Option<PathBuf> {
    env::var_os(CACHE).filter(|cache| !cache.is_empty()).map(PathBuf::from)
}

/// Does something to `folder` while no other setup does.
pub(super) fn locked(folder: &Path, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let lock = folder.with_extension("lock");
    let parent = folder.parent().context("what is kept lies in some folder")?;
    fs::create_dir_all(parent).with_context(|| format!("{} could not be made", parent.display()))?;
    let file = File::create(&lock)
        .with_context(|| format!("{} could not be opened (if root made it, remove it as root)", lock.display()))?;
    file.lock().with_context(|| format!("{} could not be locked", lock.display()))?;
    work()
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

/// Makes an empty folder of whatever is there.
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
