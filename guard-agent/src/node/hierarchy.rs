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
        // Every cgroup but the root has this file.
        if given.join("cgroup.type").exists() {
            return Err(not("it is a cgroup further down; --pods-root names the pods' cgroup".into()));
        }
        return fs::canonicalize(given).map_err(|e| not(e.to_string()));
    }
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(HierarchyError::Mountinfo)?;
    find_mount(&mountinfo).ok_or(HierarchyError::NotMounted)
}

/// The mount of cgroup v2 in the text of `/proc/self/mountinfo` (`proc(5)`): the usual one if it is among several.
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let is_cgroup2 = filesystem.split(' ').next() == Some("cgroup2");
        let mut fields = mount.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        // A mount of a part of the tree (a container's own view) does not show the node.
        (is_cgroup2 && root == "/").then(|| unescape(mount_point))
    });
    mounts.min_by_key(|mount| (!mount.starts_with(USUAL_MOUNT), mount.as_os_str().len()))
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
        assert_eq!(find_mount(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = format!("{V1}38 31 0:41 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n");
        assert_eq!(find_mount(&hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_mount(V1), None);
        assert_eq!(find_mount(""), None);
    }

    #[test]
    fn of_several_mounts_the_usual_one_is_taken_and_never_a_part() {
        let lines = "1 2 0:26 / /mnt rw - cgroup2 none rw\n\
                     2 2 0:26 / /sys/fs/cgroup rw shared:1 master:2 - cgroup2 none rw\n\
                     3 2 0:26 /kubepods /sys/fs/c rw - cgroup2 none rw\n";
        assert_eq!(find_mount(lines), Some("/sys/fs/cgroup".into()));
        assert_eq!(find_mount("1 2 0:26 /kubepods /sys/fs/cgroup rw - cgroup2 none rw\n"), None);
        assert_eq!(find_mount("1 2 0:26 / /a\\040b rw - cgroup2 none rw\n"), Some("/a b".into()));
    }
}
