//! What a packet says of itself: the class of its peer, and what it is on the wire.
//!
//! The hook sees a packet before it is segmented or fragmented (egress) and after it was put together again
//! (ingress), so one run may stand for many packets on the wire.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};
use guard_common::{
    Class, Destination,
    parameter::{MASK, NET, V4_LEN, V6_LEN, v4, v6},
};

use crate::{meter::Direction, parameter};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: u32 = 8;
const SCTP_HEADER: u32 = 12;
const FRAGMENT_HEADER: u32 = 8;

const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_DSTOPTS: u8 = 60;
const IPPROTO_SCTP: u8 = 132;

/// `__sk_buff::pkt_type` of what is for many (`include/uapi/linux/if_packet.h`).
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;
/// The first byte of IPv4's groups, and of its broadcast.
const CLASS_D: u8 = 224;

/// The jumbo payload option (RFC 2675).
const TLV_JUMBO: u8 = 0xc2;

/// How many IPv6 extension headers of a super-packet are looked behind.
const MAX_EXTENSIONS: usize = 2;

/// The smallest first fragment that is believed to be one. Every IPv6 link carries 1280 bytes, and a header's room
/// is left below; headers alone, as a packet with its payload in pages has them, are far shorter.
const LEAST_FRAGMENT: u32 = 1200;

/// The class of the packet's peer.
///
/// A packet that is neither IPv4 nor IPv6, or too short to say, is external: the guard never looks away.
#[inline(always)]
pub(crate) fn class(skb: *const __sk_buff, direction: Direction) -> Class {
    // SAFETY: the context of a cgroup_skb program; the verifier checks each access against data_end.
    unsafe {
        let data = (*skb).data as usize;
        let end = (*skb).data_end as usize;
        if data + IPV4_HEADER > end {
            return Class::External;
        }
        let first = *(data as *const u8);
        if first >> 4 == 4 {
            let at = if matches!(direction, Direction::Egress) { 16 } else { 12 };
            return class_v4(*((data + at) as *const u32));
        }
        if first >> 4 == 6 && data + IPV6_HEADER <= end {
            let at = if matches!(direction, Direction::Egress) { 24 } else { 8 };
            return class_v6(*((data + at) as *const u64), *((data + at + 8) as *const u64));
        }
    }
    Class::External
}

