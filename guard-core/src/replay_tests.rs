use std::path::Path;

use guard_common::Tally;

use super::*;
use crate::{
    config::Config,
    judge::Judge,
    policy::Subject,
    trace::{Reader, Writer},
};

const S: u64 = 1_000_000_000;
/// The node has been up for a while when the trace begins.
const START: u64 = 1000 * S;

/// A node's story, told second by second.
struct Story {
    records: Vec<Record>,
    now: u64,
}

fn appears(id: u64, name: &str, workload: &str) -> Record {
    let names = Labels { namespace: "prod".to_owned(), pod: name.to_owned(), container: "main".to_owned() };
    let subject = Subject { names, ..Subject::default() };
    let (workload, totals) = (workload.to_owned(), Totals::default());
    Record::Appears(trace::Container { id: ContainerId(id), subject, workload, totals })
}

fn sent(bytes: u64) -> Totals {
    let external = Tally { bytes: [0, bytes], ..Tally::default() };
    Totals { egress: external, ingress: Tally::default() }
}

fn received(bytes: u64) -> Totals {
    let Totals { egress, ingress } = sent(bytes);
    Totals { egress: ingress, ingress: egress }
}

impl Story {
    fn of(names: &[&str]) -> Self {
        let records = (1..).zip(names).map(|(id, name)| appears(id, name, "")).collect();
        Self { records, now: START }
    }

    /// Every second for so long, each container in turn counts this.
    fn go_on(&mut self, seconds: u64, counted: &[Totals]) {
        for _ in 0..seconds {
            self.now += S;
            let all = (1..).map(ContainerId).zip(counted.iter().copied());
            let moved = all.filter(|(_, counted)| *counted != Totals::default()).collect();
            self.records.push(Record::Sample(Sample { at: self.now, moved }));
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(Header { wall: 5 * S, at: START }, &mut bytes);
        self.records.iter().for_each(|record| writer.write(record, &mut bytes).expect("a record in order"));
        bytes
    }
}

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("test.yaml")).expect("a config")
}

fn replay_bytes(config: &Config, bytes: &[u8]) -> Report {
    let mut reader = Reader::new(bytes).expect("a header");
    let mut replay = Replay::new(reader.header(), Settings::from(config), config.kill_switch);
    reader.by_ref().for_each(|record| replay.take(record.expect("whole")));
    replay.finish()
}

fn replay(config_text: &str, story: &Story) -> Report {
    replay_bytes(&config(config_text), &story.bytes())
}

/// Container, limit, seconds into the trace of opening and close.
type Opened = (usize, Limit, u64, Option<(u64, Closing)>);

fn opened(report: &Report) -> Vec<Opened> {
    let second = |at: u64| (at - START) / S;
    let breach = |breached: &Breached| {
        let closed = breached.closed.map(|(at, why)| (second(at), why));
        (breached.container, breached.breach.limit, second(breached.breach.since), closed)
    };
    report.breaches.iter().map(breach).collect()
}

fn deeds(breached: &Breached) -> Vec<(u64, Deed)> {
    breached.deeds.iter().map(|(at, deed)| ((at - START) / S, deed.clone())).collect()
}

const RATE: &str = "policies: [{name: all, match: {}, egress: {rate: 100KB/s, burst: 500KB}, onBreach: \
                    {contain: {throttle: 50KB/s, for: 30s}, evict: {after: 20s}}}]";

fn in_mode(mode: &str, rest: &str) -> String {
    format!("mode: {mode}\n{rest}")
}

