//! The folder in bpffs where maps and links outlive the agent.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use guard_common::LAYOUT;
use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};

use super::{
    object::{PER_SLOT, Pinned},
    sys::{self, Hook},
};
use crate::core::ledger::Slot;

/// `BPF_FS_MAGIC` (`include/uapi/linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// What a mounted bpffs has in its root by itself.
const BPFFS_OWN: [&str; 2] = ["maps.debug", "progs.debug"];

/// Where distributions mount bpffs.
const USUAL_MOUNT: &str = "/sys/fs/bpf";

/// Why the pins' folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// There is no bpffs, and none could be mounted.
    #[error(
        "no bpffs at {at}, and mounting one failed: {cause}. Mount it: mount -t bpf bpf {at} (for an agent in a pod, on the node: mount -t bpf bpf {USUAL_MOUNT})"
    )]
    Mount {
        /// The mount point that was tried.
        at: PathBuf,
        /// What the kernel answered.
        cause: io::Error,
    },
    /// A file or folder could not be made, read or removed.
    #[error("cannot {what} {path}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel answered.
        cause: io::Error,
    },
    /// Another agent has the folder.
    #[error("another agent is running with --bpffs {0}: stop it, or give this one a folder of its own")]
    InUse(PathBuf),
    /// The folder is not in bpffs, so nothing in it is ours.
    #[error("{0} is not in a bpffs: nothing is removed. --bpffs names the pins' folder")]
    NotBpffs(PathBuf),
    /// An object could not be pinned or opened.
    #[error("cannot {what} {path}: {cause}")]
    Bpf {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel answered.
        cause: sys::BpfError,
    },
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> PinError + 'a {
    move |cause| PinError::Io { what, path: path.to_owned(), cause }
}

/// The folder, locked for this agent.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    _lock: OwnedFd,
}

impl Pins {
    /// Makes the folder where bpffs is mounted, mounting it if it is not, and locks it.
    pub fn open(root: &Path) -> Result<Self, PinError> {
        make_folder(root)?;
        Self::lock(root)
    }

    /// The folder as it is. `None`: there is none.
    pub fn existing(root: &Path) -> Result<Option<Self>, PinError> {
        if !root.try_exists().map_err(io_error("look for the folder", root))? {
            return Ok(None);
        }
        let root = fs::canonicalize(root).map_err(io_error("look for the folder", root))?;
        if is_bpffs(&root) { Self::lock(&root).map(Some) } else { Err(PinError::NotBpffs(root)) }
    }

    fn lock(root: &Path) -> Result<Self, PinError> {
        let lock = rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| io_error("open the folder", root)(e.into()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { root: root.to_owned(), _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(PinError::InUse(root.to_owned())),
            Err(e) => Err(io_error("lock the folder", root)(e.into())),
        }
    }

    /// The folder of this layout's version.
    pub fn layout_dir(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT}"))
    }

    /// Where maps are pinned.
    pub fn maps(&self) -> Pinned {
        Pinned { layout: self.layout_dir(), kill_switch: kill_switch(&self.root) }
    }

    fn link_path(&self, slot: Slot, hook: Hook) -> PathBuf {
        let hook = match hook {
            Hook::Egress => "egress",
            Hook::Ingress => "ingress",
        };
        self.layout_dir().join("links").join(format!("{}-{hook}", slot.0))
    }

