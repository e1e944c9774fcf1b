//! The few `bpf(2)` calls that aya does not offer: programs from instructions, link updates, batched reads.
//!
//! The structs are the parts of `union bpf_attr` (`include/uapi/linux/bpf.h`) that these calls use; the kernel takes
//! a shorter attr than its own as one that is filled up with zeros.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

mod info;
mod test_run;

pub use info::{MapInfo, ProgStats, link_cgroup, link_program, map_info, prog_id, prog_stats};
pub use test_run::{TestPacket, prog_test_run};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_insn, bpf_map_type, bpf_prog_type};

/// Which hook a cgroup program hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// `BPF_CGROUP_INET_EGRESS`
    Egress,
    /// `BPF_CGROUP_INET_INGRESS`
    Ingress,
}

impl Hook {
    /// Both hooks.
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    fn attach_type(self) -> u32 {
        match self {
            Self::Egress => bpf_attach_type::BPF_CGROUP_INET_EGRESS as u32,
            Self::Ingress => bpf_attach_type::BPF_CGROUP_INET_INGRESS as u32,
        }
    }

    /// The name of the program for this hook.
    pub fn program(self) -> &'static str {
        match self {
            Self::Egress => "meter_egress",
            Self::Ingress => "meter_ingress",
        }
    }
}

/// A failed `bpf(2)` call.
#[derive(Debug, thiserror::Error)]
#[error("bpf({call}): {cause}{}", log.as_deref().map(|l| format!("; the verifier says: {l}")).unwrap_or_default())]
pub struct BpfError {
    /// The command, as the kernel names it.
    pub call: &'static str,
    /// What the kernel answered.
    pub cause: io::Error,
    /// The end of the verifier's log, for a program that it refused.
    pub log: Option<String>,
}

/// # Safety
///
/// `attr` is what the command takes, and all pointers in it are valid for what the command does with them.
unsafe fn bpf<T>(cmd: bpf_cmd, call: &'static str, attr: &mut T) -> Result<i32, BpfError> {
    // SAFETY: the caller's promise.
    let done = unsafe { libc::syscall(libc::SYS_bpf, cmd as u32, std::ptr::from_mut(attr), size_of::<T>()) };
    if done < 0 {
        return Err(BpfError { call, cause: io::Error::last_os_error(), log: None });
    }
    Ok(done as i32)
}

