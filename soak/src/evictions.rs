//! Whether evictions were allowed, by what the API server's audit log says.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// An eviction that the API server granted. Times are from the beginning of the soak, by the API server's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// When it came.
    pub at: Duration,
    /// The pod.
    pub pod: String,
}

/// What the configuration of the soak allows, and how exactly it can be judged from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Evictions on the node in any window of `per`.
    pub node: usize,
    /// Evictions of a workload in any window of `per`.
    pub workload: usize,
    /// The window.
    pub per: Duration,
    /// The agent enters an eviction when it decides; the request comes later. Two may be closer to each other by that much
    /// than what the agent knows.
    pub late: Duration,
    /// From a breach's end until an eviction that was on its way has come.
    pub on_its_way: Duration,
    /// The same from the engaging of the kill switch on: nothing delays it then.
    pub engages: Duration,
    /// From when a pod is told to send what is normal again, until its breach is over: what its containment held back is in
    /// its sockets' buffers, and it is held for so long at the most.
    pub lasts: Duration,
}

/// What is wrong with an eviction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Too many on the node.
    #[error("{count} evictions within {window:?}, and the node's budget allows {allowed}: {pods:?}")]
    Node {
        /// How many.
        count: usize,
        /// Within.
        window: Duration,
        /// Instead of.
        allowed: usize,
        /// Of these pods.
        pods: Vec<String>,
    },
    /// Too many of a workload.
    #[error("{count} evictions of {workload} within {window:?}, and its budget allows {allowed}: {pods:?}")]
    Workload {
        /// Which.
        workload: String,
        /// How many.
        count: usize,
        /// Within.
        window: Duration,
        /// Instead of.
        allowed: usize,
        /// Of these pods.
        pods: Vec<String>,
    },
    /// More than one of a pod.
    #[error("the pod {0} was evicted twice")]
    Twice(String),
    /// Of a pod that was well.
    #[error("the pod {0} was evicted, and never breached before")]
    Innocent(String),
    /// Of a pod that was well again.
    #[error("the pod {pod} was evicted {after:?} after it breached last")]
    Late {
        /// The pod.
        pod: String,
        /// How long.
        after: Duration,
    },
    /// While it was forbidden.
    #[error("the pod {pod} was evicted {after:?} after the kill switch was engaged")]
    KillSwitch {
        /// The pod.
        pod: String,
        /// How long.
        after: Duration,
    },
}

/// What was done that evictions may, or may not, follow.
#[derive(Clone, Debug, Default)]
pub struct Deeds {
    /// When each pod breached.
    pub breached: BTreeMap<String, Vec<Span>>,
    /// When the kill switch was engaged.
    pub engaged: Vec<Span>,
}

/// From when on and until when; what goes on has no end.
pub type Span = (Duration, Option<Duration>);

/// The workload of a pod of a Deployment: its name without the two hashes.
#[must_use]
pub fn workload(pod: &str) -> &str {
    pod.rsplitn(3, '-').nth(2).unwrap_or(pod)
}

/// Everything that is wrong with these evictions.
#[must_use]
pub fn judge(granted: &[Granted], deeds: &Deeds, allowed: &Allowed) -> Vec<Wrong> {
    let mut wrong = vec![];
    let mut sorted: Vec<&Granted> = granted.iter().collect();
    sorted.sort_by_key(|eviction| eviction.at);
    let window = allowed.per.saturating_sub(allowed.late);
    if let Some(pods) = crowded(&sorted, allowed.node, window) {
        wrong.push(Wrong::Node { count: pods.len(), window, allowed: allowed.node, pods });
    }
    let mut workloads: BTreeMap<&str, Vec<&Granted>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for &eviction in &sorted {
        workloads.entry(workload(&eviction.pod)).or_default().push(eviction);
        if !seen.insert(&eviction.pod) {
            wrong.push(Wrong::Twice(eviction.pod.clone()));
        }
        wrong.extend(unjust(eviction, deeds, allowed));
        let engaged = deeds
            .engaged
            .iter()
            .find(|(from, to)| *from + allowed.engages < eviction.at && to.is_none_or(|to| eviction.at < to));
        if let Some((from, _)) = engaged {
            wrong.push(Wrong::KillSwitch { pod: eviction.pod.clone(), after: eviction.at.saturating_sub(*from) });
        }
    }
    for (workload, evictions) in workloads {
        if let Some(pods) = crowded(&evictions, allowed.workload, window) {
            let (workload, count) = (workload.to_owned(), pods.len());
            wrong.push(Wrong::Workload { workload, count, window, allowed: allowed.workload, pods });
        }
    }
    wrong
}

/// An eviction of a pod that does not breach, or does not any more.
fn unjust(eviction: &Granted, deeds: &Deeds, allowed: &Allowed) -> Option<Wrong> {
    let pod = eviction.pod.clone();
    let spans = deeds.breached.get(&pod).into_iter().flatten();
    let Some((_, end)) = spans.filter(|(since, _)| *since <= eviction.at).max_by_key(|(since, _)| *since) else {
        return Some(Wrong::Innocent(pod));
    };
    let after = eviction.at.saturating_sub((*end)?);
    (after > allowed.lasts + allowed.on_its_way).then_some(Wrong::Late { pod, after })
}

