//! The cluster's budget: Leases as slots, so that any number of agents together evict no more than it allows.
//!
//! A slot is taken by the write of its Lease, which the API server grants to one of those that read the same version. It is
//! held from then on for the budget's window, whatever becomes of its holder; who is certain that it evicted nothing gives
//! it back. Time is the API server's.

use std::time::Duration;

use guard_core::policy::Budget;
use http::Method;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::api::ObjectList;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    EvictError, Outcome, Spent,
    wire::{Answer, What, Wire, read},
};
use crate::connect::PATIENCE;

/// Slots are called so, and numbered.
const NAME: &str = "egress-guard-eviction-";

/// By which they are listed.
const LABEL: (&str, &str) = ("egress-guard.dev/lease", "eviction");

/// A slot is held for so many seconds longer than the window: an eviction comes a little after its slot is taken. It is sent
/// within [`Taken::is_good`], and answered within [`PATIENCE`]; the rest is for the clocks of several API servers.
const MARGIN: i64 = 30;

/// An eviction that was not answered may still come to something for so many seconds: the API server gives requests a minute.
pub(super) const LINGERS: i64 = 75;

/// How often it is tried when others are faster.
const TRIES: u32 = 5;

/// The slots of the agents' namespace.
#[derive(Clone)]
pub(crate) struct Slots {
    pub(crate) wire: Wire,
    pub(crate) namespace: String,
    pub(crate) node: String,
}

/// A slot that is taken.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    lease: Lease,
    /// It was not held already, by an earlier attempt for the same pod that may still come to something.
    fresh: bool,
    /// When the API server's clock was asked, in seconds since 1970.
    pub(crate) now: i64,
    /// The same by our own clock.
    asked: Instant,
}

/// Which slot to take.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// One that is held for this pod already.
    Own(usize),
    /// Any of these: some that are there, and names of others that are not yet.
    Any { free: Vec<usize>, absent: Vec<String> },
    /// None.
    Full { held: u64, retry_after: Duration },
}

impl Taken {
    /// An eviction may still be sent: its window began when the API server's clock was asked.
    pub(crate) fn is_good(&self) -> bool {
        self.asked.elapsed() <= PATIENCE.mul_f64(1.5)
    }
}

impl Slots {
    /// Takes a slot for a pod.
    pub(crate) async fn take(&self, pod: (&str, &str), budget: Budget) -> Result<Taken, Outcome> {
        let (pod, uid) = pod;
        let holder = format!("{}/{uid}", self.node);
        for tries in 0..TRIES {
            let (leases, now) = self.list().await?;
            let asked = Instant::now();
            let (lease, fresh) = match choose(&leases, now, budget, &holder) {
                Choice::Own(index) => (leases[index].clone(), age(&leases[index], now) > LINGERS),
                Choice::Any { mut free, mut absent } => {
                    let pick = fastrand::usize(..free.len() + absent.len());
                    let lease = match pick.checked_sub(free.len()) {
                        None => leases[free.swap_remove(pick)].clone(),
                        Some(pick) => self.absent(absent.swap_remove(pick)),
                    };
                    (lease, true)
                }
                Choice::Full { held, retry_after } => {
                    // All others who were refused come back then as well.
                    let spread = budget.per.div_f64(10.0).mul_f64(fastrand::f64());
                    let retry_after = retry_after.saturating_add(spread.min(Duration::from_mins(1)));
                    let most = budget.evictions.get();
                    return Err(Outcome::Budget(Spent::Cluster { held, most, retry_after }));
                }
            };
            if let Some(lease) = self.write(held_by(lease, &holder, pod, now, budget.per)).await? {
                return Ok(Taken { lease, fresh, now, asked });
            }
            sleep(Duration::from_millis(fastrand::u64(50..250 << tries))).await;
        }
        Err(Outcome::Budget(Spent::Contended { what: "the cluster's budget".into() }))
    }

    /// Gives a slot back, of which it is certain that nothing was evicted with it. One that an earlier attempt had taken
    /// is kept: what became of that is not known.
    pub(crate) async fn give_back(&self, taken: Taken) {
        let Taken { mut lease, fresh, .. } = taken;
        if !fresh {
            return;
        }
        let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
        lease.spec = Some(LeaseSpec { lease_transitions: transitions, ..LeaseSpec::default() });
        lease.metadata.annotations = None;
        let name = lease.metadata.name.clone().unwrap_or_default();
        match self.write(lease).await {
            Ok(Some(_)) => {}
            Ok(None) => tracing::debug!(lease = name, "somebody else wrote the slot that was to be given back"),
            Err(outcome) => tracing::warn!(
                lease = name,
                "a slot of the cluster's budget cannot be given back, so it counts as an eviction until its window is over: \
                 {outcome}"
            ),
        }
    }

