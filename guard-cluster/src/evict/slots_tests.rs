use std::{
    num::NonZeroU64,
    sync::{Arc, Mutex},
};

use super::{
    super::fake::{EPOCH, Fake, LEASES, Say, status},
    *,
};

fn budget(evictions: u64, per: u64) -> Budget {
    Budget { evictions: NonZeroU64::new(evictions).expect("not zero"), per: Duration::from_secs(per) }
}

fn slot(number: u64, holder: &str, acquired: Option<i64>, length: i32) -> Lease {
    let at = |at| MicroTime(Timestamp::from_second(at).expect("a time"));
    let spec = LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        acquire_time: acquired.map(at),
        lease_duration_seconds: Some(length),
        ..LeaseSpec::default()
    };
    let metadata = ObjectMeta { name: Some(format!("{NAME}{number}")), ..ObjectMeta::default() };
    Lease { metadata, spec: Some(spec) }
}

fn any(free: &[usize], absent: &[u64]) -> Choice {
    Choice::Any { free: free.to_vec(), absent: absent.iter().map(|number| format!("{NAME}{number}")).collect() }
}

fn full(held: u64, retry_after: u64) -> Choice {
    Choice::Full { held, retry_after: Duration::from_secs(retry_after) }
}

#[test]
fn which_slot_is_taken() {
    let now = 100_000;
    let choose = |leases: &[Lease], most, per| choose(leases, now, budget(most, per), "me");
    assert_eq!(choose(&[], 2, 60), any(&[], &[0, 1]));
    // One is held for the window and the margin, to the second.
    assert_eq!(choose(&[slot(0, "a", Some(now - 90), 60)], 1, 60), full(1, 1));
    assert_eq!(choose(&[slot(0, "a", Some(now - 91), 60)], 1, 60), any(&[0], &[]));
    assert_eq!(choose(&[slot(0, "a", Some(now - 10), 60)], 1, 60), full(1, 80));
    // Nobody's, or given back.
    assert_eq!(choose(&[slot(0, "", Some(now), 60)], 1, 60), any(&[0], &[]));
    // Who took it has a longer window; or a shorter one.
    assert_eq!(choose(&[slot(0, "a", Some(now - 200), 600)], 1, 60), full(1, 430));
    assert_eq!(choose(&[slot(0, "a", Some(now - 200), 60)], 1, 600), full(1, 430));
    // When: nobody knows, or in the future.
    assert_eq!(choose(&[slot(0, "a", None, 60)], 1, 60), full(1, 90));
    assert_eq!(choose(&[slot(0, "a", Some(now + 9999), 60)], 1, 60), full(1, 90));
    // Slots beyond our own count, and are not taken.
    let beyond = [slot(7, "a", Some(now), 60), slot(8, "b", Some(now - 30), 60), slot(9, "", None, 60)];
    assert_eq!(choose(&beyond, 3, 60), any(&[], &[0, 1, 2]));
    assert_eq!(choose(&beyond, 2, 60), full(2, 60));
    // With one more than allowed, two must go.
    assert_eq!(choose(&beyond, 1, 60), full(2, 90));
    // One's own is found, but not beyond what is allowed, nor when it is over.
    let own = [slot(0, "a", Some(now), 60), slot(1, "me", Some(now - 30), 60)];
    assert_eq!(choose(&own, 2, 60), Choice::Own(1));
    assert_eq!(choose(&own, 1, 60), full(2, 90));
    assert_eq!(choose(&[slot(0, "me", Some(now - 91), 60)], 2, 60), any(&[0], &[1]));
    // Others' Leases are none of these.
    let mut other = slot(0, "a", Some(now), 60);
    other.metadata.name = Some("egress-guard-eviction-policy".into());
    assert_eq!(choose(&[other], 1, 60), any(&[], &[0]));
}

fn agent(fake: &Arc<Fake>, node: usize) -> Slots {
    let wire = Wire::new(fake.client()).expect("metrics");
    Slots { wire, namespace: "guard".into(), node: format!("node-{node}") }
}