/// The pods of the first window that has more than `most`.
fn crowded(sorted: &[&Granted], most: usize, window: Duration) -> Option<Vec<String>> {
    let within = sorted.windows(most + 1).find(|within| within[most].at < within[0].at + window)?;
    Some(within.iter().map(|eviction| eviction.pod.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Allowed = Allowed {
        node: 2,
        workload: 1,
        per: Duration::from_secs(100),
        late: Duration::from_secs(10),
        on_its_way: Duration::from_secs(20),
        engages: Duration::from_secs(15),
        lasts: Duration::from_secs(30),
    };

    fn at(seconds: u64, pod: &str) -> Granted {
        Granted { at: Duration::from_secs(seconds), pod: pod.into() }
    }

    fn deeds(pods: &[&str]) -> Deeds {
        let breached = pods.iter().map(|pod| ((*pod).to_owned(), vec![(Duration::ZERO, None)])).collect();
        Deeds { breached, engaged: vec![] }
    }

    const A: &str = "web0-5d4f-aaaaa";
    const B: &str = "web1-5d4f-bbbbb";
    const C: &str = "web2-5d4f-ccccc";
    const A2: &str = "web0-5d4f-ddddd";

    #[test]
    fn the_nodes_budget_holds_for_every_window() {
        let deeds = deeds(&[A, B, C]);
        assert_eq!(judge(&[at(1, A), at(30, B), at(91, C)], &deeds, &ALLOWED), []);
        let wrong = judge(&[at(90, C), at(1, A), at(30, B)], &deeds, &ALLOWED);
        assert!(matches!(&wrong[..], [Wrong::Node { count: 3, pods, .. }] if *pods == [A, B, C]), "{wrong:?}");
    }

    #[test]
    fn a_workloads_budget_holds_for_every_window() {
        let deeds = deeds(&[A, A2, B]);
        assert_eq!(judge(&[at(1, A), at(30, B), at(91, A2)], &deeds, &ALLOWED), []);
        let wrong = judge(&[at(1, A), at(90, A2)], &deeds, &ALLOWED);
        let [Wrong::Workload { workload, count: 2, .. }] = &wrong[..] else { panic!("{wrong:?}") };
        assert_eq!(workload, "web0");
    }

    #[test]
    fn a_pod_is_evicted_once_and_only_if_it_breached_before() {
        let twice = judge(&[at(1, A), at(200, A)], &deeds(&[A]), &ALLOWED);
        assert_eq!(twice, [Wrong::Twice(A.into())]);
        assert_eq!(judge(&[at(1, B)], &deeds(&[A]), &ALLOWED), [Wrong::Innocent(B.into())]);
        let mut later = deeds(&[]);
        later.breached.insert(A.into(), vec![(Duration::from_secs(2), None)]);
        assert_eq!(judge(&[at(1, A)], &later, &ALLOWED), [Wrong::Innocent(A.into())]);
    }

    #[test]
    fn a_pod_that_is_well_again_is_not_evicted() {
        let span = |since, end: Option<u64>| (Duration::from_secs(since), end.map(Duration::from_secs));
        let of = |spans: Vec<Span>| Deeds { breached: [(A.to_owned(), spans)].into(), ..Deeds::default() };
        let over = of(vec![span(1, Some(10))]);
        assert_eq!(judge(&[at(60, A)], &over, &ALLOWED), []);
        let expected = Wrong::Late { pod: A.into(), after: Duration::from_secs(51) };
        assert_eq!(judge(&[at(61, A)], &over, &ALLOWED), [expected]);
        let again = of(vec![span(1, Some(10)), span(60, Some(70)), span(500, None)]);
        assert_eq!(judge(&[at(61, A)], &again, &ALLOWED), []);
        assert_eq!(judge(&[at(200, A)], &again, &ALLOWED).len(), 1);
        assert_eq!(judge(&[at(900, A)], &again, &ALLOWED), []);
    }

    #[test]
    fn nothing_is_evicted_while_the_kill_switch_is_engaged() {
        let mut deeds = deeds(&[A, B, C]);
        deeds.engaged = vec![(Duration::from_secs(10), Some(Duration::from_mins(1)))];
        assert_eq!(judge(&[at(25, A), at(61, B)], &deeds, &ALLOWED), []);
        assert_eq!(judge(&[at(26, A)], &deeds, &ALLOWED).len(), 1);
        let expected = Wrong::KillSwitch { pod: A.into(), after: Duration::from_secs(30) };
        assert_eq!(judge(&[at(40, A)], &deeds, &ALLOWED), [expected]);
        deeds.engaged = vec![(Duration::from_secs(10), None)];
        assert_eq!(judge(&[at(61, B)], &deeds, &ALLOWED).len(), 1);
    }

    #[test]
    fn a_workload_is_its_pods_name_without_hashes() {
        assert_eq!((workload(A), workload("my-web-5d4f-aaaaa"), workload("bare")), ("web0", "my-web", "bare"));
    }
}
