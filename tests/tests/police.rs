//! What the programs do by themselves: limits, containment and evidence, without an agent.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use guard_agent::{
    clock,
    kernel::{
        controls::Orders,
        sys::{self, TestPacket},
    },
};
use guard_common::{Class, Containment, containment_kind};
use guard_tests::{
    eventually,
    guarded::{Guarded, SECOND, external},
    net::{CLUSTER_V4, EXTERNAL_V4, Wire},
    process::Traffic,
    random::Random,
    world::HEADERS,
};

const MIB: u64 = 1 << 20;

/// Far more than any test sends.
fn roomy() -> Orders {
    Orders { egress: external(1 << 30, 1 << 34, 64 << 10), ..Orders::default() }
}

/// A small bucket, and a block when it is empty.
fn small(rate: u64, burst: u64, quantum: u64) -> Orders {
    let on_breach = Containment { kind: containment_kind::BLOCK, rate: 0, until: 600 * SECOND, since: 0 };
    Orders { egress: external(rate, burst, quantum), on_breach, ..Orders::default() }
}

fn throttle(rate: u64) -> Containment {
    Containment { kind: containment_kind::THROTTLE, rate, until: u64::MAX, since: clock::boottime() }
}

fn block() -> Containment {
    Containment { kind: containment_kind::BLOCK, rate: 0, until: u64::MAX, since: clock::boottime() }
}

fn sink(guarded: &Guarded, address: &str) -> Result<Traffic> {
    Traffic::serve(&guarded.wires.world, None, &format!("udp-sink --bind {address}:9100"))
}

fn sent(guarded: &Guarded) -> Result<Wire> {
    guarded.wires.quiet()?;
    Ok(guarded.wires.node.interface()?.tx)
}

#[test]
fn no_more_than_burst_and_rate_passes_a_blocking_limit() -> Result<()> {
    let (rate, burst, quantum) = (MIB, 4 * MIB, 8 << 10);
    let guarded = Guarded::new(small(rate, burst, quantum))?;
    let _sink = sink(&guarded, EXTERNAL_V4)?;
    let (start, before) = (Instant::now(), sent(&guarded)?);
    let flood = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 1200,300,64 --count 20000 --threads 4 --stubborn");
    Traffic::run(&guarded.wires.node, Some(&guarded.container), &flood)?;
    let passed = sent(&guarded)?.bytes - before.bytes;
    let refilled = (start.elapsed().as_secs_f64() * rate as f64) as u64;
    let cpus = thread::available_parallelism()?.get() as u64;
    // Credit that other CPUs hold makes it a little less; a packet that is on its way on each CPU a little more.
    ensure!(passed <= burst + refilled + cpus * 1300, "{passed} bytes passed a bucket of {burst} and {refilled}");
    ensure!(passed + cpus * 2 * quantum >= burst, "only {passed} bytes passed a bucket of {burst}");
    let counted = guarded.counters()?.egress;
    ensure!(counted.bytes[Class::External as usize] == passed, "counted {counted:?}, the wire says {passed}");
    let offered = 80_000 / 3 * (1200 + 300 + 64 + 3 * HEADERS);
    ensure!(counted.other + passed > offered, "{} were dropped of {offered}", counted.other);
    ensure!(guarded.report().contained.is_some() && guarded.report().egress_empty > 0, "{:?}", guarded.report());
    Ok(())
}

/// Random trains of packets from all CPUs against the definition of the limit.
#[test]
fn random_trains_on_all_cpus_keep_to_the_model() -> Result<()> {
    let guarded = Guarded::new(roomy())?;
    let ifindex = guarded.wires.node.enter()?;
    let program = guarded.egress_program()?;
    let cpus = thread::available_parallelism()?.get();
    let mut random = Random::new(0x5eed);
    let mut crossed = 0;
    for case in 0..60 {
        let (rate, burst) = (10_000 << random.below(11), (64 << 10) << random.below(5));
        let quantum = (rate / 1000).clamp(64, burst / (8 * cpus as u64));
        // Another limit is a full bucket, the same one is not.
        guarded.order(roomy());
        guarded.release();
        guarded.order(small(rate, burst, quantum));
        let trains: Vec<u64> = (0..cpus * 2).map(|_| random.next()).collect();
        let (start, before) = (clock::boottime(), guarded.counters()?.egress);
        let largest = AtomicU64::new(0);
        thread::scope(|scope| {
            for seed in &trains {
                scope.spawn(|| train(&program, ifindex, *seed, &largest));
            }
        });
        let elapsed = clock::boottime() - start;
        let after = guarded.counters()?.egress;
        let passed = after.bytes[1] - before.bytes[1];
        let refilled = (u128::from(elapsed) * u128::from(rate) / u128::from(SECOND)) as u64;
        let (one_each, quanta) = (largest.load(Relaxed) * cpus as u64, 2 * quantum * cpus as u64);
        let at = format!("case {case}: rate {rate}, burst {burst}, quantum {quantum}, {passed} bytes passed");
        ensure!(passed <= burst + refilled + one_each, "{at}: more than {burst} and {refilled}");
        if guarded.report().contained.is_some() {
            crossed += 1;
            ensure!(passed + quanta + one_each >= burst, "{at}: crossed too soon");
            ensure!(after.other > before.other, "{at}: nothing was dropped");
        } else {
            ensure!(after.other == before.other, "{at}: dropped without a breach");
        }
    }
    ensure!((10..60).contains(&crossed), "{crossed} of 60 cases crossed the limit: they show too little");
    Ok(())
}

