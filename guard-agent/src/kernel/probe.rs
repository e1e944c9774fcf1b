//! What the agent needs of the kernel, tried out before anything is attached.

use std::{fs, io, os::fd::AsFd as _};

use aya::maps::MapType;
use aya::programs::ProgramType;

use super::sys;

/// A feature that the kernel lacks, or a right that the process lacks.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Not root, or a container without the capabilities.
    #[error("not allowed to load eBPF programs: run as root (missing capabilities: {0})")]
    NotPrivileged(String),
    /// The capabilities are there, and the system call is refused all the same.
    #[error(
        "bpf(2) is refused although the capabilities are there: {0}. A seccomp profile or a security module forbids it (runtimes' own \
         profiles allow it with CAP_BPF, at the latest from containerd 1.6.20 and Docker 23 on: take a newer one, or \
         seccompProfile: {{type: Unconfined}}), or this is a user namespace (rootless, hostUsers: false), where it is never allowed"
    )]
    Refused(io::Error),
    /// The kernel is too old, or built without it.
    #[error(
        "this kernel has no {feature} (in every kernel from {since} on): {cause}. Egress Guard needs kernel 5.15 or newer, built with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"
    )]
    Missing {
        /// What is missing.
        feature: &'static str,
        /// The first kernel that has it.
        since: &'static str,
        /// What the kernel answered.
        cause: io::Error,
    },
}

/// The capabilities that loading, attaching and pinning take, with their bits (`include/uapi/linux/capability.h`).
/// `CAP_SYS_ADMIN` stands for the last two, as before kernel 5.8.
const NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const SYS_ADMIN: u32 = 21;
const BPF_AND_PERFMON: [(u32, &str); 2] = [(39, "CAP_BPF"), (38, "CAP_PERFMON")];

/// Names the capabilities that are missing, if any.
pub fn privileges() -> Result<(), ProbeError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing_capabilities(&status);
    if missing.is_empty() { Ok(()) } else { Err(ProbeError::NotPrivileged(missing.join(", "))) }
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let has = |bit: u32| effective >> bit & 1 == 1;
    let mut missing: Vec<_> = [NET_ADMIN].into_iter().filter(|(bit, _)| !has(*bit)).collect();
    if !has(SYS_ADMIN) {
        missing.extend(BPF_AND_PERFMON.into_iter().filter(|(bit, _)| !has(*bit)));
    }
    missing.into_iter().map(|(_, name)| name).collect()
}

/// Tries out what the agent needs of the kernel.
pub fn features() -> Result<(), ProbeError> {
    let missing = |feature, since| {
        move |cause: io::Error| match cause.kind() {
            io::ErrorKind::PermissionDenied => ProbeError::Refused(cause),
            _ => ProbeError::Missing { feature, since, cause },
        }
    };
    let unsupported = || io::Error::from_raw_os_error(libc::EOPNOTSUPP);
    let program = aya::sys::is_program_supported(ProgramType::CgroupSkb);
    supported(program, unsupported).map_err(missing("cgroup_skb programs", "4.10"))?;
    let ring = aya::sys::is_map_supported(MapType::RingBuf);
    supported(ring, unsupported).map_err(missing("BPF ring buffer", "5.8"))?;
    link_update().map_err(missing("BPF_LINK_UPDATE", "5.7"))?;
    batch_lookup().map_err(missing("batched reads of per-CPU arrays (BPF_MAP_LOOKUP_BATCH)", "5.13"))
}

/// With the kernel's answer, if there is one, in the place of what was said of it.
fn supported<E>(answer: Result<bool, E>, unsupported: fn() -> io::Error) -> io::Result<()>
where
    anyhow::Error: From<E>,
{
    match answer {
        Ok(true) => Ok(()),
        Ok(false) => Err(unsupported()),
        Err(error) => {
            let error = anyhow::Error::from(error);
            let errno = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
            Err(errno.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error))
        }
    }
}

/// The kernel looks at the descriptors only if it knows the command: EBADF is the good answer.
fn link_update() -> io::Result<()> {
    match sys::link_update_of_nothing() {
        Err(error) if error.cause.raw_os_error() != Some(libc::EBADF) => Err(error.cause),
        _ => Ok(()),
    }
}

fn batch_lookup() -> io::Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let map = sys::percpu_array_create(8, 1).map_err(|e| e.cause)?;
    sys::array_lookup_batch(map.as_fd(), 0, 1, 8 * cpus, &mut [0], &mut vec![0; 8 * cpus]).map_err(|e| e.cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let missing = |caps: u64| missing_capabilities(&format!("Name:\tx\nCapEff:\t{caps:016x}\n"));
        assert_eq!(missing(0), ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing(1 << 12 | 1 << 39), ["CAP_PERFMON"]);
        assert_eq!(missing(1 << 12 | 1 << 21), [""; 0]);
        assert_eq!(missing(1 << 12 | 1 << 38 | 1 << 39), [""; 0]);
        assert_eq!(missing_capabilities("").len(), 3);
    }
}
