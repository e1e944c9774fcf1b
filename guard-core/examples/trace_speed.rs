//! How long it takes to write and to read a day of 250 busy containers, sampled every second. Wants `--release`.

mod on_cpu;

use std::time::Duration;

use guard_common::Totals;
use guard_core::{
    breach::ContainerId,
    policy::Subject,
    trace::{Container, Header, Reader, Record, Sample, Writer},
};

use on_cpu::on_cpu;

const CONTAINERS: u64 = 250;
const SAMPLES: u64 = 86_400;

fn main() {
    let mut bytes = Vec::new();
    let begun = on_cpu();
    let mut writer = Writer::new(Header::default(), &mut bytes);
    let mut write = |record| writer.write(&record, &mut bytes).expect("records in order");
    for id in (1..=CONTAINERS).map(ContainerId) {
        let (subject, workload) = (Subject::default(), String::new());
        write(Record::Appears(Container { id, subject, workload, totals: Totals::default() }));
    }
    for second in 1..=SAMPLES {
        let moved = (1..=CONTAINERS).map(|id| (ContainerId(id), counted(id * SAMPLES + second))).collect();
        write(Record::Sample(Sample { at: second * 1_000_000_000, moved }));
    }
    say("written", begun, bytes.len());

    let begun = on_cpu();
    let (mut samples, mut sum) = (0, Totals::default());
    for record in Reader::new(&bytes).expect("a header") {
        if let Record::Sample(sample) = record.expect("whole") {
            samples += sample.moved.len() as u64;
            sample.moved.iter().for_each(|(_, counted)| sum += *counted);
        }
    }
    assert_eq!(samples, CONTAINERS * SAMPLES, "every container is in every sample");
    say("read", begun, bytes.len());
    println!("{sum:?}");
}

/// Counts of all sizes from nothing to some MB, in a mixed order.
fn counted(seed: u64) -> Totals {
    let bits = |step: u64| seed.wrapping_add(step).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let count = |step| bits(step) >> (8 + bits(step + 9) % 25);
    let mut totals = Totals::default();
    totals.egress.bytes = [count(1), count(2)];
    totals.ingress.bytes = [count(3), count(4)];
    totals
}

fn say(what: &str, begun: Duration, bytes: usize) {
    let took = on_cpu().saturating_sub(begun);
    let each = took.as_nanos() as f64 / (CONTAINERS * SAMPLES) as f64;
    println!("{what}: {took:.2?} for {} MB, {each:.1} ns for each container in a sample", bytes / 1_000_000);
}
