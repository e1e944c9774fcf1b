use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::identity::Labels;

const BEGIN: Header = Header { wall: 1_700_000_000_123_456_789, at: 5_000_000_000 };

fn container(id: u64, name: &str, labels: &[(&str, &str)], totals: Totals) -> Record {
    let names = Labels { namespace: "ns".into(), pod: "pod".into(), container: name.into() };
    let labels: BTreeMap<String, String> = labels.iter().map(|&(k, v)| (k.into(), v.into())).collect();
    let subject = Subject { names, labels, ..Subject::default() };
    Record::Appears(Container { id: ContainerId(id), subject, workload: "deployment/web".into(), totals })
}

fn sample(at: u64, moved: &[(u64, [u64; COUNTS])]) -> Record {
    let moved = moved.iter().map(|&(id, counts)| (ContainerId(id), totals(counts))).collect();
    Record::Sample(Sample { at, moved })
}

/// What happens on a small node.
fn story() -> Vec<Record> {
    vec![
        container(40, "web", &[("app", "web"), ("tier", "")], totals([1, 2, 3, u64::MAX])),
        container(7, "ü", &[], Totals::default()),
        sample(BEGIN.at, &[]),
        sample(BEGIN.at + 1_000_000_000, &[(40, [0, 1500, 0, 0]), (7, [1, 127, 128, u64::MAX])]),
        Record::Gone(ContainerId(40)),
        container(41, "web", &[], Totals::default()),
        sample(BEGIN.at + 2_000_000_000, &[(7, [0, 0, 1, 0]), (41, [1 << 40, 0, 0, 5])]),
    ]
}

fn written(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(BEGIN, &mut bytes);
    for record in records {
        writer.write(record, &mut bytes).expect("a record that follows those before");
    }
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<Record>, TraceError> {
    Reader::new(bytes)?.collect()
}

#[test]
fn what_is_written_is_read() {
    let bytes = written(&story());
    let reader = Reader::new(&bytes).expect("a header");
    assert_eq!(reader.header(), BEGIN);
    assert_eq!(read(&bytes), Ok(story()));
}

#[test]
fn a_container_that_moved_takes_few_bytes() {
    let quiet = written(&[story()[0].clone(), sample(BEGIN.at + 1, &[])]).len();
    let moved = written(&[story()[0].clone(), sample(BEGIN.at + 1, &[(40, [0, 1500, 0, 100])])]).len();
    assert_eq!(moved - quiet, 1 + 2 + 1, "which counts of which container, 1500, 100");
}

#[test]
fn a_container_is_known_better_from_then_on() {
    let better = container(7, "named", &[("app", "x")], totals([9, 9, 9, 9]));
    let story = [story()[1].clone(), better, sample(BEGIN.at, &[(7, [1, 0, 0, 0])]), Record::Gone(ContainerId(7))];
    assert_eq!(read(&written(&story)), Ok(story.into()));
}

#[test]
fn a_trace_cut_anywhere_is_good_up_to_there() {
    let bytes = written(&story());
    let ends: Vec<usize> = (0..=story().len()).map(|records| written(&story()[..records]).len()).collect();
    for cut in 0..bytes.len() {
        let Ok(mut reader) = Reader::new(&bytes[..cut]) else {
            assert!(cut < HEADER, "a header is enough, and {cut} bytes are there");
            assert_eq!(Header::decode(&bytes[..cut]), Err(TraceError::Empty(cut)));
            continue;
        };
        let records: Vec<Record> = reader.by_ref().map(|record| record.expect("whole")).collect();
        let whole = ends.iter().rposition(|&end| end <= cut).expect("the header is there");
        assert_eq!(records, story()[..whole], "cut at {cut}");
        let left = Truncated { offset: ends[whole] as u64, bytes: cut - ends[whole] };
        assert_eq!(reader.truncated(), (left.bytes > 0).then_some(left), "cut at {cut}");
    }
}

#[test]
fn bytes_that_come_in_one_by_one_are_read_when_they_are_there() {
    let bytes = written(&story());
    let mut decoder = Decoder::new(Header::decode(&bytes).expect("a header"));
    let (mut from, mut records) = (HEADER, Vec::new());
    for to in HEADER..=bytes.len() {
        let mut left = &bytes[from..to];
        while let Some(record) = decoder.decode(&mut left).expect("whole") {
            records.push(record);
        }
        from = to - left.len();
    }
    assert_eq!(records, story());
}

#[test]
fn no_changed_bit_goes_unseen() {
    let bytes = written(&story());
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(read(&changed), Ok(story()), "bit {bit}");
    }
}

#[test]
fn damage_is_said_with_its_place_and_after_it_is_the_end() {
    let mut bytes = written(&story());
    let third = written(&story()[..2]).len();
    bytes[third + FRAME] ^= 1;
    let mut reader = Reader::new(&bytes).expect("a header");
    let said: Vec<_> = reader.by_ref().collect();
    let what = "a record's checksum is another";
    assert_eq!(said[2], Err(TraceError::Damaged { offset: third as u64, what }));
    assert_eq!((said.len(), reader.truncated()), (3, None));
}

/// A frame that its checksum vouches for.
fn frame(record: &[u8]) -> Vec<u8> {
    let mut bytes = written(&[story()[0].clone()]);
    bytes.extend((record.len() as u32).to_le_bytes());
    bytes.extend(crc32fast::hash(record).to_le_bytes());
    bytes.extend(record);
    bytes
}

