//! prototype
#![allow(missing_docs, clippy::all, clippy::pedantic)]
use std::os::fd::AsFd;
use guard_agent::kernel::{object::*, sys::*};
use guard_common::*;
fn main() -> anyhow::Result<()> {
    assert!(std::process::Command::new("sh").args(["-c", "ip link show egd0 >/dev/null 2>&1 || ip link add egd0 type veth peer name egd1"]).status()?.success());
    let ifindex: u32 = std::fs::read_to_string("/sys/class/net/egd0/ifindex")?.trim().parse()?;

    let n = std::env::var("NC").map_or(4, |v| v.parse().unwrap());
    let c: Vec<ipnet::IpNet> = (0..n).flat_map(|i| [format!("{}.0.0.0/8", 10 + i).parse().unwrap(), format!("fc{i:02x}::/16").parse().unwrap()]).collect();
    let params = Parameters::new(&c);
    let t = std::time::Instant::now();
    let p = Programs::load(Options { object: BENCH_OBJECT, slots: 1025, log: false, pins: None })?;
    println!("load {:?}", t.elapsed());
    let mut v4 = vec![0u8; 1514]; v4[12] = 8; v4[14] = 0x45; v4[30..34].copy_from_slice(&[8, 8, 8, 8]);
    let mut v6 = vec![0u8; 1514]; v6[12] = 0x86; v6[13]=0xdd; v6[14] = 0x60; v6[38..42].copy_from_slice(&[0x20, 1, 8, 8]);
    let t = std::time::Instant::now();
    let many: Vec<_> = (1..101).map(|s| p.load_program("meter_egress", &params.clone().with_slot(s), Hook::Egress)).collect::<Result<_,_>>()?;
    println!("per program {:?} jited {}", t.elapsed() / 100, prog_stats(many[0].as_fd())?.jited_len);
    let progs: Vec<_> = [("empty", Hook::Egress, &v4), ("meter_egress", Hook::Egress, &v4), ("meter_egress", Hook::Egress, &v6), ("meter_ingress", Hook::Ingress, &v4), ("storage", Hook::Egress, &v4), ("hash", Hook::Egress, &v4), ("accounting", Hook::Egress, &v4)].into_iter().map(|(n, h, f)| (n, p.load_program(n, &params.clone().with_slot(7), h).unwrap(), f)).collect();
    for _ in 0..5 { for (n, fd, f) in &progs { print!("{n} {} ", prog_test_run(fd.as_fd(), f, ifindex,  2_000_000)?.1); } println!(); }
    let mut keys = vec![0u32; 8]; let mut vals = vec![0u8; 8*128*2];
    array_lookup_batch(p.map("COUNTERS")?, 8, 256, &mut keys, &mut vals)?;
    let u: Vec<u64> = vals.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
    println!("{:?}", &u[7*32..]);
    Ok(())
}
