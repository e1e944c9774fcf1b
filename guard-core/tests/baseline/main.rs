//! The baseline's hits, misses and false alarms on traces; docs/baseline.md says what this computes.

mod rivals;
mod traces;

use std::fmt::Write as _;

use rivals::Detector;
use traces::{DAY, HOUR, MINUTE, Random, Trace};

const DOC: &str = include_str!("../../../docs/baseline.md");

/// How one detector did on one trace.
#[derive(Clone, Copy, Default)]
struct Score {
    false_alarms: u32,
    /// Seconds from the attack's begin to the breach.
    detected: Option<f64>,
    last_over: Option<f64>,
}

impl Score {
    fn count(&mut self, now: f64, attack: Option<f64>, over: bool) {
        if !over {
            return;
        }
        match attack {
            Some(from) if now > from => {
                self.detected.get_or_insert(now - from);
            }
            // A breach that begins within a minute of the last one's end is the same alarm.
            _ if self.last_over.is_none_or(|last| now - last > MINUTE) => self.false_alarms += 1,
            _ => (),
        }
        self.last_over = Some(now);
    }
}

/// Plays a trace to all detectors at once.
fn play(trace: &mut Trace) -> Vec<Score> {
    let mut detectors: Vec<_> = Detector::all().into_iter().map(|d| (d, false, Score::default())).collect();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut ran = true;
    for sample in 0..(trace.length / trace.step) as u64 {
        let begin = sample as f64 * trace.step;
        let now = begin + trace.step;
        let rate = (trace.rate)(begin, &mut random);
        for (detector, over, score) in &mut detectors {
            let Some(rate) = rate else {
                if ran {
                    detector.restart();
                }
                *over = false;
                continue;
            };
            *over = detector.observe(now, trace.step, rate, &trace.limit, *over);
            score.count(now, trace.attack, *over);
        }
        ran = rate.is_some();
    }
    detectors.into_iter().map(|(_, _, score)| score).collect()
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 2.0 * MINUTE => format!("{s:.0} s"),
        s if s < 2.0 * HOUR => format!("{:.0} min", s / MINUTE),
        s if s < 2.0 * DAY => format!("{:.1} h", s / HOUR),
        s => format!("{:.1} d", s / DAY),
    }
}

fn cell(score: &Score, attacked: bool) -> String {
    match (attacked, score.detected, score.false_alarms) {
        (false, _, alarms) => alarms.to_string(),
        (true, Some(after), 0) => time(after),
        (true, None, 0) => "miss".into(),
        (true, Some(after), alarms) => format!("{}, {alarms} false", time(after)),
        (true, None, alarms) => format!("miss, {alarms} false"),
    }
}

/// A table: a row for each trace, and what it amounts to.
fn table(mut traces: Vec<Trace>) -> String {
    let attacked = traces[0].attack.is_some();
    let first = if attacked { "attack: time to the breach" } else { "no attack: false alarms" };
    let mut text = format!("| {first} | chosen | mean | median | median, active | p99 of a day |\n");
    text += "| --- | --- | --- | --- | --- | --- |\n";
    let mut sums = [Score::default(); 5];
    let mut hits = [0; 5];
    for trace in &mut traces {
        write!(text, "| {} |", trace.name).expect("a string");
        for (index, score) in play(trace).iter().enumerate() {
            write!(text, " {} |", cell(score, attacked)).expect("a string");
            sums[index].false_alarms += score.false_alarms;
            hits[index] += u32::from(score.detected.is_some());
        }
        text += "\n";
    }
    text += if attacked { "| **hits / misses / false alarms** |" } else { "| **all** |" };
    for (sum, hits) in sums.iter().zip(hits) {
        let alarms = sum.false_alarms;
        let cell =
            if attacked { format!("{hits} / {} / {alarms}", traces.len() as u32 - hits) } else { alarms.to_string() };
        write!(text, " {cell} |").expect("a string");
    }
    text + "\n"
}

fn check(table: &str) {
    assert!(DOC.contains(table), "docs/baseline.md does not have this table; if it is right, put it there:\n\n{table}");
}

#[test]
fn the_doc_says_which_alarms_are_false() {
    check(&table(traces::quiet()));
}

#[test]
fn the_doc_says_which_attacks_are_found() {
    check(&table(traces::attacks()));
}
