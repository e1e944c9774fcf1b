//! What the kernel says of its objects (`BPF_OBJ_GET_INFO_BY_FD`).

use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya_obj::generated::{bpf_cmd, bpf_map_type};

use super::{BpfError, bpf};

#[repr(C)]
struct ObjInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// # Safety
///
/// `T` is plain data that every bit pattern fits, laid out as the start of the info struct of this kind of object.
unsafe fn obj_info<T: Default>(object: BorrowedFd<'_>) -> Result<T, BpfError> {
    let mut info = T::default();
    let mut attr = ObjInfo {
        bpf_fd: object.as_raw_fd() as u32,
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most info_len bytes into info.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, "OBJ_GET_INFO_BY_FD", &mut attr)? };
    Ok(info)
}

/// The start of `struct bpf_link_info`, for a cgroup link.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    _pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    _pad2: u32,
}

/// The cgroup that a link is attached to. `None`: the kernel has released that cgroup (it was removed, and its last
/// socket is gone), and the program will not run through this link again.
pub fn link_cgroup(link: BorrowedFd<'_>) -> Result<Option<u64>, BpfError> {
    // SAFETY: plain data, laid out as the start of bpf_link_info.
    let info: LinkInfo = unsafe { obj_info(link)? };
    Ok((info.cgroup_id != 0).then_some(info.cgroup_id))
}

/// The program that a link runs, by its id; another one if somebody has updated the link.
pub fn link_program(link: BorrowedFd<'_>) -> Result<u32, BpfError> {
    // SAFETY: plain data, laid out as the start of bpf_link_info.
    let info: LinkInfo = unsafe { obj_info(link)? };
    Ok(info.prog_id)
}

/// The start of `struct bpf_map_info`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MapInfo {
    kind: u32,
    /// The map's, as long as it lives.
    pub id: u32,
    key_size: u32,
    pub(super) value_size: u32,
    /// How many entries the map has room for.
    pub max_entries: u32,
    flags: u32,
}

impl MapInfo {
    /// Whether the map is an array of so many values of this size, and made without flags.
    pub fn is_array(&self, value_size: u32, max_entries: u32) -> bool {
        let Self { kind, id: _, key_size, value_size: size, max_entries: entries, flags } = *self;
        kind == bpf_map_type::BPF_MAP_TYPE_ARRAY as u32
            && (key_size, size, entries, flags) == (4, value_size, max_entries, 0)
    }
}

/// What the kernel says of a map.
pub fn map_info(map: BorrowedFd<'_>) -> Result<MapInfo, BpfError> {
    // SAFETY: plain data, laid out as the start of bpf_map_info.
    unsafe { obj_info(map) }
}

/// `struct bpf_prog_info` up to `run_cnt`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct ProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    pointers: [u64; 2],
    load_time: u64,
    uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
    ifindex: u32,
    gpl: u32,
    netns: [u64; 2],
    counts: [u32; 2],
    ksyms: [u64; 2],
    btf_id: u32,
    func_info_rec_size: u32,
    func_info: u64,
    nr_func_info: u32,
    nr_line_info: u32,
    line_info: u64,
    jited_line_info: u64,
    nr_jited_line_info: u32,
    line_info_rec_size: u32,
    jited_line_info_rec_size: u32,
    nr_prog_tags: u32,
    prog_tags: u64,
    run_time_ns: u64,
    run_cnt: u64,
}

/// What the kernel says of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgStats {
    /// How often it ran while `kernel.bpf_stats_enabled` was on.
    pub runs: u64,
    /// How long that took, in nanoseconds.
    pub run_nanos: u64,
    /// Bytes of machine code.
    pub jited_len: u32,
}

/// A program's id, as long as it lives.
pub fn prog_id(program: BorrowedFd<'_>) -> Result<u32, BpfError> {
    // SAFETY: as below.
    let info: ProgInfo = unsafe { obj_info(program)? };
    Ok(info.id)
}

/// A program's statistics (`kernel.bpf_stats_enabled`, kernel 5.1).
pub fn prog_stats(program: BorrowedFd<'_>) -> Result<ProgStats, BpfError> {
    // SAFETY: plain data, laid out as the start of bpf_prog_info; the pointers in it are null, so none is followed.
    let info: ProgInfo = unsafe { obj_info(program)? };
    Ok(ProgStats { runs: info.run_cnt, run_nanos: info.run_time_ns, jited_len: info.jited_len })
}
