use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::mock::{self, Asked, Server, Stream, status};

const HASH: &str = "7d8a9f0b1c2d3e4f5a6b7c8d9e0f1a2b";

/// A watch of the node `n1`, and the API server in the test's hands.
struct World {
    server: Server,
    latest: Latest,
    contact: watch::Receiver<Contact>,
    connected: IntGauge,
    task: JoinHandle<Infallible>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A pod with a container of this id, of a controller: its API, kind, name and UID.
fn pod(name: &str, version: &str, id: char, controller: Option<[&str; 4]>) -> Value {
    let id = id.to_string().repeat(64);
    let owners = controller.map(|[api, kind, name, uid]| {
        json!([{"apiVersion": api, "kind": kind, "name": name, "uid": uid, "controller": true}])
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": version,
            "ownerReferences": owners,
        },
        "spec": {"containers": [{"name": "main", "image": "web:1"}]},
        "status": {"containerStatuses": [{
            "name": "main", "ready": true, "restartCount": 0, "image": "web:1", "imageID": "",
            "containerID": format!("containerd://{id}"),
        }]},
    })
}

/// What the API server tells of a controller: its UID, and whose it is.
fn owned(uid: &str, controller: Option<[&str; 4]>) -> Value {
    let mut metadata = pod("any", "1", 'a', controller)["metadata"].clone();
    metadata["uid"] = uid.into();
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata})
}

fn plain(name: &str) -> Value {
    pod(name, "1", 'a', None)
}

impl World {
    fn new() -> Self {
        Self::knowing(&[])
    }

    fn knowing(known: &[Pod]) -> Self {
        let (client, server) = mock::pair();
        let pods = Pods::new(client, "n1", known.iter()).expect("metrics");
        let (latest, contact, connected) = (pods.latest(), pods.contact(), pods.connected.clone());
        Self { server, latest, contact, connected, task: tokio::spawn(pods.run()) }
    }

    /// The next request: what it asks for, with its query, and where the answer goes.
    async fn asked(&mut self) -> (String, BTreeMap<String, String>, Asked) {
        let asked = self.server.asked().await;
        assert_eq!(asked.method, http::Method::GET);
        (asked.path.clone(), asked.query.clone(), asked)
    }

    async fn list(&mut self, version: &str, pods: &[Value]) {
        let (path, query, to) = self.asked().await;
        assert_eq!((path.as_str(), query.get("watch")), ("/api/v1/pods", None), "{query:?}");
        assert_eq!(query["fieldSelector"], "spec.nodeName%3Dn1");
        assert_eq!(query["resourceVersion"], "0", "from the API server's cache");
        let list = json!({
            "kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": pods,
        });
        to.answer(200, &list);
    }

    async fn watch(&mut self, version: &str) -> Stream {
        let (path, query, to) = self.asked().await;
        assert_eq!((path.as_str(), query.get("watch").map(String::as_str)), ("/api/v1/pods", Some("true")));
        assert_eq!(query["fieldSelector"], "spec.nodeName%3Dn1");
        assert_eq!(query["allowWatchBookmarks"], "true");
        assert_eq!(query["resourceVersion"], version);
        to.stream()
    }

    async fn refuse(&mut self, code: u16, reason: &str) {
        self.asked().await.2.refuse(code, reason);
    }

    /// Nothing is asked for so long.
    async fn quiet(&mut self, time: Duration) {
        self.server.quiet(time).await;
    }

    /// Waits until the pods are these, with their workloads.
    async fn know(&mut self, expected: &[(&str, &str)]) {
        let expected: Vec<(String, String)> =
            expected.iter().map(|(name, workload)| ((*name).into(), (*workload).into())).collect();
        let found = |latest: &Option<Arc<Inventory>>| {
            let pods = latest.iter().flat_map(|pods| pods.pods());
            pods.map(|pod| (pod.name.clone(), pod.workload.as_ref().map(ToString::to_string).unwrap_or_default()))
                .collect::<Vec<_>>()
        };
        let mut latest = self.latest.clone();
        let known = timeout(Duration::from_secs(5), latest.wait_for(|latest| found(latest) == expected)).await;
        assert!(known.is_ok_and(|known| known.is_ok()), "{:?} instead of {expected:?}", found(&self.latest.borrow()));
    }

    async fn is_connected(&mut self, expected: bool) {
        let changed = self.contact.wait_for(|contact| contact.connected == expected);
        timeout(Duration::from_secs(5), changed).await.expect("within 5 s").expect("the watch goes on");
        assert_eq!(self.connected.get(), i64::from(expected));
    }
}

