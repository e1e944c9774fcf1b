//! What several CPUs do to the same words has to add up: the compiler's backend has dropped the fetch of an atomic addition
//! before.

use std::{
    mem::offset_of,
    os::fd::{AsFd as _, OwnedFd},
    sync::Barrier,
    thread,
};

use anyhow::{Result, ensure};
use guard_agent::{
    clock,
    kernel::{
        controls::Orders,
        sys::{self, TestPacket},
    },
};
use guard_common::{Containment, Control, containment_kind};
use guard_tests::guarded::{Guarded, SECOND, external};

/// A round may find the CPUs busy with something else, one after the other.
const ROUNDS: u64 = 10;

/// What a packet of 1,400 bytes behind an Ethernet header is.
fn frame() -> Vec<u8> {
    let mut frame = vec![0; 14 + 1400];
    (frame[12], frame[14], frame[23]) = (0x08, 0x45, 17);
    frame[30..34].copy_from_slice(&[203, 0, 113, 2]);
    frame
}

/// Runs the egress program so often on each of some CPUs at once, several times over; returns how many packets that were.
fn run_at_once(program: &OwnedFd, ifindex: u32, repeat: u32) -> u64 {
    let cpus = cpus();
    assert!(cpus.len() > 1, "one CPU proves nothing");
    for _ in 0..ROUNDS {
        let barrier = Barrier::new(cpus.len());
        thread::scope(|scope| {
            for cpu in &cpus {
                scope.spawn(|| {
                    stay_on(*cpu);
                    barrier.wait();
                    let packet = TestPacket { frame: &frame(), ifindex, gso: None };
                    sys::prog_test_run(program.as_fd(), packet, repeat).expect("a test run");
                });
            }
        });
    }
    cpus.len() as u64 * ROUNDS * u64::from(repeat)
}

/// Up to four CPUs that this thread may use.
#[expect(unsafe_code, reason = "sched_getaffinity(2)")]
fn cpus() -> Vec<usize> {
    // SAFETY: plain data, which zeros are valid for; the call writes no more than its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&set), &raw mut set), 0, "sched_getaffinity");
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).take(4).collect()
    }
}

/// The calling thread shares its CPU with none of the others.
#[expect(unsafe_code, reason = "sched_setaffinity(2)")]
fn stay_on(cpu: usize) {
    // SAFETY: plain data, which zeros are valid for; the CPU is one of the set's.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0, "sched_setaffinity");
    }
}

#[test]
fn no_token_is_spent_twice_or_lost_when_all_cpus_spend_at_once() -> Result<()> {
    // A byte is a microsecond's tokens, far more than passes while it is spent: the bucket's brim does not come into it.
    // Without credit each packet asks for just what it needs.
    let (rate, seconds) = (1_000_000, 10_000);
    let guarded = Guarded::new(Orders { egress: external(rate, rate * seconds, 1), ..Orders::default() })?;
    let (ifindex, program) = (guarded.wires.node.enter()?, guarded.egress_program()?);
    let spent = || guarded.word(offset_of!(Control, egress_state.spent));
    let evidence = || anyhow::Ok(guarded.evidence()?.iter().map(|sample| sample.bytes).sum::<u64>());
    run_at_once(&program, ifindex, 1000);
    let (spent_before, before, evidence_before) = (spent()?, guarded.counters()?.egress, evidence()?);
    let packets = run_at_once(&program, ifindex, 100_000);
    let after = guarded.counters()?.egress;
    let passed = after.bytes[1] - before.bytes[1];
    let counted = (passed, after.packets[1] - before.packets[1]);
    ensure!(counted == (packets * 1400, packets), "{counted:?} counted of {packets} packets");
    ensure!(after.other == 0 && guarded.report().egress_empty == 0, "{after:?}, {:?}", guarded.report());
    let tokens = (spent()? - spent_before) / 1000;
    ensure!(tokens == passed, "{passed} bytes passed for {tokens} bytes' tokens");
    // All CPUs add to the same word. A new epoch has a new one, which two may make: then the sample of one is lost.
    let noted = evidence()? - evidence_before;
    ensure!((passed - 4 * 1400..=passed).contains(&noted), "{passed} bytes passed, {noted} are noted");
    Ok(())
}

/// The same of a throttle's tokens, most of which time gives back meanwhile.
#[test]
fn what_all_cpus_send_at_once_is_throttled_to_the_packet() -> Result<()> {
    let guarded = Guarded::new(Orders { egress: external(1 << 30, 1 << 34, 64 << 10), ..Orders::default() })?;
    let (ifindex, program) = (guarded.wires.node.enter()?, guarded.egress_program()?);
    // A byte is a nanosecond's tokens.
    let (kind, since) = (containment_kind::THROTTLE, clock::boottime());
    guarded.contain(Containment { kind, rate: SECOND, until: u64::MAX, since });
    let spent = || guarded.word(offset_of!(Control, throttle_spent));
    let before = spent()?;
    let packets = run_at_once(&program, ifindex, 100_000);
    let counted = guarded.counters()?.egress;
    let tokens = spent()? - before;
    let passed = counted.bytes[1];
    ensure!(passed + counted.other == packets * 1400, "{counted:?} of {packets} packets");
    ensure!(passed > 0 && counted.other > 0, "{counted:?}: nothing was throttled");
    ensure!(counted.packets[1] * 1400 == passed, "{counted:?}");
    // Those that nobody fetched for 250 ms are lost by design.
    ensure!(tokens >= passed, "{passed} bytes passed for {tokens} bytes' tokens");
    Ok(())
}
