use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    super::fake::{EPOCH, Fake},
    *,
};

fn heir(deployment: bool) -> Heir {
    let controller = Controller {
        api_version: "apps/v1".into(),
        kind: if deployment { "ReplicaSet" } else { "StatefulSet" }.into(),
        name: "web-1".into(),
        uid: "set-1".into(),
    };
    Heir {
        controller,
        deployment: deployment.then(|| "deployment".into()),
        selector: Some("app=web".into()),
        workload: "shop/Deployment/web".into(),
    }
}

fn evicted(deployment: bool) -> Evicted {
    let main = Container { name: "main".into(), image: "web:1".into(), digest: digest('a'), ..Container::default() };
    let pod = Pod {
        uid: "u-1".into(),
        namespace: "shop".into(),
        name: "web-1".into(),
        containers: vec![main],
        ..Pod::default()
    };
    Evicted { pod, heir: Some(heir(deployment)), since: EPOCH, at: time::Instant::now() }
}

fn digest(of: char) -> String {
    format!("sha256:{}", of.to_string().repeat(64))
}

fn pod(name: &str, uid: &str, (kind, set): (&str, &str), ready: bool) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "shop", "uid": uid, "resourceVersion": "5", "labels": {"app": "web"},
            "creationTimestamp": Timestamp::from_second(EPOCH + 1).expect("a time").to_string(),
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": kind, "name": set, "uid": set, "controller": true},
            ],
        },
        "spec": {"containers": [{"name": "main", "image": "web:1"}]},
        "status": {
            "phase": if ready { "Running" } else { "Pending" },
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            "containerStatuses": [{
                "name": "main", "image": "web:1", "ready": ready, "restartCount": 0,
                "imageID": format!("web@{}", digest(if ready { 'b' } else { 'a' })),
            }],
        },
    })
}

fn event(kind: &str, pod: &Value) -> Value {
    json!({"type": kind, "object": pod})
}

#[test]
fn which_pod_is_the_replacement() {
    let candidate = |change: &dyn Fn(&mut Pod)| {
        let controller = Some(heir(true).controller);
        let created = EPOCH;
        let mut pod = Pod { uid: "u-2".into(), name: "web-2".into(), created, controller, ..Pod::default() };
        change(&mut pod);
        pod
    };
    let of = |set: &str| {
        let uid = set.to_owned();
        move |pod: &mut Pod| pod.controller.as_mut().expect("a controller").uid = uid.clone()
    };
    let kin =
        |deployment: bool, change: &dyn Fn(&mut Pod)| kin(&evicted(deployment), &heir(deployment), &candidate(change));
    assert_eq!(kin(true, &|_| {}), Kin::Yes);
    assert_eq!(kin(true, &|pod| pod.uid = "u-1".into()), Kin::No, "the evicted pod itself");
    assert_eq!(kin(true, &|pod| pod.created = EPOCH - 1), Kin::No, "one that was there before");
    assert_eq!(kin(true, &|pod| pod.terminating = true), Kin::No, "one that goes");
    assert_eq!(kin(true, &|pod| pod.controller = None), Kin::No, "one of nobody");
    assert_eq!(kin(true, &of("set-2")), Kin::If("set-2".into()), "one of another ReplicaSet");
    let job = |pod: &mut Pod| {
        of("set-2")(pod);
        pod.controller.as_mut().expect("a controller").kind = "Job".into();
    };
    assert_eq!(kin(true, &job), Kin::No, "one of a Job");
    let stateful = |name: &'static str| {
        move |pod: &mut Pod| {
            pod.controller = Some(heir(false).controller);
            pod.name = name.into();
        }
    };
    assert_eq!(kin(false, &stateful("web-1")), Kin::Yes, "a StatefulSet's, in its place");
    assert_eq!(kin(false, &stateful("web-2")), Kin::No, "a StatefulSet's, in another place");
    let other = |pod: &mut Pod| {
        stateful("web-1")(pod);
        of("set-2")(pod);
    };
    assert_eq!(kin(false, &other), Kin::No, "another StatefulSet's");
}

