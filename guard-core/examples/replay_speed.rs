//! How long a day of 250 busy containers takes to replay, every kind of limit checked with every sample. Wants
//! `--release`.

mod on_cpu;

use std::{path::Path, time::Instant};

use guard_common::Totals;
use guard_core::{
    breach::ContainerId,
    config::Config,
    identity::Labels,
    judge::Settings,
    policy::Subject,
    replay::Replay,
    trace::{Container, Header, Reader, Record, Sample, Writer},
};

use on_cpu::on_cpu;

const CONTAINERS: u64 = 250;
const SAMPLES: u64 = 86_400;

/// Every container has all limits; the counts below seldom cross one.
const CONFIG: &str = "
mode: evict
policies:
  - name: all
    match: {}
    count: all
    egress:
      rate: 6MB/s
      burst: 60MB
      quota: {bytes: 20GB, per: 1h}
      baseline: {factor: 100, floor: 1MB/s, learn: 1h}
    ingress: {rate: 6MB/s}
    onBreach: {contain: {throttle: 1MB/s, for: 10m}, evict: {after: 30s}}
";

fn main() {
    let bytes = trace();
    let config = Config::parse(CONFIG, Path::new("replay_speed.yaml")).expect("a config");
    let (begun, on_cpu_before) = (Instant::now(), on_cpu());
    let reader = Reader::new(&bytes).expect("a header");
    let mut replay = Replay::new(reader.header(), Settings::from(&config), config.kill_switch);
    for record in reader {
        replay.take(record.expect("whole"));
    }
    let report = replay.finish();
    let (took, cpu) = (begun.elapsed(), on_cpu().saturating_sub(on_cpu_before));
    let each = cpu.as_nanos() as f64 / (CONTAINERS * SAMPLES) as f64;
    println!(
        "replayed {} MB in {took:.2?}, {cpu:.2?} of it on a CPU, {each:.1} ns for each container in a sample; {} breaches",
        bytes.len() / 1_000_000,
        report.breaches.len()
    );
}

/// All containers in every sample; each sends something around its own usual, and every hour one in ten far more.
fn trace() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(Header::default(), &mut bytes);
    let mut write = |record| writer.write(&record, &mut bytes).expect("records in order");
    for number in 1..=CONTAINERS {
        let pod = format!("deployment-{}-7d9c5b8f6-{number:05}", number / 4);
        let names = Labels { namespace: "production".to_owned(), pod, container: "main".to_owned() };
        let (workload, totals) = (format!("production/deployment-{}/main", number / 4), Totals::default());
        let subject = Subject { names, ..Subject::default() };
        write(Record::Appears(Container { id: ContainerId(number * 977), subject, workload, totals }));
    }
    for second in 1..=SAMPLES {
        let moved = (1..=CONTAINERS).map(|number| (ContainerId(number * 977), counted(number, second))).collect();
        write(Record::Sample(Sample { at: second * 1_000_000_000, moved }));
    }
    bytes
}

fn counted(number: u64, second: u64) -> Totals {
    let usual = 1000 << (number % 10);
    let bits = |step: u64| (number * SAMPLES + second).wrapping_add(step).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let count = |step| usual / 2 + bits(step) % usual;
    let attack = second % 3600 < 10 && (second / 3600 + number).is_multiple_of(10);
    let mut totals = Totals::default();
    totals.egress.bytes = [count(1), count(2) * if attack { 200 } else { 1 }];
    totals.ingress.bytes = [count(3), count(4)];
    totals
}
