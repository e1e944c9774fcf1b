use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use kube::client::Body;
use serde_json::{Value, json};
use tower_test::mock;

use super::*;

type Server = mock::Handle<Request<Body>, Response<Full<Bytes>>>;

fn world() -> (Owners, Server) {
    let (service, server) = mock::pair();
    (Owners::new(Client::new(service, "default")), server)
}

fn pod([api, kind, name, uid]: [&str; 4]) -> Pod {
    let controller = Controller { api_version: api.into(), kind: kind.into(), name: name.into(), uid: uid.into() };
    Pod { namespace: "shop".into(), controller: Some(controller), ..Pod::default() }
}

/// The answer for an object of this UID, with its controller.
fn object(uid: &str, controller: Option<[&str; 2]>) -> (u16, Value) {
    let owners = controller.map(|[kind, name]| {
        json!([
            {"apiVersion": "v1", "kind": "Watcher", "name": "x", "uid": "u"},
            {"apiVersion": "any/v1", "kind": kind, "name": name, "uid": "u", "controller": true},
        ])
    });
    let metadata = json!({"name": "any", "namespace": "shop", "uid": uid, "ownerReferences": owners});
    (200, json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata}))
}

fn no(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code});
    (code, status)
}

/// Answers requests for these paths, in this order.
async fn serve(server: &mut Server, answers: &[(&str, (u16, Value))]) {
    for (path, (code, body)) in answers {
        let (request, to) = server.next_request().await.expect("a request");
        assert_eq!(request.uri().path(), *path);
        let accept = request.headers()["accept"].to_str().expect("text");
        assert!(accept.contains("PartialObjectMetadata"), "more than is needed is asked for: {accept}");
        let body = Full::new(Bytes::from(body.to_string()));
        to.send_response(Response::builder().status(*code).body(body).expect("an answer"));
    }
}

/// Whose the pod is, after these answers.
async fn of(controller: [&str; 4], answers: &[(&str, (u16, Value))]) -> String {
    let (mut owners, mut server) = world();
    let pod = pod(controller);
    if let Some(workload) = owners.of(&pod) {
        return workload.to_string();
    }
    let ((uid, workload), ()) = tokio::join!(owners.next(), serve(&mut server, answers));
    assert_eq!(uid, controller[3]);
    assert_eq!(owners.of(&pod).as_ref(), Some(&workload), "it is remembered");
    workload.to_string()
}

const RS: [&str; 4] = ["apps/v1", "ReplicaSet", "web-5d4", "rs"];
const RS_PATH: &str = "/apis/apps/v1/namespaces/shop/replicasets/web-5d4";
const JOB: [&str; 4] = ["batch/v1", "Job", "report-28", "job"];
const JOB_PATH: &str = "/apis/batch/v1/namespaces/shop/jobs/report-28";

#[tokio::test(start_paused = true)]
async fn a_workload_is_what_made_the_controller_or_the_controller() {
    for (controller, answer, expected) in [
        (RS, object("rs", Some(["Deployment", "web"])), "shop/Deployment/web"),
        // Another controller that names its ReplicaSets as Deployments do.
        (RS, object("rs", Some(["Rollout", "web"])), "shop/Rollout/web"),
        (RS, object("rs", None), "shop/ReplicaSet/web-5d4"),
        (RS, object("another", Some(["Deployment", "web"])), "shop/ReplicaSet/web-5d4"),
        (RS, no(404, "NotFound"), "shop/ReplicaSet/web-5d4"),
        (JOB, object("job", Some(["CronJob", "report"])), "shop/CronJob/report"),
        (JOB, object("job", None), "shop/Job/report-28"),
    ] {
        let path = if controller == RS { RS_PATH } else { JOB_PATH };
        assert_eq!(of(controller, &[(path, answer)]).await, expected);
    }
    for controller in [
        ["apps/v1", "StatefulSet", "db", "s"],
        ["apps/v1", "DaemonSet", "log", "d"],
        ["v1", "ReplicationController", "old", "rc"],
        ["example.org/v1", "ReplicaSet", "own", "x"],
    ] {
        assert_eq!(of(controller, &[]).await, format!("shop/{}/{}", controller[1], controller[2]));
    }
    assert_eq!(world().0.of(&Pod::default()), None, "nobody's");
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_asked_for_again_but_seldom() {
    let (mut owners, mut server) = world();
    assert_eq!((owners.of(&pod(RS)), owners.of(&pod(RS)), owners.of(&pod(JOB))), (None, None, None));
    let begun = Instant::now();
    let mut asked = 0;
    let refused = async {
        while begun.elapsed() < Duration::from_hours(1) {
            let path = if asked % 2 == 0 { RS_PATH } else { JOB_PATH };
            serve(&mut server, &[(path, no(403, "Forbidden"))]).await;
            asked += 1;
        }
        if asked % 2 == 1 {
            serve(&mut server, &[(JOB_PATH, no(403, "Forbidden"))]).await;
        }
        serve(&mut server, &[(RS_PATH, object("rs", Some(["Deployment", "web"])))]).await;
    };
    let (found, ()) = tokio::join!(owners.next(), refused);
    assert_eq!(found.1.to_string(), "shop/Deployment/web");
    assert!((60..=130).contains(&asked), "asked {asked} times in an hour");
    // One that is known brings the other at once.
    let now = Instant::now();
    let answer = [(JOB_PATH, object("job", None))];
    let (found, ()) = tokio::join!(owners.next(), serve(&mut server, &answer));
    assert_eq!((found.1.to_string(), now.elapsed()), ("shop/Job/report-28".into(), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_back_is_asked_at_once() {
    let (mut owners, mut server) = world();
    assert_eq!(owners.of(&pod(RS)), None);
    for _ in 0..10 {
        let refused = [(RS_PATH, no(500, "InternalError"))];
        tokio::select! {
            found = owners.next() => panic!("{found:?}"),
            () = async {
                serve(&mut server, &refused).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            } => {}
        }
        owners.hurry();
    }
    let now = Instant::now();
    let answer = [(RS_PATH, object("rs", Some(["Deployment", "web"])))];
    let (found, ()) = tokio::join!(owners.next(), serve(&mut server, &answer));
    assert_eq!((found.1.to_string(), now.elapsed()), ("shop/Deployment/web".into(), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_needs_any_more_is_not_asked_for() {
    let (mut owners, mut server) = world();
    assert_eq!((owners.of(&pod(RS)), owners.of(&pod(JOB))), (None, None));
    // The question is on its way when its last pod goes.
    let on_its_way = timeout(Duration::from_secs(1), owners.next()).await;
    assert!(on_its_way.is_err());
    let (request, _to) = server.next_request().await.expect("a request");
    assert_eq!(request.uri().path(), RS_PATH);
    owners.forget([&pod(JOB)].into_iter());
    let answer = [(JOB_PATH, object("job", None))];
    let (found, ()) = tokio::join!(owners.next(), serve(&mut server, &answer));
    assert_eq!(found.1.to_string(), "shop/Job/report-28");
    owners.forget([].into_iter());
    assert!(owners.of(&pod(JOB)).is_some(), "it may come again");
}

#[tokio::test]
async fn what_no_object_can_be_called_is_not_asked_for() {
    for name in ["../deployments/web", "web?watch=true", "web#", "we b"] {
        // No answer is there for a request.
        let workload = of(["apps/v1", "ReplicaSet", name, "u"], &[]).await;
        assert_eq!(workload, format!("shop/ReplicaSet/{name}"));
    }
}
