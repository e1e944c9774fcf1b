//! Containers get the names that an API server tells, whenever it does.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    agent::Agent,
    api::{Api, NODE},
    eventually,
    net::EXTERNAL_V4,
    pods::{Container, uid},
    process::Traffic,
    world::{CONFIG, HEADERS, World},
};
use serde_json::{Value, json};

/// A world whose agent knows of an API server, which is there.
fn world(config: &str) -> Result<(Api, World)> {
    let api = Api::new()?;
    let metadata = json!({"name": "egress-guard", "namespace": "egress-guard"});
    api.apply(&json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": {"kill-switch": "off"}}));
    let world = World::prepared(|_, setup| {
        setup.environment.push(("KUBECONFIG".into(), setup.file("kubeconfig").display().to_string()));
        setup.set("--node-name", NODE);
        api.kubeconfig(&setup.file("kubeconfig"))?;
        setup.configure(config)
    })?;
    Ok((api, world))
}

/// A pod with a container `main`, whose id the API server knows or not.
fn pod(number: u32, name: &str, container: Option<&Container>) -> Value {
    let statuses = container.map(|container| {
        json!([{
            "name": "main", "ready": true, "restartCount": 0, "image": "web:1", "imageID": "",
            "containerID": format!("containerd://{}", container.id),
        }])
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": uid(number), "labels": {"app": "web"}},
        "spec": {"nodeName": NODE, "containers": [{"name": "main", "image": "web:1"}]},
        "status": {"phase": "Running", "containerStatuses": statuses},
    })
}

/// What each series says was sent to external destinations, by its names with slashes between them.
fn sent(agent: &Agent) -> Result<BTreeMap<String, u64>> {
    const NAME: &str = "egress_guard_container_egress_bytes_total{class=\"external\",";
    let metrics = agent.scrape()?;
    let series = metrics.0.iter().filter_map(|(series, value)| {
        let labels = series.strip_prefix(NAME)?;
        let label = |name: &str| {
            let (_, value) = labels.split_once(&format!("{name}=\""))?;
            value.split_once('"').map(|(value, _)| value)
        };
        let names = [label("namespace")?, label("pod")?, label("container")?];
        Some((names.join("/"), *value as u64))
    });
    Ok(series.collect())
}

/// Waits until the series are these.
fn shows(agent: &Agent, expected: &[(&str, u64)]) -> Result<()> {
    let expected: BTreeMap<String, u64> = expected.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
    eventually("the series are as expected", Duration::from_secs(10), || {
        let found = sent(agent)?;
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        Ok(())
    })
}

/// As it is shown while nothing is known.
fn nameless(number: u32, container: &Container) -> String {
    format!("/{}/{}", uid(number), container.label())
}

fn restart(world: &mut World, signal: i32) -> Result<()> {
    world.agent.take().context("the agent runs")?.signal(signal)?;
    world.agent = Some(world.setup.start()?);
    Ok(())
}

/// In mid traffic its series is one at any time, by whatever name, and only grows.
#[test]
fn a_name_that_comes_late_takes_the_series_over_without_a_gap() -> Result<()> {
    let (api, world) = world(CONFIG)?;
    let container = world.container(1, 1)?;
    let _sink = world.sink()?;
    world.wires.quiet()?;
    let wire = world.wires.node.interface()?;
    let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 1,999 --rate 5000000 --seconds 4 --threads 2");
    let traffic = Traffic::start(&world.wires.node, Some(&container), &send)?;
    let half = format!("shop/web-0/{}", container.label());
    let steps = [nameless(1, &container), half, "shop/web-0/main".to_owned()];
    let mut before = 0;
    for (step, name) in steps.iter().enumerate() {
        match step {
            0 => {}
            1 => api.apply(&pod(1, "web-0", None)),
            _ => api.apply(&pod(1, "web-0", Some(&container))),
        }
        let begun = Instant::now();
        let mut at_last = 0;
        while at_last < 20 {
            ensure!(begun.elapsed() < Duration::from_secs(10), "never {name}");
            let series = sent(world.agent())?;
            let (shown, bytes) = series.first_key_value().context("no series")?;
            ensure!(series.len() == 1, "more than one series: {series:?}");
            ensure!(*bytes >= before, "{shown}: {bytes} after {before}");
            ensure!(shown == name || (step > 0 && *shown == steps[step - 1]), "{shown} instead of {name}");
            before = *bytes;
            at_last += u32::from(shown == name);
        }
    }
    traffic.finish()?;
    world.wires.quiet()?;
    let wire = (world.wires.node.interface()? - wire).tx.bytes;
    ensure!(wire > 1_000_000, "there was traffic: {wire}");
    shows(world.agent(), &[("shop/web-0/main", wire)])?;
    let list = world.agent().list()?;
    let row = list.first().context("one container")?;
    ensure!((row.namespace.as_str(), row.pod.as_str(), row.container.as_str()) == ("shop", "web-0", "main"), "{row:?}");
    let metrics = world.agent().scrape()?;
    ensure!(metrics.get("egress_guard_cluster_connected") == Some(1) && metrics.get("egress_guard_pods") == Some(1));
    Ok(())
}

#[test]
fn a_container_of_a_known_pod_has_its_name_from_the_start() -> Result<()> {
    let (api, mut world) = world(CONFIG)?;
    let container = world.pods.container(1, 1)?;
    api.apply(&pod(1, "web-0", Some(&container)));
    let _sink = world.sink()?;
    shows(world.agent(), &[("shop/web-0/main", 0)])?;
    let wire = world.send(&container, 100, 10)?;
    shows(world.agent(), &[("shop/web-0/main", wire.bytes)])?;
    // A fresh agent, without a state file: what it shows first is the name.
    world.agent.take().context("the agent runs")?.signal(libc::SIGKILL)?;
    fs::remove_dir_all(world.setup.file("state"))?;
    let agent = world.setup.spawn()?;
    let first = eventually("it shows something", Duration::from_secs(10), || {
        let shown = sent(&agent)?;
        ensure!(!shown.is_empty());
        Ok(shown)
    })?;
    ensure!(first == [("shop/web-0/main".to_owned(), wire.bytes)].into(), "{first:?}");
    world.agent = Some(agent);
    Ok(())
}

/// Restarted in place it has another id, and the pod tells only of the new one.
#[test]
fn a_container_that_is_restarted_goes_on_in_its_series() -> Result<()> {
    let (api, mut world) = world(CONFIG)?;
    let _sink = world.sink()?;
    let first = world.pods.container(1, 1)?;
    api.apply(&pod(1, "web-0", Some(&first)));
    shows(world.agent(), &[("shop/web-0/main", 0)])?;
    let mut sum = world.send(&first, 100, 10)?.bytes;
    first.remove()?;
    let second = world.container(1, 2)?;
    sum += world.send(&second, 200, 10)?.bytes;
    let half = format!("shop/web-0/{}", second.label());
    shows(world.agent(), &[("shop/web-0/main", 10 * (100 + HEADERS)), (&half, 10 * (200 + HEADERS))])?;
    api.apply(&pod(1, "web-0", Some(&second)));
    shows(world.agent(), &[("shop/web-0/main", sum)])?;
    // What was joined stays so, whether the API server tells the next agent anything or not.
    for away in [false, true] {
        api.set_away(away);
        eventually("the names are kept", Duration::from_secs(5), || {
            let kept = fs::read_to_string(world.setup.file("state").join("state.json"))?;
            ensure!(kept.contains(&first.id) && kept.contains(&second.id), "{kept}");
            Ok(())
        })?;
        restart(&mut world, libc::SIGKILL)?;
        shows(world.agent(), &[("shop/web-0/main", sum)])?;
        sum += world.send(&second, 300, 10)?.bytes;
        shows(world.agent(), &[("shop/web-0/main", sum)])?;
    }
    Ok(())
}

#[test]
fn while_the_api_server_is_away_all_goes_on_and_names_outlive_the_agent() -> Result<()> {
    let (api, mut world) = world(CONFIG)?;
    let _sink = world.sink()?;
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    // Away at the start: no error, and what is there is metered.
    api.set_away(true);
    let old = world.pods.container(1, 1)?;
    world.agent = Some(world.setup.start()?);
    let mut sum = world.send(&old, 100, 10)?.bytes;
    shows(world.agent(), &[(&nameless(1, &old), sum)])?;
    ensure!(world.agent().scrape()?.get("egress_guard_cluster_connected") == Some(0));
    world.agent().hear("cannot watch this node's pods", Duration::from_secs(5))?;
    // More than one attempt, and one line of them all; and one of the ConfigMap.
    std::thread::sleep(Duration::from_secs(3));
    let failures = world.agent().scrape()?.get("egress_guard_cluster_watch_failures_total");
    let loud = world.agent().log()?.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).count();
    ensure!(failures > Some(1) && loud == 2, "{failures:?} failures in {loud} lines: {}", world.agent().log()?);
    api.apply(&pod(1, "web-0", Some(&old)));
    api.set_away(false);
    eventually("the name has come", Duration::from_secs(40), || shows(world.agent(), &[("shop/web-0/main", sum)]))?;
    // A restart while it is away: not one scrape without the name, and policies by names go on.
    api.set_away(true);
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    let agent = world.setup.spawn()?;
    let begun = Instant::now();
    let mut seen = 0;
    while seen < 20 {
        ensure!(begun.elapsed() < Duration::from_secs(20), "nothing is shown");
        let Ok(shown) = sent(&agent) else { continue };
        ensure!(shown.is_empty() || shown == [("shop/web-0/main".to_owned(), sum)].into(), "{shown:?}");
        seen += u32::from(!shown.is_empty());
    }
    world.agent = Some(agent);
    eventually("it is ready", Duration::from_secs(10), || world.agent().get("/readyz"))?;
    sum += world.send(&old, 100, 10)?.bytes;
    // One that begins meanwhile, in a pod that is known.
    let new = world.pods.container(1, 2)?;
    let half = format!("shop/web-0/{}", new.label());
    shows(world.agent(), &[("shop/web-0/main", sum), (&half, 0)])?;
    Ok(())
}

