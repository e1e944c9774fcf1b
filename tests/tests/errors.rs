//! What the agent says when it cannot work: one line that names the thing and the remedy.

use std::{net::TcpListener, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Result, ensure};
use guard_tests::{
    agent::{Setup, pins},
    pods::Pods,
    require_root,
    world::{CONFIG, World},
};

/// Starts an agent that must fail with one line which has all these parts.
fn fails(setup: &Setup, prepare: impl FnOnce(&mut Command), parts: &[&str]) -> Result<()> {
    let (code, said) = setup.fail(prepare)?;
    ensure!(code == Some(1), "exit code {code:?}: {said}");
    ensure!(said.lines().count() == 1 && said.starts_with("guard-agent: "), "not one line:\n{said}");
    for part in parts {
        ensure!(said.contains(part), "{said}\ndoes not say {part:?}");
    }
    Ok(())
}

fn nothing(_: &mut Command) {}

fn setup(config: &str) -> Result<(Setup, Pods)> {
    require_root()?;
    let pods = Pods::new()?;
    Ok((Setup::new(&pods, config)?, pods))
}

#[test]
fn not_root() -> Result<()> {
    let (mut setup, _pods) = setup(CONFIG)?;
    setup.copy_binary()?;
    let nobody = |command: &mut Command| {
        command.uid(65534).gid(65534);
    };
    fails(&setup, nobody, &["run as root", "CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON"])
}

#[test]
fn no_cgroup_v2() -> Result<()> {
    let (setup, _pods) = setup(CONFIG)?;
    let hidden = |command: &mut Command| sandbox::hide(command, c"/sys/fs/cgroup");
    fails(&setup, hidden, &["no cgroup v2 hierarchy is mounted", "systemd.unified_cgroup_hierarchy=1", "--cgroup-root"])
}

#[test]
fn a_cgroup_root_that_is_none() -> Result<()> {
    let (mut setup, pods) = setup(CONFIG)?;
    let below = pods.root.display().to_string();
    for (path, why) in [("/proc", "another filesystem"), ("/nowhere", "No such file"), (&below, "further down")] {
        setup.set("--cgroup-root", path);
        fails(&setup, nothing, &["--cgroup-root", path, why, "Leave the flag out"])?;
    }
    Ok(())
}

#[test]
fn no_bpffs_and_none_can_be_mounted() -> Result<()> {
    let (setup, _pods) = setup(CONFIG)?;
    let hidden = |command: &mut Command| {
        sandbox::hide(command, c"/sys/fs/bpf");
        sandbox::refuse(command, libc::SYS_mount, None, libc::EPERM);
    };
    fails(&setup, hidden, &["no bpffs at /sys/fs/bpf", "mount -t bpf bpf /sys/fs/bpf"])?;
    // Where a pod sees the node's.
    let (mut setup, _pods) = self::setup(CONFIG)?;
    let elsewhere = setup.file("host").display().to_string();
    setup.set("--bpffs", elsewhere.clone());
    fails(&setup, hidden, &["no bpffs at", &elsewhere, "on the node: mount -t bpf bpf /sys/fs/bpf)"])
}

#[test]
fn bpffs_is_mounted_where_it_is_not() -> Result<()> {
    let (mut setup, _pods) = setup(CONFIG)?;
    setup.bpffs = std::env::temp_dir().join(guard_tests::unique());
    setup.set("--bpffs", setup.bpffs.display().to_string());
    let agent = setup.start()?;
    ensure!(setup.pins().join("COUNTERS").exists(), "no pins");
    agent.signal(libc::SIGTERM)?;
    let bpffs = setup.bpffs.clone();
    drop(setup);
    ensure!(!bpffs.exists(), "cleanup left {}", bpffs.display());
    Ok(())
}

#[test]
fn cleanup_removes_nothing_that_is_not_in_bpffs() -> Result<()> {
    require_root()?;
    let folder = std::env::temp_dir().join(guard_tests::unique());
    let data = pins(&folder).join("data");
    std::fs::create_dir_all(&data)?;
    let cleanup = |user: u32| {
        let mut command = Command::new(guard_tests::sibling("guard-agent")?);
        anyhow::Ok(command.arg("cleanup").arg("--bpffs").arg(&folder).uid(user).output()?)
    };
    let output = cleanup(0)?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("is not in a bpffs: nothing is removed"), "{said}");
    ensure!(data.exists(), "it was removed");
    Ok(std::fs::remove_dir_all(folder)?)
}