/// Sends packets of random sizes with random pauses, until one is not let through.
fn train(program: &std::os::fd::OwnedFd, ifindex: u32, seed: u64, largest: &AtomicU64) {
    let mut random = Random::new(seed);
    for _ in 0..=random.below(60) {
        let mut frame = vec![0; 14 + 28 + random.below(1400) as usize];
        frame[12] = 0x08;
        frame[14] = 0x45;
        frame[30..34].copy_from_slice(&[203, 0, 113, random.below(250) as u8]);
        largest.fetch_max(frame.len() as u64 - 14, Relaxed);
        let packet = TestPacket { frame: &frame, ifindex, gso: None };
        let repeat = 1 + random.below(40) as u32;
        let (verdict, _) = sys::prog_test_run(program.as_fd(), packet, repeat).expect("a test run");
        if verdict != 1 {
            return;
        }
        thread::sleep(Duration::from_micros(random.below(400)));
    }
}

#[test]
fn blocked_nothing_leaves_and_cluster_traffic_is_untouched() -> Result<()> {
    let guarded = Guarded::new(roomy())?;
    let _sinks = [sink(&guarded, EXTERNAL_V4)?, sink(&guarded, CLUSTER_V4)?];
    guarded.contain(block());
    let before = sent(&guarded)?;
    for address in [EXTERNAL_V4, CLUSTER_V4] {
        let send = format!("udp-send --to {address}:9100 --sizes 500 --count 1000 --stubborn");
        Traffic::run(&guarded.wires.node, Some(&guarded.container), &send)?;
    }
    let after = sent(&guarded)?;
    let cluster = Wire { bytes: 1000 * (500 + HEADERS), packets: 1000 };
    let passed = Wire { bytes: after.bytes - before.bytes, packets: after.packets - before.packets };
    ensure!(passed == cluster, "{passed:?} passed, and the cluster's was {cluster:?}");
    let counted = guarded.counters()?.egress;
    ensure!((counted.bytes, counted.other) == ([cluster.bytes, 0], cluster.bytes), "{counted:?}");
    guarded.release();
    let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 500 --count 1000");
    Traffic::run(&guarded.wires.node, Some(&guarded.container), &send)?;
    ensure!(sent(&guarded)?.packets == after.packets + 1000, "released, and not everything passed");
    Ok(())
}

#[test]
fn a_containment_that_nobody_renews_lapses_by_itself() -> Result<()> {
    let guarded = Guarded::new(roomy())?;
    let _sink = sink(&guarded, EXTERNAL_V4)?;
    let until = clock::boottime() + 2 * SECOND;
    guarded.contain(Containment { until, ..block() });
    let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 500 --rate 100000 --seconds 5 --stubborn");
    let _traffic = Traffic::start(&guarded.wires.node, Some(&guarded.container), &send)?;
    thread::sleep(Duration::from_millis(1500));
    ensure!(guarded.counters()?.egress.bytes == [0, 0], "something left before it lapsed");
    eventually("it lapses", Duration::from_secs(2), || {
        ensure!(guarded.counters()?.egress.bytes[1] > 0, "nothing leaves");
        Ok(())
    })?;
    let late = (clock::boottime().saturating_sub(until)) as f64 / 1e9;
    ensure!((0.0..0.5).contains(&late), "it lapsed {late} s after its end");
    ensure!(guarded.report().contained.is_none(), "it says that it is still contained");
    Ok(())
}

#[test]
fn without_an_agent_nothing_new_is_contained() -> Result<()> {
    let guarded = Guarded::new(small(100_000, 64 << 10, 1000))?;
    let _sink = sink(&guarded, EXTERNAL_V4)?;
    guarded.arm(clock::boottime());
    let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 500 --count 1000");
    Traffic::run(&guarded.wires.node, Some(&guarded.container), &send)?;
    let report = guarded.report();
    ensure!(report.egress_empty > 0 && report.contained.is_none(), "{report:?}");
    ensure!(guarded.counters()?.egress.bytes[1] == 1000 * (500 + HEADERS), "{:?}", guarded.counters()?);
    Ok(())
}