/// The most instants within any window, both ends included.
fn most_within(instants: &[i64], window: i64) -> usize {
    let within = |from: &i64| instants.iter().filter(|at| (*from..=*from + window).contains(at)).count();
    instants.iter().map(within).max().unwrap_or(0)
}

/// Many agents that all want an eviction, for an hour: when each was allowed one.
async fn rush(fake: &Arc<Fake>, budgets: impl Fn(usize) -> Budget) -> Vec<i64> {
    fastrand::seed(7);
    let evictions: Arc<Mutex<Vec<i64>>> = Arc::default();
    let end = Instant::now() + Duration::from_hours(1);
    let mut tasks = tokio::task::JoinSet::new();
    for node in 0..200 {
        let (fake, slots, evictions, budget) =
            (Arc::clone(fake), agent(fake, node), Arc::clone(&evictions), budgets(node));
        tasks.spawn(async move {
            for pod in 0.. {
                let wait = match slots.take(("shop/web", &format!("pod-{pod}")), budget).await {
                    Ok(_) => {
                        // The eviction's answer comes late, and the agent may be dead by then.
                        sleep(Duration::from_millis(fastrand::u64(..20_000))).await;
                        evictions.lock().expect("no panic").push(fake.now());
                        Duration::from_secs(1)
                    }
                    Err(Outcome::Budget(Spent::Cluster { retry_after, .. })) => retry_after,
                    Err(Outcome::Budget(Spent::Contended { .. })) => Duration::from_secs(10),
                    Err(outcome) => panic!("{outcome}"),
                };
                if Instant::now() + wait > end {
                    return;
                }
                sleep(wait).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("an agent that ends");
    }
    let mut evictions = evictions.lock().expect("no panic").clone();
    evictions.sort_unstable();
    evictions
}

#[tokio::test(start_paused = true)]
async fn two_hundred_agents_together_keep_to_the_budget_and_use_it() {
    let fake = Fake::new(40);
    let evictions = rush(&fake, |_| budget(10, 600)).await;
    assert_eq!(most_within(&evictions, 600), 10, "{evictions:?}");
    // Five windows of ten, with what is between them.
    assert!(evictions.len() >= 40, "only {} in an hour: {evictions:?}", evictions.len());
    assert_eq!(fake.under(LEASES).len(), 10);
    // Most are refused by a list alone: no storm of writes, and no more than one list for each agent and window or so.
    let (lists, writes) = (fake.asked(&format!("GET {LEASES}")).len(), fake.state().asked.len());
    assert!(lists < 200 * 6 * 4, "{lists} lists");
    assert!(writes - lists < 200 * 6, "{} writes", writes - lists);
}

#[tokio::test(start_paused = true)]
async fn agents_of_two_configurations_keep_to_the_larger_one() {
    let fake = Fake::new(40);
    let evictions = rush(&fake, |node| if node % 2 == 0 { budget(10, 600) } else { budget(4, 60) }).await;
    let most = most_within(&evictions, 600);
    assert!((4..=10).contains(&most), "{most}: {evictions:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_died_finds_its_own_slot_again() {
    let fake = Fake::new(0);
    let slots = agent(&fake, 1);
    let first = slots.take(("shop/web", "u-1"), budget(2, 600)).await.expect("a slot");
    assert!(first.fresh);
    tokio::time::advance(Duration::from_mins(5)).await;
    // The same pod, by an agent that knows nothing of it.
    let again = agent(&fake, 1).take(("shop/web", "u-1"), budget(2, 600)).await.expect("a slot");
    assert_eq!(again.lease.metadata.name, first.lease.metadata.name);
    let held = fake.under(LEASES);
    assert_eq!(held.len(), 1, "{held:?}");
    // Its window begins anew, by the API server's clock: that of this machine says otherwise.
    assert_eq!(held[0]["spec"]["acquireTime"], "2001-09-09T01:51:40.000000Z", "{EPOCH} and five minutes");
    assert_eq!(held[0]["spec"]["holderIdentity"], "node-1/u-1");
    assert_eq!(held[0]["metadata"]["annotations"]["egress-guard.dev/pod"], "shop/web");
    // Another node's agent takes the other one, and a third none.
    agent(&fake, 2).take(("shop/db", "u-1"), budget(2, 600)).await.expect("a slot");
    let refused = agent(&fake, 3).take(("shop/db", "u-3"), budget(2, 600)).await.expect_err("no slot");
    let Outcome::Budget(Spent::Cluster { held: 2, most: 2, retry_after }) = refused else { panic!("{refused:?}") };
    assert!((630..=690).contains(&retry_after.as_secs()), "{retry_after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slot_without_an_eviction_is_given_back() {
    let fake = Fake::new(0);
    let taken = agent(&fake, 1).take(("shop/web", "u-1"), budget(1, 600)).await.expect("a slot");
    agent(&fake, 2).take(("shop/web", "u-2"), budget(1, 600)).await.expect_err("no slot");
    agent(&fake, 1).give_back(taken).await;
    let taken = agent(&fake, 2).take(("shop/web", "u-2"), budget(1, 600)).await.expect("a slot");
    // One that was found may be that of an eviction which is still to come to something.
    let found = agent(&fake, 2).take(("shop/web", "u-2"), budget(1, 600)).await.expect("a slot");
    agent(&fake, 2).give_back(found).await;
    agent(&fake, 1).take(("shop/web", "u-1"), budget(1, 600)).await.expect_err("no slot");
    drop(taken);
    // Not any more after so long.
    tokio::time::advance(Duration::from_secs(LINGERS as u64 + 1)).await;
    let found = agent(&fake, 2).take(("shop/web", "u-2"), budget(1, 600)).await.expect("a slot");
    agent(&fake, 2).give_back(found).await;
    agent(&fake, 1).take(("shop/web", "u-1"), budget(1, 600)).await.expect("a slot");
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_good_for_a_short_while() {
    let fake = Fake::new(0);
    let taken = agent(&fake, 1).take(("shop/web", "u-1"), budget(1, 600)).await.expect("a slot");
    tokio::time::advance(Duration::from_secs(15)).await;
    assert!(taken.is_good());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!taken.is_good());
}

#[tokio::test(start_paused = true)]
async fn without_the_servers_clock_or_its_leave_there_is_no_slot() {
    let fake = Fake::new(0);
    fake.state().timeless = true;
    let outcome = agent(&fake, 1).take(("shop/web", "u-1"), budget(1, 600)).await.expect_err("no slot");
    assert!(matches!(outcome, Outcome::Failed(EvictError::NoDate)), "{outcome:?}");
    fake.state().timeless = false;
    let refused =
        "leases is forbidden: User \"x\" cannot list resource \"leases\" in API group \"coordination.k8s.io\"";
    let refused = Say::Answer(403, status(403, "leases", refused));
    fake.state().others.insert(format!("GET {LEASES}"), refused);
    let outcome = agent(&fake, 1).take(("shop/web", "u-1"), budget(1, 600)).await.expect_err("no slot");
    assert!(outcome.to_string().contains("the agent may not list leases"), "{outcome}");
    assert!(outcome.is_untouched());
    // Somebody else is always faster.
    fake.state().others.clear();
    fake.state().others.insert(format!("POST {LEASES}"), Say::Answer(409, status(409, "leases", "already exists")));
    let outcome = agent(&fake, 1).take(("shop/web", "u-1"), budget(1, 600)).await.expect_err("no slot");
    assert!(matches!(outcome, Outcome::Budget(Spent::Contended { .. })), "{outcome:?}");
    assert_eq!(fake.asked(&format!("POST {LEASES}")).len(), TRIES as usize);
}
