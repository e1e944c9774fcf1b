//! What a guest is made of.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::{
    base,
    cpio::Archive,
    kernel::{Kernel, Modules},
    running::{Running, ShellError},
};

/// A guest to boot: a kernel, and a small root in memory with a shell, busybox and `ip`.
#[derive(Clone, Debug)]
pub struct Guest {
    kernel: Kernel,
    modules: Modules,
    cpus: u32,
    /// MiB.
    memory: u32,
    append: Vec<String>,
    programs: Vec<String>,
    files: Vec<(String, u32, Content)>,
    drives: Vec<Drive>,
    root: Option<String>,
    network: Option<Vec<(SocketAddr, u16)>>,
    console: Option<PathBuf>,
    own_time: Option<u8>,
    boot_limit: Duration,
}

#[derive(Clone, Debug)]
enum Content {
    Bytes(Vec<u8>),
    Host(PathBuf),
}

/// A disk of a guest, in the order in which they are given: `/dev/vda`, `/dev/vdb` and so on.
#[derive(Clone, Debug)]
pub enum Drive {
    /// A raw image that the guest cannot write.
    ReadOnly(PathBuf),
    /// A raw image that stays as it is: what the guest writes goes with it.
    Snapshot(PathBuf),
    /// A raw image that the guest writes.
    Writable(PathBuf),
}

/// A guest could not be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its first root, or its folder on the host.
    #[error("the guest's files: {0}")]
    Files(#[source] io::Error),
    /// qemu did not start.
    #[error(
        "qemu could not be started: {0} (on Debian: `apt-get install --no-install-recommends qemu-system-x86 util-linux`)"
    )]
    Start(#[source] io::Error),
    /// Twice.
    #[error("the guest with kernel {release} did not come up: {source}\n{console}")]
    Boot {
        /// Its kernel.
        release: String,
        /// How it failed.
        source: ShellError,
        /// The end of its console, and what qemu said.
        console: String,
    },
}

impl Guest {
    /// With one CPU and 512 MiB.
    pub fn new(kernel: &Kernel) -> Self {
        Self {
            kernel: kernel.clone(),
            modules: Modules::default(),
            cpus: 1,
            memory: 512,
            append: vec![],
            programs: vec![],
            files: vec![],
            drives: vec![],
            root: None,
            network: None,
            console: None,
            own_time: None,
            boot_limit: Duration::from_mins(3),
        }
    }

    /// The modules that it loads when it boots; none are found later.
    #[must_use]
    pub fn modules(mut self, modules: Modules) -> Self {
        self.modules = modules;
        self
    }

    /// How many CPUs it sees. They share one of the host's.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Its memory in MiB, in which its first root lies too.
    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// More of the kernel's command line.
    #[must_use]
    pub fn append(mut self, parameter: impl Into<String>) -> Self {
        self.append.push(parameter.into());
        self
    }

    /// A program of the host, found as a shell does, with the libraries that it is linked with; in `/usr/bin`.
    #[must_use]
    pub fn program(mut self, name: impl Into<String>) -> Self {
        self.programs.push(name.into());
        self
    }

