//! Names of what is made, and what a run that was killed could not remove.

use std::{
    fs,
    path::Path,
    process,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use guard_agent::{kernel::pins::Pins, node::hierarchy};

use crate::{net, pods};

/// What every name starts with; the process id follows.
const PREFIX: &str = "egtest-";

/// A name that nothing else on this machine has.
pub fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep);
    format!("{PREFIX}{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Removes what processes left that are no more. What cannot be removed is said and left.
fn sweep() {
    for name in names(Path::new("/run/netns")) {
        say(&name, net::run(&format!("ip netns del {name}")).map(drop));
    }
    for name in names(Path::new("/sys/fs/bpf")) {
        let pins = Pins::existing(&Path::new("/sys/fs/bpf").join(&name));
        say(
            &name,
            pins.and_then(|pins| pins.map_or(Ok(0), |pins| pins.remove_all(false))).map(drop).map_err(Into::into),
        );
    }
    let temporary = std::env::temp_dir();
    for name in names(&temporary) {
        say(&name, remove(&temporary.join(&name)));
    }
    let unified = hierarchy::cgroup_root(None);
    // A container runtime makes its cgroups in every hierarchy.
    let all = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for root in unified.into_iter().chain(all) {
        for name in names(&root) {
            say(&name, pods::remove_tree(&root.join(&name)));
        }
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    Ok(removed?)
}

fn say(name: &str, result: anyhow::Result<()>) {
    if let Err(error) = result {
        eprintln!("{name} of an earlier run stays: {error:#}");
    }
}

/// The names in a folder that a process which is no more has made.
fn names(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    })
}
