use std::sync::{Arc, Mutex};

use guard_core::audit::Bound;
use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// What the API server has: by the path, with what stands behind `?` but the limit, if there is anything.
type Objects = BTreeMap<&'static str, (u16, Value)>;

/// A client of an API server with these objects, and all that it was asked for.
fn server(objects: Objects) -> (Client, Arc<Mutex<Vec<String>>>) {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let asked = Arc::new(Mutex::new(vec![]));
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Some((request, answer)) = handle.next_request().await {
            let uri = request.uri().to_string().replace("?&limit=500", "?").replace("?limit=500", "?");
            let uri = uri.replace("?&", "?");
            noted.lock().expect("not poisoned").push(format!("{} {uri}", request.method()));
            let found = objects.get(uri.trim_end_matches('?')).cloned();
            let (status, body) = found.unwrap_or_else(|| (404, json!("404 page not found")));
            let response = Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
            answer.send_response(response.expect("a response"));
        }
    });
    (Client::new(service, "default"), asked)
}

fn list(items: &Value) -> (u16, Value) {
    (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": items}))
}

/// An API server of today without any objects.
fn empty() -> Objects {
    let paths = [
        "/apis/policy/v1/poddisruptionbudgets",
        "/apis/apps/v1/deployments",
        "/apis/apps/v1/statefulsets",
        "/apis/apps/v1/daemonsets",
        "/apis/apps/v1/replicasets",
        "/apis/batch/v1/jobs",
        "/apis/batch/v1/cronjobs",
        "/api/v1/replicationcontrollers",
        "/api/v1/pods",
    ];
    paths.map(|path| (path, list(&json!([])))).into()
}

fn refusal(code: u16, message: &str) -> (u16, Value) {
    let reason = if code == 403 { "Forbidden" } else { "Unauthorized" };
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message,
                      "code": code});
    (code, body)
}

async fn audited(objects: Objects) -> Cluster {
    cluster(server(objects).0, None).await.expect("lists")
}

fn spec() -> Value {
    let bounds = json!({"cpu": "1", "memory": "1Gi"});
    json!({
        "terminationGracePeriodSeconds": 30, "nodeName": "n1",
        "containers": [
            {"name": "main", "image": "web@sha256:00", "resources": {"requests": bounds, "limits": {"cpu": "1"}},
             "securityContext": {"readOnlyRootFilesystem": true}},
            {"name": "side", "image": "side:1", "securityContext": {"readOnlyRootFilesystem": false}},
        ],
        "initContainers": [{"name": "init", "image": "init:1", "resources": {"requests": bounds, "limits": bounds}}],
    })
}

#[tokio::test]
async fn a_cluster_without_anything_is_listed_once_and_only_read() {
    let (client, asked) = server(empty());
    let cluster = cluster(client, None).await.expect("lists");
    assert!(cluster.owners.is_empty() && cluster.pods.is_empty() && cluster.budgets.is_empty());
    let mut asked = asked.lock().expect("not poisoned").clone();
    asked.sort();
    let mut expected: Vec<String> = empty().keys().map(|path| format!("GET {path}?")).collect();
    expected.sort();
    assert_eq!(asked, expected);
}

#[tokio::test]
async fn what_pods_say_of_themselves() {
    let mut objects = empty();
    let pod = json!({"metadata": {"name": "a", "namespace": "shop", "labels": {"app": "web"}}, "spec": spec()});
    objects.insert("/api/v1/pods", list(&json!([pod])));
    let cluster = audited(objects).await;
    let Facts { pod, node, containers, budgets } = &cluster.pods[0];
    assert_eq!((&*pod.name, &*pod.namespace, pod.grace, &**node), ("a", "shop", Some(30), "n1"));
    assert!(budgets.is_empty());
    let said: Vec<_> =
        containers.iter().map(|it| (&*it.name, &*it.image, it.missing.clone(), it.read_only_root)).collect();
    let all = vec![Bound::CpuRequest, Bound::CpuLimit, Bound::MemoryRequest, Bound::MemoryLimit];
    let expected = [
        ("main", "web@sha256:00", vec![Bound::MemoryLimit], true),
        ("side", "side:1", all, false),
        ("init", "init:1", vec![], false),
    ];
    assert_eq!(said, expected);
}

