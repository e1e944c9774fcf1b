//! Packets that cannot be had on a wire of this machine: what the programs make of them, one by one.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use guard_agent::kernel::{controls::Orders, sys::Hook};
use guard_common::{Class, Tally};
use guard_tests::{
    eventually,
    guarded::Guarded,
    meter::Meter,
    net::{EXTERNAL_V4, EXTERNAL_V6, NODE, Wires, run},
    process::Traffic,
};
use ipnet::IpNet;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const HOPOPTS: u8 = 0;
const ROUTING: u8 = 43;
const DSTOPTS: u8 = 60;

/// An IPv4 packet; `words` is the length of its header, and of TCP's behind it, in words of 4 bytes.
fn v4(protocol: u8, [ip_words, tcp_words]: [u8; 2], len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    let header = usize::from(ip_words) * 4;
    packet[0] = 0x40 | ip_words;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&[203, 0, 113, 1]);
    packet[16..20].copy_from_slice(&[203, 0, 113, 2]);
    if protocol == TCP {
        packet[header + 12] = tcp_words << 4;
    }
    packet
}

/// An IPv6 packet with these extension headers, each with its length in units of 8 bytes behind the first 8.
fn v6(extensions: &[(u8, u8)], protocol: u8, tcp_words: u8, len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[0] = 0x60;
    packet[8..12].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    packet[24..28].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    let (mut next, mut at) = (6, 40);
    for (kind, units) in extensions {
        packet[next] = *kind;
        packet[at + 1] = *units;
        (next, at) = (at, at + 8 * (usize::from(*units) + 1));
    }
    packet[next] = protocol;
    if protocol == TCP {
        packet[at + 12] = tcp_words << 4;
    }
    packet
}

fn tally(bytes: u64, packets: u64) -> Tally {
    Tally { bytes: [0, bytes], packets: [0, packets], other: 0 }
}

#[test]
fn super_packets_count_their_headers_once_per_segment() -> Result<()> {
    let meter = Meter::new(&[])?;
    // BIG TCP's header inside the host: a hop-by-hop option of 8 bytes (RFC 2675), not on the wire.
    let mut jumbo = v6(&[(HOPOPTS, 0)], TCP, 8, 1480);
    jumbo[42..44].copy_from_slice(&[0xc2, 4]);
    // What it is, packet, segments, payload of each, bytes of headers, bytes that vanish.
    let cases = [
        ("TCP with timestamps", v4(TCP, [5, 8], 1052), 10, 100, 52, 0),
        ("TCP without options", v4(TCP, [5, 5], 1040), 10, 100, 40, 0),
        ("TCP behind IPv4 options", v4(TCP, [7, 8], 1060), 10, 100, 60, 0),
        ("TCP with all options", v4(TCP, [15, 15], 1120), 10, 100, 120, 0),
        ("UDP", v4(UDP, [5, 0], 1028), 10, 100, 28, 0),
        ("SCTP, by fragments", v4(SCTP, [5, 0], 1032), 3, 0xffff, 32, 0),
        ("another protocol", v4(ICMP, [5, 0], 1020), 10, 100, 20, 0),
        ("TCP over IPv6", v6(&[], TCP, 8, 1072), 10, 100, 72, 0),
        ("UDP over IPv6", v6(&[], UDP, 0, 1048), 10, 100, 48, 0),
        ("behind hop-by-hop options", v6(&[(HOPOPTS, 1)], TCP, 5, 1076), 10, 100, 76, 0),
        ("behind two extension headers", v6(&[(ROUTING, 2), (DSTOPTS, 0)], UDP, 0, 1080), 10, 100, 80, 0),
        ("BIG TCP", jumbo, 14, 100, 72, 8),
        ("segments left open", v4(TCP, [5, 8], 1051), 0, 100, 52, 0),
        ("a segment only", v4(TCP, [5, 8], 152), 0, 100, 52, 0),
    ];
    for (name, packet, segments, size, headers, vanish) in cases {
        let len = packet.len() as u64;
        let count = match segments {
            0 => (len - headers).div_ceil(u64::from(size)),
            given => given.into(),
        };
        let expected = tally(len - vanish + (count - 1) * headers, count);
        for hook in Hook::ALL {
            let counted = meter.run(hook, &packet, Some((segments, size)))?;
            let (here, there) = match hook {
                Hook::Egress => (counted.egress, counted.ingress),
                Hook::Ingress => (counted.ingress, counted.egress),
            };
            ensure!(here == expected, "{name}, {hook:?}: {here:?} instead of {expected:?}");
            ensure!(there == Tally::default(), "{name}, {hook:?}: the other direction moved");
        }
    }
    Ok(())
}

