//! A pods' cgroup tree as kubelet makes it, and containers in it.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use guard_agent::node::hierarchy;

use crate::{eventually, unique};

/// A tree of its own, beside whatever else is on the machine.
#[derive(Debug)]
pub struct Pods {
    /// The tree's folder, outside the pods' root.
    pub base: PathBuf,
    /// The pods' root.
    pub root: PathBuf,
}

/// A cgroup in the place of a container's.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its folder.
    pub path: PathBuf,
    /// Its id, 64 hex digits; empty for a service.
    pub id: String,
    label: String,
}

/// The UID of the n-th pod.
pub fn uid(pod: u32) -> String {
    format!("{pod:08x}-5b6f-4b8e-9d62-8f2f6c1a7e55")
}

impl Pods {
    /// Makes an empty tree.
    pub fn new() -> Result<Self> {
        let base = hierarchy::cgroup_root(None)?.join(unique());
        let root = base.join("kubepods.slice");
        fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        Ok(Self { base, root })
    }

    /// Makes the n-th container of a pod, as the systemd driver lays it out.
    pub fn container(&self, pod: u32, container: u32) -> Result<Container> {
        self.container_of(&uid(pod), &format!("{pod:08x}{container:04x}{:052x}", 0))
    }

    /// Makes a container of this id in the pod of this UID, likewise.
    pub fn container_of(&self, uid: &str, id: &str) -> Result<Container> {
        let uid = uid.replace('-', "_");
        let pod = format!("kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice");
        let path = self.root.join(pod).join(format!("cri-containerd-{id}.scope"));
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        let label = id[..12].to_owned();
        Ok(Container { path, id: id.into(), label })
    }

    /// What stands in `meters.extra` for this tree's services.
    pub fn services(&self) -> String {
        format!("{}/*.service", self.base.file_name().unwrap_or_default().display())
    }

    /// Makes a cgroup as a service manager does, outside the pods' root.
    pub fn service(&self, name: &str) -> Result<Container> {
        let path = self.base.join(format!("{name}.service"));
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        let label = format!("{}/{name}.service", self.base.file_name().unwrap_or_default().display());
        Ok(Container { path, id: String::new(), label })
    }
}

impl Container {
    /// The label that it has without a cluster: the beginning of its id, or a service's path.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The same, with the label that it has once a cluster has told its name.
    #[must_use]
    pub fn known_as(&self, name: &str) -> Self {
        Self { label: name.into(), ..self.clone() }
    }

    /// The cgroup's id.
    pub fn cgroup_id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path)?.ino())
    }

    /// A cgroup within it.
    pub fn nested(&self, path: &str) -> Result<Self> {
        let nested = self.path.join(path);
        fs::create_dir_all(&nested)?;
        Ok(Self { path: nested, id: self.id.clone(), label: self.label.clone() })
    }

    /// The file that takes processes in.
    pub fn procs(&self) -> Result<File> {
        open_procs(&self.path)
    }

    /// Removes the cgroup, once its last process is gone.
    pub fn remove(&self) -> Result<()> {
        eventually("the cgroup is removed", Duration::from_secs(5), || {
            fs::remove_dir(&self.path).with_context(|| format!("remove {}", self.path.display()))
        })
    }
}

fn open_procs(cgroup: &Path) -> Result<File> {
    let path = cgroup.join("cgroup.procs");
    OpenOptions::new().write(true).open(&path).with_context(|| format!("open {}", path.display()))
}

impl Drop for Pods {
    fn drop(&mut self) {
        let removed = eventually("the cgroups are removed", Duration::from_secs(5), || remove_tree(&self.base));
        if let Err(error) = removed {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// Removes a cgroup and those in it.
pub fn remove_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir).with_context(|| format!("remove {}", dir.display()))
}
