//! What a hostile container's processes ask of the kernel, as far as nobody else offers it.

use std::{
    ffi::c_void,
    fs::File,
    io,
    net::UdpSocket,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr::NonNull,
};

use anyhow::{Context as _, Result, ensure};
use guard_agent::kernel::sys::{self, BpfError};
use rustix::{
    io_uring::{self, IoringEnterFlags, IoringOp, IoringSetupFlags},
    mm::{MapFlags, ProtFlags, mmap},
};

/// `bpf(2)`'s commands that go by ids (`include/uapi/linux/bpf.h`): for whoever has `CAP_SYS_ADMIN`.
#[derive(Clone, Copy)]
enum ById {
    MapNext = 12,
    MapOpen = 14,
    LinkOpen = 30,
    LinkNext = 31,
}

#[expect(unsafe_code, reason = "bpf(2)")]
fn by_id(command: ById, id: u32) -> io::Result<(i32, u32)> {
    // Id, the next id, flags.
    let mut attr = [id, 0, 0];
    // SAFETY: these commands read and write three words at most.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command as u32, attr.as_mut_ptr(), size_of_val(&attr)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok((done as i32, attr[1])) }
}

#[expect(unsafe_code, reason = "a descriptor from bpf(2)")]
fn open(command: ById, id: u32) -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor that nobody else has.
    by_id(command, id).map(|(fd, _)| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next one after an id, and its own id. `None`: there is none.
fn after(next: ById, command: ById, mut id: u32) -> io::Result<Option<(u32, OwnedFd)>> {
    let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ENOENT);
    loop {
        match by_id(next, id) {
            Ok((_, after)) => id = after,
            Err(error) if gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        match open(command, id) {
            Ok(fd) => return Ok(Some((id, fd))),
            // Between the two calls.
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn any(next: ById, command: ById) -> io::Result<OwnedFd> {
    after(next, command, 0)?.map(|(_, fd)| fd).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// All links on a cgroup, whoever made them.
pub fn links_of(cgroup_id: u64) -> Result<Vec<OwnedFd>> {
    let (mut links, mut last) = (vec![], 0);
    while let Some((id, link)) = after(ById::LinkNext, ById::LinkOpen, last).context("links by their ids")? {
        last = id;
        // Links of other kinds say something else in that place; none of them is about this cgroup.
        if sys::link_cgroup(link.as_fd())? == Some(cgroup_id) {
            links.push(link);
        }
    }
    Ok(links)
}

/// Opens a link, whatever it is.
pub fn any_link() -> io::Result<OwnedFd> {
    any(ById::LinkNext, ById::LinkOpen)
}

/// Opens a map.
pub fn any_map() -> io::Result<OwnedFd> {
    any(ById::MapNext, ById::MapOpen)
}

/// Opens a pin.
pub fn pinned(path: &Path) -> Result<OwnedFd> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    sys::obj_get(&path).map_err(|error: BpfError| error.into())
}

#[expect(unsafe_code, reason = "a socket option that nobody else knows")]
fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) -> Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: these options take an int.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    ensure!(done == 0, "socket option {name}: {}", io::Error::last_os_error());
    Ok(())
}

/// Holds back what is sent until it is let go, as one datagram.
pub fn cork(socket: &UdpSocket, on: bool) -> Result<()> {
    set_option(socket, libc::IPPROTO_UDP, libc::UDP_CORK, on.into())
}

/// Lets a socket send without a copy (kernel 5.0 for UDP).
pub fn zerocopy(socket: &UdpSocket) -> Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)
}

/// Sends without a copy.
#[expect(unsafe_code, reason = "a flag that nobody else knows")]
pub fn send_zerocopy(socket: &UdpSocket, payload: &[u8]) -> Result<()> {
    // SAFETY: the payload is not written to as long as the process lives.
    let sent = unsafe { libc::send(socket.as_raw_fd(), payload.as_ptr().cast(), payload.len(), libc::MSG_ZEROCOPY) };
    ensure!(sent == payload.len() as isize, "MSG_ZEROCOPY: {sent}, {}", io::Error::last_os_error());
    Ok(())
}

/// A socket that writes frames past all of IP.
#[expect(unsafe_code, reason = "socket(2) of this family")]
pub fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a new descriptor that nobody else has.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from((libc::ETH_P_ALL as u16).to_be()));
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Nobody, with no capability, for good: what a container's process is under the Pod Security Standard "restricted".
#[expect(unsafe_code, reason = "setresuid(2), prctl(2)")]
pub fn drop_all_rights() -> Result<()> {
    const NOBODY: u32 = 65_534;
    // SAFETY: system calls with constants. All threads there are: this one.
    unsafe {
        ensure!(libc::setgroups(0, std::ptr::null()) == 0, "setgroups: {}", io::Error::last_os_error());
        ensure!(libc::setresgid(NOBODY, NOBODY, NOBODY) == 0, "setresgid: {}", io::Error::last_os_error());
        // With the last of the three UIDs go all capabilities (capabilities(7)).
        ensure!(libc::setresuid(NOBODY, NOBODY, NOBODY) == 0, "setresuid: {}", io::Error::last_os_error());
        ensure!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "{}", io::Error::last_os_error());
    }
    Ok(())
}