#[test]
fn what_is_no_ip_packet_is_external_and_counted() -> Result<()> {
    let meter = Meter::new(&["0.0.0.0/0".parse()?, "::/0".parse()?])?;
    let cases = [("nonsense", vec![0xf0; 60]), ("too short", vec![0x45; 19]), ("a cut IPv6 header", vec![0x60; 39])];
    for (name, packet) in cases {
        let counted = meter.run(Hook::Egress, &packet, None)?.egress;
        let expected = tally(packet.len() as u64, 1);
        ensure!(counted == expected, "{name}: {counted:?} instead of {expected:?}");
    }
    Ok(())
}

/// With real packets: kernels 6.1 and 6.12 give a cgroup program no direct access to a test run's packet, whose peer is
/// unknown to it then.
#[test]
fn every_one_of_sixteen_cidrs_is_compared_to_the_bit() -> Result<()> {
    let v4_nets: Vec<IpNet> =
        (0..16).map(|i| format!("10.{}.0.0/{}", i * 8, 13 + i).parse()).collect::<Result<_, _>>()?;
    let v6_nets =
        (0..16u16).map(|i| format!("fd00:{:x}::/{}", 2 * i, if i % 2 == 0 { 32 } else { 96 }).parse::<IpNet>());
    let nets: Vec<IpNet> = v4_nets.into_iter().chain(v6_nets.collect::<Result<Vec<_>, _>>()?).collect();
    let beyond = |address: IpAddr| match address {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() + 1)),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() + 1)),
    };
    let probes = nets.iter().flat_map(|net| [net.network(), net.broadcast(), beyond(net.broadcast())]);
    // What is beyond one may be the beginning of the next.
    let probes: BTreeSet<IpAddr> = probes.collect();
    let guarded = Guarded::with_cluster(&nets, Orders::default())?;
    let Wires { node, world } = &guarded.wires;
    for (family, gateway) in [("-4", EXTERNAL_V4), ("-6", EXTERNAL_V6)] {
        run(&format!("ip {family} -n {} route add default via {gateway}", node.name))?;
    }
    for address in &probes {
        run(&format!("ip -n {} addr add {address} dev world0", world.name))?;
    }
    // Of both IP versions.
    let sink = "udp-sink --bind [::]:9100";
    let _sinks = [Traffic::serve(world, None, sink)?, Traffic::serve(node, Some(&guarded.container), sink)?];
    let is_cluster = |address: &IpAddr| nets.iter().any(|net| net.contains(address));
    for (class, v4) in
        [(Class::Cluster, true), (Class::Cluster, false), (Class::External, true), (Class::External, false)]
    {
        let of_class = |address: &&IpAddr| is_cluster(address) == (class == Class::Cluster) && address.is_ipv4() == v4;
        let of_class: Vec<&IpAddr> = probes.iter().filter(of_class).collect();
        ensure!(of_class.len() >= 15, "{of_class:?} are too few");
        for hook in Hook::ALL {
            let to = |address: IpAddr| SocketAddr::from((address, 9100));
            let before = guarded.counters()?;
            let count = of_class.len();
            if hook == Hook::Egress {
                let all: Vec<String> = of_class.iter().map(|address| format!("--to {}", to(**address))).collect();
                let send = format!("udp-send --count {count} {}", all.join(" "));
                Traffic::run(node, Some(&guarded.container), &send)?;
            } else {
                let all: Vec<String> = of_class.iter().map(ToString::to_string).collect();
                let own = to(NODE[if v4 { 1 } else { 3 }].parse()?);
                Traffic::run(world, None, &format!("udp-send --count {count} --to {own} --from {}", all.join(",")))?;
            }
            let mut expected = [0; 2];
            expected[class as usize] = count as u64;
            eventually("all are counted", Duration::from_secs(5), || {
                let counted = guarded.counters()? - before;
                let tally = if hook == Hook::Egress { counted.egress } else { counted.ingress };
                ensure!(tally.packets == expected, "{hook:?}: {tally:?} of {of_class:?}, all of them {class:?}");
                Ok(())
            })?;
        }
    }
    Ok(())
}
