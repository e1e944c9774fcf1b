//! containerd with everything of its own: root, state, socket, mounts and processes.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use guard_tests::{
    agent::{Setup, alone},
    eventually,
    pods::Pods,
    unique,
};

use crate::receiver::NAMESERVER;

/// What an image is called.
pub(crate) struct Image<'a> {
    pub(crate) name: &'a str,
    pub(crate) digest: &'a str,
}

/// A running containerd; ended with all that it runs when dropped.
pub(crate) struct Containerd {
    child: Child,
    dir: PathBuf,
    name: String,
}

/// The one container.
const CONTAINER: &str = "agent";

/// containerd's shims have their sockets in /run, whatever the settings are: it gets one of its own.
const START: &str = "mount -t tmpfs tmpfs /run && exec containerd --config";

impl Containerd {
    /// Starts it and waits until it answers.
    pub(crate) fn start() -> Result<Self> {
        let name = unique();
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(&dir)?;
        let (config, log) = (dir.join("config.toml"), fs::File::create(dir.join("log"))?);
        let at = dir.display();
        fs::write(
            &config,
            format!(
                "version = 2\nroot = '{at}/root'\nstate = '{at}/state'\n\
                 disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt']\n\
                 [grpc]\naddress = '{at}/containerd.sock'\n"
            ),
        )?;
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]);
        unshare.arg(format!("{START} {}", config.display()));
        unshare.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        alone(&mut unshare);
        let child = unshare.spawn().context("start unshare")?;
        let mut containerd = Self { child, dir, name };
        eventually("containerd answers", Duration::from_secs(30), || {
            if let Some(status) = containerd.child.try_wait()? {
                bail!("containerd ended with {status}: {}", fs::read_to_string(containerd.dir.join("log"))?);
            }
            containerd.ctr(&["version"])
        })?;
        Ok(containerd)
    }

    /// Imports an archive, which must give just this image.
    pub(crate) fn import(&self, archive: &Path, image: &Image<'_>) -> Result<()> {
        self.ctr(&["images", "import", &archive.display().to_string()])?;
        let found = self.ctr(&["images", "list"])?;
        let images: Vec<Vec<&str>> = found.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let [one] = images.as_slice() else { bail!("one image was to be imported: {found}") };
        ensure!(one.first() == Some(&image.name) && one.contains(&image.digest), "another image: {found}");
        Ok(())
    }

    /// Makes the agent of a setup one in a container, with the folders that a pod would mount and with the image's own
    /// command; what the flags say otherwise, the environment does.
    pub(crate) fn prepare(&self, setup: &mut Setup, pods: &Pods, image: &str) -> Result<()> {
        let port = setup.arguments.iter().skip_while(|argument| *argument != "--listen").nth(1);
        let listen = port.context("a setup says where to listen")?.clone();
        let (state, names) = (setup.file("state"), setup.file("resolv.conf"));
        fs::create_dir_all(&state)?;
        fs::write(&names, format!("nameserver {NAMESERVER}\n"))?;
        let dir = state.parent().context("a setup has a folder")?;
        let (dir, state, names) = (dir.display(), state.display(), names.display());
        let mounts = [
            "src=/sys/fs/cgroup,dst=/sys/fs/cgroup,options=rbind:rw".to_owned(),
            "src=/sys/fs/bpf,dst=/sys/fs/bpf,options=rbind:rw".to_owned(),
            format!("src={dir},dst=/etc/egress-guard,options=rbind:ro"),
            format!("src={dir},dst=/run/egress-guard,options=rbind:rw"),
            format!("src={state},dst=/var/lib/egress-guard,options=rbind:rw"),
            format!("src={names},dst=/etc/resolv.conf,options=rbind:ro"),
        ];
        let variables = [
            ("PODS_ROOT", pods.root.display().to_string()),
            ("BPFFS", setup.bpffs.display().to_string()),
            ("LISTEN", listen),
        ];
        let ctr =
            format!("ctr --address {at}/containerd.sock --namespace {name}", at = self.dir.display(), name = self.name);
        let mounts = mounts.map(|mount| format!(" --mount type=bind,{mount}")).concat();
        let variables: String = variables.map(|(name, value)| format!(" --env EGRESS_GUARD_{name}={value}")).concat();
        // What an earlier call may have left is ended first: it would keep the pins. The network is containerd's own, but
        // without ctr's word for it, which brings the host's resolv.conf along.
        let script = format!(
            "#!/bin/sh\n{ctr} tasks rm --force {CONTAINER} >/dev/null 2>&1\n{ctr} containers rm {CONTAINER} >/dev/null 2>&1\n\
             [ $# = 0 ] || set -- /guard-agent \"$@\"\n\
             exec {ctr} run --rm --fifo-dir {at}/fifo --cgroup /{name}/{CONTAINER} --privileged --read-only --with-ns network:/proc/1/ns/net\
             {mounts}{variables} {image} {CONTAINER} \"$@\"\n",
            at = self.dir.display(),
            name = self.name
        );
        let wrapper = self.dir.join("run");
        fs::write(&wrapper, script)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        setup.arguments.clear();
        setup.binary = wrapper;
        Ok(())
    }

    /// Fails unless the container's root filesystem is read-only.
    pub(crate) fn assert_read_only(&self) -> Result<()> {
        let procs = cgroups(&self.name).into_iter().map(|cgroup| cgroup.join(CONTAINER).join("cgroup.procs"));
        let pids = procs.filter_map(|procs| fs::read_to_string(procs).ok()).collect::<String>();
        let pid = pids.lines().next().context("no process is in the container's cgroups")?;
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
        // proc(5): the fifth field is where it is mounted, the sixth how.
        let root = mounts
            .lines()
            .map(|line| line.split(' ').skip(4))
            .find_map(|mut mount| (mount.next() == Some("/")).then(|| mount.next().unwrap_or_default().to_owned()));
        let read_only = root.as_ref().is_some_and(|options| options.split(',').any(|option| option == "ro"));
        ensure!(read_only, "the root filesystem is mounted {root:?}");
        Ok(())
    }

    /// Runs a command in the container, as `kubectl exec` does, and returns what it printed.
    pub(crate) fn exec(&self, command: &[&str]) -> Result<String> {
        let fifos = self.dir.join("fifo").display().to_string();
        self.ctr(&[&["tasks", "exec", "--fifo-dir", &fifos, "--exec-id", "exec", CONTAINER], command].concat())
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.dir.join("containerd.sock")).args(["--namespace", &self.name]).args(arguments);
        let output = ctr.stdin(Stdio::null()).output().context("start ctr")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`ctr {}` failed: {}", arguments.join(" "), complaint.trim());
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The first process of the pid namespace takes all others along.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
        let removed = eventually("its folders are removed", Duration::from_secs(5), || {
            for cgroup in cgroups(&self.name) {
                guard_tests::pods::remove_tree(&cgroup)?;
            }
            Ok(fs::remove_dir_all(&self.dir)?)
        });
        if let Err(error) = removed {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// The cgroups that runc made for the containers: one in each hierarchy, of whatever version.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let hierarchies = mounts.map(|mount| mount.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
    hierarchies.map(|hierarchy| hierarchy.join(name)).filter(|cgroup| cgroup.is_dir()).collect()
}