#[tokio::test]
async fn what_a_pod_may_use_as_a_whole_bounds_its_containers() {
    let mut objects = empty();
    let mut spec = spec();
    spec["resources"] = json!({"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"memory": "2Gi"}});
    objects.insert("/api/v1/pods", list(&json!([{"metadata": {"name": "a", "namespace": "shop"}, "spec": spec}])));
    let cluster = audited(objects).await;
    let missing: Vec<_> = cluster.pods[0].containers.iter().map(|it| it.missing.clone()).collect();
    assert_eq!(missing, [vec![], vec![Bound::CpuLimit], vec![]]);
}

#[tokio::test]
async fn what_objects_that_make_pods_say() {
    let metadata = |name: &str| json!({"name": name, "namespace": "shop", "uid": format!("u-{name}")});
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": spec()});
    let job = json!({"template": template, "parallelism": 3, "completions": 2});
    let one = |name: &str, spec: Value, status: Value| {
        list(&json!([{"metadata": metadata(name), "spec": spec, "status": status}]))
    };
    let mut objects = empty();
    objects.extend([
        ("/apis/apps/v1/deployments", one("d", json!({"replicas": 5, "template": template}), json!({"readyReplicas": 4}))),
        ("/apis/apps/v1/statefulsets", one("s", json!({"template": template}), json!({"replicas": 1}))),
        ("/apis/apps/v1/daemonsets", one("n", json!({"template": template}), json!({"desiredNumberScheduled": 9, "numberReady": 8}))),
        ("/api/v1/replicationcontrollers", one("c", json!({"replicas": 0, "template": template}), json!({}))),
        ("/apis/batch/v1/cronjobs", one("t", json!({"jobTemplate": {"spec": job}}), json!({}))),
        ("/apis/batch/v1/jobs", list(&json!([
            {"metadata": metadata("j1"), "spec": {"template": template}, "status": {"active": 2, "ready": 1}},
            {"metadata": metadata("j2"), "spec": {"template": template}, "status": {"active": 2}},
            {"metadata": metadata("j3"), "spec": {"template": template, "suspend": true}},
            {"metadata": metadata("j4"), "spec": {"template": template},
             "status": {"conditions": [{"type": "Suspended", "status": "False"}, {"type": "Complete", "status": "True"}]}},
        ]))),
        ("/apis/apps/v1/replicasets", list(&json!([{
            "metadata": {"name": "d-1", "namespace": "shop", "uid": "u-d-1", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "u-d", "controller": true}]},
            "spec": {"replicas": 5, "template": template}, "status": {"replicas": 5, "readyReplicas": 5},
        }]))),
    ]);
    let cluster = audited(objects).await;
    let said = cluster.owners.iter().map(|it| {
        assert_eq!(
            (it.template.containers.len(), &*it.template.pod.namespace, it.template.pod.labels.len()),
            (3, "shop", 1)
        );
        let above = it.controller.as_ref().map(|it| format!(" of {}", it.uid)).unwrap_or_default();
        format!("{} {}{above}: {:?} of {}, finished {}", it.workload, it.uid, it.ready, it.desired, it.finished)
    });
    let expected = [
        "shop/Deployment/d u-d: Some(4) of 5, finished false",
        "shop/StatefulSet/s u-s: Some(0) of 1, finished false",
        "shop/DaemonSet/n u-n: Some(8) of 9, finished false",
        "shop/ReplicaSet/d-1 u-d-1 of u-d: Some(5) of 5, finished false",
        "shop/ReplicationController/c u-c: Some(0) of 0, finished false",
        "shop/Job/j1 u-j1: Some(1) of 1, finished false",
        "shop/Job/j2 u-j2: Some(2) of 1, finished false",
        "shop/Job/j3 u-j3: Some(0) of 0, finished false",
        "shop/Job/j4 u-j4: Some(0) of 1, finished true",
        "shop/CronJob/t u-t: None of 2, finished false",
    ];
    assert_eq!(said.collect::<Vec<_>>(), expected);
}

