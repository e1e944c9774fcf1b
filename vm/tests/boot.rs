//! A guest boots, runs what it is given, and leaves nothing behind.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use guard_vm::{Guest, Kernel};

const MINUTE: Duration = Duration::from_mins(1);

/// Where `cargo xtask` keeps kernels too.
fn cache() -> PathBuf {
    let shared = std::env::var_os("EGRESS_GUARD_CACHE").map(PathBuf::from);
    shared.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"))
}

#[test]
fn a_guest_runs_scripts_and_dies_with_its_owner() {
    let kernel = Kernel::get("6.12", &cache()).expect("the kernel is fetched");
    let guest = Guest::new(&kernel).append("guest.test=7").content("/job/hello", 0o755, "#!/bin/sh\necho hello $1\n");
    let running = guest.boot().expect("it boots");
    let shell = |script: &str| running.shell(script, MINUTE).expect("it answers");
    assert_eq!(shell("uname -r").text.trim(), kernel.release);
    let said = shell("./hello you; echo no >&2; grep -c guest.test=7 /proc/cmdline; exit 3");
    assert_eq!((said.status, said.text.as_str()), (3, "hello you\nno\n1\n"));
    // More than any buffer on the way holds.
    let much = shell("seq 1 100000");
    assert_eq!((much.text.lines().count(), much.text.lines().last()), (100_000, Some("100000")));
    let long = format!("# {}\necho end", "x".repeat(100_000));
    assert_eq!(shell(&long).text, "end\n");
    let late = running.shell("sleep 60", Duration::from_secs(1)).expect("it is killed");
    assert_eq!(late.status, 137);
    let counts = "test -e /sys/fs/cgroup/cgroup.procs && mount | grep -c 'type bpf'";
    assert_eq!(shell(counts).text.trim(), "1");
    let start = Instant::now();
    drop(running);
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?} to end", start.elapsed());
    let left = Command::new("pgrep").args(["-P", &std::process::id().to_string(), "qemu"]).output();
    assert!(left.is_ok_and(|left| left.stdout.is_empty()), "a qemu is left");
}
