//! The samples of this agent as a trace, for whoever records them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::UNIX_EPOCH,
};

use futures_util::{Stream, stream};
use guard_common::Totals;
use tokio::sync::watch;

use crate::{
    clock,
    core::{
        breach::ContainerId,
        identity::Labels,
        policy::Subject,
        trace::{self, Header, Record, Sample, WriteError, Writer},
        usage::{PerClass, Traffic},
    },
    snapshot::{Container, Snapshot},
};

/// A trace from the next sample on: its header and what is there, and then a part for each sample. It ends with the
/// agent.
///
/// Nothing waits for a reader that is slow: it is told of the latest sample when it asks again, and what was counted
/// in those that it missed is in that one.
pub fn frames(snapshots: watch::Receiver<Arc<Snapshot>>) -> impl Stream<Item = Result<Vec<u8>, WriteError>> {
    stream::try_unfold((snapshots, None), async |(mut snapshots, recorder)| {
        let Some(snapshot) = next(&mut snapshots, recorder.is_some()).await else { return Ok(None) };
        let mut bytes = Vec::new();
        let mut recorder = recorder.unwrap_or_else(|| Recorder::begin(&snapshot, &mut bytes));
        recorder.write(&snapshot, &mut bytes)?;
        Ok(Some((bytes, (snapshots, Some(recorder)))))
    })
}

/// The first sample that there is, or one that was not yet seen. `None`: the agent ends.
async fn next(snapshots: &mut watch::Receiver<Arc<Snapshot>>, begun: bool) -> Option<Arc<Snapshot>> {
    if begun {
        snapshots.changed().await.ok()?;
    }
    snapshots.wait_for(|snapshot| snapshot.at != 0).await.ok().map(|snapshot| Arc::clone(&snapshot))
}

/// What was told of a container.
#[derive(Debug)]
struct Told {
    subject: Subject,
    workload: String,
    totals: Totals,
}

#[derive(Debug)]
struct Recorder {
    writer: Writer,
    told: HashMap<ContainerId, Told>,
    begun: bool,
}

impl Recorder {
    fn begin(first: &Snapshot, bytes: &mut Vec<u8>) -> Self {
        // A clock before 1970 is one that nobody set.
        let wall = clock::wall(first.at).duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let writer = Writer::new(Header { wall, at: first.at }, bytes);
        Self { writer, told: HashMap::new(), begun: false }
    }

    fn write(&mut self, snapshot: &Snapshot, bytes: &mut Vec<u8>) -> Result<(), WriteError> {
        let there: HashSet<u64> = snapshot.containers.iter().map(|container| container.cgroup_id).collect();
        for (id, _) in self.told.extract_if(|id, _| !there.contains(&id.0)) {
            self.writer.write(&Record::Gone(id), bytes)?;
        }
        let mut moved = Vec::new();
        for container in &snapshot.containers {
            let counted = self.tell(container, bytes)?;
            if counted != Totals::default() {
                moved.push((ContainerId(container.cgroup_id), counted));
            }
        }
        self.begun = true;
        self.writer.write(&Record::Sample(Sample { at: snapshot.at, moved }), bytes)
    }

    /// Tells of a container what is new, and returns what it counted since the last sample.
    fn tell(&mut self, container: &Container, bytes: &mut Vec<u8>) -> Result<Totals, WriteError> {
        let (id, subject, totals) = (ContainerId(container.cgroup_id), subject(container), totals(container));
        let before = match self.told.get(&id) {
            Some(told) => told.totals,
            // It began after the last sample: all that it counted is new.
            None if self.begun => Totals::default(),
            None => totals,
        };
        let workload = container.pod_known.as_ref().map(|pod| pod.workload()).unwrap_or_default();
        if self.told.get(&id).is_none_or(|told| (&told.subject, &told.workload) != (&subject, &workload)) {
            let appears = trace::Container { id, subject: subject.clone(), workload: workload.clone(), totals: before };
            self.writer.write(&Record::Appears(appears), bytes)?;
        }
        self.told.insert(id, Told { subject, workload, totals });
        Ok(totals - before)
    }
}

fn subject(container: &Container) -> Subject {
    let Container { namespace, pod, container, pod_known, .. } = container;
    let names = Labels { namespace: namespace.clone(), pod: pod.clone(), container: container.clone() };
    let labels = pod_known.as_ref().map(|pod| pod.labels.clone()).unwrap_or_default();
    Subject { names, labels, ..Subject::default() }
}

/// The bytes alone: packets are not recorded.
fn totals(container: &Container) -> Totals {
    let bytes = |PerClass { cluster, external }: PerClass<Traffic>| [cluster.bytes, external.bytes];
    let mut totals = Totals::default();
    totals.egress.bytes = bytes(container.egress);
    totals.ingress.bytes = bytes(container.ingress);
    totals
}

#[cfg(test)]
#[path = "trace_stream_tests.rs"]
mod tests;
