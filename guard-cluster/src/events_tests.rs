use guard_core::breach::Limit;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::mock::{self, Asked, Server};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/shop/events";

struct World {
    server: Server,
    teller: Teller,
    task: JoinHandle<Infallible>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn pod(uid: &str) -> Arc<Pod> {
    Arc::new(Pod { namespace: "shop".into(), name: "web-1".into(), uid: uid.into(), ..Pod::default() })
}

fn breach(uid: &str, said: &str) -> Tell {
    let destinations = vec!["203.0.113.7:25 tcp: 9.0 MB (90 %)".into()];
    let what = What::LimitExceeded { limit: Limit::Rate, said: said.into(), destinations };
    Tell { pod: pod(uid), container: "main".into(), what }
}

fn blocked(budget: &str) -> Tell {
    let what = What::EvictionRefused {
        cause: "blocked".into(),
        budget: Some(budget.into()),
        why: "it needs 2 healthy pods".into(),
    };
    Tell { pod: pod("u1"), container: String::new(), what }
}

impl World {
    fn new() -> Self {
        Self::of_agent("egress-guard-x7k2p")
    }

    fn of_agent(agent: &'static str) -> Self {
        let (client, server) = mock::pair();
        let teller = Teller::new().expect("metrics");
        let of_task = teller.clone();
        Self { server, teller, task: tokio::spawn(async move { of_task.run(client, agent).await }) }
    }

    /// An Event that is made; it is answered as it is.
    async fn made(&mut self) -> Value {
        let asked = self.server.asked().await;
        assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", EVENTS));
        take(asked)
    }

    /// An Event that is counted again.
    async fn counted(&mut self) -> (String, Value) {
        let asked = self.server.asked().await;
        assert_eq!((asked.method.as_str(), asked.content_type.as_str()), ("PATCH", "application/merge-patch+json"));
        let name = asked.path.strip_prefix(&format!("{EVENTS}/")).expect("an Event's path").to_owned();
        (name, take(asked))
    }

    /// Waits until so many have ended so.
    async fn ended(&self, counter: &prometheus::IntCounter, expected: u64) {
        let waited = timeout(Duration::from_secs(5), async {
            while counter.get() != expected {
                sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waited.await.is_ok(), "{} instead of {expected}", counter.get());
    }

    fn events(&self, result: &str) -> prometheus::IntCounter {
        self.teller.events.with_label_values(&["EgressLimitExceeded", result])
    }

    fn flags(&self, result: &str) -> prometheus::IntCounter {
        self.teller.flags.with_label_values(&[result])
    }
}

fn take(asked: Asked) -> Value {
    let body = asked.body.clone();
    asked.answer(201, &body);
    body
}

/// A time that the API server takes: RFC 3339 with microseconds.
fn take_time(value: &mut Value) -> String {
    let time = value.take();
    let time = time.as_str().expect("a time").to_owned();
    assert!(time.len() == "2026-01-31T03:00:00.000000Z".len() && time.ends_with('Z'), "{time}");
    time
}

#[tokio::test(start_paused = true)]
async fn every_byte_of_an_event_is_what_the_api_server_takes() {
    let mut world = World::new();
    world.teller.tell(breach("u1", "it sends 100.0 MB/s, and 50.0 MB/s is allowed"));
    let mut made = world.made().await;
    let time = take_time(&mut made["eventTime"]);
    let name = made["metadata"]["name"].take();
    assert!(name.as_str().is_some_and(|name| name.starts_with("web-1.")), "{name}");
    let expected = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": null, "namespace": "shop"},
        "eventTime": null,
        "type": "Warning",
        "reason": "EgressLimitExceeded",
        "action": "CheckRate",
        "note": "it sends 100.0 MB/s, and 50.0 MB/s is allowed; most went to 203.0.113.7:25 tcp: 9.0 MB (90 %)",
        "regarding": {
            "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-1", "uid": "u1",
            "fieldPath": "spec.containers{main}",
        },
        "reportingController": "egress-guard",
        "reportingInstance": "egress-guard-x7k2p",
    });
    assert_eq!(made, expected);
    world.ended(&world.events("sent"), 1).await;

