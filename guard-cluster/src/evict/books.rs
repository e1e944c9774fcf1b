//! A workload's evictions, in a Lease of its own that all agents share: who may evict one of its pods now, and whether it
//! does any good.

use std::time::Duration;

use http::Method;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::api::ObjectList;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::sleep;

use super::{
    EvictError, Outcome, Spent, slots,
    wire::{Answer, What, Wire},
};

/// The annotation with the entries.
const EVICTIONS: &str = "egress-guard.dev/evictions";

/// How many seconds an eviction counts as under way if nobody says that the replacement is Ready.
const UNDER_WAY: i64 = 600;

/// Evictions are remembered for so many seconds.
const HOUR: i64 = 3600;

/// So many within an hour, and it breaches again: they do not help.
const IN_VAIN: usize = 2;

/// How often a write is tried when others are faster.
const TRIES: u32 = 8;

/// The workloads' Leases of the agents' namespace.
#[derive(Clone)]
pub(crate) struct Books {
    pub(crate) wire: Wire,
    pub(crate) namespace: String,
    pub(crate) node: String,
}

/// An eviction of one of the workload's pods: begun, and not known to have failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    /// The pod's UID.
    pod: String,
    /// Whose agent began it.
    node: String,
    /// When, in seconds since 1970 by the API server's clock.
    at: i64,
    /// Its replacement is not Ready yet.
    under_way: bool,
}

/// The right to evict a pod of a workload.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    workload: String,
    uid: String,
    /// How many others are under way: their pods may be gone without the workload's status saying so.
    pub(crate) others: u64,
    /// It was not there before this attempt, made by an earlier one for the same pod that may still come to something.
    fresh: bool,
}

/// What the entries say to another eviction.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It may be, beside so many that are under way.
    Yes { others: u64, fresh: bool, entries: Vec<Entry> },
    /// Too many are under way.
    Busy { held: u64 },
    /// They do not help.
    InVain { evictions: usize, retry_after: Duration },
}

impl Books {
    /// Begins an eviction of a pod of a workload, of which at most `at_once` may be under way.
    pub(crate) async fn hold(&self, workload: &str, uid: &str, at_once: u64) -> Result<Hold, Outcome> {
        for tries in 0..TRIES {
            let (lease, now) = self.read(workload).await?;
            let entry = Entry { pod: uid.to_owned(), node: self.node.clone(), at: now, under_way: true };
            let (others, fresh, entries) = match decide(entries(&lease)?, entry, now, at_once) {
                Verdict::Yes { others, fresh, entries } => (others, fresh, entries),
                Verdict::Busy { held } => {
                    let workload = workload.to_owned();
                    return Err(Outcome::Budget(Spent::Workload { workload, held, most: at_once }));
                }
                Verdict::InVain { evictions, retry_after } => {
                    return Err(Outcome::NotCured { workload: workload.to_owned(), evictions, retry_after });
                }
            };
            if self.write(lease, &entries).await?.is_some() {
                return Ok(Hold { workload: workload.to_owned(), uid: uid.to_owned(), others, fresh });
            }
            pause(tries).await;
        }
        Err(Outcome::Budget(Spent::Contended { what: workload.to_owned() }))
    }

    /// It is certain that nothing was evicted. What an earlier attempt began is kept: what became of that is not known.
    pub(crate) async fn give_back(&self, hold: Hold) {
        if hold.fresh {
            self.change(&hold.workload, |entries| entries.retain(|entry| entry.pod != hold.uid)).await;
        }
    }

    /// The replacement of a pod is Ready: another of the workload's may be evicted.
    pub(crate) async fn finished(&self, workload: &str, uid: &str) {
        let finish = |entries: &mut Vec<Entry>| {
            entries.iter_mut().filter(|entry| entry.pod == uid).for_each(|entry| entry.under_way = false);
        };
        self.change(workload, finish).await;
    }

    /// Removes the Leases of workloads whose last eviction nobody asks for any more: else there would be one more with every
    /// Job.
    pub(crate) async fn sweep(&self) {
        if let Err(outcome) = self.try_sweep().await {
            tracing::debug!("Leases of workloads cannot be cleared away now: {outcome}");
        }
    }

    async fn try_sweep(&self) -> Result<(), Outcome> {
        let uri = format!("{}?labelSelector=egress-guard.dev%2Flease%3Dworkload", self.path());
        let Some((list, answer)) = self.wire.get::<ObjectList<Lease>>(What::Lease, &uri).await? else { return Ok(()) };
        let now = answer.now()?;
        let is_over = |entry: &Entry| now.saturating_sub(entry.at) > HOUR;
        for lease in list.items.iter().filter(|lease| entries(lease).is_ok_and(|all| all.iter().all(is_over))) {
            // Written meanwhile: it is in use.
            self.remove(lease).await?;
        }
        Ok(())
    }

    async fn change(&self, workload: &str, change: impl Fn(&mut Vec<Entry>)) {
        for tries in 0..TRIES {
            match self.try_change(workload, &change).await {
                Ok(true) => return,
                Ok(false) => pause(tries).await,
                Err(outcome) => {
                    tracing::warn!(
                        workload,
                        lease = name(workload),
                        "an eviction that is over cannot be crossed off, so no other pod of the workload is evicted for ten \
                         minutes: {outcome}"
                    );
                    return;
                }
            }
        }
        tracing::warn!(workload, "an eviction that is over cannot be crossed off: others write its Lease all the time");
    }

