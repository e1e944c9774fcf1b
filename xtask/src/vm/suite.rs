//! Which tests run on which kernel, and how its guest is prepared.

use anyhow::{Result, ensure};
use guard_vm::Kernel;

use super::programs::Programs;

/// What a guest is for.
pub(crate) struct Part<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) variant: Variant,
    /// Files of whole-system tests.
    pub(crate) files: Vec<&'a str>,
}

/// Which files of tests are to run.
pub(crate) enum Which {
    /// Those that ask the kernel for something.
    Kernels,
    /// The others too.
    All,
    /// These.
    Named(Vec<String>),
}

/// What is special about a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Nothing.
    Plain,
    /// The kernel's own types cannot be read.
    NoBtf,
    /// What root could change the kernel with is off.
    Lockdown,
    /// Two CPUs on a kernel that hangs in a time of its own when it starts the second one.
    HostTime,
}

/// These start their CPUs one after the other, each waiting for the next in a loop, in which a guest's own time hangs
/// (kernels from 6.5 on start them all at once). They have one CPU, and what needs two runs in the host's time.
const ONE_CPU: [&str; 2] = ["5.10", "6.1"];
const TWO_CPUS: &str = "atomics";

/// The kernel that is run in all variants: the one that most nodes have.
const COMMON: &str = "6.12";

/// The kernel that the agent declines, and the file with the test of that.
const DECLINED: &str = "5.10";
const KERNELS: &str = "kernels";

/// What counts to the byte: a kernel that hides something shows it there.
const EXACT: &str = "exact";

/// Nothing in these depends on the kernel that is not in another file too: the webhook; what an API server tells and is told;
/// the file that a recorder writes; whom the judge has a supervisor start afresh, and when (what that asks of the kernel is in
/// `local`). They run on the host's kernel, and in guests if that is asked for.
const USERLAND: [&str; 5] = ["alerts", "evict", "fleet", "names", "record"];

/// What takes about as long as all others together: they share a guest if a kernel has two.
const FIRST_HALF: [&str; 6] = ["exact", "police", "atomics", "lifecycle", "packets", "kernels"];

impl Part<'_> {
    /// A name for a folder.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.kernel.series, self.variant.name()).trim_end().replace(' ', "-")
    }

    /// How many CPUs its guest has, and whether it has a time of its own.
    pub(crate) fn machine(&self) -> (u32, bool) {
        let own_time = self.variant != Variant::HostTime;
        (if own_time && ONE_CPU.contains(&self.kernel.series.as_str()) { 1 } else { 2 }, own_time)
    }
}

impl Variant {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::NoBtf => "no kernel BTF",
            Self::Lockdown => "lockdown=integrity",
            Self::HostTime => "two CPUs",
        }
    }

    /// For the kernel's command line.
    pub(crate) fn parameters(self) -> Option<&'static str> {
        match self {
            Self::Plain | Self::NoBtf | Self::HostTime => None,
            Self::Lockdown => Some("lockdown=integrity"),
        }
    }

    /// A script that makes it so, or fails if it is not.
    pub(crate) fn prepare(self) -> &'static str {
        match self {
            Self::Plain | Self::HostTime => "true",
            Self::NoBtf => "mount -t tmpfs none /sys/kernel/btf && ! test -e /sys/kernel/btf/vmlinux",
            Self::Lockdown => "grep -F '[integrity]' /sys/kernel/security/lockdown",
        }
    }
}

/// All that there is to run on these kernels, for so many guests at once. A boot takes as long as several tests, so a kernel
/// has two guests only if there is one to spare.
pub(crate) fn parts<'a>(
    kernels: &'a [Kernel],
    programs: &'a Programs,
    which: &Which,
    guests: usize,
) -> Result<Vec<Part<'a>>> {
    let all: Vec<&str> = programs.tests.iter().map(|(name, _)| name.as_str()).collect();
    // Of named ones only those were built, and cargo has said which are not there.
    if !matches!(which, Which::Named(_)) {
        for file in [KERNELS].iter().chain(&FIRST_HALF).chain(&USERLAND) {
            ensure!(all.contains(file), "there is no file of tests `{file}` any more");
        }
    }
    let wanted = all.into_iter().filter(|file| match which {
        Which::Kernels => !USERLAND.contains(file),
        Which::All | Which::Named(_) => true,
    });
    let (first, second): (Vec<&str>, Vec<&str>) = wanted.partition(|file| FIRST_HALF.contains(file));
    let shares = if guests > kernels.len() { vec![first, second] } else { vec![[first, second].concat()] };
    let mut parts = Vec::new();
    for kernel in kernels {
        let mut add = |variant, files: &[&'a str]| parts.push(Part { kernel, variant, files: files.to_vec() });
        if kernel.series == DECLINED {
            add(Variant::Plain, &[KERNELS]);
            continue;
        }
        let one_cpu = ONE_CPU.contains(&kernel.series.as_str());
        for share in &shares {
            let files: Vec<&str> = share.iter().copied().filter(|file| !one_cpu || *file != TWO_CPUS).collect();
            add(Variant::Plain, &files);
        }
        if one_cpu {
            add(Variant::HostTime, &[TWO_CPUS]);
        }
        if kernel.series == COMMON {
            add(Variant::NoBtf, &[KERNELS, EXACT]);
            add(Variant::Lockdown, &[KERNELS, EXACT]);
        }
    }
    if let Which::Named(names) = which {
        for part in &mut parts {
            part.files.retain(|file| names.iter().any(|name| name == file));
        }
        parts.retain(|part| !part.files.is_empty());
    }
    // The longest first: whoever is free at the end has a short one.
    parts.sort_by_key(|part| std::cmp::Reverse(part.files.len()));
    Ok(parts)
}
