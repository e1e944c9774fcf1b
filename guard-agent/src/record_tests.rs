use std::{
    fs,
    future::pending,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
};

use guard_common::Totals;
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    sync::{oneshot, watch},
};

use super::*;
use crate::{
    core::{
        breach::ContainerId,
        policy::Subject,
        trace::{Container, Reader, Sample, Writer},
    },
    http::{self, Shared},
    snapshot::Snapshot,
};

const SECOND: Duration = Duration::from_secs(1);

/// An agent's socket, the samples that it serves, and a place for the trace.
struct Agent {
    dir: TempDir,
    snapshots: Mutex<Option<watch::Sender<Arc<Snapshot>>>>,
}

impl Agent {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let shared = Shared::ready(snapshots, SECOND);
        let listener = UnixListener::bind(dir.path().join("sock")).expect("a socket");
        tokio::spawn(http::serve(listener, http::private(shared)));
        Self { dir, snapshots: Mutex::new(Some(sender)) }
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("trace")
    }

    async fn record(&self, duration: Option<Duration>, stop: impl Future<Output = ()>) -> Result<Recorded, String> {
        let recorded = run(&self.dir.path().join("sock"), &self.output(), duration, stop).await;
        recorded.map_err(|error| format!("{error:#}"))
    }

    /// Takes a sample at this second of boot time, and gives everybody a second to read it.
    async fn sample(&self, second: u64) {
        if let Some(snapshots) = &*self.snapshots.lock().expect("one thread") {
            snapshots.send_replace(Arc::new(Snapshot { at: second * 1_000_000_000, ..Snapshot::default() }));
        }
        time::sleep(SECOND).await;
    }

    fn end(&self) {
        self.snapshots.lock().expect("one thread").take();
    }

    /// The seconds of boot time of the recorded samples.
    fn recorded(&self) -> Vec<u64> {
        let bytes = fs::read(self.output()).expect("the trace");
        let records = Reader::new(&bytes).expect("a header").map(|record| record.expect("whole"));
        let seconds = records.filter_map(|record| match record {
            Record::Sample(sample) => Some(sample.at / 1_000_000_000),
            _ => None,
        });
        seconds.collect()
    }
}

#[tokio::test(start_paused = true)]
async fn records_until_it_is_asked_to_stop() {
    let agent = Agent::start();
    let (stop, stopped) = oneshot::channel();
    let samples = async {
        for second in 5..8 {
            agent.sample(second).await;
        }
        stop.send(()).expect("it listens");
    };
    let (recorded, ()) = tokio::join!(agent.record(None, async { stopped.await.expect("sent") }), samples);
    let bytes = fs::metadata(agent.output()).expect("the trace").len();
    assert_eq!(recorded, Ok(Recorded { samples: 3, containers: 0, bytes, length: 2 * SECOND }));
    assert_eq!(agent.recorded(), [5, 6, 7]);
    let mode = fs::metadata(agent.output()).expect("the trace").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(start_paused = true)]
async fn records_as_long_as_it_is_told_even_for_hours() {
    let agent = Agent::start();
    let samples = async {
        for second in (1..10_000).step_by(30) {
            agent.sample(second).await;
            time::sleep(29 * SECOND).await;
        }
    };
    let recorded = tokio::select! {
        recorded = agent.record(Some(Duration::from_mins(90) + SECOND), pending()) => recorded,
        () = samples => panic!("it does not end"),
    };
    let recorded = recorded.expect("recorded");
    assert_eq!((recorded.samples, recorded.length), (181, Duration::from_mins(90)));
    assert_eq!(agent.recorded().len(), 181);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_ends_leaves_what_it_sent_and_an_error() {
    let agent = Agent::start();
    let samples = async {
        agent.sample(1).await;
        agent.sample(2).await;
        agent.end();
    };
    let (recorded, ()) = tokio::join!(agent.record(Some(9 * SECOND), pending()), samples);
    let error = recorded.expect_err("the agent ended");
    let expected = format!(
        "recorded 2 samples of 0 containers over 1s, 1 kB, to {}, and then no more: the agent ended",
        agent.output().display()
    );
    assert_eq!(error, expected);
    assert_eq!(agent.recorded(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_moves_is_ended() {
    let agent = Agent::start();
    let begun = Instant::now();
    let (recorded, ()) = tokio::join!(agent.record(None, pending()), agent.sample(1));
    let error = recorded.expect_err("it is cut off");
    assert!(error.contains("the agent ended, or cut a reader off that was too slow"), "{error}");
    assert_eq!(begun.elapsed().as_secs(), 60);
    assert_eq!(agent.recorded(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_there_is_not_touched() {
    let agent = Agent::start();
    fs::write(agent.output(), "mine").expect("written");
    let error = agent.record(None, pending()).await.expect_err("refused");
    let output = agent.output();
    assert_eq!(error, format!("{} is there already: pass another --output, or remove it", output.display()));
    assert_eq!(fs::read(output).expect("the file"), b"mine");
}

#[tokio::test(start_paused = true)]
async fn without_a_sample_or_an_agent_there_is_no_file() {
    let agent = Agent::start();
    let error = agent.record(Some(3 * SECOND), pending()).await.expect_err("no sample");
    assert!(error.starts_with("nothing was recorded: the agent has not taken a sample yet"), "{error}");
    fs::remove_file(agent.dir.path().join("sock")).expect("removed");
    let error = agent.record(None, pending()).await.expect_err("no agent");
    assert!(error.starts_with("no agent answers at "), "{error}");
    assert!(!agent.output().exists());
}

#[test]
fn the_file_is_whole_wherever_the_answer_is_cut() {
    let (mut trace, mut whole) = (Vec::new(), Vec::new());
    let mut writer = Writer::new(Header::default(), &mut trace);
    whole.push(trace.len());
    let id = ContainerId(1);
    let (subject, workload, totals) = (Subject::default(), String::new(), Totals::default());
    let appears = Record::Appears(Container { id, subject, workload, totals });
    for record in [appears, Record::Sample(Sample::default()), Record::Gone(id)] {
        writer.write(&record, &mut trace).expect("a record that follows those before");
        whole.push(trace.len());
    }
    let dir = tempfile::tempdir().expect("a folder");
    for size in 1..trace.len() {
        let output = dir.path().join(size.to_string());
        let mut recording = Recording::new(&output);
        let mut came = 0;
        for part in trace.chunks(size) {
            recording.take(&Bytes::copy_from_slice(part)).expect("taken");
            came += part.len();
            let expected = whole.iter().rfind(|&&end| end <= came).copied().unwrap_or_default();
            let there = output.metadata().map_or(0, |file| file.len() as usize);
            assert_eq!(there, expected, "{came} bytes came in parts of {size}");
        }
        let Recorded { samples, containers, bytes, .. } = recording.finish(Ok(())).expect("finished");
        assert_eq!((samples, containers, bytes), (1, 1, trace.len() as u64));
        assert!(fs::read(&output).expect("the file") == trace);
    }
}

#[test]
fn what_is_no_trace_makes_no_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = dir.path().join("trace");
    let error = Recording::new(&output).take(&Bytes::from_static(b"<html>")).expect_err("refused");
    assert!(format!("{error:#}").starts_with("the agent's answer cannot be used: not a trace"), "{error:#}");
    assert!(!output.exists());
}
