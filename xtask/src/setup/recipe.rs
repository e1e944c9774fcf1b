//! What a folder of programs is made of. It stands in the finished folder, so that a changed recipe makes a new one.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
};

use super::{apt, linker};

/// The file whose presence says that a folder is finished, and whose content says by which recipe.
const COMPLETE: &str = "complete";

/// To be raised when the way of putting the parts together changes, though the parts do not.
const LAYOUT: u32 = 1;

pub(super) struct Recipe {
    name: &'static str,
    text: String,
}

impl Recipe {
    /// Of the compiler and the linker of the kernel programs.
    pub(super) fn toolchain() -> Self {
        let parts = format!("packages {}\nbpf-linker {}\n", apt::describe(), linker::VERSION);
        Self::new("toolchain", &parts)
    }

    /// Of something with this name that consists of `parts`.
    pub(super) fn new(name: &'static str, parts: &str) -> Self {
        // A cache may outlive the system: the parts of one Debian need not run on the next.
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let system = release.lines().find(|line| line.starts_with("PRETTY_NAME=")).unwrap_or("PRETTY_NAME=unknown");
        Self { name, text: format!("layout {LAYOUT}\nsystem {system}\n{parts}") }
    }

    /// A name for the folder in a cache.
    pub(super) fn file_name(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        format!("{}-{:016x}", self.name, hasher.finish())
    }

    /// Whether the folder is finished, by this recipe.
    pub(super) fn is_done(&self, folder: &Path) -> bool {
        fs::read_to_string(folder.join(COMPLETE)).is_ok_and(|done| done.starts_with(&self.text))
    }

    /// Marks the folder as finished; `packages` says which versions went into it.
    pub(super) fn mark_done(&self, folder: &Path, packages: &str) -> std::io::Result<()> {
        fs::write(folder.join(COMPLETE), format!("{}\n{packages}", self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toolchain_of_another_recipe_is_not_done() {
        let folder = std::env::temp_dir().join(format!("xtask-recipe-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder to test in");
        let (old, new) = (Recipe::new("tools", "bpf-linker 1\n"), Recipe::new("tools", "bpf-linker 2\n"));
        assert!(!old.is_done(&folder), "an empty folder passes for a toolchain");
        old.mark_done(&folder, "rustc 1.96\n").expect("the marker is written");
        assert!(old.is_done(&folder), "a finished toolchain is not recognised");
        assert!(!new.is_done(&folder), "a changed recipe keeps the old toolchain");
        assert_ne!(old.file_name(), new.file_name(), "two recipes share a place in the cache");
        fs::remove_dir_all(&folder).expect("the folder is ours");
    }
}
