//! `guard-agent audit` as an operator runs it: against an API server on a socket, without privileges.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Paths, and the status and the body that are answered.
type Objects = BTreeMap<&'static str, (u16, Value)>;

const LISTS: [&str; 9] = [
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

/// Answers until the test is over.
fn serve(objects: Objects) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that is gone has what it wanted.
            let _gone = answer(&stream, &objects);
        }
    });
    address
}

fn answer(mut stream: &TcpStream, objects: &Objects) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split([' ', '?']).nth(1).unwrap_or_default();
    let (status, body) = objects.get(path).cloned().unwrap_or_else(|| (404, json!("404 page not found")));
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} So\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// An operator's workstation.
struct Workstation {
    folder: TempDir,
}

impl Workstation {
    /// With a kubeconfig of two contexts: `shop`, the current one, is this API server.
    fn new(server: SocketAddr) -> Self {
        let folder = TempDir::new().expect("a folder");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "shop",
            "clusters": [
                {"name": "shop", "cluster": {"server": format!("http://{server}")}},
                {"name": "away", "cluster": {"server": "http://127.0.0.1:1"}},
            ],
            "contexts": [
                {"name": "shop", "context": {"cluster": "shop", "user": "ann"}},
                {"name": "away", "context": {"cluster": "away", "user": "ann"}},
            ],
            "users": [{"name": "ann", "user": {"token": "t"}}],
        });
        fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string()).expect("a file");
        Self { folder }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    }

    fn audit(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        self.audit_by("kubeconfig", arguments)
    }

    /// The exit code, stdout and stderr.
    fn audit_by(&self, kubeconfig: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guard-agent"));
        // Not the settings of whoever runs the test.
        command.env_clear().env("HOME", self.folder.path()).env("KUBECONFIG", self.folder.path().join(kubeconfig));
        let Output { status, stdout, stderr } = command.arg("audit").args(arguments).output().expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (status.code(), text(stdout), text(stderr))
    }
}

fn list(items: &Value) -> (u16, Value) {
    (200, json!({"metadata": {}, "items": items}))
}

/// A shop: `web` without fault, `cache` with one replica, and a daemon of kube-system.
fn shop() -> Objects {
    let mut objects: Objects = LISTS.map(|path| (path, list(&json!([])))).into();
    let bounds = json!({"cpu": "1", "memory": "1Gi"});
    let spec = |node: &str| {
        json!({
            "nodeName": node, "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "main", "image": "web@sha256:00", "resources": {"requests": bounds, "limits": bounds},
                "securityContext": {"readOnlyRootFilesystem": true},
            }],
        })
    };
    let metadata = |name: &str, namespace: &str, owner: Option<(&str, &str)>| {
        let owners: Vec<Value> = owner
            .into_iter()
            .map(|(kind, name)| json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": name, "controller": true}))
            .collect();
        json!({"name": name, "namespace": namespace, "uid": name, "labels": {"app": name.split('-').next()},
               "ownerReferences": owners})
    };
    let scaled = |name: &str, owner: Option<(&str, &str)>, count: u32| {
        json!({"metadata": metadata(name, "shop", owner),
               "spec": {"replicas": count, "template": {"spec": spec("")}}, "status": {"readyReplicas": count}})
    };
    let pod = |name: &str, namespace: &str, owner: (&str, &str), node: &str| {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        json!({"metadata": metadata(name, namespace, Some(owner)), "spec": spec(node),
               "status": {"phase": "Running", "conditions": ready}})
    };
    objects.extend([
        ("/apis/apps/v1/deployments", list(&json!([scaled("web", None, 2)]))),
        ("/apis/apps/v1/replicasets", list(&json!([scaled("web-5f", Some(("Deployment", "web")), 2)]))),
        ("/apis/apps/v1/statefulsets", list(&json!([scaled("cache", None, 1)]))),
        (
            "/apis/apps/v1/daemonsets",
            list(&json!([{
                "metadata": metadata("proxy", "kube-system", None), "spec": {"template": {"spec": spec("")}},
                "status": {"desiredNumberScheduled": 2, "numberReady": 2},
            }])),
        ),
        (
            "/api/v1/pods",
            list(&json!([
                pod("web-5f-a", "shop", ("ReplicaSet", "web-5f"), "n1"),
                pod("web-5f-b", "shop", ("ReplicaSet", "web-5f"), "n2"),
                pod("cache-0", "shop", ("StatefulSet", "cache"), "n1"),
                pod("proxy-x", "kube-system", ("DaemonSet", "proxy"), "n1"),
            ])),
        ),
        (
            "/apis/policy/v1/poddisruptionbudgets",
            list(&json!([{
                "metadata": {"name": "web", "namespace": "shop"}, "spec": {"selector": {"matchLabels": {"app": "web"}}},
                "status": {"expectedPods": 2, "desiredHealthy": 1, "currentHealthy": 2, "disruptionsAllowed": 1},
            }])),
        ),
    ]);
    objects
}

const TABLE: &str = "
 NAMESPACE    WORKLOAD           VERDICT    CHECK       WHY, AND WHAT TO DO
 kube-system  DaemonSet/proxy    protected  protection  never evicted: its namespace kube-system is protected (protect.namespaces)
 shop         Deployment/web     ok         -           -
 shop         StatefulSet/cache  unsafe     replicas    0 of its workload's replicas are ready beside it, and minReady is 1 (onBreach.evict.lastReplica gives leave); set spec.replicas to 2 at least
                                 risk       budget      no PodDisruptionBudget selects it: evictions may coincide with a node's drain; make one with maxUnavailable: 1

3 workloads: 1 unsafe, 0 risk, 1 protected, 1 ok
";