/// Writes the comparison out for each of the [`guard_common::MAX_CIDRS`]: the verifier knows how many are in use and
/// removes the others, and what is left compares registers with constants.
macro_rules! any_cidr {
    ($i:ident < $len:expr, $matches:expr) => {
        any_cidr!($i < $len, $matches, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($i:ident < $len:expr, $matches:expr, $($n:literal)*) => {
        $(
            const { assert!($n < guard_common::MAX_CIDRS) };
            {
                const $i: u64 = $n;
                if $len <= $i {
                    return Class::External;
                }
                if $matches {
                    return Class::Cluster;
                }
            }
        )*
    };
}

#[inline(always)]
fn class_v4(address: u32) -> Class {
    let len = parameter!(V4_LEN);
    any_cidr!(I < len, address & parameter!(v4(I, MASK)) as u32 == parameter!(v4(I, NET)) as u32);
    Class::External
}

#[inline(always)]
fn class_v6(high: u64, low: u64) -> Class {
    let len = parameter!(V6_LEN);
    any_cidr!(
        I < len,
        high & parameter!(v6(I, MASK, 0)) == parameter!(v6(I, NET, 0))
            && low & parameter!(v6(I, MASK, 1)) == parameter!(v6(I, NET, 1))
    );
    Class::External
}

/// Whether others may receive the packet, too, or the kernel answer it: it is for a group, or a raw socket takes it. Such a socket
/// has its protocol's number for a port (`inet_create`), and the kernel shows programs like these a socket's port, not its type.
#[inline(always)]
pub(crate) fn is_copy(skb: *const __sk_buff) -> bool {
    // SAFETY: the context of a cgroup_skb program; the verifier checks each access against data_end, and the socket for null.
    unsafe {
        if matches!((*skb).pkt_type, PACKET_BROADCAST | PACKET_MULTICAST) {
            return true;
        }
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() || data + IPV6_HEADER > end {
            return false;
        }
        let port = (*socket).src_port;
        if *(data as *const u8) >> 4 == 4 {
            let is_raw = port != 0 && port == u32::from(*((data + 9) as *const u8));
            return is_raw || *((data + 16) as *const u8) >= CLASS_D;
        }
        let next = *((data + 6) as *const u8);
        // Behind an extension header stands any protocol.
        let is_behind = port <= u32::from(u8::MAX) && !matches!(next, IPPROTO_TCP | IPPROTO_UDP);
        let is_raw = port != 0 && (port == u32::from(next) || is_behind);
        is_raw || *((data + 24) as *const u8) == u8::MAX
    }
}

/// Bytes (from the IP header on) and packets that this packet is on the wire.
#[inline(always)]
pub(crate) fn wire(skb: *const __sk_buff, direction: Direction) -> (u64, u64) {
    // SAFETY: the context of a cgroup_skb program.
    let (len, gso_size, linear) =
        unsafe { ((*skb).len, (*skb).gso_size, ((*skb).data_end as usize - (*skb).data as usize) as u32) };
    let packed = if gso_size != 0 {
        segmented(skb)
    } else if matches!(direction, Direction::Egress) && linear < len && linear >= LEAST_FRAGMENT {
        fragmented(skb, len, linear)
    } else {
        return (u64::from(len), 1);
    };
    (packed & 0xffff_ffff, packed >> 32)
}

/// A subprogram returns one register: bytes below, packets above.
#[inline(always)]
fn pack(bytes: u32, packets: u32) -> u64 {
    u64::from(packets) << 32 | u64::from(bytes)
}

#[inline(always)]
fn load<T: Copy>(skb: *const __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes the whole value, or fails and says so.
    unsafe {
        let to = value.as_mut_ptr().cast::<c_void>();
        let failed = bpf_skb_load_bytes(skb.cast::<c_void>(), offset, to, size_of::<T>() as u32);
        (failed == 0).then(|| value.assume_init())
    }
}

/// A super-packet: its headers go out once for every segment.
#[inline(never)]
fn segmented(skb: *const __sk_buff) -> u64 {
    // SAFETY: the context of a cgroup_skb program.
    let (len, segments, size) = unsafe { ((*skb).len, (*skb).gso_segs, (*skb).gso_size) };
    let (header, jumbo) = headers(skb);
    let len = len - jumbo;
    // A device may leave the counting to us: virtio's super-packets say only the segments' size.
    // What a sender forged of its headers must not count beyond the packet.
    let header = header.min(len);
    let segments = if segments == 0 && size != 0 { (len - header).div_ceil(size) } else { segments };
    if segments < 2 {
        return pack(len, 1);
    }
    pack(len + (segments - 1) * header, segments)
}

/// Length of the IP and TCP or UDP headers as they are on the wire, and that of the jumbo payload option, which a
/// packet over 64 KiB (BIG TCP) has inside the host only.
#[inline(always)]
fn headers(skb: *const __sk_buff) -> (u32, u32) {
    let Some(first) = load::<u8>(skb, 0) else { return (0, 0) };
    let (mut length, mut jumbo) = (u32::from(first & 0xf) * 4, 0);
    let mut protocol = load::<u8>(skb, if first >> 4 == 4 { 9 } else { 6 }).unwrap_or(0);
    if first >> 4 != 4 {
        length = IPV6_HEADER as u32;
        for _ in 0..MAX_EXTENSIONS {
            if !matches!(protocol, IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS) {
                break;
            }
            let Some([next, units, option, _]) = load::<[u8; 4]>(skb, length + jumbo) else { break };
            if protocol == IPPROTO_HOPOPTS && units == 0 && option == TLV_JUMBO {
                jumbo = 8;
            } else {
                length += (u32::from(units) + 1) * 8;
            }
            protocol = next;
        }
    }
    let transport = match protocol {
        IPPROTO_TCP => load::<u8>(skb, length + jumbo + 12).map_or(0, |offset| u32::from(offset >> 4) * 4),
        IPPROTO_UDP => UDP_HEADER,
        IPPROTO_SCTP => SCTP_HEADER,
        _ => 0,
    };
    (length + transport, jumbo)
}

/// A datagram longer than the MTU: the kernel has laid it out as a list of fragments already, of which the linear
/// part is the first (`__ip_append_data`), and gives each its header after this hook.
///
/// The hook sees neither the MTU nor the list, so this is exact for a datagram that was handed over in one call, over
/// an MTU of 1200 or more that is 8n + 20 (IPv4) or 8n + 40 (IPv6), like 1500. With another MTU the last fragment may
/// hold up to 7 bytes more than the others, which is counted as one fragment too many. A datagram put together from
/// several calls (`MSG_MORE`, `UDP_CORK`) or from pages (`MSG_ZEROCOPY`) has another first part: off by a header for each
/// fragment at most.
#[inline(never)]
fn fragmented(skb: *const __sk_buff, len: u32, linear: u32) -> u64 {
    let first = load::<u8>(skb, 0).unwrap_or(0);
    let v4 = first >> 4 == 4;
    let (header, per_fragment) =
        if v4 { (u32::from(first & 0xf) * 4, 0) } else { (IPV6_HEADER as u32, FRAGMENT_HEADER) };
    let protocol = load::<u8>(skb, if v4 { 9 } else { 6 }).unwrap_or(0);
    let payload = linear - header;
    // TCP never gets here longer than the MTU. All fragments but the last carry a multiple of 8 bytes.
    if !matches!(protocol, IPPROTO_ICMP | IPPROTO_UDP | IPPROTO_ICMPV6) || payload == 0 || !payload.is_multiple_of(8) {
        return pack(len, 1);
    }
    let count = (len - header).div_ceil(payload);
    pack(len + (count - 1) * header + count * per_fragment, count)
}

/// The packet's peer: its address, protocol and port.
#[inline(always)]
pub(crate) fn destination(skb: *const __sk_buff, direction: Direction) -> Destination {
    let mut found = Destination::default();
    let egress = matches!(direction, Direction::Egress);
    let first = load::<u8>(skb, 0).unwrap_or(0);
    let transport = if first >> 4 == 4 {
        if let Some(address) = load::<[u8; 4]>(skb, if egress { 16 } else { 12 }) {
            found.address[10..12].copy_from_slice(&[0xff; 2]);
            found.address[12..].copy_from_slice(&address);
        }
        found.protocol = load::<u8>(skb, 9).unwrap_or(0);
        u32::from(first & 0xf) * 4
    } else {
        if let Some(address) = load::<[u8; 16]>(skb, if egress { 24 } else { 8 }) {
            found.address = address;
        }
        found.protocol = load::<u8>(skb, 6).unwrap_or(0);
        IPV6_HEADER as u32
    };
    if matches!(found.protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP)
        && let Some(port) = load::<[u8; 2]>(skb, transport + if egress { 2 } else { 0 })
    {
        found.port = u16::from_be_bytes(port);
    }
    found
}