/// # Safety
///
/// As [`bpf`], and the command returns a new file descriptor.
unsafe fn bpf_fd<T>(cmd: bpf_cmd, call: &'static str, attr: &mut T) -> Result<OwnedFd, BpfError> {
    // SAFETY: the caller's promise; the descriptor is new and nobody else's.
    unsafe { bpf(cmd, call, attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// A level of the verifier's log: its sums and nothing else.
const BPF_LOG_STATS: u32 = 4;

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

impl ProgLoad {
    /// Without a log. The instructions and the license must outlive it.
    fn new(insns: &[bpf_insn], license: &CStr, prog_type: bpf_prog_type, expected_attach_type: u32) -> Self {
        Self {
            prog_type: prog_type as u32,
            insn_cnt: insns.len() as u32,
            insns: insns.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
            prog_name: [0; 16],
            prog_ifindex: 0,
            expected_attach_type,
        }
    }

    /// With one of this level.
    fn tell(&mut self, level: u32, log: &mut [u8]) {
        (self.log_level, self.log_size, self.log_buf) = (level, log.len() as u32, log.as_mut_ptr() as u64);
    }
}

/// Loads a cgroup program for `hook` (`BPF_PROG_LOAD`). A refusal carries the verifier's last words.
pub fn prog_load(insns: &[bpf_insn], license: &CStr, hook: Hook) -> Result<OwnedFd, BpfError> {
    let mut attr = ProgLoad::new(insns, license, bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB, hook.attach_type());
    attr.prog_name[..hook.program().len()].copy_from_slice(hook.program().as_bytes());
    // SAFETY: instructions and license outlive the call.
    let refused = match unsafe { bpf_fd(bpf_cmd::BPF_PROG_LOAD, "PROG_LOAD", &mut attr) } {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    let mut log = vec![0u8; 64 * 1024];
    attr.tell(1, &mut log);
    // SAFETY: as above, and the kernel writes at most log_size bytes.
    match unsafe { bpf_fd(bpf_cmd::BPF_PROG_LOAD, "PROG_LOAD", &mut attr) } {
        Ok(fd) => Ok(fd),
        Err(_) => Err(BpfError { log: last_words(&log), ..refused }),
    }
}

/// Has the kernel verify a program, for `hook` or for a raw tracepoint, and returns what its verifier says that it took
/// (`BPF_LOG_STATS`, kernel 5.2): `processed N insns (limit N) max_states_per_insn N total_states N ...`.
pub fn prog_statistics(insns: &[bpf_insn], license: &CStr, hook: Option<Hook>) -> Result<String, BpfError> {
    let mut attr = match hook {
        Some(hook) => ProgLoad::new(insns, license, bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB, hook.attach_type()),
        None => ProgLoad::new(insns, license, bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT, 0),
    };
    let mut log = vec![0u8; 4096];
    attr.tell(BPF_LOG_STATS, &mut log);
    // SAFETY: instructions and license outlive the call, and the kernel writes at most log_size bytes.
    unsafe { bpf_fd(bpf_cmd::BPF_PROG_LOAD, "PROG_LOAD", &mut attr) }?;
    let said = log.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(said).into_owned())
}

fn last_words(log: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(log.split(|&b| b == 0).next()?).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("processed")).collect();
    let last = lines.iter().rev().take(3).rev().copied().collect::<Vec<_>>().join(" | ");
    (!last.is_empty()).then_some(last)
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to a cgroup (`BPF_LINK_CREATE`, kernel 5.7). Such a link never displaces another.
pub fn link_create(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: Hook) -> Result<OwnedFd, BpfError> {
    let mut attr = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: hook.attach_type(),
        flags: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf_fd(bpf_cmd::BPF_LINK_CREATE, "LINK_CREATE", &mut attr) }
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Puts another program in a link's place (`BPF_LINK_UPDATE`, kernel 5.7): every packet runs the one or the other.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), BpfError> {
    update(link.as_raw_fd(), program.as_raw_fd())
}

/// A link update without link and program: a kernel that knows the command answers EBADF.
pub(super) fn link_update_of_nothing() -> Result<(), BpfError> {
    update(-1, -1)
}

fn update(link: RawFd, program: RawFd) -> Result<(), BpfError> {
    let mut attr = LinkUpdate { link_fd: link as u32, new_prog_fd: program as u32, flags: 0, old_prog_fd: 0 };
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, "LINK_UPDATE", &mut attr).map(drop) }
}

/// Detaches a link at once, whoever else holds it (`BPF_LINK_DETACH`, kernel 5.9).
pub fn link_detach(link: BorrowedFd<'_>) -> Result<(), BpfError> {
    let mut fd = link.as_raw_fd() as u32;
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, "LINK_DETACH", &mut fd).map(drop) }
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// Makes a per-CPU array (`BPF_MAP_CREATE`).
pub(super) fn percpu_array_create(value_size: u32, max_entries: u32) -> Result<OwnedFd, BpfError> {
    map_create(bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY, value_size, max_entries)
}

/// Makes an array (`BPF_MAP_CREATE`).
pub(super) fn array_create(value_size: u32, max_entries: u32) -> Result<OwnedFd, BpfError> {
    map_create(bpf_map_type::BPF_MAP_TYPE_ARRAY, value_size, max_entries)
}

fn map_create(map_type: bpf_map_type, value_size: u32, max_entries: u32) -> Result<OwnedFd, BpfError> {
    let mut attr = MapCreate { map_type: map_type as u32, key_size: 4, value_size, max_entries, map_flags: 0 };
    // SAFETY: no pointers.
    unsafe { bpf_fd(bpf_cmd::BPF_MAP_CREATE, "MAP_CREATE", &mut attr) }
}