    async fn try_change(&self, workload: &str, change: impl Fn(&mut Vec<Entry>)) -> Result<bool, Outcome> {
        let (lease, _) = self.read(workload).await?;
        let before = entries(&lease)?;
        let mut after = before.clone();
        change(&mut after);
        if before == after {
            return Ok(true);
        }
        if after.is_empty() {
            return self.remove(&lease).await;
        }
        Ok(self.write(lease, &after).await?.is_some())
    }

    fn path(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    /// The Lease, or what is to become one, and the API server's clock.
    async fn read(&self, workload: &str) -> Result<(Lease, i64), Outcome> {
        let name = name(workload);
        let uri = format!("{}/{name}", self.path());
        let answer = self.wire.send(What::Lease, Method::GET, &uri, None).await;
        let unanswered = |error| EvictError::Unanswered { what: "read a workload's Lease", error };
        let answer: Answer = answer.map_err(|silence| unanswered(silence.error))?;
        let lease = match answer.status {
            200..300 => super::wire::read(What::Lease, &answer)?,
            404 => {
                let annotations = [("egress-guard.dev/workload".to_owned(), workload.to_owned())];
                let labels = [("egress-guard.dev/lease".to_owned(), "workload".to_owned())];
                let metadata = ObjectMeta {
                    name: Some(name),
                    namespace: Some(self.namespace.clone()),
                    labels: Some(labels.into()),
                    annotations: Some(annotations.into()),
                    ..ObjectMeta::default()
                };
                Lease { metadata, spec: None }
            }
            _ => return Err(super::answer::refusal("read a workload's Lease", &answer)),
        };
        Ok((lease, answer.now()?))
    }

    async fn write(&self, mut lease: Lease, entries: &[Entry]) -> Result<Option<Lease>, Outcome> {
        let text = json!(entries).to_string();
        lease.metadata.annotations.get_or_insert_default().insert(EVICTIONS.to_owned(), text);
        // For who looks at it: the latest.
        if let Some(Entry { pod, node, at, .. }) = entries.iter().max_by_key(|entry| entry.at) {
            let at = Timestamp::from_second(*at).ok().map(MicroTime);
            lease.spec = Some(LeaseSpec {
                holder_identity: Some(format!("{node}/{pod}")),
                acquire_time: at.clone(),
                renew_time: at,
                lease_duration_seconds: Some(UNDER_WAY as i32),
                ..LeaseSpec::default()
            });
        }
        slots::write(&self.wire, &self.path(), &lease).await
    }

    /// False: somebody else wrote it meanwhile.
    async fn remove(&self, lease: &Lease) -> Result<bool, Outcome> {
        let ObjectMeta { name, uid, resource_version, .. } = &lease.metadata;
        let uri = format!("{}/{}", self.path(), name.as_deref().unwrap_or_default());
        let body = json!({"preconditions": {"uid": uid, "resourceVersion": resource_version}});
        match self.wire.ask(What::Lease, Method::DELETE, &uri, Some(&body)).await {
            Err(Outcome::Failed(EvictError::Refused { status: 409, .. })) => Ok(false),
            answer => answer.map(|_| true),
        }
    }
}

async fn pause(tries: u32) {
    sleep(Duration::from_millis(fastrand::u64(20..100 << tries))).await;
}

fn entries(lease: &Lease) -> Result<Vec<Entry>, EvictError> {
    let Some(text) = lease.metadata.annotations.as_ref().and_then(|all| all.get(EVICTIONS)) else { return Ok(vec![]) };
    serde_json::from_str(text).map_err(|error| {
        let name = lease.metadata.name.as_deref().unwrap_or_default();
        let error = format!("annotation {EVICTIONS} of Lease {name}: {error}; delete the Lease");
        EvictError::Unreadable { what: "read a workload's Lease", error }
    })
}

/// A name for the workload's Lease: its own, as far as a Lease may have it, and a hash of all of it.
pub(super) fn name(workload: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let readable: String = workload.chars().map(plain).take(100).collect();
    // FNV-1a. Two workloads of one hash would share their budget, which does no harm.
    let hash = workload
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("egress-guard-workload-{}-{hash:016x}", readable.trim_matches('-'))
}

/// Whether a pod may be evicted, by what was.
fn decide(entries: Vec<Entry>, own: Entry, now: i64, at_once: u64) -> Verdict {
    let age = |entry: &Entry| now.saturating_sub(entry.at);
    // One of the future was made by another clock: it counts.
    let is_under_way = |entry: &Entry| entry.under_way && age(entry) <= UNDER_WAY;
    let fresh = !entries.iter().any(|entry| entry.pod == own.pod && age(entry) <= slots::LINGERS);
    // The pod itself is still there: it was not evicted.
    let mut entries: Vec<Entry> =
        entries.into_iter().filter(|entry| entry.pod != own.pod && age(entry) <= HOUR).collect();
    let mut over: Vec<i64> = entries.iter().filter(|entry| !is_under_way(entry)).map(age).collect();
    over.sort_unstable();
    if let Some(oldest) = over.get(IN_VAIN - 1) {
        let left = HOUR.saturating_sub(*oldest).saturating_add(1);
        let retry_after = Duration::from_secs(u64::try_from(left).unwrap_or(0));
        return Verdict::InVain { evictions: over.len(), retry_after };
    }
    let others = entries.iter().filter(|entry| is_under_way(entry)).count() as u64;
    if others >= at_once {
        return Verdict::Busy { held: others };
    }
    entries.push(own);
    Verdict::Yes { others, fresh, entries }
}

#[cfg(test)]
#[path = "books_tests.rs"]
mod tests;