/// Budgets `a` by label, `e` with an empty selector, `n` without one; and one of another namespace.
fn budgets() -> Value {
    let status = json!({"expectedPods": 3, "desiredHealthy": 2, "currentHealthy": 3, "disruptionsAllowed": 1,
                        "observedGeneration": 1});
    let budget = |name: &str, namespace: &str, spec: Value| json!({"metadata": {"name": name, "namespace": namespace, "generation": 1}, "spec": spec, "status": status});
    json!([
        budget("e", "shop", json!({"selector": {}})),
        budget("a", "shop", json!({"selector": {"matchLabels": {"app": "web"}}})),
        budget("n", "shop", json!({})),
        budget(
            "x",
            "shop",
            json!({"selector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}})
        ),
        budget("o", "bank", json!({"selector": {}})),
    ])
}

#[tokio::test]
async fn budgets_select_pods_as_their_version_means_it() {
    let pods = json!([{"metadata": {"name": "a", "namespace": "shop", "labels": {"app": "web"}}, "spec": spec()}]);
    let mut objects = empty();
    objects.insert("/api/v1/pods", list(&pods));
    objects.insert("/apis/policy/v1/poddisruptionbudgets", list(&budgets()));
    let cluster = audited(objects.clone()).await;
    assert_eq!(cluster.pods[0].budgets, ["a", "e"]);
    let Budget { namespace, name, expected, desired, healthy, allowed, current, failed } = &cluster.budgets[1];
    assert_eq!((&**namespace, &**name), ("shop", "a"));
    assert_eq!((*expected, *desired, *healthy, *allowed, *current, failed), (3, 2, 3, 1, true, &None));

    // Kubernetes 1.20.
    objects.remove("/apis/policy/v1/poddisruptionbudgets");
    objects.insert("/apis/policy/v1beta1/poddisruptionbudgets", list(&budgets()));
    objects.remove("/apis/batch/v1/cronjobs");
    objects.insert("/apis/batch/v1beta1/cronjobs", list(&json!([
        {"metadata": {"name": "t", "namespace": "shop"}, "spec": {"jobTemplate": {"spec": {"template": {"spec": spec()}}}}},
    ])));
    let cluster = audited(objects).await;
    assert_eq!((&cluster.pods[0].budgets[..], cluster.owners.len()), (&["a".to_owned()][..], 1));
}

#[tokio::test]
async fn a_budget_may_lag_or_not_be_computable() {
    let mut budgets = budgets();
    budgets[0]["metadata"]["generation"] = json!(2);
    budgets[1]["status"]["conditions"] = json!([
        {"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "no scale",
         "lastTransitionTime": "2026-01-02T03:04:05Z"},
    ]);
    budgets[2]["status"]["conditions"] = json!([
        {"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
         "lastTransitionTime": "2026-01-02T03:04:05Z"},
    ]);
    let mut objects = empty();
    objects.insert("/apis/policy/v1/poddisruptionbudgets", list(&budgets));
    let cluster = audited(objects).await;
    let said: Vec<_> = cluster.budgets.iter().map(|it| (it.current, it.failed.as_deref())).take(3).collect();
    assert_eq!(said, [(false, None), (true, Some("no scale")), (true, None)]);
}

#[tokio::test]
async fn a_claim_is_local_unless_its_volume_is_known_not_to_be() {
    let claims = ["disk", "local", "folder", "unbound", "orphan", "missing"];
    let mut spec = spec();
    spec["volumes"] = claims.iter().map(|it| json!({"name": it, "persistentVolumeClaim": {"claimName": it}})).collect();
    let claim = |name: &str, volume: &str| json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"volumeName": volume}});
    let volume = |name: &str, source: &str| json!({"metadata": {"name": name}, "spec": {source: {"path": "/d"}}});
    let mut objects = empty();
    objects.extend([
        ("/api/v1/pods", list(&json!([{"metadata": {"name": "a", "namespace": "shop"}, "spec": spec}]))),
        ("/api/v1/persistentvolumeclaims", list(&json!([
            claim("disk", "pv-disk"), claim("local", "pv-local"), claim("folder", "pv-folder"), claim("orphan", "pv-gone"),
            {"metadata": {"name": "unbound", "namespace": "shop"}, "spec": {}}, claim("unused", "pv-local"),
        ]))),
        ("/api/v1/persistentvolumes", list(&json!([
            volume("pv-disk", "nfs"), volume("pv-local", "local"), volume("pv-folder", "hostPath"),
        ]))),
    ]);
    let local: Vec<String> =
        audited(objects).await.local.into_iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
    assert_eq!(local, ["shop/folder", "shop/local", "shop/missing", "shop/orphan", "shop/unbound"]);
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let pod = |name: &str| json!({"metadata": {"name": name, "namespace": "shop"}});
    let page = |token: &str, name: &str| (200, json!({"metadata": {"continue": token}, "items": [pod(name)]}));
    let mut objects = empty();
    objects.extend([
        ("/api/v1/pods", page("a/b+", "a")),
        ("/api/v1/pods?continue=a%2Fb%2B", page("c", "b")),
        ("/api/v1/pods?continue=c", page("", "c")),
    ]);
    let cluster = audited(objects).await;
    let names: Vec<&str> = cluster.pods.iter().map(|it| it.pod.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test]
