use serde_json::{Value, json};

use super::*;

const HASH_A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const HASH_B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn converted(pod: Value) -> Pod {
    super::pod(&serde_json::from_value(pod).expect("a pod"))
}

#[test]
fn everything_that_a_pod_says() {
    let pod = converted(json!({
        "metadata": {
            "uid": "u-1", "namespace": "shop", "name": "web-5f-x", "labels": {"app": "web"},
            "annotations": {"egress-guard.dev/rate": "1MiB/s", "other.dev/rate": "2MiB/s"},
            "creationTimestamp": "2026-01-02T03:04:05Z", "deletionTimestamp": "2026-01-02T04:00:00Z",
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "o-0"},
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5f", "uid": "o-1", "controller": true},
            ],
        },
        "spec": {
            "priority": 7, "priorityClassName": "high", "terminationGracePeriodSeconds": 25,
            "containers": [{"name": "main", "image": "web:1"}],
            "initContainers": [{"name": "init", "image": "init:1"}],
            "ephemeralContainers": [{"name": "debug", "image": "debug:1"}],
        },
        "status": {
            "phase": "Running", "qosClass": "Burstable",
            "conditions": [{"type": "Initialized", "status": "False"}, {"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": "main", "image": "web:1", "ready": true, "restartCount": 0,
                "containerID": format!("containerd://{HASH_A}"), "imageID": format!("registry/web@sha256:{HASH_B}"),
            }],
            "initContainerStatuses": [{
                "name": "init", "image": "init:1", "ready": true, "restartCount": 0,
                "containerID": format!("cri-o://{HASH_B}"), "imageID": format!("sha256:{HASH_A}"),
            }],
            "ephemeralContainerStatuses": [{
                "name": "debug", "image": "debug:1", "ready": false, "restartCount": 0, "imageID": "",
            }],
        },
    }));
    let container = |name: &str, id: &str, digest: &str, ready| Container {
        name: name.into(),
        id: id.into(),
        image: format!("{}:1", if name == "main" { "web" } else { name }),
        digest: if digest.is_empty() { String::new() } else { format!("sha256:{digest}") },
        ready,
    };
    let expected = Pod {
        uid: "u-1".into(),
        cgroup_uid: None,
        namespace: "shop".into(),
        name: "web-5f-x".into(),
        labels: [("app".into(), "web".into())].into(),
        annotations: [("rate".into(), "1MiB/s".into())].into(),
        controller: Some(Controller {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: "web-5f".into(),
            uid: "o-1".into(),
        }),
        workload: None,
        qos: "Burstable".into(),
        priority_class: "high".into(),
        priority: 7,
        phase: Phase::Running,
        mirror: false,
        terminating: true,
        ready: true,
        created: 1_767_323_045,
        grace: Some(25),
        volumes: vec![],
        containers: vec![
            container("main", HASH_A, HASH_B, true),
            container("init", HASH_B, HASH_A, true),
            container("debug", "", "", false),
        ],
    };
    assert_eq!(pod, expected);
}

#[test]
fn a_pod_that_says_nothing_has_no_controller_and_is_not_ready() {
    assert_eq!(converted(json!({"metadata": {}})), Pod::default());
}

#[test]
fn a_mirror_runs_in_the_cgroup_of_its_manifests_hash() {
    let annotations = |annotations: Value| {
        let pod = converted(json!({"metadata": {"uid": "u-1", "annotations": annotations}}));
        (pod.mirror, pod.cgroup_uid().to_owned(), pod.annotations.len())
    };
    let mirror = json!({"kubernetes.io/config.mirror": "abc", "kubernetes.io/config.hash": "abc"});
    assert_eq!(annotations(mirror), (true, "abc".into(), 0));
    // Anybody may write the hash's annotation: only kubelet's mirror is believed.
    assert_eq!(annotations(json!({"kubernetes.io/config.hash": "abc"})), (false, "u-1".into(), 0));
}

