//! Debian's packages that are unpacked and used where they lie: nothing is installed, no daemon is started.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{
    apt,
    kept::{cache, clear, empty, locked, replace},
    recipe::Recipe,
    say,
};
use crate::process::root;

/// The root of what some packages have unpacked.
pub(crate) struct Unpacked(PathBuf);

/// Where programs lie in it, and libraries.
const PROGRAMS: [&str; 2] = ["usr/bin", "usr/sbin"];
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

impl Unpacked {
    /// Fetches the packages, with the libraries that they need, unless those of apt's current versions are there.
    pub(super) fn get(name: &'static str, packages: &[&str]) -> Result<Self> {
        if !apt::is_available() {
            bail!("{} come from Debian's packages for x86-64, and there is no apt-get", packages.join(" and "));
        }
        let versions = apt::with_current_lists(|| apt::versions(packages))?;
        let recipe = Recipe::new(name, &versions);
        let shared = cache().unwrap_or_else(|| root().join("target"));
        let place = std::path::absolute(shared.join(recipe.file_name()))?;
        locked(&place, || if recipe.is_done(&place) { Ok(()) } else { unpack(&place, name, packages, &recipe) })?;
        Ok(Self(place))
    }

    /// A file or folder in it.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// `PATH` with its programs first.
    pub(crate) fn programs(&self) -> Result<OsString> {
        self.prepended(&PROGRAMS, "PATH")
    }

    /// `LD_LIBRARY_PATH` with its libraries first.
    pub(crate) fn libraries(&self) -> Result<OsString> {
        self.prepended(&LIBRARIES, "LD_LIBRARY_PATH")
    }

    fn prepended(&self, folders: &[&str], variable: &str) -> Result<OsString> {
        let rest = env::var_os(variable).unwrap_or_default();
        let rest = env::split_paths(&rest).filter(|path| !path.as_os_str().is_empty());
        let all = folders.iter().map(|folder| self.path(folder)).chain(rest);
        env::join_paths(all).with_context(|| format!("{} has a colon in its path", self.0.display()))
    }
}

/// Beside its place, and moved there when it is whole.
fn unpack(place: &Path, name: &str, packages: &[&str], recipe: &Recipe) -> Result<()> {
    say(format_args!("downloading Debian's {name}"));
    let (staging, downloads) = (place.with_extension("partial"), place.with_extension("packages"));
    empty(&staging)?;
    let files = apt::with_current_lists(|| {
        empty(&downloads)?;
        apt::download(&apt::with_libraries(packages)?, &downloads)
    })?;
    let mut names = String::new();
    for file in &files {
        apt::unpack(file, &staging)?;
        names.extend([&*file.file_stem().unwrap_or_default().to_string_lossy(), "\n"]);
    }
    clear(&downloads)?;
    recipe.mark_done(&staging, &names).context("what was unpacked could not be marked as complete")?;
    replace(place, &staging)?;
    say(format_args!("{name} is in {}", place.display()));
    Ok(())
}