const WEB: [&str; 4] = ["apps/v1", "ReplicaSet", "web-5d4", "uid-rs"];
const WEB_PATH: &str = "/apis/apps/v1/namespaces/shop/replicasets/web-5d4";
const DEPLOYMENT: [&str; 4] = ["apps/v1", "Deployment", "web", "uid-d"];

#[tokio::test(start_paused = true)]
async fn what_happens_to_pods_is_told_as_it_happens() {
    let mut world = World::new();
    assert!(world.latest.borrow().is_none(), "not listed yet is not the same as no pods");
    world.list("5", &[plain("a"), plain("b")]).await;
    let mut watch = world.watch("5").await;
    world.know(&[("a", ""), ("b", "")]).await;
    world.is_connected(true).await;
    let last = world.contact.borrow().last.expect("it told something");
    tokio::time::advance(Duration::from_secs(1)).await;
    watch.tell("ADDED", &pod("c", "6", 'c', None)).await;
    world.know(&[("a", ""), ("b", ""), ("c", "")]).await;
    assert!(world.contact.borrow().last > Some(last));
    watch.tell("DELETED", &pod("a", "7", 'a', None)).await;
    world.know(&[("b", ""), ("c", "")]).await;
    watch.tell("MODIFIED", &pod("b", "8", 'd', None)).await;
    let id = "d".repeat(64);
    let told = |latest: &Option<Arc<Inventory>>| {
        latest.iter().flat_map(|pods| pods.pods()).any(|pod| pod.container(&id).is_some())
    };
    timeout(Duration::from_secs(5), world.latest.wait_for(told)).await.expect("within 5 s").expect("it goes on");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_by_itself_goes_on_from_the_last_bookmark() {
    let mut world = World::new();
    world.list("5", &[plain("a")]).await;
    let mut watch = world.watch("5").await;
    let bookmark = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"resourceVersion": "90"}});
    watch.tell("BOOKMARK", &bookmark).await;
    drop(watch);
    let _watch = world.watch("90").await;
    assert!(world.contact.borrow().connected);
    world.know(&[("a", "")]).await;
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_too_old_is_a_new_list_that_replaces_all() {
    // In the watch, and as the answer to it: kube would ask with the same version for ever.
    for in_watch in [true, false] {
        let mut world = World::new();
        world.list("5", &[plain("a"), plain("b")]).await;
        let mut watch = world.watch("5").await;
        world.know(&[("a", ""), ("b", "")]).await;
        if in_watch {
            watch.tell("ERROR", &status(410, "Expired")).await;
        } else {
            drop(watch);
            world.refuse(410, "Expired").await;
        }
        world.is_connected(false).await;
        world.know(&[("a", ""), ("b", "")]).await;
        world.list("9", &[plain("b"), plain("c")]).await;
        world.know(&[("b", ""), ("c", "")]).await;
        world.is_connected(true).await;
        let _watch = world.watch("9").await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_what_was_told_holds_and_it_is_asked_for_seldom() {
    let mut world = World::new();
    world.list("5", &[plain("a")]).await;
    world.watch("5").await.tear();
    world.is_connected(false).await;
    let (away, mut asked, mut delays) = (Instant::now(), 0, vec![]);
    while away.elapsed() < Duration::from_hours(1) {
        let before = Instant::now();
        let (_, _, to) = world.asked().await;
        delays.push(before.elapsed());
        to.fail();
        asked += 1;
    }
    assert!((120..=240).contains(&asked), "asked {asked} times in an hour");
    assert!(delays[0] <= Duration::from_millis(500), "{delays:?}");
    assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(30)), "{delays:?}");
    world.know(&[("a", "")]).await;
    assert!(!world.contact.borrow().connected);
    world.list("9", &[plain("b")]).await;
    world.know(&[("b", "")]).await;
    world.is_connected(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_without_leave_to_watch_is_no_storm() {
    let mut world = World::new();
    let begun = Instant::now();
    let mut lists = 0;
    while begun.elapsed() < Duration::from_mins(30) {
        world.list("5", &[plain("a")]).await;
        world.refuse(403, "Forbidden").await;
        lists += 1;
    }
    assert!(lists <= 130, "{lists} lists in half an hour");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_stalls_is_given_up_and_begun_again() {
    let mut world = World::new();
    let (_, _, _unanswered) = world.asked().await;
    world.list("9", &[plain("b")]).await;
    world.know(&[("b", "")]).await;
}

#[tokio::test(start_paused = true)]
async fn a_long_silence_is_a_new_list_without_a_word() {
    let mut world = World::new();
    world.list("5", &[plain("a")]).await;
    let mut requests = 0;
    let begun = Instant::now();
    let mut watch = world.watch("5").await;
    loop {
        let (_, query, to) = world.asked().await;
        requests += 1;
        if !query.contains_key("watch") {
            let list =
                json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}, "items": []});
            to.answer(200, &list);
            break;
        }
        watch = to.stream();
    }
    drop(watch);
    assert!(begun.elapsed() + Duration::from_secs(1) >= SILENCE, "{:?}", begun.elapsed());
    assert!(requests <= 4, "{requests} requests in 10 minutes of rest");
    world.know(&[]).await;
    assert!(world.contact.borrow().connected);
}