    // It goes on, with another figure: the same Event, of which the API server lets only the series change.
    for count in 2..5 {
        sleep(Duration::from_mins(5)).await;
        world.teller.tell(breach("u1", &format!("it sends {count} MB/s")));
        let (again, mut counted) = world.counted().await;
        assert_eq!(again, name);
        assert_eq!(counted["series"]["count"], count);
        take_time(&mut counted["series"]["lastObservedTime"]);
        counted.as_object_mut().expect("an object").remove("series");
        assert_eq!(take_time(&mut counted["eventTime"]), time);
        counted["metadata"]["name"].take();
        assert_eq!(counted, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn who_refuses_an_eviction_is_named_and_another_is_another_event() {
    let mut world = World::new();
    for budget in ["keep-two", "keep-three"] {
        world.teller.tell(blocked(budget));
        let made = world.made().await;
        let related =
            json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "namespace": "shop", "name": budget});
        assert_eq!((&made["related"], &made["action"]), (&related, &json!("EvictBlocked")));
        assert_eq!(made["regarding"].get("fieldPath"), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_breach_that_comes_and_goes_is_told_once_a_minute() {
    let mut world = World::new();
    let begun = Instant::now();
    world.teller.tell(breach("u1", "first"));
    world.made().await;
    while begun.elapsed() < Duration::from_secs(55) {
        world.teller.tell(breach("u1", "again"));
        sleep(Duration::from_secs(10)).await;
    }
    world.server.quiet(Duration::from_secs(1)).await;
    world.ended(&world.events("repeated"), 6).await;
    sleep(Duration::from_secs(5)).await;
    world.teller.tell(breach("u1", "again"));
    assert_eq!(world.counted().await.1["series"]["count"], 2);
    // Another pod's is not held back.
    world.teller.tell(breach("u2", "another"));
    assert_eq!(world.made().await["regarding"]["uid"], "u2");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_somebody_deleted_is_made_anew() {
    let mut world = World::new();
    world.teller.tell(breach("u1", "first"));
    world.made().await;
    sleep(GAP).await;
    world.teller.tell(breach("u1", "again"));
    let asked = world.server.asked().await;
    assert_eq!(asked.method, http::Method::PATCH);
    asked.refuse(404, "NotFound");
    world.made().await;
    world.ended(&world.events("sent"), 2).await;
    // The namespace of another is gone, which does not end the series of the first.
    world.teller.tell(breach("u2", "first"));
    world.server.asked().await.refuse(404, "NotFound");
    world.ended(&world.events("gone"), 1).await;
    sleep(GAP).await;
    world.teller.tell(breach("u1", "again"));
    assert_eq!(world.counted().await.1["series"]["count"], 2);
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_what_is_new_waits_and_what_is_old_goes() {
    let mut world = World::new();
    for number in 0..300 {
        world.teller.tell(breach(&format!("u{number}"), "far too much"));
    }
    world.ended(&world.events("dropped"), 44).await;
    // The same again is not another one.
    world.teller.tell(breach("u299", "still"));
    world.ended(&world.events("repeated"), 1).await;
    let (begun, mut asked) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_mins(9) {
        world.server.asked().await.fail();
        asked += 1;
    }
    assert!((18..=50).contains(&asked), "asked {asked} times in 9 minutes");
    // What was tried goes behind those that were not: nobody holds up the others.
    let back = Instant::now();
    let mut uids = std::collections::BTreeSet::new();
    for _ in 0..256 {
        let made = world.made().await;
        uids.insert(made["regarding"]["uid"].as_str().expect("a uid").to_owned());
    }
    assert!(back.elapsed() <= Duration::from_secs(30), "{:?}", back.elapsed());
    assert_eq!(uids.len(), 256);
    assert!(uids.contains("u299") && !uids.contains("u43"), "the oldest go");
    world.ended(&world.events("sent"), 256).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sent_for_ten_minutes_is_given_up_and_counted() {
    let mut world = World::new();
    world.teller.tell(breach("u1", "too much"));
    world.teller.flag(pod("u1"), "2026-01-31T03:00:00.000Z", "rate");
    let begun = Instant::now();
    while world.events("failed").get() + world.flags("failed").get() < 2 {
        match timeout(Duration::from_secs(40), world.server.asked()).await {
            Ok(asked) => asked.refuse(503, "ServiceUnavailable"),
            Err(_) => break,
        }
    }
    assert_eq!((world.events("failed").get(), world.flags("failed").get()), (1, 1));
    assert!(begun.elapsed() >= OLD && begun.elapsed() <= OLD + Duration::from_mins(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_forbidden_is_counted_and_not_tried_again() {
    let mut world = World::new();
    for number in 0..3 {
        world.teller.tell(breach(&format!("u{number}"), "too much"));
        world.server.asked().await.refuse(403, "Forbidden");
    }
    world.ended(&world.events("forbidden"), 3).await;
    world.server.quiet(Duration::from_mins(20)).await;
    world.teller.tell(breach("u9", "too much"));
    world.server.asked().await.refuse(422, "Invalid");
    world.ended(&world.events("refused"), 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_is_not_waited_for() {
    let mut world = World::new();
    world.teller.tell(breach("u1", "too much"));
    let begun = Instant::now();
    let _unanswered = world.server.asked().await;
    world.made().await;
    assert!(begun.elapsed() <= PATIENCE + Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_flag_is_applied_to_that_very_pod_under_a_manager_of_its_own() {
    let mut world = World::new();
    world.teller.flag(pod("u1"), "2026-01-31T03:00:00.000Z", "rate");
    let asked = world.server.asked().await;
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("PATCH", "/api/v1/namespaces/shop/pods/web-1"));
    assert_eq!(asked.content_type, "application/apply-patch+yaml");
    let query: Vec<_> = asked.query.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(query, [("fieldManager", "egress-guard"), ("force", "true")]);
    let expected = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "shop",
            "name": "web-1",
            "uid": "u1",
            "annotations": {"egress-guard.dev/flagged": "2026-01-31T03:00:00.000Z rate"},
        },
    });
    assert_eq!(asked.body, expected);
    let metadata =
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "web-1"}});
    asked.answer(200, &metadata);
    world.ended(&world.flags("sent"), 1).await;
    // Once a minute is enough.
    world.teller.flag(pod("u1"), "2026-01-31T03:00:20.000Z", "quota");
    world.ended(&world.flags("repeated"), 1).await;
    // A pod that is gone, with its name free or another's.
    world.teller.flag(pod("u2"), "2026-01-31T03:00:00.000Z", "rate");
    world.server.asked().await.refuse(409, "Conflict");
    world.ended(&world.flags("gone"), 1).await;
    world.server.quiet(Duration::from_mins(20)).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_with_a_long_name_is_named_as_far_as_there_is_room() {
    let mut world = World::of_agent(Box::leak("n".repeat(200).into_boxed_str()));
    world.teller.tell(breach("u1", "too much"));
    assert_eq!(world.made().await["reportingInstance"], "n".repeat(INSTANCE));
}