    fn path(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    async fn list(&self) -> Result<(Vec<Lease>, i64), Outcome> {
        // Without a resourceVersion it is what etcd has now, not what a cache had.
        let uri = format!("{}?labelSelector={}%3D{}", self.path(), LABEL.0.replace('/', "%2F"), LABEL.1);
        let refused = || EvictError::Refused { what: "list Leases", status: 404, message: "no such resource".into() };
        let (list, answer): (ObjectList<Lease>, Answer) =
            self.wire.get(What::Lease, &uri).await?.ok_or_else(refused)?;
        Ok((list.items, answer.now()?))
    }

    /// `None`: somebody else was faster.
    async fn write(&self, lease: Lease) -> Result<Option<Lease>, Outcome> {
        write(&self.wire, &self.path(), &lease).await
    }

    fn absent(&self, name: String) -> Lease {
        let labels = [(LABEL.0.to_owned(), LABEL.1.to_owned())].into();
        let metadata = ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        };
        Lease { metadata, spec: None }
    }
}

/// Creates a Lease that has no version yet, else replaces that version of it. `None`: somebody else was faster.
pub(super) async fn write(wire: &Wire, path: &str, lease: &Lease) -> Result<Option<Lease>, Outcome> {
    let name = lease.metadata.name.as_deref().unwrap_or_default();
    let (method, uri) = match lease.metadata.resource_version {
        Some(_) => (Method::PUT, format!("{path}/{name}")),
        None => (Method::POST, path.to_owned()),
    };
    let body: Value = json!(lease);
    let answer = match wire.ask(What::Lease, method, &uri, Some(&body)).await {
        // Written meanwhile, or removed.
        Err(Outcome::Failed(EvictError::Refused { status: 409, .. })) | Ok(None) => return Ok(None),
        answer => answer?,
    };
    let written = answer.map(|answer| read(What::Lease, &answer)).transpose()?;
    Ok(written)
}

fn held_by(mut lease: Lease, holder: &str, pod: &str, now: i64, per: Duration) -> Lease {
    let since = Timestamp::from_second(now).ok().map(MicroTime);
    let before = lease.spec.unwrap_or_default();
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        acquire_time: since.clone(),
        renew_time: since,
        lease_duration_seconds: Some(i32::try_from(seconds(per)).unwrap_or(i32::MAX)),
        lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(1)),
        ..LeaseSpec::default()
    });
    // For who looks at them.
    lease.metadata.annotations = Some([("egress-guard.dev/pod".to_owned(), pod.to_owned())].into());
    lease
}

fn choose(leases: &[Lease], now: i64, budget: Budget, holder: &str) -> Choice {
    let most = budget.evictions.get();
    let slots: Vec<(usize, &Lease, u64)> =
        leases.iter().enumerate().filter_map(|(index, lease)| Some((index, lease, number(lease)?))).collect();
    // Those beyond our own number are somebody's who is allowed more: they count as well.
    let mut frees: Vec<i64> = slots.iter().filter_map(|(_, lease, _)| frees_in(lease, now, budget.per)).collect();
    frees.sort_unstable();
    let held = frees.len() as u64;
    let is_own = |lease: &Lease| lease.spec.as_ref().is_some_and(|it| it.holder_identity.as_deref() == Some(holder));
    let own = slots.iter().find(|(_, lease, _)| is_own(lease) && frees_in(lease, now, budget.per).is_some());
    if let Some((index, ..)) = own
        && held <= most
    {
        return Choice::Own(*index);
    }
    if held >= most {
        // One leaves room once no more than one less than allowed are held.
        let first = frees.get((held - most) as usize).copied().unwrap_or(0);
        return Choice::Full { held, retry_after: Duration::from_secs(u64::try_from(first).unwrap_or(0)) };
    }
    let is_free = |lease: &Lease| frees_in(lease, now, budget.per).is_none();
    let free =
        slots.iter().filter(|(_, lease, number)| *number < most && is_free(lease)).map(|(index, ..)| *index).collect();
    let is_absent = |wanted: &u64| !slots.iter().any(|(_, _, number)| number == wanted);
    // So many are enough to choose from.
    let absent = (0..most).filter(is_absent).take(1000).map(|number| format!("{NAME}{number}")).collect();
    Choice::Any { free, absent }
}

fn number(lease: &Lease) -> Option<u64> {
    lease.metadata.name.as_deref()?.strip_prefix(NAME)?.parse().ok()
}

/// In how many seconds a slot is free. `None`: it is. What was taken in the future was so by another clock, and is held.
fn frees_in(lease: &Lease, now: i64, per: Duration) -> Option<i64> {
    let spec = lease.spec.as_ref()?;
    spec.holder_identity.as_deref().filter(|holder| !holder.is_empty())?;
    // Whoever took it may have a longer window than ours.
    let length = seconds(per).max(i64::from(spec.lease_duration_seconds.unwrap_or(0))).saturating_add(MARGIN);
    let acquired = spec.acquire_time.as_ref().map_or(now, |time| time.0.as_second());
    let left = acquired.saturating_add(length).saturating_sub(now);
    (left >= 0).then_some(left.clamp(1, length))
}

fn age(lease: &Lease, now: i64) -> i64 {
    let acquired = lease.spec.as_ref().and_then(|spec| spec.acquire_time.as_ref());
    acquired.map_or(0, |time| now.saturating_sub(time.0.as_second()))
}

/// Whole seconds, rounded up.
fn seconds(length: Duration) -> i64 {
    i64::try_from(length.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
