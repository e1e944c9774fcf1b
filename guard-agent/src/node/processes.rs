//! The processes of a cgroup, as far as this process's own namespace of process ids has them.

use std::{fs, io, path::Path};

/// How deep within a cgroup its processes may be: a service manager in a container makes cgroups of its own.
const DEPTH: usize = 4;
/// More are not asked for.
const ENOUGH: usize = 4;

/// Whom a cgroup has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Processes {
    /// The first few.
    pub(super) pids: Vec<u32>,
    /// There are others, which cannot be seen from here.
    pub(super) foreign: bool,
}

/// The first processes of a cgroup and those within it. A cgroup that vanishes meanwhile has none.
pub(super) fn of(cgroup: &Path) -> io::Result<Processes> {
    let mut found = Processes::default();
    collect(cgroup, DEPTH, &mut found)?;
    Ok(found)
}

fn collect(cgroup: &Path, depth: usize, found: &mut Processes) -> io::Result<()> {
    let is_gone = |error: &io::Error| {
        let gone = [rustix::io::Errno::NOENT, rustix::io::Errno::NODEV].map(rustix::io::Errno::raw_os_error);
        error.raw_os_error().is_some_and(|error| gone.contains(&error))
    };
    match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(text) => text.lines().filter_map(|line| line.parse().ok()).for_each(|pid| match pid {
            0 => found.foreign = true,
            pid if found.pids.len() < ENOUGH => found.pids.push(pid),
            _ => {}
        }),
        // A cgroup of threads has no processes of its own.
        Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::Unsupported => {}
        Err(error) => return Err(error),
    }
    if depth == 0 || found.foreign || !found.pids.is_empty() {
        return Ok(());
    }
    let children = match fs::read_dir(cgroup) {
        Ok(children) => children,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for child in children.flatten().filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
        collect(&child.path(), depth - 1, found)?;
        if found.foreign || !found.pids.is_empty() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_in_a_cgroup_or_within_it_and_those_of_elsewhere_are_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        let procs = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(&path).expect("a folder");
            fs::write(path.join("cgroup.procs"), text).expect("a file");
        };
        procs("plain", "12\n13\n14\n15\n16\n");
        procs("nested", "");
        procs("nested/init.scope", "77\n");
        procs("foreign", "0\n0\n");
        procs("empty", "");
        let of = |path: &str| of(&dir.path().join(path)).expect("it is read");
        assert_eq!(of("plain"), Processes { pids: vec![12, 13, 14, 15], foreign: false });
        assert_eq!(of("nested"), Processes { pids: vec![77], foreign: false });
        assert_eq!(of("foreign"), Processes { pids: vec![], foreign: true });
        assert_eq!(of("empty"), Processes::default());
        assert_eq!(of("gone"), Processes::default());
    }
}