    /// The folders of all layouts' versions. A mounted bpffs has files of its own beside them.
    fn layouts(&self) -> Result<Vec<PathBuf>, PinError> {
        let mut layouts = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(io_error("read the folder", &self.root))? {
            let entry = entry.map_err(io_error("read the folder", &self.root))?;
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix('v')?.parse::<u32>().ok());
            layouts.extend(version.map(|_| entry.path()));
        }
        Ok(layouts)
    }

    /// Makes this layout's folders and removes what was pinned under other versions of it, or with maps of another
    /// size (`slots` is how many each has room for). Returns what was removed, to be said.
    pub fn prepare(&self, slots: u32) -> Result<Vec<String>, PinError> {
        let mut replaced = Vec::new();
        for path in self.layouts()? {
            if path != self.layout_dir() {
                remove(&path)?;
                replaced.push(format!("pins of another version ({})", path.display()));
            }
        }
        let maps = PER_SLOT.map(|name| open(&self.layout_dir().join(name)));
        let mut sizes = Vec::new();
        for map in maps {
            if let Some(map) = map? {
                let info = sys::map_info(map.as_fd());
                let path = self.layout_dir();
                sizes.push(info.map_err(|cause| PinError::Bpf { what: "read the map in", path, cause })?.max_entries);
            }
        }
        let other_size = sizes.iter().find(|&&size| size != slots);
        if let Some(size) = other_size {
            remove(&self.layout_dir())?;
            replaced.push(format!("pins with room for {} meters instead of {}", size - 1, slots - 1));
        } else if sizes.len() < PER_SLOT.len() && self.layout_dir().exists() && remove(&self.layout_dir())? > 0 {
            replaced.push("pins of which a part is missing".into());
        }
        let links = self.layout_dir().join("links");
        fs::create_dir_all(&links).map_err(io_error("make the folder", &links))?;
        Ok(replaced)
    }

    /// Pins a link, in the place of any other that is pinned there.
    pub fn pin_link(&self, slot: Slot, hook: Hook, link: &OwnedFd) -> Result<(), PinError> {
        self.unpin_link(slot, hook)?;
        let path = self.link_path(slot, hook);
        sys::obj_pin(link.as_fd(), &c_path(&path)).map_err(|cause| PinError::Bpf {
            what: "pin the link at",
            path,
            cause,
        })
    }

    /// Opens a pinned link. `None`: there is none.
    pub fn open_link(&self, slot: Slot, hook: Hook) -> Result<Option<OwnedFd>, PinError> {
        open(&self.link_path(slot, hook))
    }

    /// Removes a link's pin. It is fine if there is none.
    pub fn unpin_link(&self, slot: Slot, hook: Hook) -> Result<(), PinError> {
        let path = self.link_path(slot, hook);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove the pin", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes every pin, but for the kill switch if it is to be kept, and the folder, and unmounts it if it is a mount
    /// of its own. Returns how many pins were removed.
    pub fn remove_all(self, keep_kill_switch: bool) -> Result<usize, PinError> {
        let mut removed = 0;
        for path in self.layouts()? {
            removed += remove(&path)?;
        }
        let kill_switch = kill_switch(&self.root);
        if !keep_kill_switch && kill_switch.exists() {
            removed += remove(&kill_switch)?;
        }
        let Self { root, _lock } = self;
        // Whatever else is pinned there is somebody else's.
        let entries = fs::read_dir(&root).map_err(io_error("read the folder", &root))?;
        let others = entries.flatten().any(|entry| !BPFFS_OWN.iter().any(|own| entry.file_name() == *own));
        if others || root == Path::new(USUAL_MOUNT) {
            return Ok(removed);
        }
        if is_mount_point(&root) {
            let unmounted = rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH);
            unmounted.map_err(|e| io_error("unmount", &root)(e.into()))?;
        }
        fs::remove_dir(&root).map_err(io_error("remove the folder", &root))?;
        Ok(removed)
    }
}

/// Makes the folder where bpffs is mounted, mounting it if it is not.
pub(super) fn make_folder(root: &Path) -> Result<(), PinError> {
    if !is_bpffs(existing_ancestor(root)) {
        // The usual mount point serves everybody; elsewhere the folder itself becomes one.
        let at = if root.starts_with(USUAL_MOUNT) { Path::new(USUAL_MOUNT) } else { root };
        mount(at)?;
    }
    fs::create_dir_all(root).map_err(io_error("make the folder", root))
}

/// Where the kill switch is pinned: beside the layouts' folders, for it outlives them.
pub(super) fn kill_switch(root: &Path) -> PathBuf {
    root.join("kill-switch")
}

/// Opens what is pinned. `None`: nothing is.
pub(super) fn open(path: &Path) -> Result<Option<OwnedFd>, PinError> {
    match sys::obj_get(&c_path(path)) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(PinError::Bpf { what: "open the pin", path: path.to_owned(), cause }),
    }
}

/// Removes a pin or a folder of pins; returns how many pins.
fn remove(path: &Path) -> Result<usize, PinError> {
    if !path.is_dir() {
        return fs::remove_file(path).map(|()| 1).map_err(io_error("remove the pin", path));
    }
    let mut removed = 0;
    for entry in fs::read_dir(path).map_err(io_error("read the folder", path))? {
        removed += remove(&entry.map_err(io_error("read the folder", path))?.path())?;
    }
    fs::remove_dir(path).map_err(io_error("remove the folder", path))?;
    Ok(removed)
}

pub(super) fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.dev());
    path.parent().is_some_and(|parent| device(parent) != device(path))
}

fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == BPF_FS_MAGIC)
}

fn mount(at: &Path) -> Result<(), PinError> {
    let failed = |cause: io::Error| PinError::Mount { at: at.to_owned(), cause };
    fs::create_dir_all(at).map_err(failed)?;
    rustix::mount::mount("bpf", at, "bpf", rustix::mount::MountFlags::empty(), None).map_err(|e| failed(e.into()))
}
