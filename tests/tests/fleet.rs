//! What is said for the whole fleet holds on a node, and what a node finds is said on its pods: a real agent, an API server
//! in the test's hands.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    agent::Agent,
    api::{Api, NODE, Written},
    eventually,
    limits::{BLOCK, CONTAINED, config, sender},
    pods::{Container, uid},
    world::World,
};
use serde_json::{Value, json};

/// From the write to its effect on the node.
const IN_FORCE: Duration = Duration::from_secs(2);

/// The longest pause after which the API server is asked again, on a busy machine.
const BACK: Duration = Duration::from_secs(30);

fn map(data: &Value) -> Value {
    let metadata = json!({"name": "egress-guard", "namespace": "egress-guard"});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
}

fn switch(value: &str) -> Value {
    map(&json!({"kill-switch": value}))
}

/// A world whose agent knows of an API server with this ConfigMap.
fn world(first: &Value, config: &str) -> Result<(Api, World)> {
    let api = Api::new()?;
    api.apply(first);
    let world = World::prepared(|_, setup| {
        setup.environment.push(("KUBECONFIG".into(), setup.file("kubeconfig").display().to_string()));
        setup.environment.push(("POD_NAME".into(), "egress-guard-x7k2p".into()));
        setup.set("--node-name", NODE);
        api.kubeconfig(&setup.file("kubeconfig"))?;
        setup.configure(config)
    })?;
    Ok((api, world))
}

fn metric(agent: &Agent, name: &str) -> Result<Option<u64>> {
    Ok(agent.scrape()?.get(name))
}

/// Waits until the cluster engages the kill switch, or does not; returns how long that took.
fn waits(agent: &Agent, engaged: bool, limit: Duration) -> Result<Duration> {
    let begun = Instant::now();
    eventually(&format!("engaged by the cluster: {engaged}"), limit, || {
        let now = metric(agent, "egress_guard_kill_switch{source=\"cluster\"}")?;
        ensure!(now == Some(engaged.into()), "{now:?}");
        Ok(())
    })?;
    Ok(begun.elapsed())
}

/// How it stands with the ConfigMap.
fn state(agent: &Agent, expected: &str, limit: Duration) -> Result<()> {
    eventually(&format!("the ConfigMap is {expected}"), limit, || {
        let now = metric(agent, &format!("egress_guard_config_map{{state=\"{expected}\"}}"))?;
        ensure!(now == Some(1), "{}", agent.log()?);
        Ok(())
    })
}

fn restart(world: &mut World, signal: i32) -> Result<()> {
    world.agent.take().context("the agent runs")?.signal(signal)?;
    world.agent = Some(world.setup.start()?);
    Ok(())
}

#[test]
fn the_fleets_kill_switch_is_in_force_within_two_seconds_and_nobody_is_released_by_silence() -> Result<()> {
    let (api, mut world) = world(&switch("off"), &config("contain", BLOCK))?;
    let container = world.container(1, 1)?;
    let _sink = world.sink()?;
    state(world.agent(), "present", IN_FORCE)?;
    waits(world.agent(), false, IN_FORCE)?;
    let _attack = sender(&world, &container, 2_000_000)?;
    world.agent().wait_for_gauge(CONTAINED, &container, 1)?;

    // What is held is let go, and nothing is held again.
    for value in ["on", "Off", ""] {
        api.apply(&switch(value));
        waits(world.agent(), true, IN_FORCE)?;
        eventually("it is let go", IN_FORCE, || {
            ensure!(world.agent().gauge(CONTAINED, &container)? == 0);
            Ok(())
        })?;
        let status: Value = serde_json::from_str(&world.agent().ask("/kill-switch")?)?;
        let who = status["by"][0]["who"].as_str().unwrap_or_default();
        let expected = format!("kill-switch: {value:?} in ConfigMap egress-guard/egress-guard, resourceVersion ");
        ensure!(who.starts_with(&expected), "{status}");
        api.apply(&switch("off"));
        waits(world.agent(), false, IN_FORCE)?;
        world.agent().wait_for_gauge(CONTAINED, &container, 1)?;
    }
    // A key that is not there engages it too.
    api.apply(&map(&json!({})));
    waits(world.agent(), true, IN_FORCE)?;

    // The API server goes away, and so does the agent, by force: a mounted file that is older does not release it.
    api.set_away(true);
    fs::write(world.setup.file("kill-switch"), "off")?;
    fs::File::options().write(true).open(world.setup.file("kill-switch"))?.set_modified(std::time::UNIX_EPOCH)?;
    restart(&mut world, libc::SIGKILL)?;
    state(world.agent(), "away", IN_FORCE)?;
    let begun = Instant::now();
    while begun.elapsed() < IN_FORCE {
        waits(world.agent(), true, Duration::ZERO)?;
        ensure!(world.agent().gauge(CONTAINED, &container)? == 0, "it is contained");
    }
    // It is back, and says off.
    api.apply(&switch("off"));
    api.set_away(false);
    waits(world.agent(), false, BACK)?;
    world.agent().wait_for_gauge(CONTAINED, &container, 1)
}