#[test]
fn a_socket_path_that_is_a_file_and_pods_elsewhere() -> Result<()> {
    let (mut setup, _pods) = setup(CONFIG)?;
    let file = std::env::temp_dir().join(guard_tests::unique());
    std::fs::write(&file, "precious")?;
    setup.set("--socket", file.display().to_string());
    fails(&setup, nothing, &["cannot replace what is no socket at --socket"])?;
    ensure!(std::fs::read_to_string(&file)? == "precious");
    std::fs::remove_file(file)?;
    let socket = std::env::temp_dir().join(guard_tests::unique());
    setup.set("--socket", socket.display().to_string());
    setup.set("--pods-root", "/typo/kubepods");
    fails(&setup, nothing, &["--pods-root /typo/kubepods does not lie in the cgroup v2 hierarchy"])
}

/// In a cgroup namespace of its own a process sees its cgroup as if it were the root.
#[test]
fn only_a_part_of_the_hierarchy() -> Result<()> {
    let (setup, pods) = setup(CONFIG)?;
    let procs = pods.base.join("cgroup.procs");
    let inside = |command: &mut Command| sandbox::own_cgroup_namespace(command, &procs);
    fails(&setup, inside, &["only a part of the cgroup v2 hierarchy", "host's cgroup namespace"])
}

/// The commands of bpf(2), as the kernel numbers them.
const BPF_MAP_CREATE: u32 = 0;
const BPF_PROG_LOAD: u32 = 5;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_LINK_UPDATE: u32 = 29;

#[test]
fn a_kernel_without_a_feature() -> Result<()> {
    let (setup, _pods) = setup(CONFIG)?;
    for (command, feature, since) in
        [(BPF_MAP_LOOKUP_BATCH, "BPF_MAP_LOOKUP_BATCH", "5.13"), (BPF_LINK_UPDATE, "BPF_LINK_UPDATE", "5.7")]
    {
        // What a kernel answers that does not know the command.
        let old = |agent: &mut Command| sandbox::refuse(agent, libc::SYS_bpf, Some(command), libc::EINVAL);
        fails(&setup, old, &["this kernel has no", feature, since, "5.15 or newer"])?;
    }
    Ok(())
}

#[test]
fn what_a_runtime_refuses_is_not_taken_for_an_old_kernel() -> Result<()> {
    let (setup, _pods) = setup(CONFIG)?;
    for command in [None, Some(BPF_PROG_LOAD), Some(BPF_MAP_CREATE)] {
        let profile = |agent: &mut Command| sandbox::refuse(agent, libc::SYS_bpf, command, libc::EPERM);
        fails(&setup, profile, &["bpf(2) is refused although the capabilities are there", "seccomp", "CAP_BPF"])?;
    }
    Ok(())
}

#[test]
fn port_in_use() -> Result<()> {
    let (mut setup, _pods) = setup(CONFIG)?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    setup.set("--listen", address.clone());
    fails(&setup, nothing, &["cannot listen on", &address, "another --listen"])
}

#[test]
fn pins_or_socket_of_a_running_agent() -> Result<()> {
    let world = World::new(CONFIG)?;
    let (mut other, _pods) = setup(CONFIG)?;
    let own = std::env::temp_dir().join(guard_tests::unique());
    other.set("--socket", world.agent().socket().display().to_string());
    fails(&other, nothing, &["--socket", "another agent answers there"])?;
    other.set("--socket", own.display().to_string());
    other.set("--bpffs", world.setup.bpffs.display().to_string());
    fails(&other, nothing, &["another agent is running with --bpffs", "a folder of its own"])?;
    ensure!(world.agent().get("/healthz")? == "ok\n", "the running agent is none the worse");
    Ok(())
}