#[tokio::test(start_paused = true)]
async fn the_mirror_of_a_static_pod_has_its_manifests_hash_and_may_be_made_anew() {
    let mirror = |uid: &str, version: &str| {
        let mut mirror = pod("etcd-n1", version, 'a', None);
        mirror["metadata"]["uid"] = uid.into();
        mirror["metadata"]["annotations"] =
            json!({"kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": HASH});
        mirror
    };
    let mut world = World::new();
    world.list("5", &[mirror("first", "1")]).await;
    let mut watch = world.watch("5").await;
    let uid = |world: &World| Some(world.latest.borrow().as_ref()?.pod(HASH)?.uid.clone());
    world.know(&[("etcd-n1", "")]).await;
    assert_eq!(uid(&world).as_deref(), Some("first"));
    watch.tell("ADDED", &mirror("second", "6")).await;
    watch.tell("DELETED", &mirror("first", "7")).await;
    watch.tell("ADDED", &pod("z", "8", 'b', None)).await;
    world.know(&[("etcd-n1", ""), ("z", "")]).await;
    assert_eq!(uid(&world).as_deref(), Some("second"));
    watch.tell("DELETED", &mirror("second", "9")).await;
    world.know(&[("z", "")]).await;
}

#[tokio::test(start_paused = true)]
async fn each_owner_is_asked_for_once() {
    let mut world = World::new();
    let of_web = |name| pod(name, "1", 'a', Some(WEB));
    world.list("5", &[of_web("web-1"), of_web("web-2")]).await;
    // The watch and the question are two requests at the same time.
    let mut watch = None;
    for _ in 0..2 {
        let (path, query, to) = world.asked().await;
        if query.contains_key("watch") {
            watch = Some(to.stream());
        } else {
            assert_eq!(path, WEB_PATH);
            world.know(&[("web-1", ""), ("web-2", "")]).await;
            to.answer(200, &owned("uid-rs", Some(DEPLOYMENT)));
        }
    }
    let mut watch = watch.expect("a watch");
    let web = "shop/Deployment/web";
    world.know(&[("web-1", web), ("web-2", web)]).await;
    watch.tell("ADDED", &of_web("web-3")).await;
    watch.tell("DELETED", &of_web("web-1")).await;
    world.know(&[("web-2", web), ("web-3", web)]).await;
    watch.tear();
    world.list("9", &[of_web("web-4")]).await;
    world.know(&[("web-4", web)]).await;
    let _watch = world.watch("9").await;
    world.quiet(Duration::from_mins(4)).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_agent_found_out_is_not_asked_for() {
    let object: api::Pod = serde_json::from_value(pod("web-1", "1", 'a', Some(WEB))).expect("a pod");
    let workload = Workload { kind: "Deployment".into(), namespace: "shop".into(), name: "web".into() };
    let known = Pod { workload: Some(workload), ..convert::pod(&object) };
    let mut world = World::knowing(&[known]);
    world.list("5", &[pod("web-2", "1", 'a', Some(WEB))]).await;
    world.know(&[("web-2", "shop/Deployment/web")]).await;
    let _watch = world.watch("5").await;
    world.quiet(Duration::from_mins(4)).await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_is_found_out_while_the_list_is_not_whole() {
    let mut world = World::new();
    let (_, _, to) = world.asked().await;
    let page = json!({
        "kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "5", "continue": "more"},
        "items": [pod("web-1", "1", 'a', Some(WEB))],
    });
    to.answer(200, &page);
    let mut rest = None;
    for _ in 0..2 {
        let (path, _, to) = world.asked().await;
        if path == WEB_PATH {
            to.answer(200, &owned("uid-rs", Some(DEPLOYMENT)));
        } else {
            rest = Some(to);
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(world.latest.borrow().is_none(), "half a list is none");
    let page = json!({
        "kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "5"}, "items": [plain("z")],
    });
    rest.expect("the next page is asked for").answer(200, &page);
    world.know(&[("web-1", "shop/Deployment/web"), ("z", "")]).await;
}
