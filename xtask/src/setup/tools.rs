//! Programs of the system that the build, the tests and the demo call.

use super::{apt, say};
use crate::process::{is_installed, is_root};

pub(super) struct Tool {
    program: &'static str,
    packages: &'static [&'static str],
}

pub(super) const SYSTEM: [Tool; 3] = [
    // Without recommended packages gcc comes without the C library's headers and start files.
    Tool { program: "cc", packages: &["gcc", "libc6-dev"] },
    Tool { program: "ethtool", packages: &["ethtool"] },
    Tool { program: "ip", packages: &["iproute2"] },
];

/// libFuzzer is C++.
pub(super) const FUZZING: [Tool; 1] = [Tool { program: "c++", packages: &["g++"] }];

/// Fetches Python packages.
pub(super) const FETCHING: [Tool; 1] = [Tool { program: "pip3", packages: &["python3-pip"] }];

/// Installs those that are missing if it may, and returns what is missing still, with its remedy.
pub(super) fn ensure(tools: &[Tool]) -> Vec<String> {
    tools.iter().filter(|tool| !is_installed(tool.program)).filter_map(|tool| install(tool).err()).collect()
}

/// What makes guests' disks and runs them.
pub(super) const GUESTS: [Tool; 8] = [
    Tool { program: "busybox", packages: &["busybox-static"] },
    Tool { program: "dash", packages: &["dash"] },
    Tool { program: "depmod", packages: &["kmod"] },
    Tool { program: "mkfs.ext4", packages: &["e2fsprogs"] },
    Tool { program: "mmdebstrap", packages: &["mmdebstrap"] },
    Tool { program: "qemu-system-x86_64", packages: &["qemu-system-x86"] },
    Tool { program: "setpriv", packages: &["util-linux"] },
    Tool { program: "xz", packages: &["xz-utils"] },
];

fn install(tool: &Tool) -> Result<(), String> {
    let Tool { program, packages } = tool;
    let names = packages.join(" ");
    if !is_installed("apt-get") {
        return Err(format!("`{program}` is not there: install it (on Debian it is in {names})"));
    }
    if !is_root() {
        let command = format!("sudo apt-get install --no-install-recommends {names}");
        return Err(format!("`{program}` is not there: run `{command}`"));
    }
    say(format_args!("installing {names} for `{program}`"));
    let failed = apt::install(packages).err().map(|error| format!(": {error:#}"));
    // apt may be content where the package is installed but somebody took the program away.
    if is_installed(program) {
        return Ok(());
    }
    let why = failed.unwrap_or_else(|| format!(": run `apt-get install --reinstall {names}`"));
    Err(format!("`{program}` is not there and could not be installed{why}"))
}
