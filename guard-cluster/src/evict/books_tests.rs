use std::sync::Arc;

use super::{
    super::fake::{Fake, LEASES},
    *,
};

const WEB: &str = "shop/Deployment/web";

fn entry(pod: &str, at: i64, under_way: bool) -> Entry {
    Entry { pod: pod.into(), node: "n".into(), at, under_way }
}

#[test]
fn who_may_evict_by_what_was() {
    let now = 10_000;
    let decide = |entries: &[Entry], at_once| decide(entries.to_vec(), entry("me", now, true), now, at_once);
    let yes = |others, fresh, before: &[Entry]| {
        let entries = before.iter().cloned().chain([entry("me", now, true)]).collect();
        Verdict::Yes { others, fresh, entries }
    };
    let in_vain = |evictions, seconds| Verdict::InVain { evictions, retry_after: Duration::from_secs(seconds) };
    assert_eq!(decide(&[], 1), yes(0, true, &[]));
    // One at once: until its replacement is Ready, or for ten minutes.
    assert_eq!(decide(&[entry("a", now - 600, true)], 1), Verdict::Busy { held: 1 });
    let expired = [entry("a", now - 601, true)];
    assert_eq!(decide(&expired, 1), yes(0, true, &expired));
    let ready = [entry("a", now - 10, false)];
    assert_eq!(decide(&ready, 1), yes(0, true, &ready));
    // Two at once.
    let one = [entry("a", now, true)];
    assert_eq!(decide(&one, 2), yes(1, true, &one));
    assert_eq!(decide(&[entry("a", now, true), entry("b", now, true)], 2), Verdict::Busy { held: 2 });
    // Another clock's future counts.
    assert_eq!(decide(&[entry("a", now + 9999, true)], 1), Verdict::Busy { held: 1 });
    // Two within the hour did not help: until the older of the last two is longer ago.
    let two = [entry("a", now - 3000, false), entry("b", now - 700, true)];
    assert_eq!(decide(&two, 1), in_vain(2, 601));
    let three = [entry("a", now - 3000, false), entry("b", now - 2000, false), entry("c", now - 100, false)];
    assert_eq!(decide(&three, 5), in_vain(3, 1601));
    // Those that are under way say nothing yet, and those of more than an hour ago are forgotten.
    let mixed = [entry("a", now - 3601, false), entry("b", now - 3600, false), entry("c", now, true)];
    assert_eq!(decide(&mixed, 2), yes(1, true, &mixed[1..]));
    // The pod is still there: what was begun for it before came to nothing, or will yet.
    assert_eq!(decide(&[entry("me", now - 20, true)], 1), yes(0, false, &[]));
    assert_eq!(decide(&[entry("me", now - 76, true)], 1), yes(0, true, &[]));
}

#[test]
fn names_of_leases_are_names_that_the_server_takes() {
    let long = format!("{}/StatefulSet/{}", "n".repeat(63), "w".repeat(253));
    for workload in [WEB, "a/Pod/b.c", &long, "/"] {
        let name = name(workload);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(name.len() <= 253 && name.chars().all(plain) && !name.ends_with('-'), "{name}");
    }
    assert_eq!(name(WEB), "egress-guard-workload-shop-deployment-web-d704d887103dc1c4");
    // What is alike to read is not the same.
    assert_ne!(name("a/Pod/b.c"), name("a/Pod/b-c"));
}

fn agent(fake: &Arc<Fake>, node: usize) -> Books {
    let wire = Wire::new(fake.client()).expect("metrics");
    Books { wire, namespace: "guard".into(), node: format!("node-{node}") }
}