#[test]
fn the_mounted_file_engages_while_the_api_server_is_away_and_a_newer_one_releases() -> Result<()> {
    let (api, mut world) = world(&switch("off"), &config("contain", BLOCK))?;
    waits(world.agent(), false, IN_FORCE)?;
    let file = world.setup.file("kill-switch");
    // While it is there its word alone counts.
    fs::write(&file, "on")?;
    state(world.agent(), "present", IN_FORCE)?;
    std::thread::sleep(Duration::from_secs(2));
    waits(world.agent(), false, Duration::ZERO)?;
    api.set_away(true);
    restart(&mut world, libc::SIGTERM)?;
    waits(world.agent(), true, IN_FORCE)?;
    fs::write(&file, "off\n")?;
    waits(world.agent(), false, IN_FORCE)?;
    fs::write(&file, "x")?;
    waits(world.agent(), true, IN_FORCE)?;
    api.set_away(false);
    waits(world.agent(), false, BACK).map(drop)
}

#[test]
fn without_a_map_that_can_be_read_nothing_is_released_and_containment_goes_on() -> Result<()> {
    let (api, world) = world(&switch("off"), &config("contain", BLOCK))?;
    let container = world.container(1, 1)?;
    let _sink = world.sink()?;
    state(world.agent(), "present", IN_FORCE)?;
    api.delete(&switch("off"));
    state(world.agent(), "missing", IN_FORCE)?;
    world.agent().hear("there is no ConfigMap egress-guard/egress-guard: nothing is evicted", IN_FORCE)?;
    let _attack = sender(&world, &container, 2_000_000)?;
    world.agent().wait_for_gauge(CONTAINED, &container, 1)?;
    api.apply(&switch("on"));
    waits(world.agent(), true, IN_FORCE)?;
    api.delete(&switch("on"));
    state(world.agent(), "missing", IN_FORCE)?;
    waits(world.agent(), true, Duration::ZERO)?;
    api.forbid_map(true);
    state(world.agent(), "denied", BACK)?;
    waits(world.agent(), true, Duration::ZERO)?;
    ensure!(
        world.agent().said("grant its service account get, list and watch of it")? == 1,
        "{}",
        world.agent().log()?
    );
    api.apply(&switch("off"));
    api.forbid_map(false);
    waits(world.agent(), false, BACK)?;
    world.agent().wait_for_gauge(CONTAINED, &container, 1)
}

#[test]
fn the_maps_policy_file_holds_over_the_mounted_one() -> Result<()> {
    let with = |config: &str| map(&json!({"kill-switch": "off", "config.yaml": config}));
    let (api, world) = world(&with(&config("contain", BLOCK)), &config("observe", BLOCK))?;
    let container = world.container(1, 1)?;
    let _sink = world.sink()?;
    world.agent().hear("the configuration has changed and is in force", IN_FORCE)?;
    let _attack = sender(&world, &container, 2_000_000)?;
    world.agent().wait_for_gauge(CONTAINED, &container, 1)?;
    // The mounted file lags behind.
    world.setup.configure("mode: observe\n")?;
    // One that is refused changes nothing, and is said and counted.
    api.apply(&with("mode: nonsense\n"));
    world.agent().hear("ConfigMap egress-guard/egress-guard, config.yaml:1:7: mode: ", IN_FORCE)?;
    ensure!(metric(world.agent(), "egress_guard_config_ok")? == Some(0));
    std::thread::sleep(Duration::from_secs(2));
    ensure!(world.agent().gauge(CONTAINED, &container)? == 1, "{}", world.agent().log()?);
    api.apply(&with(&config("observe", BLOCK)));
    eventually("it is let go", IN_FORCE, || {
        ensure!(world.agent().gauge(CONTAINED, &container)? == 0);
        ensure!(metric(world.agent(), "egress_guard_config_ok")? == Some(1));
        Ok(())
    })
}