#[test]
fn volumes_that_an_eviction_could_lose() {
    let pod = converted(json!({"metadata": {}, "spec": {
        "containers": [{"name": "a", "volumeMounts": [
            {"name": "logs", "mountPath": "/logs"},
            {"name": "certs", "mountPath": "/certs", "readOnly": true},
            {"name": "late", "mountPath": "/late", "readOnly": true},
        ]}],
        "initContainers": [{"name": "b", "volumeMounts": [{"name": "late", "mountPath": "/late"}]}],
        "volumes": [
            {"name": "logs", "hostPath": {"path": "/var/log/a"}},
            {"name": "certs", "hostPath": {"path": "/etc/ssl"}},
            {"name": "late", "hostPath": {"path": "/late"}},
            {"name": "unmounted", "hostPath": {"path": "/"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "own", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "data-0"}},
            {"name": "config", "configMap": {"name": "config"}},
            {"name": "token", "projected": {}},
        ],
    }}));
    let expected = [
        Volume::HostPath { name: "logs".into(), path: "/var/log/a".into() },
        Volume::HostPath { name: "late".into(), path: "/late".into() },
        Volume::EmptyDir { name: "scratch".into() },
        Volume::EmptyDir { name: "own".into() },
        Volume::Claim { name: "data".into(), claim: "data-0".into() },
    ];
    assert_eq!(pod.volumes, expected);
}

#[test]
fn phases() {
    let phases = [
        ("Pending", Phase::Pending),
        ("Running", Phase::Running),
        ("Succeeded", Phase::Succeeded),
        ("Failed", Phase::Failed),
    ];
    for (name, phase) in phases.into_iter().chain([("Unknown", Phase::Unknown), ("Evaporated", Phase::Unknown)]) {
        assert_eq!(converted(json!({"metadata": {}, "status": {"phase": name}})).phase, phase, "{name}");
    }
}

#[test]
fn ids_and_digests() {
    let cases = [
        (format!("containerd://{HASH_A}"), Some(HASH_A)),
        (format!("docker://{HASH_B}"), Some(HASH_B)),
        (HASH_A.into(), None),
        ("containerd://short".into(), None),
        (String::new(), None),
    ];
    for (text, expected) in cases {
        assert_eq!(id(&text).as_deref(), expected, "{text}");
    }
    let cases = [
        (format!("docker-pullable://web@sha256:{HASH_A}"), Some(HASH_A)),
        (format!("docker://sha256:{HASH_A}"), Some(HASH_A)),
        ("web@sha256:short".into(), None),
        ("web:latest".into(), None),
        (String::new(), None),
    ];
    for (text, expected) in cases {
        assert_eq!(digest(&text), expected.map(|hash| format!("sha256:{hash}")), "{text}");
    }
}

#[test]
fn what_a_pod_says_of_itself_makes_no_other_line_and_no_other_request() {
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "Replica\nSet", "name": "../../../api/v1/secrets?\u{1b}[2J", "uid": "o",
        "controller": true,
    });
    let container = json!({"name": "main", "image": format!("web:1\r\nlevel=error{}", "x".repeat(1000))});
    let claim = json!({"name": "data", "persistentVolumeClaim": {"claimName": "a\"b"}});
    let pod = converted(json!({
        "metadata": {"ownerReferences": [owner]}, "spec": {"containers": [container], "volumes": [claim]},
    }));
    let Controller { api_version, kind, name, .. } = pod.controller.expect("a controller");
    assert_eq!((api_version.as_str(), kind.as_str()), ("apps/v1", "Replica_Set"));
    assert_eq!(name, "../../../api/v1/secrets___2J");
    let image = &pod.containers[0].image;
    assert!(image.starts_with("web:1__level_errorxx") && image.len() == LONGEST, "{image}");
    assert_eq!(pod.volumes, [Volume::Claim { name: "data".into(), claim: "a_b".into() }]);
}

#[test]
fn what_objects_may_be_called() {
    for name in ["web", "web-5f9c", "a.b-1.c", "0", &"a".repeat(LONGEST)] {
        assert!(is_name(name), "{name}");
    }
    for name in ["", ".", "..", "a..b", "-a", "a-", "a/b", "a?b", "a b", "A", "a_b", "\u{e4}", &"a".repeat(LONGEST + 1)]
    {
        assert!(!is_name(name), "{name:?}");
    }
}