/// All capabilities, in namespaces of its own.
#[expect(unsafe_code, reason = "unshare(2)")]
pub fn own_user_namespace() -> Result<()> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;
    // SAFETY: no pointers.
    let done = unsafe { libc::unshare(flags) };
    ensure!(done == 0, "unshare: {}", io::Error::last_os_error());
    Ok(())
}

/// An `io_uring` of one entry.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    params: io_uring::io_uring_params,
    queues: NonNull<c_void>,
    entries: NonNull<io_uring::io_uring_sqe>,
}

impl Ring {
    /// Makes one (kernel 5.4: one mapping for both queues).
    #[expect(unsafe_code, reason = "io_uring_setup(2) and its mappings")]
    pub fn new() -> Result<Self> {
        let mut params = io_uring::io_uring_params::default();
        params.flags = IoringSetupFlags::empty();
        // SAFETY: parameters without descriptors, and mappings of the sizes that the kernel says.
        unsafe {
            let ring = io_uring::io_uring_setup(1, &mut params).context("io_uring_setup")?;
            let map = |len, offset| {
                let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
                mmap(std::ptr::null_mut(), len, prot, flags, &ring, offset)
            };
            let submissions = params.sq_off.array as usize + params.sq_entries as usize * 4;
            let completions =
                params.cq_off.cqes as usize + params.cq_entries as usize * size_of::<io_uring::io_uring_cqe>();
            let queues = map(submissions.max(completions), io_uring::IORING_OFF_SQ_RING)?;
            let entries =
                map(params.sq_entries as usize * size_of::<io_uring::io_uring_sqe>(), io_uring::IORING_OFF_SQES)?;
            let queues = NonNull::new(queues).context("no queues")?;
            let entries = NonNull::new(entries.cast()).context("no entries")?;
            Ok(Self { fd: ring, params, queues, entries })
        }
    }

    #[expect(unsafe_code, reason = "memory that is shared with the kernel")]
    fn word(&self, offset: u32) -> &std::sync::atomic::AtomicU32 {
        // SAFETY: an aligned word within the mapping, at an offset that the kernel told.
        unsafe { self.queues.byte_add(offset as usize).cast().as_ref() }
    }

    /// Sends, and waits until it is done; by a thread of the kernel's (`IOSQE_ASYNC`).
    #[expect(unsafe_code, reason = "memory that is shared with the kernel")]
    pub fn send(&mut self, socket: BorrowedFd<'_>, payload: &[u8]) -> Result<usize> {
        use std::sync::atomic::Ordering::{Acquire, Release};
        let (opcode, flags, fd) = (IoringOp::Send, io_uring::IoringSqeFlags::ASYNC, socket.as_raw_fd());
        let mut entry = io_uring::io_uring_sqe { opcode, flags, fd, ..Default::default() };
        entry.addr_or_splice_off_in.addr = io_uring::io_uring_ptr::new(payload.as_ptr().cast_mut().cast());
        entry.len.len = u32::try_from(payload.len())?;
        let (submission, completion) = (self.params.sq_off, self.params.cq_off);
        let tail = self.word(submission.tail).load(Acquire);
        // SAFETY: the queue has one entry, which is free, for the last one was waited for; the payload lives until then.
        unsafe {
            self.entries.write(entry);
            self.word(submission.array).store(0, Release);
            self.word(submission.tail).store(tail.wrapping_add(1), Release);
            io_uring::io_uring_enter(&self.fd, 1, 1, IoringEnterFlags::GETEVENTS).context("io_uring_enter")?;
        }
        let head = self.word(completion.head).load(Acquire);
        ensure!(self.word(completion.tail).load(Acquire) != head, "nothing is done");
        let index = head & self.word(completion.ring_mask).load(Acquire);
        // SAFETY: an entry that the kernel has written.
        let result = unsafe {
            let all = self.queues.byte_add(completion.cqes as usize).cast::<io_uring::io_uring_cqe>();
            all.add(index as usize).as_ref().res
        };
        self.word(completion.head).store(head.wrapping_add(1), Release);
        ensure!(result >= 0, "io_uring send: {}", io::Error::from_raw_os_error(-result));
        Ok(result as usize)
    }
}

/// A cgroup's folder, to attach to.
pub fn cgroup(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("open {}", path.display()))
}

/// Detaches links, whoever holds them.
pub fn detach(links: impl IntoIterator<Item = impl AsFd>) -> Result<()> {
    links.into_iter().try_for_each(|link| Ok(sys::link_detach(link.as_fd())?))
}
