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
    let temporary = std::env::temp_dir();
    for (folder, name) in
        ["/sys/fs/bpf".as_ref(), temporary.as_path()].iter().flat_map(|f| names(f).map(move |n| (f, n)))
    {
        let path = folder.join(&name);
        let unpinned = Pins::existing(&path).map(|pins| pins.map(Pins::remove_all));
        if path.exists() && *folder == temporary {
            say(&name, fs::remove_dir_all(&path).map_err(Into::into));
        } else {
            say(&name, unpinned.map(drop).map_err(Into::into));
        }
    }
    if let Ok(root) = hierarchy::cgroup_root(None) {
        for name in names(&root) {
            say(&name, pods::remove_tree(&root.join(&name)));
        }
    }
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
