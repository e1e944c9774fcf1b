//! Programs run on a packet of our making, for the benchmark and the tests.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya_obj::generated::bpf_cmd;

use super::{BpfError, bpf};

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

/// `struct __sk_buff` as far as a test run takes it in.
const SKB_WORDS: usize = 48;
/// Where in it, in words, the interface index and the segments' count and size stand.
const SKB_IFINDEX: usize = 10;
const SKB_GSO_SEGS: usize = 41;
const SKB_GSO_SIZE: usize = 44;

/// What a test run is told of the packet.
#[derive(Clone, Copy, Debug)]
pub struct TestPacket<'a> {
    /// The packet with an Ethernet header.
    pub frame: &'a [u8],
    /// The interface, which must exist in this network namespace.
    pub ifindex: u32,
    /// Segments of a super-packet, and the payload of each.
    pub gso: Option<(u32, u32)>,
}

/// Runs a program on a packet `repeat` times (`BPF_PROG_TEST_RUN`; the interface from kernel 5.8). Returns the verdict
/// and the nanoseconds of one run.
pub fn prog_test_run(program: BorrowedFd<'_>, packet: TestPacket<'_>, repeat: u32) -> Result<(u32, u32), BpfError> {
    let mut skb = [0u32; SKB_WORDS];
    skb[SKB_IFINDEX] = packet.ifindex;
    if let Some((segments, size)) = packet.gso {
        (skb[SKB_GSO_SEGS], skb[SKB_GSO_SIZE]) = (segments, size);
    }
    let mut attr = TestRun {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: packet.frame.len() as u32,
        data_in: packet.frame.as_ptr() as u64,
        repeat,
        ctx_size_in: size_of_val(&skb) as u32,
        ctx_in: skb.as_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: frame and skb outlive the call; nothing is written back but attr.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, "PROG_TEST_RUN", &mut attr)? };
    Ok((attr.retval, attr.duration))
}