async fn one_namespace_is_asked_for_alone() {
    let all = empty();
    let objects: Objects = all
        .into_iter()
        .map(|(path, answer)| {
            let (root, plural) = path.rsplit_once('/').expect("a path");
            let path: &'static str = format!("{root}/namespaces/shop/{plural}").leak();
            (path, answer)
        })
        .collect();
    let (client, asked) = server(objects.clone());
    let error = cluster(client, Some("shop")).await.expect_err("no such namespace");
    assert_eq!(error.to_string(), "there is no namespace shop: `kubectl get namespaces` has their names");
    let asked = asked.lock().expect("not poisoned").clone();
    assert!(asked.iter().all(|it| it.contains("/namespaces/shop")), "{asked:?}");

    for answer in [(200, json!({"metadata": {"name": "shop"}})), refusal(403, "no")] {
        let mut objects = objects.clone();
        objects.insert("/api/v1/namespaces/shop", answer);
        cluster(server(objects).0, Some("shop")).await.expect("an empty namespace");
    }
}

#[tokio::test]
async fn refusals_say_what_and_how_to_get_on() {
    let cases: [(&str, (u16, Value), &str); 5] = [
        (
            "/apis/policy/v1/poddisruptionbudgets",
            refusal(403, "User \"ann\" cannot list"),
            "you may not list poddisruptionbudgets.policy in all namespaces (User \"ann\" cannot list); have the verb list on it \
             granted to you, or audit a namespace of yours with -n",
        ),
        (
            "/api/v1/pods",
            refusal(401, "Unauthorized"),
            "cannot list pods: the API server does not know you (Unauthorized); renew the kubeconfig's credentials",
        ),
        (
            "/apis/apps/v1/daemonsets",
            (500, json!("oops")),
            "cannot list daemonsets.apps: the API server answers 500: \"oops\"",
        ),
        (
            "/apis/apps/v1/daemonsets",
            (404, json!("404 page not found")),
            "the API server serves no daemonsets.apps of a version that is known here: is it a Kubernetes of 1.17 or newer?",
        ),
        (
            "/apis/batch/v1/jobs",
            (200, json!({"items": 7})),
            "cannot list jobs.batch: Error deserializing response: invalid type: integer `7`, expected a sequence at line 1 \
             column 10; does the context name the right cluster, and can you reach it from here?",
        ),
    ];
    for (path, answer, expected) in cases {
        let mut objects = empty();
        objects.insert(path, answer);
        let error = cluster(server(objects).0, None).await.expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test]
async fn without_the_right_to_see_volumes_there_is_no_guess() {
    let mut spec = spec();
    spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    let mut objects = empty();
    objects.extend([
        ("/api/v1/pods", list(&json!([{"metadata": {"name": "a", "namespace": "shop"}, "spec": spec}]))),
        (
            "/api/v1/persistentvolumeclaims",
            list(&json!([
            {"metadata": {"name": "data", "namespace": "shop"}, "spec": {"volumeName": "pv"}}])),
        ),
        ("/api/v1/persistentvolumes", refusal(403, "no")),
    ]);
    let error = cluster(server(objects).0, None).await.expect_err("forbidden");
    assert!(error.to_string().starts_with("you may not list persistentvolumes of the cluster (no)"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_away_is_said() {
    let (service, handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    drop(handle);
    let error = cluster(Client::new(service, "default"), None).await.expect_err("nobody answers");
    assert!(matches!(error, AuditError::Unanswered { .. }), "{error}");
}
