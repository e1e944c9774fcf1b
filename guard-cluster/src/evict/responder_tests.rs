use std::{
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use guard_core::{
    inventory::Workload,
    policy::Budget,
    safety::{Leave, Protect, Unsafe},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::{
    super::{
        Limits,
        fake::{EPOCH, EVICTION, Fake, LEASES, Say, status},
    },
    *,
};
use crate::evict::books;

#[path = "responder_safety_tests.rs"]
mod safety_tests;

const POD: &str = "/api/v1/namespaces/shop/pods/web-1";
const WEB: &str = "/apis/apps/v1/namespaces/shop/deployments/web";
const BUDGETS: &str = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets";

fn pod(name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "shop", "uid": uid, "labels": {"app": "web"},
            "creationTimestamp": Timestamp::from_second(EPOCH - 3600).expect("a time").to_string(),
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "set", "controller": true},
            ],
        },
        "spec": {"containers": [{"name": "main", "image": "web:1"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// A Deployment with so many Ready pods, of which one or two are there.
fn cluster(ready: u32) -> Arc<Fake> {
    fill(Fake::new(0), ready)
}

fn fill(fake: Arc<Fake>, ready: u32) -> Arc<Fake> {
    fake.put(POD, pod("web-1", "u-1"));
    fake.put("/api/v1/namespaces/shop/pods/web-2", pod("web-2", "u-2"));
    let web = json!({
        "metadata": {"name": "web", "uid": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}},
        "status": {"readyReplicas": ready},
    });
    fake.put(WEB, web);
    let set = json!({"metadata": {"name": "web-1", "uid": "set", "ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "web", "controller": true},
    ]}});
    fake.put("/apis/apps/v1/namespaces/shop/replicasets/web-1", set);
    fake
}

fn responder(fake: &Arc<Fake>, node: &str) -> Responder {
    let clients = Clients { patient: fake.client(), once: fake.client() };
    let identity =
        Identity { node: node.into(), namespace: "guard".into(), pod: "guard-1".into(), pod_uid: "guard".into() };
    Responder::new(&clients, &identity).expect("metrics")
}

fn order() -> Order {
    let workload = Workload { kind: "Deployment".into(), namespace: "shop".into(), name: "web".into() };
    let known = Pod {
        uid: "u-1".into(),
        namespace: "shop".into(),
        name: "web-1".into(),
        workload: Some(workload),
        ..Pod::default()
    };
    let ten = NonZeroU64::new(10).expect("not zero");
    Order {
        pod: Arc::new(known),
        grace: None,
        leave: Leave::default(),
        protect: Protect::default(),
        dry_run: false,
        limits: Limits {
            cluster: Budget { evictions: ten, per: Duration::from_mins(10) },
            at_once: NonZeroU64::MIN,
            percent: 25,
        },
    }
}

fn with_pod(order: Order, change: impl Fn(&mut Pod)) -> Order {
    let mut pod = (*order.pod).clone();
    change(&mut pod);
    Order { pod: Arc::new(pod), ..order }
}

async fn evict(fake: &Arc<Fake>, order: &Order) -> Attempt {
    responder(fake, "node-1").evict(order, || false).await
}

fn evictions(fake: &Fake) -> usize {
    fake.asked("POST /api/v1/namespaces/shop/pods/").len()
}

/// Slots and holds that are taken.
fn taken(fake: &Fake) -> usize {
    fake.under(LEASES).iter().filter(|lease| lease["spec"]["holderIdentity"].is_string()).count()
}

#[tokio::test(start_paused = true)]
async fn an_eviction_is_these_bytes() {
    let body = |version: &str, options: &str| {
        format!(
            "{{\"apiVersion\":\"{version}\",\"deleteOptions\":{{{options}\"preconditions\":{{\"uid\":\"u-1\"}}}},\
             \"kind\":\"Eviction\",\"metadata\":{{\"name\":\"web-1\",\"namespace\":\"shop\"}}}}"
        )
    };
    let grace = |millis| Some(Duration::from_millis(millis));
    let cases = [
        ("v1", None, false, "", ""),
        ("v1beta1", None, false, "", ""),
        ("v1", grace(20_000), false, "\"gracePeriodSeconds\":20,", ""),
        ("v1", grace(20_001), false, "\"gracePeriodSeconds\":21,", ""),
        // Zero would be a deletion without an end of the pod.
        ("v1", grace(0), false, "\"gracePeriodSeconds\":1,", ""),
        ("v1", None, true, "\"dryRun\":[\"All\"],", "?dryRun=All"),
        ("v1beta1", grace(5000), true, "\"dryRun\":[\"All\"],\"gracePeriodSeconds\":5,", "?dryRun=All"),
    ];
    for (version, grace, dry_run, options, query) in cases {
        let fake = cluster(3);
        fake.state().policy = version;
        let attempt = evict(&fake, &Order { grace, dry_run, ..order() }).await;
        assert_eq!(attempt.outcome.name(), if dry_run { "dry_run" } else { "done" }, "{attempt}");
        let sent = fake.asked("POST /api/v1");
        let [sent] = sent.as_slice() else { panic!("not one eviction: {sent:?}") };
        assert_eq!(sent.uri, format!("{EVICTION}{query}"));
        assert_eq!(sent.body, body(&format!("policy/{version}"), options));
        assert_eq!(attempt.retry_after, None);
        // What was tried without harm is in no budget.
        assert_eq!(taken(&fake), if dry_run { 0 } else { 2 }, "{dry_run}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_steps_come_in_this_order() {
    let fake = cluster(3);
    let switch = AtomicUsize::new(0);
    let asked = || switch.fetch_add(1, Ordering::SeqCst) > 10;
    let order = with_pod(order(), |pod| pod.workload = None);
    let attempt = responder(&fake, "node-1").evict(&order, asked).await;
    let Outcome::Done(evicted) = &attempt.outcome else { panic!("{attempt}") };
    assert_eq!(evicted.workload().map(Workload::to_string).as_deref(), Some("shop/Deployment/web"));
    assert_eq!(switch.load(Ordering::SeqCst), 2, "the kill switch is asked at the beginning and at the end");
    let steps: Vec<String> = fake.asked("").iter().map(|it| format!("{} {}", it.method, it.uri)).collect();
    let hold = books::name("shop/Deployment/web");
    let slot = "?labelSelector=egress-guard.dev%2Flease%3Deviction";
    let expected = [
        format!("GET {POD}"),
        "GET /apis/apps/v1/namespaces/shop/replicasets/web-1".into(),
        format!("GET {LEASES}/{hold}"),
        format!("POST {LEASES}"),
        format!("GET {WEB}"),
        format!("GET {POD}"),
        "GET /api/v1".into(),
        format!("GET {LEASES}{slot}"),
        format!("POST {LEASES}"),
        format!("POST {EVICTION}"),
    ];
    assert_eq!(steps, expected);
    let heir = evicted.heir.as_ref().expect("a replacement to come");
    assert_eq!((heir.deployment.as_deref(), heir.selector.as_deref()), (Some("web"), Some("app=web")));
}

#[tokio::test(start_paused = true)]
async fn each_answer_is_asked_for_once_and_kept_or_given_back() {
    let cause = json!({"reason": "DisruptionBudget", "message": "The disruption budget web needs 2 healthy pods"});
    let blocked = json!({"kind": "Status", "message": "Cannot evict", "details": {"causes": [cause]}});
    let two = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
    let gone = "Operation cannot be fulfilled: Precondition failed: UID in precondition: u-1, UID in object meta: u-9";
    let cases = [
        (Say::Answer(429, blocked), "blocked", true, 10),
        (Say::With(429, "Retry-After", "33", status(429, "", "busy")), "overloaded", true, 33),
        (Say::Answer(429, status(429, "", "busy")), "overloaded", true, 30),
        (Say::Answer(503, status(503, "", "going down")), "overloaded", false, 30),
        (Say::Answer(500, status(500, "", two)), "misconfigured", true, 600),
        (Say::Answer(403, status(403, "pods", "no")), "forbidden", true, 600),
        (Say::Answer(404, json!({"details": {"kind": "pods", "name": "web-1"}})), "gone", true, 0),
        (Say::Answer(409, status(409, "pods", gone)), "gone", true, 0),
        (Say::Answer(422, status(422, "pods", "wrong")), "failed", true, 30),
        (Say::Nothing, "failed", false, 30),
    ];
    for (say, name, untouched, seconds) in cases {
        let fake = cluster(3);
        fake.state().evictions.push_back(say.clone());
        let attempt = evict(&fake, &order()).await;
        let outcome = &attempt.outcome;
        assert_eq!((outcome.name(), outcome.is_untouched()), (name, untouched), "{say:?}: {attempt}");
        assert_eq!(evictions(&fake), 1, "{say:?}: {attempt}");
        assert_eq!(taken(&fake), if untouched { 0 } else { 2 }, "{say:?}: {attempt}");
        let after = attempt.retry_after.map_or(0.0, |after| after.as_secs_f64());
        let least = f64::from(seconds);
        assert!((least..=least * 1.25).contains(&after), "{say:?}: {after} s where {seconds} are expected");
    }
}

#[tokio::test(start_paused = true)]
async fn an_eviction_without_an_answer_is_neither_forgotten_nor_repeated() {
    let fake = cluster(3);
    fake.state().evictions = [Say::Nothing, Say::Answer(201, json!({}))].into();
    let attempt = evict(&fake, &order()).await;
    assert!(matches!(attempt.outcome, Outcome::Failed(EvictError::Lost(_))), "{attempt}");
    // Another agent's pod of the workload waits meanwhile.
    let other = with_pod(order(), |pod| (pod.name, pod.uid) = ("web-2".into(), "u-2".into()));
    let refused = responder(&fake, "node-2").evict(&other, || false).await;
    assert!(matches!(refused.outcome, Outcome::Budget(Spent::Workload { held: 1, most: 1, .. })), "{refused}");
    // The agent's successor finds what it had taken.
    let attempt = evict(&fake, &order()).await;
    assert_eq!(attempt.outcome.name(), "done", "{attempt}");
    assert_eq!(taken(&fake), 2, "one slot and one hold: {:?}", fake.under(LEASES));
    // It had happened: then it is on its way.
    let mut going = pod("web-1", "u-1");
    going["metadata"]["deletionTimestamp"] = json!("2001-09-09T02:00:00Z");
    fake.put(POD, going);
    let attempt = evict(&fake, &order()).await;
    assert!(matches!(attempt.outcome, Outcome::Protected(Unsafe::Terminating)), "{attempt}");
    assert_eq!(evictions(&fake), 2);
}

#[tokio::test(start_paused = true)]
async fn the_kill_switch_stops_it_at_the_last_moment() {
    let fake = cluster(3);
    let responder = responder(&fake, "node-1");
    assert_eq!(responder.evict(&order(), || true).await.outcome.name(), "kill_switch");
    assert_eq!(fake.asked(""), [], "nothing is asked while it is engaged");
    let asked = AtomicUsize::new(0);
    let attempt = responder.evict(&order(), || asked.fetch_add(1, Ordering::SeqCst) > 0).await;
    assert_eq!(attempt.outcome.name(), "kill_switch", "{attempt}");
    assert_eq!((evictions(&fake), taken(&fake)), (0, 0), "what was taken is given back");
}

#[tokio::test(start_paused = true)]
async fn the_version_is_found_out_again_when_the_control_plane_has_another() {
    let fake = cluster(3);
    let responder = responder(&fake, "node-1");
    assert_eq!(responder.evict(&Order { dry_run: true, ..order() }, || false).await.outcome.name(), "dry_run");
    fake.state().policy = "v1beta1";
    let wrong = "no kind \"Eviction\" is registered for version \"policy/v1\" in scheme";
    fake.state().evictions.push_back(Say::Answer(400, status(400, "", wrong)));
    assert_eq!(responder.evict(&order(), || false).await.outcome.name(), "done");
    let versions: Vec<bool> = fake.asked("POST /api/v1").iter().map(|it| it.body.contains("policy/v1beta1")).collect();
    assert_eq!(versions, [false, false, true]);
    assert_eq!(fake.asked("GET /api/v1").iter().filter(|it| it.uri == "/api/v1").count(), 2);
    // The same again is no other.
    let fake = cluster(3);
    fake.state().evictions.push_back(Say::Answer(400, status(400, "", wrong)));
    let attempt = evict(&fake, &order()).await;
    assert!(matches!(attempt.outcome, Outcome::Failed(EvictError::Refused { status: 400, .. })), "{attempt}");
    assert_eq!((evictions(&fake), taken(&fake)), (1, 0));
    // None at all.
    let fake = cluster(3);
    fake.state().policy = "v9";
    let attempt = evict(&fake, &order()).await;
    assert!(matches!(attempt.outcome, Outcome::Failed(EvictError::NoEviction)), "{attempt}");
}

#[tokio::test(start_paused = true)]
async fn budgets_that_the_answer_does_not_name_are_looked_up() {
    let budget =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": "web"}}}});
    let two = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
    let old = "Cannot evict pod as it would violate the pod's disruption budget.";
    for (code, message, expected) in
        [(500, two, "evicts no such pod: a, b; change"), (429, old, "PodDisruptionBudget a, b does")]
    {
        let fake = cluster(3);
        for name in ["a", "b"] {
            fake.put(&format!("{BUDGETS}/{name}"), budget(name));
        }
        fake.state().evictions.push_back(Say::Answer(code, status(code, "", message)));
        let attempt = evict(&fake, &order()).await;
        assert!(attempt.to_string().contains(expected), "{attempt}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_missing_is_said_once() {
    let fake = cluster(3);
    let responder = responder(&fake, "node-1");
    let refused =
        "leases is forbidden: User \"x\" cannot list resource \"leases\" in API group \"coordination.k8s.io\"";
    let refused = Say::Answer(403, status(403, "leases", refused));
    fake.state().others.insert(format!("GET {LEASES}?"), refused.clone());
    fake.state().others.insert(format!("GET {LEASES}"), refused);
    let attempt = responder.evict(&order(), || false).await;
    assert_eq!(attempt.outcome.name(), "forbidden", "{attempt}");
    assert!(
        attempt.to_string().starts_with("pod shop/web-1: not evicted: the agent may not list leases; apply the"),
        "{attempt}"
    );
    assert!(!responder.is_news(&attempt.outcome), "it was said already");
    fake.state().others.clear();
    assert_eq!(responder.evict(&order(), || false).await.outcome.name(), "done");
    assert!(responder.is_news(&attempt.outcome), "it was there again meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_does_not_cure_is_not_repeated() {
    let fake = cluster(3);
    for uid in ["u-1", "u-2"] {
        fake.put(POD, pod("web-1", uid));
        let attempt = evict(&fake, &with_pod(order(), |pod| pod.uid = uid.into())).await;
        let Outcome::Done(evicted) = attempt.outcome else { panic!("{attempt}") };
        let heir = evicted.heir.as_ref().expect("a replacement to come");
        responder(&fake, "node-1").books.finished(&heir.workload, uid).await;
    }
    fake.put(POD, pod("web-1", "u-3"));
    let attempt = evict(&fake, &with_pod(order(), |pod| pod.uid = "u-3".into())).await;
    assert!(matches!(attempt.outcome, Outcome::NotCured { evictions: 2, .. }), "{attempt}");
    assert!(
        attempt.to_string().contains("2 evictions of shop/Deployment/web within the last hour did not cure it"),
        "{attempt}"
    );
    assert_eq!(evictions(&fake), 2);
}

#[tokio::test(start_paused = true)]
async fn the_replacement_frees_the_workloads_budget() {
    let fake = cluster(3);
    let responder = responder(&fake, "node-1");
    let attempt = responder.evict(&order(), || false).await;
    let Outcome::Done(evicted) = &attempt.outcome else { panic!("{attempt}") };
    let mut fresh = pod("web-3", "u-3");
    let created = Timestamp::from_second(fake.now() + 1).expect("a time").to_string();
    fresh["metadata"]["creationTimestamp"] = json!(created);
    fresh["metadata"]["resourceVersion"] = json!("99");
    fake.state().watches.push_back(vec![json!({"type": "ADDED", "object": fresh})]);
    let replacement = responder.await_replacement(evicted).await;
    assert!(matches!(&replacement, Replacement::Ready { uid, .. } if uid == "u-3"), "{replacement:?}");
    let other = with_pod(order(), |pod| (pod.name, pod.uid) = ("web-2".into(), "u-2".into()));
    assert_eq!(responder.evict(&other, || false).await.outcome.name(), "done");
}

#[tokio::test(start_paused = true)]
async fn everything_is_counted() {
    let fake = cluster(3);
    let responder = responder(&fake, "node-1");
    fake.state().evictions.push_back(Say::Answer(503, status(503, "", "going down")));
    responder.evict(&order(), || false).await;
    responder.evict(&order(), || false).await;
    let registry = prometheus::Registry::new();
    responder.collectors().into_iter().for_each(|metric| registry.register(metric).expect("a new metric"));
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
    let evictions = |result, count| format!("egress_guard_evictions_total{{result=\"{result}\"}} {count}\n");
    let requests = |what, result, count| {
        format!("egress_guard_cluster_requests_total{{result=\"{result}\",what=\"{what}\"}} {count}\n")
    };
    let mut expected: Vec<String> =
        RESULTS.iter().map(|result| evictions(*result, u32::from(["done", "overloaded"].contains(result)))).collect();
    expected.extend([requests("evict", "ok", 1), requests("evict", "failed", 1), requests("pod", "ok", 4)]);
    expected.extend([requests("discovery", "ok", 1), requests("claim", "ok", 0), requests("budget", "refused", 0)]);
    for line in expected {
        assert!(text.contains(&line), "no {line} in {text}");
    }
}