#[test]
fn a_burst_is_a_breach_when_the_bucket_is_empty_and_over_after_ten_quiet_seconds() {
    let mut story = Story::of(&["steady", "bursting"]);
    // Exactly the rate, for as long as it likes.
    story.go_on(60, &[sent(100_000), sent(100_000)]);
    // 300 KB/s more than flows in: 500 KB last for less than two seconds.
    story.go_on(3, &[sent(100_000), sent(400_000)]);
    story.go_on(30, &[sent(100_000)]);
    let report = replay(RATE, &story);
    assert_eq!(opened(&report), [(1, Limit::Rate, 62, Some((73, Closing::Clear)))]);
    let Breached { breach, policy, deeds, .. } = &report.breaches[0];
    assert_eq!((breach.figure, breach.allowed, policy.as_str()), (400_000.0, 100_000.0, "all"));
    assert_eq!(deeds[..], [], "mode observe");
    assert_eq!(report.containers[1].names.pod, "bursting");
    assert_eq!((report.samples, report.span), (93, Some((START + S, START + 93 * S))));
    assert_eq!(report.wall(breach.since), 67 * S);
}

#[test]
fn a_containment_holds_for_its_time_and_what_crosses_after_it_is_another_breach() {
    let mut story = Story::of(&["loud"]);
    story.go_on(40, &[sent(400_000)]);
    let report = replay(&in_mode("contain", RATE), &story);
    let contained = |until| Deed::Contained {
        how: Containment::Throttle(crate::units::Rate::new(50_000).expect("a rate")),
        until: START + until * S,
    };
    let expected = [(0, Limit::Rate, 2, Some((32, Closing::LetGo))), (0, Limit::Rate, 34, None)];
    assert_eq!(opened(&report), expected, "the bucket is full again when it is let go");
    assert_eq!(deeds(&report.breaches[0]), [(2, contained(32)), (32, Deed::Released(Release::Over))]);
    assert_eq!(deeds(&report.breaches[1]), [(34, contained(64))]);
    // Held for 30 seconds and 6: all but the throttle's rate is dropped, and nothing is made up.
    let egress = report.containers[0].totals.egress;
    assert_eq!((egress.other, egress.bytes), (36 * 350_000, [0, 40 * 400_000 - 36 * 350_000]));
}

#[test]
fn what_presses_against_its_containment_is_evicted_once() {
    let mut story = Story::of(&["loud"]);
    story.go_on(100, &[sent(400_000)]);
    let report = replay(&in_mode("evict", RATE), &story);
    let evicted: Vec<_> = report.breaches.iter().flat_map(deeds).filter(|(_, deed)| *deed == Deed::Evicted).collect();
    assert_eq!(evicted, [(22, Deed::Evicted)]);
}

#[test]
fn a_containment_takes_from_the_classes_that_are_limited() {
    let throttle = Containment::Throttle(crate::units::Rate::new(1000).expect("a rate"));
    let cases = [
        (throttle, Count::External, [9000, 1500], [9000, 1000, 500]),
        (throttle, Count::External, [9000, 999], [9000, 999, 0]),
        (throttle, Count::All, [3000, 1000], [750, 250, 3000]),
        (throttle, Count::All, [0, 0], [0, 0, 0]),
        (Containment::Block, Count::External, [3000, 1000], [3000, 0, 1000]),
        (Containment::Block, Count::All, [3000, 1000], [0, 0, 4000]),
        (Containment::Block, Count::All, [u64::MAX - 1, 1], [0, 0, u64::MAX]),
    ];
    for (how, count, offered, [cluster, external, dropped]) in cases {
        let mut counted = Totals { egress: Tally { bytes: offered, ..Tally::default() }, ..Totals::default() };
        hold(&mut counted, how, count, S);
        let egress = counted.egress;
        assert_eq!((egress.bytes, egress.other), ([cluster, external], dropped), "{how:?} {count:?} {offered:?}");
    }
}

#[test]
fn a_used_up_quota_is_a_breach_and_evicted_when_it_goes_on() {
    let quota = "policies: [{name: all, match: {}, egress: {quota: {bytes: 10KB, per: 1m}}, \
                 onBreach: {evict: {after: 5s}}}]";
    let mut story = Story::of(&["writer"]);
    story.go_on(40, &[sent(500)]);
    let report = replay(&in_mode("evict", quota), &story);
    assert_eq!(opened(&report), [(0, Limit::Quota, 21, None)]);
    assert_eq!((report.breaches[0].breach.figure, report.breaches[0].breach.allowed), (10_500.0, 10_000.0));
    assert_eq!(deeds(&report.breaches[0]), [(26, Deed::Evicted)]);
}