#[test]
fn a_workload_that_cannot_spare_a_pod_is_exit_code_1() {
    let (code, said, error) = Workstation::new(serve(shop())).audit(&[]);
    assert_eq!(said, TABLE.trim_start_matches('\n'));
    assert_eq!(error, "guard-agent: mode evict would be unsafe: 1 of 3 workloads have an unsafe finding\n");
    assert_eq!(code, Some(1));
}

#[test]
fn for_a_program_all_is_said_as_json() {
    let (code, said, _) = Workstation::new(serve(shop())).audit(&["--output", "json"]);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(code, Some(1));
    assert_eq!(said["summary"], json!({"unsafe": 1, "risk": 0, "protected": 1, "ok": 1}));
    let cache = &said["workloads"][2];
    let mut rest = cache.clone();
    rest["findings"] = json!(cache["findings"].as_array().map(Vec::len));
    let expected = json!({
        "kind": "StatefulSet", "namespace": "shop", "name": "cache", "verdict": "unsafe", "pods": 1, "findings": 10,
    });
    assert_eq!(rest, expected);
    let expected = json!({
        "check": "replicas", "verdict": "unsafe", "declined": "last_replica",
        "reason": "0 of its workload's replicas are ready beside it, and minReady is 1 (onBreach.evict.lastReplica gives leave)",
        "remedy": "set spec.replicas to 2 at least",
    });
    assert_eq!(cache["findings"][0], expected);
    assert_eq!(said["workloads"][1]["findings"][0]["declined"], Value::Null);
}

#[test]
fn leave_makes_it_a_risk_that_was_taken() {
    let workstation = Workstation::new(serve(shop()));
    let config = workstation.file(
        "config.yaml",
        "mode: evict\npolicies:\n  - name: all\n    match: {}\n    egress: {rate: 1MB/s}\n    \
         onBreach: {evict: {after: 30s, lastReplica: true}}\n",
    );
    let (code, said, error) = workstation.audit(&["--config", &config.display().to_string()]);
    assert_eq!((code, &*error), (Some(0), ""));
    assert!(said.contains("risk       replicas    evicted by leave: 0 of its workload's replicas"), "{said}");
    assert!(said.ends_with("3 workloads: 0 unsafe, 1 risk, 1 protected, 1 ok\n"), "{said}");

    let (code, said, _) = workstation.audit(&["--agent-namespace", "shop"]);
    assert_eq!(code, Some(0));
    assert!(said.ends_with("3 workloads: 0 unsafe, 0 risk, 3 protected, 0 ok\n"), "{said}");
}

#[test]
fn what_cannot_be_known_is_exit_code_2() {
    let forbidden = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
                           "message": "pods is forbidden: User \"ann\" cannot list resource \"pods\""});
    let mut objects = shop();
    objects.insert("/api/v1/pods", (403, forbidden));
    let workstation = Workstation::new(serve(objects));
    workstation.file("broken.yaml", "mode: evcit\n");
    let broken = workstation.folder.path().join("broken.yaml").display().to_string();
    let cases: [(&str, &[&str], &[&str]); 8] = [
        (
            "kubeconfig",
            &[],
            &["you may not list pods in all namespaces (pods is forbidden: ", "audit a namespace of yours with -n"],
        ),
        ("missing", &[], &["cannot use the kubeconfig: ", "point KUBECONFIG to one"]),
        ("kubeconfig", &["--context", "moon"], &["cannot use the kubeconfig: ", "moon", "--context"]),
        (
            "kubeconfig",
            &["--context", "away"],
            &["cannot list poddisruptionbudgets.policy: ", "Connection refused", "right cluster"],
        ),
        ("kubeconfig", &["--config", &broken], &["broken.yaml", "mode"]),
        ("kubeconfig", &["--config", "/nowhere.yaml"], &["there is no config file /nowhere.yaml"]),
        ("kubeconfig", &["-n", "Shop/.."], &["expected a namespace's name"]),
        ("kubeconfig", &["--output", "yaml"], &["table, json"]),
    ];
    for (kubeconfig, arguments, parts) in cases {
        let (code, said, error) = workstation.audit_by(kubeconfig, arguments);
        assert_eq!((code, &*said), (Some(2), ""), "{arguments:?}: {error}");
        for part in parts {
            assert!(error.contains(part), "{arguments:?}: {error}\ndoes not say {part:?}");
        }
    }
}

#[test]
fn a_namespace_alone() {
    let mut objects = Objects::new();
    for (path, (status, body)) in shop() {
        let (root, plural) = path.rsplit_once('/').expect("a path");
        let mut body = body;
        let items = body["items"].as_array_mut().expect("a list");
        items.retain(|item| item["metadata"]["namespace"] == "shop");
        objects.insert(format!("{root}/namespaces/shop/{plural}").leak(), (status, body));
        objects.insert(format!("{root}/namespaces/shpo/{plural}").leak(), list(&json!([])));
    }
    let workstation = Workstation::new(serve(objects));
    let (code, said, _) = workstation.audit(&["-n", "shop"]);
    assert_eq!(code, Some(1));
    assert!(said.ends_with("2 workloads: 1 unsafe, 0 risk, 0 protected, 1 ok\n"), "{said}");
    let (code, _, error) = workstation.audit(&["-n", "shpo"]);
    assert_eq!(
        (code, &*error),
        (Some(2), "guard-agent: there is no namespace shpo: `kubectl get namespaces` has their names\n")
    );
}

#[test]
fn nothing_to_judge_is_no_fault() {
    let objects = LISTS.map(|path| (path, list(&json!([])))).into();
    let (code, said, error) = Workstation::new(serve(objects)).audit(&[]);
    assert_eq!((code, &*said, &*error), (Some(0), "0 workloads: 0 unsafe, 0 risk, 0 protected, 0 ok\n", ""));
}
