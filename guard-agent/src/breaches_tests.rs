use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::{
    client,
    core::units::Rate,
    http::{self, Shared, Socket},
};

#[test]
fn a_report_is_told_with_all_that_is_known() {
    let breaches = Breaches::default();
    breaches.open(example(7));
    let opened = example(7).opened.0;
    let how = Containment::Throttle(Rate::new(1 << 20).expect("a rate")).into();
    let until = Time(opened + Duration::from_mins(10));
    breaches.done(7, Limit::Rate, Done::Contained { how, until });
    breaches.done(7, Limit::Rate, Done::Evicted { at: Time(opened + Duration::from_secs(30)) });
    breaches.close(7, Limit::Rate, opened + Duration::from_secs(31));
    let told = serde_json::to_value(breaches.newest_first()).expect("JSON");
    let expected = json!([{
        "state": "closed",
        "opened": "2026-09-21T14:13:20.250Z",
        "closed": "2026-09-21T14:13:51.250Z",
        "limit": "rate",
        "namespace": "batch-1",
        "pod": "load-7",
        "container": "worker",
        "container_id": "3f1d",
        "cgroup_id": 7,
        "cgroup_path": "/kubepods.slice/x.scope",
        "figure": 104_857_600.0,
        "allowed": 52_428_800.0,
        "policy": "loaders",
        "done": [
            {"action": "contained", "how": {"throttle": 1_048_576}, "until": "2026-09-21T14:23:20.250Z"},
            {"action": "evicted", "at": "2026-09-21T14:13:50.250Z"},
        ],
        "destinations":
            [{"address": "203.0.113.7", "port": 25, "protocol": "tcp", "bytes": 9_000_000, "share": 0.9}],
    }]);
    assert_eq!(told, expected);
}

#[test]
fn a_name_that_becomes_known_is_the_name_of_all_its_breaches() {
    let breaches = Breaches::default();
    breaches.open(example(7));
    breaches.close(7, Limit::Rate, example(7).opened.0);
    breaches.open(example(7));
    breaches.open(example(8));
    let labels = Labels { namespace: "shop".into(), pod: "web-0".into(), container: "main".into() };
    let renamed = breaches.rename(7, &labels);
    let states: Vec<_> = renamed.iter().map(|(before, now)| (before.labels.clone(), now.labels.clone())).collect();
    assert_eq!(states, [(example(7).labels, labels.clone())], "of the one that is open");
    let names: Vec<_> = breaches.newest_first().into_iter().map(|report| report.labels).collect();
    assert_eq!(names, [example(8).labels, labels.clone(), labels.clone()]);
    assert_eq!(breaches.rename(7, &labels), []);
}

#[tokio::test]
async fn they_are_served_on_the_socket() {
    let (_sender, snapshots) = watch::channel(Arc::default());
    let shared = Shared::ready(snapshots, Duration::ZERO);
    let breaches = shared.breaches.clone();
    let path = std::env::temp_dir().join(format!("egtest-{}-breaches", std::process::id())).join("socket");
    let mut socket = Socket::open(&path).expect("a socket");
    tokio::spawn(http::serve(socket.take().expect("a listener"), http::private(shared)));
    breaches.open(example(7));
    breaches.open(example(8));
    let told = client::get(&path, "/breaches").await;
    drop(socket);
    std::fs::remove_dir(path.parent().expect("a folder")).expect("an empty folder");
    let told: Vec<serde_json::Value> = serde_json::from_slice(&told.expect("an answer")).expect("JSON");
    let ids: Vec<u64> = told.iter().filter_map(|report| report["cgroup_id"].as_u64()).collect();
    assert_eq!(ids, [8, 7]);
}

#[test]
fn only_the_open_breach_of_the_same_limit_changes() {
    let breaches = Breaches::default();
    breaches.open(example(7));
    breaches.open(Report { limit: Limit::Quota, ..example(7) });
    assert!(breaches.close(7, Limit::Rate, SystemTime::UNIX_EPOCH).is_some());
    assert_eq!(breaches.close(7, Limit::Rate, SystemTime::now()), None, "it is closed already");
    assert_eq!(breaches.close(8, Limit::Quota, SystemTime::now()), None, "there is no such container");
    breaches.open(example(7));
    let again = breaches.done(7, Limit::Rate, Done::Nothing { why: "observe".into() }).expect("open again");
    assert_eq!((again.state, again.done.len()), (State::Open, 1));
    let states: Vec<_> = breaches.newest_first().iter().map(|r| (r.limit, r.state, r.done.len())).collect();
    let expected = [(Limit::Rate, State::Open, 1), (Limit::Quota, State::Open, 0), (Limit::Rate, State::Closed, 0)];
    assert_eq!(states, expected);
}

#[test]
fn what_became_of_an_eviction_is_noted_where_it_was_begun() {
    let breaches = Breaches::default();
    breaches.open(example(7));
    assert_eq!(breaches.not_evicted(7, "no"), None, "none was begun");
    breaches.done(7, Limit::Rate, Done::Evicted { at: Time(SystemTime::UNIX_EPOCH) });
    breaches.close(7, Limit::Rate, SystemTime::now());
    breaches.open(example(7));
    breaches.open(example(8));
    let told = breaches.not_evicted(7, "no").expect("it was begun");
    assert_eq!((told.state, told.done.len()), (State::Closed, 2));
    assert_eq!(told.done[1], Done::Nothing { why: "not evicted: no".into() });
    assert_eq!(breaches.newest_first().iter().map(|report| report.done.len()).collect::<Vec<_>>(), [0, 0, 2]);
}

#[test]
fn the_last_thousand_are_kept_newest_first() {
    let breaches = Breaches::default();
    (0..1003).for_each(|id| breaches.open(example(id)));
    let ids: Vec<u64> = breaches.newest_first().iter().map(|report| report.cgroup_id).collect();
    assert_eq!(ids, (3..1003).rev().collect::<Vec<_>>());
}

#[test]
fn what_is_refused_for_days_does_not_fill_the_memory() {
    let breaches = Breaches::default();
    breaches.open(example(7));
    breaches.done(7, Limit::Rate, Done::Evicted { at: Time(SystemTime::UNIX_EPOCH) });
    for turn in 0..1000 {
        breaches.noted(7, Done::Nothing { why: format!("blocked {turn}") });
        breaches.done(7, Limit::Rate, Done::Nothing { why: "its budget is spent".into() });
    }
    let done = breaches.newest_first().remove(0).done;
    assert_eq!(done.len(), DONE);
    assert_eq!(done[0], Done::Evicted { at: Time(SystemTime::UNIX_EPOCH) });
    assert_eq!(done[DONE - 2], Done::Nothing { why: "blocked 999".into() });
}