#[test]
fn what_changed_while_nobody_watched_is_known_after_the_next_list() -> Result<()> {
    let (api, world) = world(CONFIG)?;
    let _sink = world.sink()?;
    let (stays, goes) = (world.pods.container(1, 1)?, world.pods.container(2, 1)?);
    let (first, second) = (pod(1, "web-0", None), pod(2, "web-1", Some(&goes)));
    api.apply(&first);
    api.apply(&second);
    let half = format!("shop/web-0/{}", stays.label());
    shows(world.agent(), &[(&half, 0), ("shop/web-1/main", 0)])?;
    let sum = world.send(&goes, 100, 10)?.bytes;
    shows(world.agent(), &[(&half, 0), ("shop/web-1/main", sum)])?;
    // What it would go on from is too old when it is back.
    api.set_away(true);
    api.delete(&second);
    api.apply(&pod(1, "web-0", Some(&stays)));
    let fresh = world.pods.container(3, 1)?;
    api.apply(&pod(3, "web-2", Some(&fresh)));
    api.forget();
    api.set_away(false);
    // Its pod is gone, and it is not yet: it keeps its name.
    eventually("all names are known", Duration::from_secs(40), || {
        shows(world.agent(), &[("shop/web-0/main", 0), ("shop/web-1/main", sum), ("shop/web-2/main", 0)])
    })?;
    eventually("only two pods are there", Duration::from_secs(5), || {
        ensure!(world.agent().scrape()?.get("egress_guard_pods") == Some(2));
        Ok(())
    })
}

