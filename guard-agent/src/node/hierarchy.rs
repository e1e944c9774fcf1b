//! Where cgroup v2 is mounted.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// `CGROUP2_SUPER_MAGIC` (`include/uapi/linux/magic.h`).
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Where the unified hierarchy is expected; a machine with v1 controllers beside it has it a level below.
const USUAL_MOUNT: &str = "/sys/fs/cgroup";

/// Why there is no cgroup tree to watch.
#[derive(Debug, thiserror::Error)]
pub enum HierarchyError {
    /// Nothing of type cgroup2 is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted (none in /proc/self/mountinfo). Egress Guard needs cgroup v2: boot with systemd.unified_cgroup_hierarchy=1, or mount it (mount -t cgroup2 none /sys/fs/cgroup/unified) and pass --cgroup-root"
    )]
    NotMounted,
    /// The given folder is something else.
    #[error(
        "--cgroup-root {0} is not the root of a cgroup v2 hierarchy: {1}. Leave the flag out to use the one in /proc/self/mountinfo"
    )]
    NotCgroup2(PathBuf, String),
    /// The process sees a part of the tree only.
    #[error(
        "only a part of the cgroup v2 hierarchy is to be seen ({0} is not its root): run in the host's cgroup namespace, or mount the host's /sys/fs/cgroup and pass it as --cgroup-root"
    )]
    OnlyPart(PathBuf),
    /// The mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    Mountinfo(io::Error),
}

/// The root of the cgroup v2 hierarchy: the given one if it is one, else the one that is mounted.
pub fn cgroup_root(given: Option<&Path>) -> Result<PathBuf, HierarchyError> {
    if let Some(given) = given {
        let not = |why: String| HierarchyError::NotCgroup2(given.to_owned(), why);
        let stat = rustix::fs::statfs(given).map_err(|e| not(io::Error::from(e).to_string()))?;
        if stat.f_type as u64 != CGROUP2_MAGIC {
            return Err(not("another filesystem is mounted there".into()));
        }
        if !is_root(given) {
            return Err(not("it is a cgroup further down; --pods-root names the pods' cgroup".into()));
        }
        return fs::canonicalize(given).map_err(|e| not(e.to_string()));
    }
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(HierarchyError::Mountinfo)?;
    let mounts = mounts(&mountinfo);
    let root = mounts.iter().find(|mount| is_root(mount)).cloned();
    root.ok_or_else(|| mounts.into_iter().next().map_or(HierarchyError::NotMounted, HierarchyError::OnlyPart))
}

/// Whether it is the root of the whole hierarchy: every other cgroup has this file, also where a cgroup namespace makes
/// it look like a root.
fn is_root(cgroup: &Path) -> bool {
    is_cgroup2(cgroup) && !cgroup.join("cgroup.type").exists()
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == CGROUP2_MAGIC)
}

/// The mounts of cgroup v2 in the text of `/proc/self/mountinfo` (`proc(5)`), the usual one first.
fn mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let is_cgroup2 = filesystem.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| mount.split(' ').nth(4).map(unescape))?
    });
    let mut mounts: Vec<PathBuf> = mounts.collect();
    mounts.sort_by_key(|mount| (!mount.starts_with(USUAL_MOUNT), mount.as_os_str().len()));
    mounts
}

/// Undoes the octal escapes of white space and backslashes.
fn unescape(field: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.into_iter().fold(field.to_owned(), |field, (code, char)| field.replace(code, char)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";

    #[test]
    fn the_unified_hierarchy_is_found_alone_and_beside_v1() {
        let unified = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mounts(unified), [Path::new("/sys/fs/cgroup")]);
        let hybrid = format!("{V1}38 31 0:41 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n");
        assert_eq!(mounts(&hybrid), [Path::new("/sys/fs/cgroup/unified")]);
        assert_eq!(mounts(V1), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn the_usual_mount_is_tried_first_and_a_hosts_is_one_too() {
        let lines = "1 2 0:26 / /mnt rw - cgroup2 none rw\n\
                     2 2 0:26 / /sys/fs/cgroup rw shared:1 master:2 - cgroup2 none rw\n\
                     3 2 0:26 /../.. /host/a\\040b rw - cgroup2 none rw\n";
        let found = mounts(lines);
        assert_eq!(found, ["/sys/fs/cgroup", "/mnt", "/host/a b"].map(PathBuf::from));
    }
}
