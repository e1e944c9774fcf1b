//! A cgroup that is held open, so that another one of the same path is never meant.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal},
};

use super::{EvictError, Protection};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// An open cgroup, and those above it, the root not among them.
pub(super) struct Cgroup {
    dir: OwnedFd,
    above: Vec<OwnedFd>,
}

impl Cgroup {
    /// Opens the cgroup of a path beneath the root. `None`: it is not there, or it is another than that with the id.
    pub(super) fn open(root: &Path, path: &str, id: u64) -> Result<Option<Self>, EvictError> {
        let failed = EvictError::io("open the cgroup");
        let root = rustix::fs::open(root, DIRECTORY, Mode::empty()).map_err(failed)?;
        let path = path.trim_matches('/');
        let open = |path: &str| match path {
            "" => openat(&root, ".", DIRECTORY, Mode::empty()),
            path => openat2(&root, path, DIRECTORY, Mode::empty(), ResolveFlags::BENEATH),
        };
        let dir = match open(path) {
            Ok(dir) => dir,
            Err(errno) if gone(errno) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        if fstat(&dir).map_err(failed)?.st_ino != id {
            return Ok(None);
        }
        let above = path.match_indices('/').map(|(end, _)| open(&path[..end]));
        // Above one that is there, one can only be gone if that is gone by now too.
        let above = above.filter(|opened| !matches!(opened, Err(errno) if gone(*errno)));
        let above = above.collect::<Result<_, _>>().map_err(failed)?;
        Ok(Some(Self { dir, above }))
    }

    /// What it is protected for.
    ///
    /// The tree is asked who runs where. What `/proc/self/cgroup` says is relative to the agent's cgroup namespace: in a
    /// container it may say that the agent runs in the root.
    pub(super) fn protection(&self) -> Result<Option<Protection>, EvictError> {
        // Every cgroup but the root has this file, also where a namespace makes it look like a root.
        if self.read("cgroup.type")?.is_none() && self.exists()? {
            return Ok(Some(Protection::Root));
        }
        let pids = self.pids()?;
        if pids.contains(&getpid()) {
            return Ok(Some(Protection::Agent));
        }
        if pids.contains(&Pid::INIT) {
            return Ok(Some(Protection::Init));
        }
        for above in &self.above {
            if processes(above)?.contains(&getpid()) {
                return Ok(Some(Protection::AgentsOwn));
            }
        }
        Ok(None)
    }

    /// Opens the file that ends all processes at once. `None`: the cgroup is gone.
    pub(super) fn open_kill(&self) -> Result<Option<File>, EvictError> {
        if let Some(part @ ("threaded" | "domain invalid")) = self.read("cgroup.type")?.as_deref().map(str::trim) {
            return Err(EvictError::Threaded(part.into()));
        }
        match openat(&self.dir, "cgroup.kill", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(errno) if gone(errno) && self.exists()? => Err(EvictError::NoKill),
            Err(errno) if gone(errno) => Ok(None),
            Err(errno) => Err(EvictError::io("open cgroup.kill")(errno)),
        }
    }

    /// Whether there is a process in it or beneath it.
    pub(super) fn is_populated(&self) -> Result<bool, EvictError> {
        let events = self.read("cgroup.events")?;
        Ok(events.is_some_and(|events| events.lines().any(|line| line == "populated 1")))
    }

    /// Sends SIGTERM to every process in it and beneath it.
    ///
    /// A pid may be another process's by the time it is signalled. So each is first held by a pidfd, and those are
    /// signalled that are listed again after that: if the held process still lives, then its pid is its own. What
    /// is started meanwhile is left to SIGKILL.
    pub(super) fn terminate(&self) -> Result<(), EvictError> {
        let mut held = Vec::new();
        for pid in self.pids()? {
            match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(pidfd) => held.push((pid, pidfd)),
                Err(Errno::SRCH) => {}
                Err(errno) => return Err(EvictError::io("pidfd_open")(errno)),
            }
        }
        let there = self.pids()?;
        for (_, pidfd) in held.iter().filter(|(pid, _)| there.contains(pid)) {
            match pidfd_send_signal(pidfd, Signal::TERM) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(EvictError::io("pidfd_send_signal")(errno)),
            }
        }
        Ok(())
    }

    fn exists(&self) -> Result<bool, EvictError> {
        Ok(self.read("cgroup.controllers")?.is_some())
    }

    fn pids(&self) -> Result<HashSet<Pid>, EvictError> {
        let mut pids = HashSet::new();
        visit(&self.dir, &mut pids)?;
        Ok(pids)
    }

    fn read(&self, name: &str) -> Result<Option<String>, EvictError> {
        read(&self.dir, name).map_err(EvictError::io("read the cgroup"))
    }
}

/// Ends all processes, those that are being forked too. A cgroup that is gone has none.
pub(super) fn kill(mut file: &File) -> Result<(), EvictError> {
    match file.write_all(b"1") {
        Err(error) if error.raw_os_error() != Some(Errno::NODEV.raw_os_error()) => {
            Err(EvictError::Io("write to cgroup.kill", error))
        }
        _ => Ok(()),
    }
}

/// Collects the processes of a cgroup and of those beneath it.
fn visit(dir: &OwnedFd, pids: &mut HashSet<Pid>) -> Result<(), EvictError> {
    pids.extend(processes(dir)?);
    for name in children(dir).map_err(EvictError::io("read the cgroup"))? {
        match openat(dir, &name, DIRECTORY, Mode::empty()) {
            Ok(child) => visit(&child, pids)?,
            Err(errno) if gone(errno) => {}
            Err(errno) => return Err(EvictError::io("open a nested cgroup")(errno)),
        }
    }
    Ok(())
}

/// The names of the cgroups in one. One that is gone has none.
fn children(dir: &OwnedFd) -> Result<Vec<std::ffi::CString>, Errno> {
    let entries = Dir::read_from(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = match entries {
        Err(errno) if gone(errno) => Vec::new(),
        entries => entries?,
    };
    let children = entries.iter().filter(|entry| entry.file_type() == FileType::Directory);
    let names = children.map(rustix::fs::DirEntry::file_name).filter(|name| ![c".", c".."].contains(name));
    Ok(names.map(ToOwned::to_owned).collect())
}

/// The processes of one cgroup. A threaded one has none of its own: its domain names them.
fn processes(dir: &OwnedFd) -> Result<HashSet<Pid>, EvictError> {
    let text = match read(dir, "cgroup.procs") {
        Err(Errno::OPNOTSUPP) => None,
        read => read.map_err(EvictError::io("read cgroup.procs"))?,
    };
    let pids = text.as_deref().unwrap_or_default().lines();
    // The kernel says 0 for a process that has no pid in the agent's namespace.
    pids.map(|pid| pid.parse().ok().and_then(Pid::from_raw).ok_or(EvictError::OtherPids)).collect()
}

/// Reads a file of a cgroup. `None`: the cgroup is gone, or does not have it.
fn read(dir: &OwnedFd, name: &str) -> Result<Option<String>, Errno> {
    let file = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let text = file.and_then(|file| {
        let mut text = String::new();
        let read = File::from(file).read_to_string(&mut text);
        read.map(|_| text).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    });
    match text {
        Ok(text) => Ok(Some(text)),
        Err(errno) if gone(errno) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What the kernel says of a cgroup that was removed.
fn gone(errno: Errno) -> bool {
    [Errno::NOENT, Errno::NODEV].contains(&errno)
}

impl EvictError {
    fn io(what: &'static str) -> impl Fn(Errno) -> Self + Copy {
        move |errno| Self::Io(what, io::Error::from(errno))
    }
}