#[test]
fn a_static_pod_is_known_by_its_mirror() -> Result<()> {
    let (api, world) = world(CONFIG)?;
    let container = world.pods.container(1, 1)?;
    let mut mirror = pod(1, "etcd-node-1", Some(&container));
    mirror["metadata"]["uid"] = "11111111-2222-3333-4444-555555555555".into();
    mirror["metadata"]["annotations"] =
        json!({"kubernetes.io/config.hash": uid(1), "kubernetes.io/config.mirror": uid(1)});
    api.apply(&mirror);
    shows(world.agent(), &[("shop/etcd-node-1/main", 0)])
}

/// Another policy holds as soon as the name is known, and what was said under an id is said under the name.
#[test]
fn policies_hold_by_names_labels_and_workloads_of_pods() -> Result<()> {
    let policies = "policies:\n  \
        - {name: web, match: {labels: {app: web}, containers: [main]}, egress: {rate: 100KB/s, burst: 100KB}}\n  \
        - {name: rest, match: {}, egress: {rate: 1MB/s, burst: 1MB}}\n";
    let (api, world) = world(&format!("{CONFIG}{policies}"))?;
    let _sink = world.sink()?;
    let container = world.container(1, 1)?;
    let policy = || -> Result<Vec<(String, String, String)>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = world.agent().breaches()?;
        Ok(all.iter().map(|b| (text(&b["container"]), text(&b["policy"]), text(&b["state"]))).collect())
    };
    world.send(&container, 1400, 1000)?;
    eventually("it breaches under its id", Duration::from_secs(5), || {
        ensure!(policy()? == [(container.label().to_owned(), "rest".into(), "open".into())], "{:?}", policy()?);
        Ok(())
    })?;
    api.apply(&pod(1, "web-0", Some(&container)));
    eventually("the breach has the name", Duration::from_secs(5), || {
        ensure!(policy()?.iter().all(|(name, ..)| name == "main"), "{:?}", policy()?);
        Ok(())
    })?;
    eventually("it is over", Duration::from_secs(20), || {
        ensure!(policy()?.iter().all(|(.., state)| state == "closed"), "{:?}", policy()?);
        Ok(())
    })?;
    world.send(&container, 1400, 200)?;
    eventually("the pod's policy holds", Duration::from_secs(5), || {
        ensure!(policy()?.iter().any(|(_, policy, state)| (policy.as_str(), state.as_str()) == ("web", "open")));
        Ok(())
    })
}