/// What the agent wrote to that path.
fn writes(api: &Api, path: &str) -> Vec<Written> {
    api.written().into_iter().filter(|written| written.target.starts_with(path)).collect()
}

fn pod(number: u32, container: &Container) -> Value {
    let statuses = json!([{
        "name": "main", "ready": true, "restartCount": 0, "image": "web:1", "imageID": "",
        "containerID": format!("containerd://{}", container.id),
    }]);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": "shop", "uid": uid(number)},
        "spec": {"nodeName": NODE, "containers": [{"name": "main", "image": "web:1"}]},
        "status": {"phase": "Running", "containerStatuses": statuses},
    })
}

#[test]
fn a_breach_is_told_on_its_pod_and_the_pod_gets_the_flag() -> Result<()> {
    let (api, world) = world(&switch("off"), &config("contain", BLOCK))?;
    let container = world.container(1, 1)?;
    api.apply(&pod(1, &container));
    let _sink = world.sink()?;
    eventually("its name is known", Duration::from_secs(5), || {
        ensure!(world.agent().list()?.first().is_some_and(|row| row.pod == "web-0"));
        Ok(())
    })?;
    let _attack = sender(&world, &container, 2_000_000)?;
    let event = |reason: &str| {
        eventually(reason, Duration::from_secs(5), || {
            let events = writes(&api, "/apis/events.k8s.io/v1/namespaces/shop/events");
            let found = events.into_iter().find(|event| event.body["reason"] == reason);
            Ok(found.context("it is not told")?.body)
        })
    };
    let exceeded = event("EgressLimitExceeded")?;
    let regarding = json!({
        "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-0", "uid": uid(1),
        "fieldPath": "spec.containers{main}",
    });
    ensure!(exceeded["regarding"] == regarding && exceeded["type"] == "Warning", "{exceeded}");
    ensure!(exceeded["reportingInstance"] == "egress-guard-x7k2p", "{exceeded}");
    let note = exceeded["note"].as_str().unwrap_or_default();
    ensure!(note.starts_with("shop/web-0/main crossed its rate limit: ") && note.contains("; most went to "), "{note}");
    let held = event("EgressContained")?;
    ensure!(held["note"].as_str().is_some_and(|note| note.contains("blocked until ")), "{held}");
    let flags = writes(&api, "/api/v1/namespaces/shop/pods/web-0");
    ensure!(flags.len() == 1 && flags[0].method == "PATCH", "{flags:?}");
    let metadata = &flags[0].body["metadata"];
    let flag = metadata["annotations"]["egress-guard.dev/flagged"].as_str().unwrap_or_default();
    ensure!(metadata["uid"] == uid(1) && flag.ends_with("Z rate"), "{flags:?}");
    api.apply(&switch("on"));
    let released = event("EgressReleased")?;
    ensure!(released["type"] == "Normal" && released["action"] == "ReleaseKillSwitch", "{released}");
    let sent = "egress_guard_events_total{reason=\"EgressLimitExceeded\",result=\"sent\"}";
    ensure!(metric(world.agent(), sent)? == Some(1));
    Ok(())
}

#[test]
fn without_leave_there_is_no_flag() -> Result<()> {
    let (api, world) = world(&switch("off"), &format!("flag: {{annotation: false}}\n{}", config("observe", BLOCK)))?;
    let container = world.container(1, 1)?;
    api.apply(&pod(1, &container));
    let _sink = world.sink()?;
    let _attack = sender(&world, &container, 2_000_000)?;
    eventually("the breach is told", Duration::from_secs(10), || {
        ensure!(!writes(&api, "/apis/events.k8s.io/").is_empty());
        Ok(())
    })?;
    ensure!(writes(&api, "/api/v1/namespaces/shop/pods/").is_empty(), "{:?}", api.written());
    Ok(())
}
