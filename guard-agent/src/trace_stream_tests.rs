use std::{pin::pin, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::*;
use crate::core::{inventory::Pod, trace::Reader};

/// A container and what it sent to external destinations.
fn container(cgroup_id: u64, name: &str, sent: u64) -> Container {
    let external = |bytes| PerClass { cluster: Traffic::default(), external: Traffic { bytes, packets: 1 } };
    Container {
        cgroup_id,
        namespace: "ns".into(),
        pod: "pod".into(),
        container: name.into(),
        egress: external(sent),
        ingress: external(0),
        ..Container::default()
    }
}

fn snapshot(at: u64, containers: &[(u64, &str, u64)]) -> Arc<Snapshot> {
    let containers = containers.iter().map(|&(id, name, sent)| container(id, name, sent)).collect();
    Arc::new(Snapshot { at, containers, ..Snapshot::default() })
}

fn appears(id: u64, name: &str, sent: u64) -> Record {
    let names = Labels { namespace: "ns".into(), pod: "pod".into(), container: name.into() };
    let subject = Subject { names, ..Subject::default() };
    Record::Appears(trace::Container { id: ContainerId(id), subject, workload: String::new(), totals: external(sent) })
}

fn external(bytes: u64) -> Totals {
    let mut totals = Totals::default();
    totals.egress.bytes[1] = bytes;
    totals
}

fn sample(at: u64, moved: &[(u64, u64)]) -> Record {
    let moved = moved.iter().map(|&(id, bytes)| (ContainerId(id), external(bytes))).collect();
    Record::Sample(Sample { at, moved })
}

#[tokio::test]
async fn each_sample_tells_what_was_counted_since_the_one_before() {
    let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let mut frames = pin!(frames(snapshots));
    let early = tokio::time::timeout(Duration::from_millis(10), frames.next()).await;
    assert!(early.is_err(), "there was no sample yet");
    let samples = [
        snapshot(10, &[(1, "web", 500), (2, "db", 0)]),
        snapshot(20, &[(1, "web", 500), (2, "db", 7)]),
        // A third one came, and what it is called is not known yet; the first is gone.
        snapshot(30, &[(2, "db", 8), (3, "0123456789ab", 9000)]),
        snapshot(40, &[(2, "db", 8), (3, "cache", 9001)]),
    ];
    let mut bytes = Vec::new();
    for sample in samples {
        sender.send_replace(sample);
        bytes.extend(frames.next().await.expect("a part").expect("it can be written"));
    }
    drop(sender);
    assert!(frames.next().await.is_none(), "it ends with the agent");

    let expected = [
        appears(1, "web", 500),
        appears(2, "db", 0),
        sample(10, &[]),
        sample(20, &[(2, 7)]),
        Record::Gone(ContainerId(1)),
        appears(3, "0123456789ab", 0),
        sample(30, &[(2, 1), (3, 9000)]),
        appears(3, "cache", 9000),
        sample(40, &[(3, 1)]),
    ];
    let reader = Reader::new(&bytes).expect("a header");
    let Header { wall, at } = reader.header();
    assert_eq!(at, 10);
    let off = clock::wall(10).duration_since(UNIX_EPOCH).expect("a set clock").as_nanos().abs_diff(wall.into());
    assert!(off < 1_000_000_000, "the wall clock is off by {off} ns");
    assert_eq!(reader.collect::<Result<Vec<_>, _>>().expect("whole"), expected);
}

#[tokio::test]
async fn a_slow_reader_misses_instants_but_no_bytes() {
    let (sender, snapshots) = watch::channel(snapshot(10, &[(1, "web", 0)]));
    let mut frames = pin!(frames(snapshots));
    let first = frames.next().await.expect("a part").expect("it can be written");
    for second in 2..=9 {
        sender.send_replace(snapshot(second * 10, &[(1, "web", second * 100)]));
    }
    drop(sender);
    let rest: Vec<Vec<u8>> = frames.try_collect().await.expect("it can be written");
    let bytes = [first, rest.concat()].concat();
    let records: Vec<Record> = Reader::new(&bytes).expect("a header").collect::<Result<_, _>>().expect("whole");
    assert_eq!(records, [appears(1, "web", 0), sample(10, &[]), sample(90, &[(1, 900)])]);
}

#[tokio::test]
async fn what_the_api_server_tells_of_a_pod_is_recorded_when_it_changes() {
    let pod = |app: &str| {
        let labels = [("app".to_owned(), app.to_owned())].into();
        Some(Arc::new(Pod { namespace: "ns".into(), name: "pod".into(), labels, ..Pod::default() }))
    };
    let snapshot = |at, pod_known| {
        let containers = vec![Container { pod_known, ..container(1, "web", 5) }];
        Arc::new(Snapshot { at, containers, ..Snapshot::default() })
    };
    let (sender, snapshots) = watch::channel(snapshot(10, None));
    let mut frames = pin!(frames(snapshots));
    let mut bytes = frames.next().await.expect("a part").expect("it can be written");
    for (at, pod) in [(20, pod("a")), (30, pod("a")), (40, pod("b"))] {
        sender.send_replace(snapshot(at, pod));
        bytes.extend(frames.next().await.expect("a part").expect("it can be written"));
    }
    let records: Vec<Record> = Reader::new(&bytes).expect("a header").collect::<Result<_, _>>().expect("whole");
    let known = |app: &str| {
        let Record::Appears(mut known) = appears(1, "web", 5) else { unreachable!() };
        known.subject.labels = [("app".to_owned(), app.to_owned())].into();
        known.workload = "ns/Pod/pod".into();
        Record::Appears(known)
    };
    let expected = [
        appears(1, "web", 5),
        sample(10, &[]),
        known("a"),
        sample(20, &[]),
        sample(30, &[]),
        known("b"),
        sample(40, &[]),
    ];
    assert_eq!(records, expected);
}