#[repr(C)]
struct MapElem {
    map_fd: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Puts a program into a program array (`BPF_MAP_UPDATE_ELEM`); the array holds it from then on.
pub fn program_array_set(map: BorrowedFd<'_>, index: u32, program: BorrowedFd<'_>) -> Result<(), BpfError> {
    array_set(map, index, &(program.as_raw_fd() as u32).to_ne_bytes())
}

/// The program in a program array, by its id (`BPF_MAP_LOOKUP_ELEM`). `None`: the place is empty.
pub fn program_array_get(map: BorrowedFd<'_>, index: u32) -> Result<Option<u32>, BpfError> {
    let mut id = 0u32;
    let mut attr = MapElem {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(&index) as u64,
        value: std::ptr::from_mut(&mut id) as u64,
        flags: 0,
    };
    // SAFETY: the key and the value have a program array's four bytes.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, "MAP_LOOKUP_ELEM", &mut attr) } {
        Ok(_) => Ok(Some(id)),
        Err(error) if error.cause.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a value of an array (`BPF_MAP_UPDATE_ELEM`).
///
/// # Panics
///
/// If `value` is not as long as the map's values are.
pub fn array_set(map: BorrowedFd<'_>, index: u32, value: &[u8]) -> Result<(), BpfError> {
    assert_eq!(map_info(map)?.value_size as usize, value.len(), "the value has the map's size");
    let mut attr = MapElem {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(&index) as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the key has an array's four bytes, and the value the map's size, as asserted.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, "MAP_UPDATE_ELEM", &mut attr).map(drop) }
}

#[repr(C)]
struct ObjPath {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Pins an object at a path in bpffs (`BPF_OBJ_PIN`).
pub fn obj_pin(object: BorrowedFd<'_>, path: &CStr) -> Result<(), BpfError> {
    let mut attr = ObjPath { pathname: path.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, file_flags: 0 };
    // SAFETY: the path outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, "OBJ_PIN", &mut attr).map(drop) }
}

/// Opens a pinned object (`BPF_OBJ_GET`).
pub fn obj_get(path: &CStr) -> Result<OwnedFd, BpfError> {
    let mut attr = ObjPath { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path outlives the call.
    unsafe { bpf_fd(bpf_cmd::BPF_OBJ_GET, "OBJ_GET", &mut attr) }
}

#[repr(C)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads `count` values of an array map from `first` on, in the order of their index, in one call
/// (`BPF_MAP_LOOKUP_BATCH`; for per-CPU arrays from kernel 5.13).
///
/// `keys` and `values` are the caller's, so that a sample allocates nothing.
///
/// # Panics
///
/// If `values` has no room for `count` values of `stride` bytes, or `keys` for their keys.
pub fn array_lookup_batch(
    map: impl AsFd,
    first: u32,
    count: u32,
    stride: usize,
    keys: &mut [u32],
    values: &mut [u8],
) -> Result<(), BpfError> {
    assert!(keys.len() >= count as usize && values.len() >= count as usize * stride, "buffers fit the count");
    // The kernel wants the key before the first, and none for the map's first.
    let (before, mut last) = (first.wrapping_sub(1), 0u32);
    let mut attr = MapBatch {
        in_batch: if first == 0 { 0 } else { std::ptr::from_ref(&before) as u64 },
        out_batch: std::ptr::from_mut(&mut last) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: map.as_fd().as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the buffers have room for count keys and values, as asserted.
    unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, "MAP_LOOKUP_BATCH", &mut attr).map(drop) }
}

/// Reads all entries of a hash map in one call (`BPF_MAP_LOOKUP_BATCH`, for hash maps from kernel 5.6). Returns the keys
/// and the values, each after the other.
pub fn hash_lookup_all(
    map: BorrowedFd<'_>,
    room: u32,
    key_size: usize,
    value_size: usize,
) -> Result<(Vec<u8>, Vec<u8>), BpfError> {
    let mut keys = vec![0; room as usize * key_size];
    let mut values = vec![0; room as usize * value_size];
    let mut next = 0u32;
    let mut attr = MapBatch {
        in_batch: 0,
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the buffers have room for as many entries as the map, of the map's sizes.
    let done = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, "MAP_LOOKUP_BATCH", &mut attr) };
    match done {
        // ENOENT says that there are no more.
        Err(error) if error.cause.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    keys.truncate(attr.count as usize * key_size);
    values.truncate(attr.count as usize * value_size);
    Ok((keys, values))
}