#[test]
fn what_no_recorder_writes_is_refused() {
    let not_there = "a record tells of a container that is not there";
    let cases: [(&[u8], &str); 12] = [
        (&[], "a record is shorter than what it says"),
        (&[9], "a record of an unknown kind"),
        (&[GONE, 1], not_there),
        (&[GONE, 0, 0], "a record is longer than what it says"),
        (&[SAMPLE, 0, 0x11, 5], not_there),
        (&[SAMPLE, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 5], not_there),
        (&[SAMPLE, 0, 0x02], "a record is shorter than what it says"),
        (&[SAMPLE, 0, 0, 0], "a sample tells of more containers than there are"),
        (&[SAMPLE, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "a sample is later than time goes"),
        (&[SAMPLE, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], "a number has more than 64 bits"),
        (&[APPEARS, 1, 200, 1, b'x'], "a record is shorter than what it says"),
        (&[APPEARS, 1, 1, 0xff, 0, 0, 0, 0, 0, 0, 0], "a name is not UTF-8"),
    ];
    for (record, what) in cases {
        let offset = written(&story()[..1]).len() as u64;
        assert_eq!(read(&frame(record)), Err(TraceError::Damaged { offset, what }), "{record:?}");
    }
    let mut long = written(&[]);
    long.extend((MAX_RECORD as u32 + 1).to_le_bytes());
    let what = "a record is longer than any is";
    assert_eq!(read(&long), Err(TraceError::Damaged { offset: HEADER as u64, what }));
}

#[test]
fn what_is_no_trace_says_so() {
    let cases: [(&[u8], TraceError); 4] = [
        (b"{\"at\": 1}", TraceError::Foreign),
        (b"EGTRACX", TraceError::Foreign),
        (b"", TraceError::Empty(0)),
        (b"EGTRACE\n\x02", TraceError::Version(2)),
    ];
    for (bytes, expected) in cases {
        assert_eq!(read(bytes), Err(expected));
    }
}

#[test]
fn a_record_that_cannot_be_is_not_written() {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(BEGIN, &mut bytes);
    writer.write(&story()[0], &mut bytes).expect("the first");
    let before = bytes.clone();
    let huge = "x".repeat(MAX_RECORD);
    let cases = [
        (Record::Gone(ContainerId(41)), WriteError::Unknown(ContainerId(41))),
        (sample(BEGIN.at, &[(40, [1; 4]), (41, [1; 4])]), WriteError::Unknown(ContainerId(41))),
        (sample(1, &[]), WriteError::Backwards { at: 1, before: BEGIN.at }),
        (container(1, &huge, &[], Totals::default()), WriteError::TooLarge(MAX_RECORD + 32)),
    ];
    for (record, expected) in cases {
        assert_eq!(writer.write(&record, &mut bytes), Err(expected));
        assert!(bytes == before, "nothing is written");
    }
    let next = sample(BEGIN.at, &[(40, [1; 4])]);
    writer.write(&next, &mut bytes).expect("as if nothing had been");
    assert_eq!(read(&bytes), Ok(vec![story()[0].clone(), next]));
}

/// What may happen next on a node: a container comes, one goes, or all are sampled.
#[derive(Clone, Debug)]
enum Step {
    Come(String, Vec<(String, String)>, [u64; COUNTS]),
    Go(prop::sample::Index),
    Sample(u64, Vec<[u64; COUNTS]>),
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0), 3 => 0..100_000_u64, 1 => any::<u64>()]
}

fn step() -> impl Strategy<Value = Step> {
    let counts = || prop::array::uniform4(count());
    let text = || "\\PC{0,12}";
    prop_oneof![
        (text(), vec((text(), text()), 0..3), counts())
            .prop_map(|(name, labels, totals)| Step::Come(name, labels, totals)),
        any::<prop::sample::Index>().prop_map(Step::Go),
        (0..u64::from(u32::MAX), vec(counts(), 0..12)).prop_map(|(later, moved)| Step::Sample(later, moved)),
    ]
}

/// The records of the steps; ids are given away backwards, so that their order is not that of appearance.
fn records(steps: Vec<Step>) -> Vec<Record> {
    let (mut there, mut at, mut next) = (Vec::new(), BEGIN.at, u64::MAX);
    let mut records = Vec::new();
    for step in steps {
        match step {
            Step::Come(name, labels, totals) => {
                let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                records.push(container(next, &name, &labels, super::totals(totals)));
                there.push(next);
                next -= 1;
            }
            Step::Go(_) if there.is_empty() => {}
            Step::Go(which) => {
                let id = there.remove(which.index(there.len()));
                records.push(Record::Gone(ContainerId(id)));
            }
            Step::Sample(later, counts) => {
                at += later;
                let moved = there.iter().copied().zip(counts).filter(|(_, counts)| *counts != [0; COUNTS]);
                records.push(sample(at, &moved.collect::<Vec<_>>()));
            }
        }
    }
    records
}

proptest! {
    #[test]
    fn any_trace_comes_back(steps in vec(step(), 0..60)) {
        let records = records(steps);
        prop_assert_eq!(read(&written(&records)), Ok(records));
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..300), records in vec(vec(any::<u8>(), 0..40), 0..6)) {
        // As they are, as what follows a header, and as records whose checksums are right.
        let _foreign = read(&bytes);
        let mut trace = written(&story());
        trace.extend(&bytes);
        let _damaged = read(&trace);
        for record in records {
            let mut trace = frame(&record);
            trace.extend(&bytes);
            let _refused = read(&trace);
        }
    }
}