#[test]
fn the_kill_switch_lifts_every_containment_within_100_ms_without_an_agent() -> Result<()> {
    let guarded = Guarded::new(small(100_000, 64 << 10, 1000))?;
    let _sink = sink(&guarded, EXTERNAL_V4)?;
    guarded.contain(block());
    let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 500 --rate 1000000 --seconds 20 --stubborn");
    let _traffic = Traffic::start(&guarded.wires.node, Some(&guarded.container), &send)?;
    thread::sleep(Duration::from_millis(500));
    ensure!(guarded.counters()?.egress.bytes == [0, 0], "something left while blocked");
    guarded.kill_switch(true)?;
    let engaged = Instant::now();
    while guarded.counters()?.egress.bytes == [0, 0] {
        ensure!(engaged.elapsed() < Duration::from_millis(100), "still blocked {:?} later", engaged.elapsed());
    }
    let dropped = guarded.counters()?.dropped();
    thread::sleep(Duration::from_secs(1));
    ensure!(guarded.counters()?.dropped() == dropped, "the kill switch is engaged, and packets are dropped");
    // The bucket has long been empty, and that is still found and told.
    ensure!(guarded.report().egress_empty > 0, "a breach is not found while it is engaged");
    Ok(())
}

/// Starts traffic that would take all the wire and returns what passes of it in ten seconds, as a multiple of the
/// throttle's rate.
fn throttled(rate: u64, offload: bool, sink: &str, send: &str) -> Result<f64> {
    let guarded = Guarded::new(roomy())?;
    if offload {
        guarded.wires.offload()?;
    }
    let mut sink = Traffic::serve(&guarded.wires.world, None, &sink.replace("TO", &format!("{EXTERNAL_V4}:9100")))?;
    guarded.contain(throttle(rate));
    let send = send.replace("TO", &format!("{EXTERNAL_V4}:9100"));
    let mut traffic = Traffic::start(&guarded.wires.node, Some(&guarded.container), &send)?;
    // From the first packets on: the throttle has no burst that would have to be left out.
    let (start, before) = (Instant::now(), guarded.wires.node.interface()?.tx.bytes);
    thread::sleep(Duration::from_secs(10));
    let passed = guarded.wires.node.interface()?.tx.bytes - before;
    let times = passed as f64 / start.elapsed().as_secs_f64() / rate as f64;
    println!("{rate} bytes/s, offload {offload}, {send}: {times:.3} of the rate");
    ensure!(traffic.is_running()? && sink.is_running()?, "a connection stalled or was reset");
    Ok(times)
}

#[test]
fn a_throttle_lets_its_rate_of_udp_through() -> Result<()> {
    let case = |rate: u64, size: u64| {
        let send = format!("udp-send --to TO --sizes {size} --rate {} --seconds 30", rate * 3);
        let times = throttled(rate, false, "udp-sink --bind TO", &send)?;
        ensure!((0.95..=1.05).contains(&times), "{rate} bytes/s of datagrams of {size}: {times}");
        Ok(())
    };
    at_once([(MIB, 1000), (20 * MIB, 1400), (100_000, 60)], |(rate, size)| case(rate, size))
}

#[test]
fn a_throttle_lets_its_rate_of_tcp_through_without_stalls_or_resets() -> Result<()> {
    // A connection that gets nothing for so long has stalled; twenty share what one has for itself.
    let case = |rate: u64, connections: u64, patience: u64, offload: bool| {
        let sink = format!("tcp-sink --bind TO --connections {connections} --patience {patience}");
        let send = format!("tcp-send --to TO --seconds 30 --connections {connections}");
        let times = throttled(rate, offload, &sink, &send)?;
        ensure!((0.8..=1.05).contains(&times), "{rate} bytes/s over {connections} connections: {times}");
        Ok(())
    };
    for rate in [MIB, 20 * MIB] {
        at_once([false, true], |offload| case(rate, 1, 2000, offload))?;
        // Twenty senders that have all but a little dropped keep the machine busy.
        [false, true].into_iter().try_for_each(|offload| case(rate, 20, 10_000, offload))?;
    }
    Ok(())
}

/// Runs all cases at the same time, each on a wire of its own.
fn at_once<T: Send>(cases: impl IntoIterator<Item = T>, run: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let run = &run;
    thread::scope(|scope| {
        let running: Vec<_> = cases.into_iter().map(|case| scope.spawn(move || run(case))).collect();
        running.into_iter().try_for_each(|case| case.join().expect("a case"))
    })
}