const BASELINE: &str = "policies: [{name: all, match: {}, egress: {baseline: {factor: 10, floor: 1KB/s, learn: 10m}}}]";

#[test]
fn a_jump_after_learning_is_a_breach_and_before_it_there_is_no_limit() {
    let mut story = Story::of(&["learnt"]);
    story.go_on(300, &[sent(20_000)]);
    let report = replay(BASELINE, &story);
    assert!(report.containers[0].unlearned, "five minutes of ten");
    story.go_on(600, &[sent(20_000)]);
    story.go_on(10, &[sent(2_000_000)]);
    let report = replay(BASELINE, &story);
    assert!(!report.containers[0].unlearned);
    let [(0, Limit::Baseline, second, None)] = opened(&report)[..] else { panic!("{:?}", report.breaches) };
    assert!((901..=905).contains(&second), "within five samples: {second}");
}

#[test]
fn a_flood_of_what_is_received_is_only_said() {
    let ingress = "policies: [{name: all, match: {}, egress: {rate: 1MB/s}, ingress: {rate: 100KB/s}, \
                   onBreach: {contain: {block: true, for: 1m}, evict: {after: 0s}}}]";
    let mut story = Story::of(&["flooded"]);
    story.go_on(30, &[received(500_000)]);
    let report = replay(&in_mode("evict", ingress), &story);
    assert_eq!(opened(&report), [(0, Limit::Ingress, 3, None)]);
    assert_eq!(report.breaches[0].deeds, []);
}

#[test]
fn the_kill_switch_holds_every_hand_back() {
    let mut story = Story::of(&["loud"]);
    story.go_on(60, &[sent(400_000)]);
    let report = replay(&format!("mode: evict\nkillSwitch: true\n{RATE}"), &story);
    assert_eq!(opened(&report), [(0, Limit::Rate, 2, None)]);
    let declined = |what| Deed::Declined { what, why: Refusal::KillSwitch };
    assert_eq!(deeds(&report.breaches[0]), [(2, declined(Mode::Contain)), (22, declined(Mode::Evict))]);
    assert_eq!(report.containers[0].totals.egress.other, 0);
}

#[test]
fn a_workloads_budget_is_for_all_its_containers() {
    let evict =
        "policies: [{name: all, match: {}, egress: {rate: 100KB/s, burst: 500KB}, onBreach: {evict: {after: 5s}}}]";
    let mut story = Story { records: vec![appears(1, "a", "web"), appears(2, "b", "web")], now: START };
    story.go_on(20, &[sent(400_000), sent(400_000)]);
    let report = replay(&in_mode("evict", evict), &story);
    assert_eq!(deeds(&report.breaches[0]), [(7, Deed::Evicted)]);
    let [(7, Deed::Declined { what: Mode::Evict, why })] = &deeds(&report.breaches[1])[..] else {
        panic!("{:?}", report.breaches[1]);
    };
    assert_eq!(why.name(), "workload_budget");
}

#[test]
fn a_container_that_is_known_better_is_the_same_container() {
    let policies = "policies:\n- {name: none, match: {pods: [tame]}}\n\
                    - {name: rest, match: {}, egress: {rate: 100KB/s, burst: 500KB}}";
    let mut story = Story::of(&["unknown", "other"]);
    story.go_on(10, &[sent(400_000), sent(1)]);
    story.records.push(appears(1, "tame", ""));
    story.go_on(10, &[sent(400_000), sent(1)]);
    story.records.push(Record::Gone(ContainerId(2)));
    story.go_on(1, &[sent(400_000)]);
    let report = replay(policies, &story);
    assert_eq!(opened(&report), [(0, Limit::Rate, 2, Some((10, Closing::Unlimited)))]);
    let [tame, other] = &report.containers[..] else { panic!("{:?}", report.containers) };
    assert_eq!((tame.names.pod.as_str(), tame.totals.egress.bytes[1]), ("tame", 21 * 400_000));
    assert_eq!(tame.policy.as_ref().map(|policy| policy.name.as_str()), Some("none"));
    assert_eq!((other.names.pod.as_str(), other.totals.egress.bytes[1]), ("other", 20));
}

