use anyhow::Result;
use guard_agent::kernel::controls::Orders;
use guard_common::{Containment, containment_kind};
use guard_tests::{
    guarded::{Guarded, external},
    net::EXTERNAL_V4,
    process::Traffic,
};
use std::{
    thread,
    time::{Duration, Instant},
};

#[test]
fn experiment() -> Result<()> {
    let rate: u64 = std::env::var("RATE")?.parse()?;
    let conns: u64 = std::env::var("CONNS")?.parse()?;
    let delay: u32 = std::env::var("DELAY")?.parse()?;
    let guarded = Guarded::new(Orders { egress: external(1 << 30, 1 << 32, 1 << 16), ..Orders::default() })?;
    if std::env::var("OFFLOAD").is_ok() {
        guarded.wires.offload()?;
    }
    if delay > 0 {
        guarded.wires.delay(delay)?;
    }
    guarded.contain(Containment {
        kind: containment_kind::THROTTLE,
        rate,
        until: u64::MAX,
        since: guard_agent::clock::boottime(),
    });
    let _sink;
    let _send;
    let secs = 12;
    if conns == 0 {
        _sink = Traffic::serve(&guarded.wires.world, None, &format!("udp-sink --bind {EXTERNAL_V4}:9100"))?;
        _send = Traffic::start(
            &guarded.wires.node,
            Some(&guarded.container),
            &format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 1000 --rate {} --seconds {secs}", rate * 3),
        )?;
    } else {
        _sink = Traffic::serve(
            &guarded.wires.world,
            None,
            &format!("tcp-sink --bind {EXTERNAL_V4}:9100 --connections {conns} --patience 30000"),
        )?;
        _send = Traffic::start(
            &guarded.wires.node,
            Some(&guarded.container),
            &format!("tcp-send --to {EXTERNAL_V4}:9100 --seconds {secs} --connections {conns}"),
        )?;
    }
    let t0 = Instant::now();
    let w0 = guarded.wires.world.interface()?.rx.bytes;
    let mut last = (0.0, w0);
    let mut line = String::new();
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(1000));
        let (t, w) = (t0.elapsed().as_secs_f64(), guarded.wires.world.interface()?.rx.bytes);
        line += &format!(" {:.2}", (w - last.1) as f64 / (t - last.0) / rate as f64);
        last = (t, w);
    }
    println!(
        "rate {rate} conns {conns} delay {delay}: total {:.3} |{line} | dropped {}",
        (last.1 - w0) as f64 / last.0 / rate as f64,
        guarded.counters()?.egress.dropped
    );
    Ok(())
}
