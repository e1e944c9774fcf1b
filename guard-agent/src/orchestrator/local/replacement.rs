//! Whether the supervisor has started the container afresh.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time};
use tracing::{info, warn};

use super::{Local, Target};
use crate::snapshot::{Container, Snapshot};

/// How long it may take.
const LIMIT: Duration = Duration::from_mins(1);

/// A fresh container in the place of an evicted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// Its cgroup's id.
    pub cgroup_id: u64,
    /// From the eviction to its meter.
    pub took: Duration,
}

impl Local {
    /// Waits until a container with the cgroup's path or the labels of one whose eviction began `at` has its meter. Says
    /// how long it took; `None`, with a warning, if there is none within a minute.
    pub async fn await_replacement(
        &self,
        target: &Target,
        at: SystemTime,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Option<Replacement> {
        let appears = async {
            loop {
                let found = find(&snapshots.borrow_and_update(), target, at);
                if found.is_some() {
                    return found;
                }
                // There are no more samples once the agent ends.
                snapshots.changed().await.ok()?;
            }
        };
        let cgroup = &target.cgroup_path;
        let Ok(found) = time::timeout(LIMIT, appears).await else {
            warn!(
                %cgroup,
                "evicted, and there is no new container of the same name after {LIMIT:?}: see what its supervisor says \
                 (systemctl status, podman ps -a, docker ps -a), and whether it restarts what was killed \
                 (Restart=always, --restart=always)"
            );
            return None;
        };
        let replacement = found?;
        self.replacement_seconds.observe(replacement.took.as_secs_f64());
        info!(%cgroup, took = ?replacement.took, "a fresh container has taken the place of the evicted one");
        found
    }
}

fn find(snapshot: &Snapshot, target: &Target, at: SystemTime) -> Option<Replacement> {
    let is_same = |container: &Container| {
        let Container { namespace, pod, container: name, cgroup_path, .. } = container;
        let labels = &target.labels;
        cgroup_path.trim_matches('/') == target.cgroup_path.trim_matches('/')
            || (namespace, pod, name) == (&labels.namespace, &labels.pod, &labels.container)
    };
    let others = snapshot.containers.iter().filter(|container| container.cgroup_id != target.cgroup_id);
    others.filter(|container| is_same(container)).find_map(|container| {
        let since = humantime::parse_rfc3339(&container.since).ok()?;
        let took = since.duration_since(at).ok()?;
        Some(Replacement { cgroup_id: container.cgroup_id, took })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::identity::Labels;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn container(cgroup_id: u64, cgroup_path: &str, name: &str, since: u64) -> Container {
        Container {
            cgroup_id,
            cgroup_path: cgroup_path.into(),
            namespace: "a".into(),
            pod: "b".into(),
            container: name.into(),
            since: humantime::format_rfc3339_millis(at(since)).to_string(),
            ..Container::default()
        }
    }

    fn target() -> Target {
        let labels = Labels { namespace: "a".into(), pod: "b".into(), container: "c".into() };
        Target { cgroup_id: 1, cgroup_path: "x/old.scope".into(), labels }
    }

    fn local() -> Local {
        Local::new("/nowhere".into()).expect("metrics")
    }

    fn snapshot(containers: Vec<Container>) -> Arc<Snapshot> {
        Arc::new(Snapshot { at: 1, containers, ..Snapshot::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_cgroup_of_the_same_path_or_labels_takes_the_place() {
        for (path, name) in [("/x/old.scope", "other"), ("/x/new.scope", "c")] {
            let before = vec![
                container(1, "/x/old.scope", "c", 150),
                container(2, path, name, 90),
                container(3, "/y", "d", 150),
            ];
            let (sender, receiver) = watch::channel(snapshot(before.clone()));
            let (local, target) = (local(), target());
            let (found, ()) = tokio::join!(local.await_replacement(&target, at(100), receiver), async {
                time::sleep(Duration::from_secs(50)).await;
                let fresh = [before, vec![container(4, path, name, 142)]].concat();
                sender.send_replace(snapshot(fresh));
            });
            assert_eq!(found, Some(Replacement { cgroup_id: 4, took: Duration::from_secs(42) }), "{path} {name}");
            let seconds = &local.replacement_seconds;
            assert_eq!((seconds.get_sample_count(), seconds.get_sample_sum()), (1, 42.0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn none_within_a_minute_is_given_up() {
        let begun = time::Instant::now();
        let (_sender, receiver) = watch::channel(snapshot(vec![container(1, "/x/old.scope", "c", 150)]));
        let local = local();
        assert_eq!(local.await_replacement(&target(), at(100), receiver).await, None);
        assert_eq!((begun.elapsed().as_secs(), local.replacement_seconds.get_sample_count()), (60, 0));
    }
}