#[test]
fn images_that_are_another_one_under_the_same_name() {
    let container = |name: &str, image: &str, digest: &str| Container {
        name: name.into(),
        image: image.into(),
        digest: digest.into(),
        ..Container::default()
    };
    let before = [container("a", "web:1", "sha256:1"), container("b", "db:1", "sha256:1"), container("c", "x", "")];
    let after = [
        container("a", "web:1", "sha256:2"),
        container("b", "db:2", "sha256:2"),
        container("c", "x", "sha256:1"),
        container("d", "new:1", "sha256:1"),
    ];
    let expected =
        Changed { container: "a".into(), image: "web:1".into(), before: "sha256:1".into(), after: "sha256:2".into() };
    assert_eq!(changed(&before, &after), [expected]);
    assert_eq!(changed(&before, &before), []);
}

fn search(fake: &Arc<Fake>) -> Search {
    Search { patient: fake.client(), wire: Wire::new(fake.client()).expect("metrics") }
}

fn replica_set(fake: &Fake, name: &str, deployment: &str) {
    let owner =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": deployment, "controller": true});
    let set = json!({"metadata": {"name": name, "uid": name, "ownerReferences": [owner]}});
    fake.put(&format!("/apis/apps/v1/namespaces/shop/replicasets/{name}"), set);
}

#[tokio::test(start_paused = true)]
async fn the_replacement_is_waited_for_until_it_is_ready() {
    let fake = Fake::new(0);
    replica_set(&fake, "set-2", "deployment");
    replica_set(&fake, "set-3", "another");
    let set = |name| ("ReplicaSet", name);
    fake.state().watches = [
        // Another Deployment's, Ready; then ours in mid roll-out, not Ready yet. Then the watch ends.
        vec![
            event("ADDED", &pod("other", "u-8", set("set-3"), true)),
            event("ADDED", &pod("web-2", "u-2", set("set-2"), false)),
        ],
        vec![event("MODIFIED", &pod("web-2", "u-2", set("set-2"), true))],
    ]
    .into();
    let evicted = evicted(true);
    time::advance(Duration::from_secs(4)).await;
    let replacement = search(&fake).await_replacement(&evicted).await;
    let Replacement::Ready { name, uid, took, changed } = &replacement else { panic!("{replacement:?}") };
    assert_eq!((name.as_str(), uid.as_str()), ("web-2", "u-2"));
    assert!((4..60).contains(&took.as_secs()), "{took:?}");
    assert_eq!(changed.len(), 1, "another digest: {changed:?}");
    assert_eq!((&changed[0].before, &changed[0].after), (&digest('a'), &digest('b')));
    let lists = fake.asked("GET /api/v1/namespaces/shop/pods?");
    assert!(lists.iter().all(|it| it.uri.contains("labelSelector=app%3Dweb")), "{lists:?}");
}

#[tokio::test(start_paused = true)]
async fn a_replacement_that_does_not_become_ready_is_said() {
    let fake = Fake::new(0);
    let set = ("ReplicaSet", "set-1");
    fake.state().watches = [vec![event("ADDED", &pod("web-2", "u-2", set, false))]].into();
    let evicted = evicted(true);
    let began = time::Instant::now();
    let replacement = search(&fake).await_replacement(&evicted).await;
    let candidate = Some(("web-2".to_owned(), Phase::Pending));
    assert_eq!(replacement, Replacement::TimedOut { candidate });
    assert_eq!(began.elapsed().as_secs(), LIMIT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn nobody_replaces_a_pod_without_a_controller() {
    let fake = Fake::new(0);
    let evicted = Evicted { heir: None, ..evicted(true) };
    assert_eq!(search(&fake).await_replacement(&evicted).await, Replacement::Unmanaged);
    assert_eq!(fake.asked(""), []);
}