#[test]
fn a_config_file_that_is_wrong() -> Result<()> {
    let cases = [
        (
            "destinations:\n  cluster: [10.0.0.0/40]\n",
            &[":2:13: destinations.cluster[0]: \"10.0.0.0/40\" is not a CIDR"][..],
        ),
        ("meters:\n  maximum: 4\n", &[":2:3: meters.maximum: unknown field `maximum`", "extra, max"]),
        ("meters:\n  max: many\n", &[":2:8: meters.max: \"many\" is not a whole number from 1 to 65535"]),
        ("sample:\n  interval: [1s]\n", &[":2:13: sample.interval: expected a duration"]),
    ];
    for (config, parts) in cases {
        let (setup, _pods) = setup(config)?;
        let parts: Vec<&str> = parts.iter().copied().chain(["config.yaml"]).collect();
        fails(&setup, nothing, &parts)?;
    }
    let (mut setup, _pods) = setup(CONFIG)?;
    setup.set("--config", "/nowhere/config.yaml");
    fails(&setup, nothing, &["there is no config file /nowhere/config.yaml"])
}

#[test]
fn list_without_an_agent() -> Result<()> {
    let output =
        Command::new(guard_tests::sibling("guard-agent")?).args(["list", "--socket", "/nowhere.sock"]).output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.lines().count() == 1, "{said}");
    ensure!(said.contains("no agent answers at /nowhere.sock: is `guard-agent run` up"), "{said}");
    Ok(())
}

/// Takes something away from a process before it starts.
mod sandbox {
    #![expect(unsafe_code, reason = "what runs between fork and exec")]

    use std::{ffi::CStr, io, os::unix::process::CommandExt as _, path::Path, process::Command};

    fn check(done: libc::c_int) -> io::Result<()> {
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Gives the process a mount namespace of its own in which everything at and below `path` is unmounted.
    pub(super) fn hide(command: &mut Command, path: &'static CStr) {
        // SAFETY: system calls with constants only.
        unsafe {
            command.pre_exec(move || {
                check(libc::unshare(libc::CLONE_NEWNS))?;
                let (none, private) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
                check(libc::mount(none, c"/".as_ptr(), none, private, none.cast()))?;
                check(libc::umount2(path.as_ptr(), libc::MNT_DETACH))
            });
        }
    }

    /// Gives the process a cgroup namespace that begins at the cgroup of `procs`, and a mount of it.
    pub(super) fn own_cgroup_namespace(command: &mut Command, procs: &Path) {
        let procs = procs.to_owned();
        // SAFETY: system calls with constants; the file is written as it would be before the fork.
        unsafe {
            command.pre_exec(move || {
                std::fs::write(&procs, "0")?;
                check(libc::unshare(libc::CLONE_NEWCGROUP | libc::CLONE_NEWNS))?;
                let (none, private) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
                check(libc::mount(none, c"/".as_ptr(), none, private, none.cast()))?;
                check(libc::umount2(c"/sys/fs/cgroup".as_ptr(), libc::MNT_DETACH))?;
                let cgroup2 = c"cgroup2".as_ptr();
                check(libc::mount(cgroup2, c"/sys/fs/cgroup".as_ptr(), cgroup2, 0, none.cast()))
            });
        }
    }

    /// Makes a system call (with this first argument, if one is given) fail for the process, by seccomp.
    pub(super) fn refuse(command: &mut Command, call: libc::c_long, first: Option<u32>, errno: i32) {
        const NUMBER: u32 = 0;
        const FIRST_ARGUMENT: u32 = 16;
        let load = |offset: u32| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: offset };
        let unless = |value: u32, skip: u8| libc::sock_filter { code: 0x15, jt: 0, jf: skip, k: value };
        let answer = |action: u32| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: action };
        let mut filter = vec![load(NUMBER), unless(call as u32, if first.is_some() { 3 } else { 1 })];
        if let Some(first) = first {
            filter.extend([load(FIRST_ARGUMENT), unless(first, 1)]);
        }
        filter.extend([answer(libc::SECCOMP_RET_ERRNO | errno as u32), answer(libc::SECCOMP_RET_ALLOW)]);
        // SAFETY: system calls on memory that the closure owns.
        unsafe {
            command.pre_exec(move || {
                let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
                check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
                check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program))
            });
        }
    }
}
