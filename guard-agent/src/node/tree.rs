//! What is in the cgroup tree. Paths are relative to its root, without a leading slash.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use globset::GlobSet;

use crate::core::identity;

/// How deep below the root the pods' root may lie (`kubelet.slice/kubelet-kubepods.slice` is 2).
const PODS_ROOT_DEPTH: usize = 3;

/// How deep below the root extra meters are looked for.
const EXTRA_DEPTH: usize = 16;

/// Which cgroups get a meter.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The root of the hierarchy.
    pub root: PathBuf,
    /// The pods' root, where it is given; else it is looked for.
    pub pods_root: Option<String>,
    /// Cgroups elsewhere that are metered too.
    pub extra: GlobSet,
}

/// A cgroup that is to be metered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its path.
    pub path: String,
    /// It lies outside the pods' root.
    pub extra: bool,
}

/// Whether a cgroup's path is one that kubelet gives the pods' root.
fn is_pods_root(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
}

impl Watched {
    /// Opens a cgroup and tells its id. `None`: it is not there (any more).
    pub fn open(&self, path: &str) -> io::Result<Option<(File, u64)>> {
        let opened = File::open(self.root.join(path)).and_then(|dir| {
            let id = dir.metadata()?.ino();
            Ok((dir, id))
        });
        match opened {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The id of a cgroup. `None`: it is not there.
    pub fn id(&self, path: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.root.join(path)) {
            Ok(metadata) => Ok(Some(metadata.ino())),
            Err(error) if gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The pods' root: the given one if it is there, else the one nearest to the root. Of several beside one another the one
    /// that has containers in it: under cgroup v2 and the systemd driver, kubelet 1.20 makes a `kubepods` with folders for the
    /// pods, where nothing ever runs, beside `kubepods.slice`.
    pub fn find_pods_root(&self) -> io::Result<Option<String>> {
        if let Some(given) = &self.pods_root {
            return Ok(self.id(given)?.map(|_| given.clone()));
        }
        let mut level = vec![String::new()];
        for _ in 0..PODS_ROOT_DEPTH {
            let mut next = Vec::new();
            for dir in &level {
                next.extend(self.children(dir)?);
            }
            next.sort();
            let candidates: Vec<&String> = next.iter().filter(|path| is_pods_root(path)).collect();
            match candidates[..] {
                [] => {}
                [only] => return Ok(Some(only.clone())),
                [..] => return self.used(&candidates),
            }
            level = next;
        }
        Ok(None)
    }

    /// The first of these that has containers in it.
    fn used(&self, candidates: &[&String]) -> io::Result<Option<String>> {
        for candidate in candidates {
            let containers = self.walk(Some(candidate))?.iter().any(|found| !found.extra);
            if containers {
                return Ok(Some((*candidate).clone()));
            }
        }
        Ok(None)
    }

    /// Whether this cgroup may be the pods' root.
    pub fn may_be_pods_root(&self, path: &str) -> bool {
        match &self.pods_root {
            Some(given) => given == path,
            None => is_pods_root(path) && path.split('/').count() <= PODS_ROOT_DEPTH,
        }
    }

    /// Whether a cgroup is to be metered, by its path.
    pub fn classify(&self, path: &str, pods_root: Option<&str>) -> Option<Found> {
        let beneath = pods_root.and_then(|root| path.strip_prefix(root)?.strip_prefix('/'));
        let extra = match beneath {
            Some(beneath) => identity::pod_container(beneath).map(|_| false)?,
            None => self.is_extra(path, pods_root).then_some(true)?,
        };
        Some(Found { path: path.to_owned(), extra })
    }

    /// Whether a cgroup outside the pods' root is metered. None is within another, nor has the pods within it: what a meter
    /// drops those above it would count as sent, and would hold against their other cgroups.
    fn is_extra(&self, path: &str, pods_root: Option<&str>) -> bool {
        let has_pods =
            pods_root.is_some_and(|root| root == path || root.strip_prefix(path).is_some_and(|p| p.starts_with('/')));
        let mut above = path.match_indices('/').map(|(end, _)| &path[..end]);
        !has_pods && self.extra.is_match(path) && !above.any(|above| self.extra.is_match(above))
    }

    /// All cgroups that are to be metered.
    pub fn walk(&self, pods_root: Option<&str>) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        if let Some(root) = pods_root {
            // Containers are two or three levels below: [qos/]pod/container.
            self.visit(root, 3, pods_root, &mut found)?;
        }
        if !self.extra.is_empty() {
            self.visit("", EXTRA_DEPTH, pods_root, &mut found)?;
        }
        Ok(found)
    }

    fn visit(&self, dir: &str, depth: usize, pods_root: Option<&str>, found: &mut Vec<Found>) -> io::Result<()> {
        for child in self.children(dir)? {
            if Some(child.as_str()) == pods_root {
                continue;
            }
            let classified = self.classify(&child, pods_root);
            let container = classified.as_ref().is_some_and(|found| !found.extra);
            found.extend(classified);
            // What a container makes inside is the container's.
            if !container && depth > 1 {
                self.visit(&child, depth - 1, pods_root, found)?;
            }
        }
        Ok(())
    }

    fn children(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(dir)) {
            Ok(entries) => entries,
            // A cgroup that vanishes while it is read has no children.
            Err(error) if gone(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut children = Vec::new();
        for entry in entries {
            let entry = match entry {
                Err(error) if gone(&error) => break,
                entry => entry?,
            };
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && let Ok(name) = entry.file_name().into_string()
            {
                children.push(if dir.is_empty() { name } else { format!("{dir}/{name}") });
            }
        }
        Ok(children)
    }
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// A path as it is used here. `None`: it lies outside the cgroup root, or is not UTF-8. A relative path is one beneath
/// the root.
pub fn relative(root: &Path, path: &Path) -> Option<String> {
    let path = if path.is_absolute() { path.strip_prefix(root).ok()? } else { path };
    path.to_str().map(|path| path.trim_matches('/').to_owned())
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