#[test]
fn a_changed_limit_holds_at_once_and_counts_go_on() -> Result<()> {
    let guarded = Guarded::new(roomy())?;
    let _sink = sink(&guarded, EXTERNAL_V4)?;
    let send = |count: u64| -> Result<()> {
        let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 972 --count {count} --stubborn");
        Traffic::run(&guarded.wires.node, Some(&guarded.container), &send)
    };
    send(100)?;
    ensure!(guarded.counters()?.egress.bytes[1] == 100_000, "{:?}", guarded.counters()?);
    // The CPUs still hold credit of up to 64 KiB each from the roomy limit.
    guarded.order(small(1, 10_000, 100));
    send(100)?;
    let counted = guarded.counters()?.egress;
    ensure!((109_000..=110_000).contains(&counted.bytes[1]), "{counted:?}");
    guarded.order(roomy());
    guarded.release();
    send(100)?;
    ensure!(guarded.counters()?.egress.bytes[1] == counted.bytes[1] + 100_000, "{:?}", guarded.counters()?);
    Ok(())
}

#[test]
fn the_estimate_of_a_destination_with_a_twentieth_of_the_bytes_is_within_a_tenth() -> Result<()> {
    // 20,000 samples: three standard deviations of a twentieth are 9 % of it.
    let guarded = Guarded::new(Orders { egress: external(1 << 30, 1 << 34, 4 << 10), ..Orders::default() })?;
    let _sinks = [sink(&guarded, EXTERNAL_V4)?, sink(&guarded, CLUSTER_V4)?];
    let mut sent = BTreeMap::new();
    thread::scope(|scope| -> Result<()> {
        let mut senders = Vec::new();
        // Shares of 50, 25, 15, 5 and 5 %, at the same time and with packets that repeat themselves.
        for (port, size, count) in
            [(9100, 1372, 29_257u64), (9101, 972, 20_480), (9102, 484, 24_000), (9103, 100, 32_000), (9104, 1372, 2926)]
        {
            sent.insert(port, count * (size + HEADERS));
            let command = format!("udp-send --to {EXTERNAL_V4}:{port} --sizes {size} --count {count}");
            let (node, container) = (&guarded.wires.node, &guarded.container);
            senders.push(scope.spawn(move || Traffic::run(node, Some(container), &command)));
        }
        senders.into_iter().try_for_each(|sender| sender.join().expect("a sender"))
    })?;
    let all: u64 = sent.values().sum();
    let mut found = BTreeMap::new();
    for sample in guarded.evidence()? {
        ensure!(sample.address.to_string() == EXTERNAL_V4 && sample.protocol == 17 && !sample.ingress, "{sample:?}");
        *found.entry(sample.port).or_insert(0) += sample.bytes;
    }
    for (port, bytes) in &sent {
        let (bytes, estimate) = (*bytes as f64, *found.get(port).unwrap_or(&0) as f64);
        println!(
            "port {port}: {:.1} % of the bytes, estimate {:+.1} % off",
            bytes / all as f64 * 100.0,
            (estimate / bytes - 1.0) * 100.0
        );
        ensure!(bytes / all as f64 > 0.0499 || *port == 9103, "port {port} has too small a share for this test");
        ensure!((estimate / bytes - 1.0).abs() < 0.1, "port {port}: {estimate} estimated of {bytes}");
    }
    Ok(())
}

#[test]
fn a_scan_of_a_hundred_thousand_destinations_takes_bounded_memory_and_hides_nothing() -> Result<()> {
    let guarded = Guarded::new(Orders { egress: external(1 << 30, 1 << 34, 4 << 10), ..Orders::default() })?;
    let _sink = sink(&guarded, EXTERNAL_V4)?;
    let exfiltration = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 1372 --count 20000");
    Traffic::run(&guarded.wires.node, Some(&guarded.container), &exfiltration)?;
    let scan = format!("udp-scan --address {EXTERNAL_V4} --ports 50000 --rounds 2");
    Traffic::run(&guarded.wires.node, Some(&guarded.container), &scan)?;
    let evidence = guarded.evidence()?;
    ensure!(evidence.len() <= guard_common::EVIDENCE_ROOM as usize, "{} entries", evidence.len());
    ensure!(evidence.len() > 100, "the scan left {} entries only", evidence.len());
    let top = evidence.iter().max_by_key(|sample| sample.bytes).map(|sample| sample.port);
    ensure!(top == Some(9100), "{top:?} is said to have got most");
    Ok(())
}