#[tokio::test(start_paused = true)]
async fn of_many_that_want_one_at_once_one_gets_it() {
    let fake = Fake::new(30);
    fastrand::seed(7);
    let mut tasks = tokio::task::JoinSet::new();
    for node in 0..50 {
        let books = agent(&fake, node);
        tasks.spawn(async move { books.hold(WEB, &format!("u-{node}"), 1).await });
    }
    let held: Vec<_> = tasks.join_all().await;
    assert_eq!(held.iter().filter(|held| held.is_ok()).count(), 1, "{held:?}");
    for refused in held.iter().filter_map(|held| held.as_ref().err()) {
        let spent =
            matches!(refused, Outcome::Budget(Spent::Workload { held: 1, most: 1, .. } | Spent::Contended { .. }));
        assert!(spent, "{refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_may_be_evicted_when_the_replacement_is_ready() {
    let fake = Fake::new(0);
    let books = agent(&fake, 1);
    books.hold(WEB, "u-1", 1).await.expect("the first");
    agent(&fake, 2).hold(WEB, "u-2", 1).await.expect_err("one at once");
    agent(&fake, 2).hold("shop/Deployment/db", "u-3", 1).await.expect("another workload's");
    books.finished(WEB, "u-1").await;
    agent(&fake, 2).hold(WEB, "u-2", 1).await.expect("the second");
    agent(&fake, 2).finished(WEB, "u-2").await;
    // And no third within the hour.
    let outcome = books.hold(WEB, "u-4", 1).await.expect_err("it does not help");
    assert!(matches!(outcome, Outcome::NotCured { evictions: 2, .. }), "{outcome:?}");
    tokio::time::advance(Duration::from_mins(61)).await;
    books.hold(WEB, "u-4", 1).await.expect("an hour later");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_holds_up_the_workload_for_ten_minutes() {
    let fake = Fake::new(0);
    agent(&fake, 1).hold(WEB, "u-1", 1).await.expect("the first");
    tokio::time::advance(Duration::from_mins(10)).await;
    agent(&fake, 2).hold(WEB, "u-2", 1).await.expect_err("one at once");
    // Its successor finds what it began.
    let again = agent(&fake, 1).hold(WEB, "u-1", 1).await.expect("its own");
    assert_eq!((again.others, again.fresh), (0, true));
    tokio::time::advance(Duration::from_secs(601)).await;
    agent(&fake, 2).hold(WEB, "u-2", 1).await.expect("after ten minutes");
}

#[tokio::test(start_paused = true)]
async fn what_came_to_nothing_leaves_nothing() {
    let fake = Fake::new(0);
    let books = agent(&fake, 1);
    let hold = books.hold(WEB, "u-1", 1).await.expect("a hold");
    assert_eq!(fake.under(LEASES).len(), 1);
    books.give_back(hold).await;
    assert_eq!(fake.under(LEASES), Vec::<serde_json::Value>::new());
    // Beside another one it is crossed off.
    let first = books.hold(WEB, "u-1", 2).await.expect("a hold");
    let second = agent(&fake, 2).hold(WEB, "u-2", 2).await.expect("a hold");
    assert_eq!((first.others, second.others), (0, 1));
    books.give_back(first).await;
    let lease = fake.under(LEASES).remove(0);
    let text = lease["metadata"]["annotations"][EVICTIONS].as_str().expect("entries");
    assert!(text.contains("u-2") && !text.contains("u-1"), "{text}");
    assert_eq!(lease["metadata"]["annotations"]["egress-guard.dev/workload"], WEB);
    assert_eq!(lease["spec"]["holderIdentity"], "node-2/u-2");
}

#[tokio::test(start_paused = true)]
async fn what_may_still_come_to_something_is_kept() {
    let fake = Fake::new(0);
    let books = agent(&fake, 1);
    books.hold(WEB, "u-1", 1).await.expect("a hold");
    let again = books.hold(WEB, "u-1", 1).await.expect("its own");
    books.give_back(again).await;
    agent(&fake, 2).hold(WEB, "u-2", 1).await.expect_err("an eviction may be under way");
    tokio::time::advance(Duration::from_secs(slots::LINGERS as u64 + 1)).await;
    let again = books.hold(WEB, "u-1", 1).await.expect("its own");
    books.give_back(again).await;
    agent(&fake, 2).hold(WEB, "u-2", 1).await.expect("nothing is");
}

#[tokio::test(start_paused = true)]
async fn books_that_cannot_be_read_allow_nothing() {
    let fake = Fake::new(0);
    let path = format!("{LEASES}/{}", name(WEB));
    let metadata = json!({"name": name(WEB), "annotations": {EVICTIONS: "many"}});
    fake.put(&path, json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}));
    let outcome = agent(&fake, 1).hold(WEB, "u-1", 1).await.expect_err("no hold");
    assert!(outcome.to_string().contains("delete the Lease"), "{outcome}");
}