    /// A file of the host. What lies beneath `/job` is beneath `/run/job` as well, which is all that a guest with a root
    /// of its own sees.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>, mode: u32, host: impl Into<PathBuf>) -> Self {
        self.files.push((path.into(), mode, Content::Host(host.into())));
        self
    }

    /// A file of this content, as [`Self::file`].
    #[must_use]
    pub fn content(mut self, path: impl Into<String>, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.into(), mode, Content::Bytes(content.into())));
        self
    }

    /// A disk.
    #[must_use]
    pub fn drive(mut self, drive: Drive) -> Self {
        self.drives.push(drive);
        self
    }

    /// Hands over to `/sbin/init` of this device, which must be systemd's; `options` are those of `mount`: `ro`.
    #[must_use]
    pub fn root(mut self, device: &str, filesystem: &str, options: &str) -> Self {
        self.root = Some(format!("guest.root={device} guest.rootfstype={filesystem} guest.rootflags={options}"));
        self
    }

    /// Gives it a network card, `eth0`, 10.0.2.15/24: the host is 10.0.2.2 for it (its loopback too), 10.0.2.3 resolves
    /// names. May be said again.
    #[must_use]
    pub fn network(mut self) -> Self {
        self.network.get_or_insert_default();
        self
    }

    /// A port of the host that leads to one of the guest's; with it comes the network.
    #[must_use]
    pub fn forward(mut self, host: SocketAddr, guest: u16) -> Self {
        self.network.get_or_insert_default().push((host, guest));
        self
    }

    /// Keeps what the kernel and systemd print to the console. Without it, it is in errors only.
    #[must_use]
    pub fn console(mut self, file: impl Into<PathBuf>) -> Self {
        self.console = Some(file.into());
        self
    }

    /// Gives it a time of its own: an instruction takes 2^`shift` nanoseconds, and what it sleeps takes none of ours. So
    /// the guest is as fast by its own clock as a machine of 1000 >> `shift` million instructions a second, however slow
    /// and busy the host is; its CPUs share them. Not for a guest that speaks with anything outside by the clock.
    #[must_use]
    pub fn own_time(mut self, shift: u8) -> Self {
        self.own_time = Some(shift);
        self
    }

    /// How long it may take until it serves commands: three minutes if nothing is said.
    #[must_use]
    pub fn boot_limit(mut self, limit: Duration) -> Self {
        self.boot_limit = limit;
        self
    }

    /// Boots it and waits until it serves commands; once more if that fails. It runs until what this returns is dropped,
    /// or this process ends.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, qemu does not start, or the guest does not come up.
    pub fn boot(&self) -> Result<Running, Error> {
        let folder = Folder::new().map_err(Error::Files)?;
        let initrd = folder.0.join("initrd");
        self.write_root(&initrd).map_err(Error::Files)?;
        let console = self.console.clone().unwrap_or_else(|| folder.0.join("console"));
        let arguments = self.arguments(&initrd, &console);
        let mut running = Running::start(arguments.clone(), folder, console).map_err(Error::Start)?;
        let up = running.wait_up(self.boot_limit).or_else(|_| {
            running.restart(arguments)?;
            running.wait_up(self.boot_limit)
        });
        match up {
            Ok(()) => Ok(running),
            Err(source) => {
                let release = self.kernel.release.clone();
                Err(Error::Boot { release, source, console: running.last_words() })
            }
        }
    }

    fn write_root(&self, path: &Path) -> io::Result<()> {
        let mut archive = Archive::new(BufWriter::new(File::create(path)?));
        let named = |path: &str| {
            let path = path.to_owned();
            move |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"))
        };
        base::write(&mut archive, &self.programs)?;
        let order = self.kernel.load_order(self.modules)?;
        for module in &order {
            let file = self.kernel.modules.join(module);
            archive.file(&format!("lib/modules/{module}"), 0o644, &file).map_err(named(module))?;
        }
        let order: String = order.iter().flat_map(|module| [module, "\n"]).collect();
        archive.content("lib/modules/load", 0o644, order.as_bytes())?;
        for (path, mode, content) in &self.files {
            match content {
                Content::Bytes(bytes) => archive.content(path, *mode, bytes),
                Content::Host(host) => archive.file(path, *mode, host).map_err(named(&host.to_string_lossy())),
            }?;
        }
        archive.finish().map(drop)
    }

    fn arguments(&self, initrd: &Path, console: &Path) -> Vec<OsString> {
        // thread=multi: qemu before 8.1 corrupts a guest that patches its code, as the kernel does when it attaches a
        // program to a cgroup.
        // erms, fsrm: by these the kernel copies with an instruction that moves a byte at a time when it is emulated.
        let mut words: Vec<OsString> =
            "-M q35 -accel tcg,thread=single -cpu max,-erms,-fsrm -nodefaults -no-user-config \
                                        -display none -no-reboot -monitor none \
                                        -chardev stdio,id=shell,signal=off -device virtio-serial-pci \
                                        -device virtserialport,chardev=shell,name=guest.shell"
                .split_whitespace()
                .map(Into::into)
                .collect();
        let mut add = |flag: &str, value: OsString| words.extend([flag.into(), value]);
        add("-smp", self.cpus.to_string().into());
        add("-m", self.memory.to_string().into());
        add("-kernel", self.kernel.vmlinuz.clone().into());
        add("-initrd", initrd.into());
        add("-serial", joined("file:", console, ""));
        for (index, drive) in self.drives.iter().enumerate() {
            let options = format!(",format=raw,if=none,id=drive{index},cache=unsafe");
            let (path, more) = match drive {
                Drive::ReadOnly(path) => (path, ",readonly=on"),
                Drive::Snapshot(path) => (path, ",snapshot=on"),
                Drive::Writable(path) => (path, ""),
            };
            add("-drive", joined("file=", path, &(options + more)));
            add("-device", format!("virtio-blk-pci,drive=drive{index}").into());
        }
        if let Some(forwards) = &self.network {
            let each = forwards.iter().map(|(host, guest)| format!(",hostfwd=tcp:{host}-:{guest}"));
            add("-netdev", format!("user,id=net{}", each.collect::<String>()).into());
            add("-device", "virtio-net-pci,netdev=net".into());
        }
        if let Some(shift) = self.own_time {
            add("-icount", format!("shift={shift},sleep=off").into());
            add("-rtc", "clock=vm".into());
        }
        // 112 is rep_good, for the same reason; kernels before 5.18 take the number only.
        let own = "console=ttyS0 panic=-1 oops=panic quiet loglevel=4 mitigations=off net.ifnames=0 clearcpuid=112";
        let mut append = own.to_owned();
        for more in self.root.iter().chain(&self.append) {
            append.extend([" ", more]);
        }
        add("-append", append.into());
        words
    }
}

/// qemu takes a comma in a path for the end of it, unless there are two.
fn joined(before: &str, path: &Path, after: &str) -> OsString {
    let path = path.to_string_lossy().replace(',', ",,");
    format!("{before}{path}{after}").into()
}

/// A folder of the host for as long as a guest runs.
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("guard-vm-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("left behind {}: {error}", self.0.display());
        }
    }
}