/// All limits, some of which are crossed again and again.
fn busy() -> (Story, &'static str) {
    let mut story = Story::of(&["a", "b", "c"]);
    for minute in 0..40 {
        let loud = [(6, 400_000), (13, 2_000_000)]
            .iter()
            .find(|(turn, _)| minute % 14 == *turn)
            .map_or(20_000, |(_, loud)| *loud);
        story.go_on(30, &[sent(20_000 + minute), sent(loud), sent(3000)]);
        story.go_on(30, &[sent(20_000), sent(30_000), received(loud)]);
    }
    let all = "mode: evict\npolicies: [{name: all, match: {}, egress: {rate: 500KB/s, burst: 1MB, quota: {bytes: 5MB, per: 2m}, \
               baseline: {factor: 10, floor: 1KB/s, learn: 10m}}, ingress: {rate: 300KB/s}, \
               onBreach: {contain: {throttle: 50KB/s, for: 20s}, evict: {after: 5s}}}]";
    (story, all)
}

#[test]
fn a_trace_that_breaks_off_is_as_one_that_ends_there() {
    let (mut story, text) = busy();
    let whole = story.bytes();
    let cut = &whole[..whole.len() - 3];
    story.records.pop();
    let (cut, shorter) = (replay_bytes(&config(text), cut), replay(text, &story));
    assert_eq!(cut.samples, 2399);
    assert_eq!(format!("{cut:?}"), format!("{shorter:?}"));
}

#[test]
fn the_same_trace_gives_the_same_report() {
    let (story, text) = busy();
    let (one, other) = (replay(text, &story), replay(text, &story));
    let limits = Limit::ALL.map(|limit| one.breaches.iter().filter(|breached| breached.breach.limit == limit).count());
    let [samples @ .., bypass] = limits;
    assert!(samples.iter().all(|&breaches| breaches > 0), "each limit is crossed: {limits:?}");
    assert_eq!(bypass, 0, "a trace knows no interface");
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
}

/// Limits that need no kernel: what the judge says of the samples is what the report says.
#[test]
fn the_report_is_what_the_judge_says() {
    let (story, _) = busy();
    let text = "policies: [{name: all, match: {}, egress: {quota: {bytes: 5MB, per: 2m}, \
                baseline: {factor: 10, floor: 1KB/s, learn: 10m}}}]";
    let mut judge = Judge::new(Settings::from(&config(text)), Means::default());
    let (mut before, mut said) = (START, Vec::new());
    for record in &story.records {
        let effects = match record {
            Record::Appears(container) => {
                let names = &container.subject.names;
                judge.appeared(
                    before,
                    container.id,
                    About::on_its_own(container.subject.clone(), names.workload().into()),
                )
            }
            Record::Gone(id) => judge.gone(before, *id),
            Record::Sample(sample) => {
                let of = |id| sample.moved.iter().find(|(moved, _)| *moved == id);
                let all = (1..=3).map(ContainerId);
                let moved = all.map(|id| (id, of(id).map_or_else(Totals::default, |(_, counted)| *counted)));
                let nanos = sample.at - before;
                before = sample.at;
                judge.sample(sample.at, nanos, moved)
            }
        };
        said.extend(effects);
    }
    let report = replay(text, &story);
    let opened = |effect: &Effect| if let Effect::Opened(breach) = effect { Some(*breach) } else { None };
    let expected: Vec<Breach> = said.iter().filter_map(opened).collect();
    assert!(expected.len() >= 4, "{expected:?}");
    assert_eq!(report.breaches.iter().map(|breached| breached.breach).collect::<Vec<_>>(), expected);
    let closed = said.iter().filter(|effect| matches!(effect, Effect::Closed(_))).count();
    assert_eq!(report.breaches.iter().filter(|breached| breached.closed.is_some()).count(), closed);
}