#[test]
fn at_rest_the_api_server_is_left_alone() -> Result<()> {
    let (api, world) = world(CONFIG)?;
    let controller = |kind: &str, name: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": name, "controller": true}]);
    let path = "/apis/apps/v1/namespaces/shop/replicasets/web-5d4";
    let metadata = json!({"name": "web-5d4", "namespace": "shop", "uid": "web-5d4", "ownerReferences": controller("Deployment", "web")});
    api.put(path, json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata}));
    for number in 0..20 {
        let container = world.pods.container(number, 1)?;
        let mut pod = pod(number, &format!("web-{number}"), Some(&container));
        pod["metadata"]["ownerReferences"] = controller("ReplicaSet", "web-5d4");
        api.apply(&pod);
    }
    eventually("all are known", Duration::from_secs(10), || {
        ensure!(sent(world.agent())?.keys().filter(|name| name.ends_with("/main")).count() == 20);
        ensure!(api.asked().iter().any(|asked| asked == path), "{:?}", api.asked());
        Ok(())
    })?;
    let before = api.asked();
    std::thread::sleep(Duration::from_secs(5));
    let after = api.asked();
    ensure!(after == before, "{:?}", &after[before.len()..]);
    ensure!(after.len() == 5, "the pods' list and watch, the ConfigMap's, and a question: {after:?}");
    Ok(())
}

#[test]
fn a_cluster_that_was_asked_for_and_is_not_configured_is_an_error() -> Result<()> {
    let (_api, mut world) = world(CONFIG)?;
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    world.setup.set("--orchestrator", "kubernetes");
    let (code, said) = world.setup.fail(|command| {
        command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST").env("HOME", "/nonexistent");
    })?;
    ensure!(code == Some(1) && said.contains("no way to a Kubernetes API server"), "{code:?}: {said}");
    ensure!(said.contains("--orchestrator none"), "{said}");
    // Said to be none, nobody is asked although there is one.
    world.setup.set("--orchestrator", "none");
    world.agent = Some(world.setup.start()?);
    ensure!(world.agent().scrape()?.get("egress_guard_cluster_connected").is_none());
    Ok(())
}
