//! An agent with limits: what it finds, says and holds.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    eventually,
    limits::{BLOCK, BREACHED, CONTAINED, DROPPED, config, flows, metric, said, sender, wait_for},
    net::{EXTERNAL_V4, NODE, run},
    process::Traffic,
    world::World,
};
use serde_json::Value;

#[test]
fn in_observe_mode_a_breach_is_said_once_and_nothing_else_is_done() -> Result<()> {
    let world = World::new(&config("observe", BLOCK))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let sender = sender(&world, &container, 1_000_000)?;
    wait_for(&world, BREACHED, &container, 1)?;
    thread::sleep(Duration::from_secs(3));
    ensure!(said(&world.setup.log(), "breach ")? == 1, "{}", world.agent().log()?);
    let line = world.agent().log()?;
    let line = line.lines().find(|line| line.contains("breach ")).context("no line")?;
    for word in ["limit=rate", "policy=\"small\"", "allowed=100000", &format!("{EXTERNAL_V4}:9100 udp")] {
        ensure!(line.contains(word), "no {word} in {line}");
    }
    let metrics = world.agent().scrape()?;
    ensure!(metrics.get("egress_guard_breaches_total{limit=\"rate\"}") == Some(1));
    ensure!(metric(&world, CONTAINED, &container)? == 0 && metric(&world, DROPPED, &container)? == 0);
    drop(sender);
    wait_for(&world, BREACHED, &container, 0)?;
    let breaches = world.agent().breaches()?;
    let [breach] = breaches.as_slice() else { anyhow::bail!("{breaches:?}") };
    ensure!(breach["state"] == "closed" && breach["limit"] == "rate" && breach["policy"] == "small", "{breach}");
    ensure!(breach["done"] == Value::Array(vec![]), "{breach}");
    let top = &breach["destinations"][0];
    ensure!(top["address"] == EXTERNAL_V4 && top["port"] == 9100 && top["protocol"] == "udp", "{breach}");
    ensure!(top["share"].as_f64() > Some(0.99), "{breach}");
    Ok(())
}

#[test]
fn a_breach_is_blocked_from_its_packet_on_and_released_when_the_operator_says_so() -> Result<()> {
    let world = World::new(&config("contain", BLOCK))?;
    let (_sink, container, other) = (world.sink()?, world.container(1, 1)?, world.container(1, 2)?);
    let before = world.read(&[&container, &other])?;
    let start = Instant::now();
    let _sender = sender(&world, &container, 2_000_000)?;
    wait_for(&world, CONTAINED, &container, 1)?;
    let sent = world.assert_exact(before, &[&container, &other])?.tx.bytes;
    let allowed = 100_000.0 + 100_000.0 * start.elapsed().as_secs_f64();
    ensure!(sent as f64 <= allowed, "{sent} bytes left, {allowed} may");
    ensure!(metric(&world, DROPPED, &container)? > 0 && metric(&world, CONTAINED, &other)? == 0);
    ensure!(said(&world.setup.log(), "contained by its meter")? == 1, "{}", world.agent().log()?);
    let breach = &world.agent().breaches()?[0];
    ensure!(breach["done"][0]["action"] == "contained" && breach["done"][0]["how"] == "block", "{breach}");

    let answer = world.agent().verb(&["release", container.label()])?;
    ensure!(answer.contains("released"), "{answer}");
    let took = flows(&world, 1_000_000, 4_000_000, Duration::from_secs(2))?;
    ensure!(took < Duration::from_millis(200), "released, and traffic flows only {took:?} later");
    // It goes on far over its limit, and is left alone.
    thread::sleep(Duration::from_secs(2));
    flows(&world, 1_000_000, 4_000_000, Duration::from_secs(1))?;
    ensure!(metric(&world, CONTAINED, &container)? == 0 && metric(&world, BREACHED, &container)? == 1);
    ensure!(said(&world.setup.log(), "breach ")? == 1, "{}", world.agent().log()?);
    Ok(())
}

#[test]
fn a_containment_ends_with_its_time_and_the_next_breach_is_another() -> Result<()> {
    let world = World::new(&config("contain", "contain: {block: true, for: 2s}"))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let _sender = sender(&world, &container, 1_000_000)?;
    eventually("it is contained twice", Duration::from_secs(10), || {
        let times = world.agent().scrape()?;
        let times = times.get("egress_guard_actions_total{action=\"contain\"}");
        ensure!(times >= Some(2), "{times:?}");
        Ok(())
    })?;
    let breaches = world.agent().breaches()?;
    ensure!(breaches.len() >= 2 && breaches[1]["state"] == "closed", "{breaches:?}");
    let time = |breach: &Value, key: &str| -> Result<f64> {
        let text = breach[key].as_str().context("a time")?;
        run(&format!("date +%s.%N -d {text}"))?.trim().parse().context("a number")
    };
    let held = time(&breaches[1], "closed")? - time(&breaches[1], "opened")?;
    ensure!((1.9..2.4).contains(&held), "it was held for {held} s instead of 2");
    Ok(())
}

#[test]
fn a_throttled_container_s_figures_are_the_wire_s() -> Result<()> {
    let world = World::new(&config("contain", "contain: {throttle: 200KB/s, for: 10m}"))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let before = world.read(&[&container])?;
    let sender = sender(&world, &container, 3_000_000)?;
    wait_for(&world, CONTAINED, &container, 1)?;
    thread::sleep(Duration::from_secs(4));
    flows(&world, 100_000, 300_000, Duration::from_secs(2))?;
    drop(sender);
    world.assert_exact(before, &[&container])?;
    let metrics = world.agent().metrics()?;
    let unattributed = metrics.get("egress_guard_unattributed_egress_bytes_total{class=\"external\"}");
    ensure!(unattributed == Some(0), "{unattributed:?} bytes that were dropped are said to be unattributed");
    Ok(())
}

#[test]
fn a_dead_agents_containment_lapses_unless_it_is_to_outlive_it() -> Result<()> {
    for (extra, outlives) in [("", false), ("containment: {outliveAgent: true}\n", true)] {
        let mut world = World::new(&format!("{}{extra}", config("contain", BLOCK)))?;
        let (_sink, container) = (world.sink()?, world.container(1, 1)?);
        let _sender = sender(&world, &container, 1_000_000)?;
        wait_for(&world, CONTAINED, &container, 1)?;
        world.agent.take().context("it runs")?.signal(9)?;
        let died = Instant::now();
        if outlives {
            thread::sleep(Duration::from_secs(12));
            flows(&world, 0, 1000, Duration::from_millis(100))?;
            continue;
        }
        flows(&world, 500_000, 2_000_000, Duration::from_secs(15))?;
        let lapsed = died.elapsed().as_secs_f64();
        ensure!((8.0..11.0).contains(&lapsed), "it lapsed after {lapsed} s");
        // Nor is it held anew: what it is sending is far over its limit.
        thread::sleep(Duration::from_secs(2));
        flows(&world, 500_000, 2_000_000, Duration::from_millis(200))?;
    }
    Ok(())
}

#[test]
fn a_containment_survives_a_restart_and_its_breach_is_not_said_again() -> Result<()> {
    let mut world = World::new(&config("contain", BLOCK))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let _sender = sender(&world, &container, 1_000_000)?;
    wait_for(&world, CONTAINED, &container, 1)?;
    world.wires.quiet()?;
    let before = world.wires.node.interface()?.tx.bytes;
    for signal in [9, 15, 9] {
        world.agent.take().context("it runs")?.signal(signal)?;
        world.agent = Some(world.setup.start()?);
        wait_for(&world, CONTAINED, &container, 1)?;
    }
    // Longer than it lasts without an agent.
    thread::sleep(Duration::from_secs(11));
    let leaked = world.wires.node.interface()?.tx.bytes - before;
    ensure!(leaked == 0, "{leaked} bytes left while the agent restarted");
    // The state file is written at a stop: a breach that was said before it is known after it.
    ensure!(said(&world.setup.log(), "breach ")? <= 2, "{}", world.agent().log()?);
    world.agent().verb(&["release", container.label()])?;
    flows(&world, 500_000, 2_000_000, Duration::from_secs(1))?;
    Ok(())
}

#[test]
fn the_kill_switch_lifts_it_at_once_also_when_the_agent_hangs() -> Result<()> {
    let world = World::new(&config("contain", BLOCK))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let _sender = sender(&world, &container, 1_000_000)?;
    wait_for(&world, CONTAINED, &container, 1)?;
    world.agent().stop_and_continue(|| {
        world.kill_switch("on")?;
        let took = flows(&world, 500_000, 2_000_000, Duration::from_secs(2))?;
        ensure!(took < Duration::from_millis(200), "engaged, and traffic flows only {took:?} later");
        Ok(())
    })?;
    wait_for(&world, CONTAINED, &container, 0)?;
    // Breaches go on being found, nothing is done about them.
    wait_for(&world, BREACHED, &container, 1)?;
    let actions =
        |world: &World| world.agent().scrape().map(|m| m.get("egress_guard_actions_total{action=\"contain\"}"));
    let before = actions(&world)?;
    thread::sleep(Duration::from_secs(2));
    ensure!(actions(&world)? == before && metric(&world, CONTAINED, &container)? == 0);
    flows(&world, 500_000, 2_000_000, Duration::from_secs(1))?;
    world.kill_switch("off")?;
    wait_for(&world, CONTAINED, &container, 1)?;
    flows(&world, 0, 1000, Duration::from_secs(1))?;

    // The file's say is another's, and both hold.
    world.setup.configure(&format!("killSwitch: true\n{}", config("contain", BLOCK)))?;
    wait_for(&world, CONTAINED, &container, 0)?;
    ensure!(world.kill_switch("off").is_err(), "the file still engages it");
    world.setup.configure(&config("contain", BLOCK))?;
    wait_for(&world, CONTAINED, &container, 1)?;
    Ok(())
}

#[test]
fn a_changed_file_holds_at_once_and_a_broken_one_is_refused() -> Result<()> {
    let world = World::new(&config("observe", BLOCK))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let _sender = sender(&world, &container, 1_000_000)?;
    wait_for(&world, BREACHED, &container, 1)?;
    world.setup.configure("mode: contain\npolicies: nonsense\n")?;
    eventually("it is refused", Duration::from_secs(5), || {
        let ready = world.agent().get("/readyz")?;
        ensure!(ready.starts_with("ok\n") && ready.contains("config.yaml:2:"), "{ready}");
        ensure!(world.agent().scrape()?.get("egress_guard_config_ok") == Some(0));
        Ok(())
    })?;
    ensure!(said(&world.setup.log(), "the configuration is refused")? == 1, "{}", world.agent().log()?);
    ensure!(metric(&world, CONTAINED, &container)? == 0 && metric(&world, BREACHED, &container)? == 1);
    let counted = world.agent().metrics()?;
    world.setup.configure(&config("contain", BLOCK))?;
    wait_for(&world, CONTAINED, &container, 1)?;
    ensure!(world.agent().get("/readyz")? == "ok\n");
    counted.assert_not_above(&world.agent().metrics()?)?;
    // A limit that it keeps: what is held for the old one is let go when its policy is gone.
    world.setup.configure("mode: contain\nsample: {interval: 100ms}\n")?;
    wait_for(&world, CONTAINED, &container, 0)?;
    wait_for(&world, BREACHED, &container, 0)?;
    Ok(())
}

#[test]
fn a_flood_of_ingress_is_said_and_never_held() -> Result<()> {
    let world = World::new(&config("contain", BLOCK))?;
    let container = world.container(1, 1)?;
    let bind = format!("udp-sink --bind {}:9300", NODE[1]);
    let _sink = Traffic::serve(&world.wires.node, Some(&container), &bind)?;
    let send = format!("udp-send --to {}:9300 --sizes 972 --rate 1000000 --seconds 60", NODE[1]);
    let _flood = Traffic::start(&world.wires.world, None, &send)?;
    wait_for(&world, BREACHED, &container, 1)?;
    thread::sleep(Duration::from_secs(1));
    let breach = &world.agent().breaches()?[0];
    ensure!(breach["limit"] == "ingress" && breach["destinations"][0]["address"] == EXTERNAL_V4, "{breach}");
    ensure!(metric(&world, CONTAINED, &container)? == 0);
    ensure!(world.agent().scrape()?.get("egress_guard_breaches_total{limit=\"ingress\"}") == Some(1));
    Ok(())
}

#[test]
fn a_quota_is_counted_across_restarts() -> Result<()> {
    let quota = "mode: contain\nsample: {interval: 100ms}\npolicies:\n  - name: quota\n    match: {}\n    \
                 egress: {quota: {bytes: 1MB, per: 1h}}\n    onBreach: {contain: {throttle: 10KB/s, for: 10m}}\n";
    let mut world = World::new(quota)?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    world.send(&container, 972, 400)?;
    world.agent().metrics()?;
    world.agent.take().context("it runs")?.signal(15)?;
    world.send(&container, 972, 200)?;
    world.agent = Some(world.setup.start()?);
    world.agent().metrics()?;
    ensure!(metric(&world, BREACHED, &container)? == 0, "600 KB are no breach of 1 MB");
    // What is sent after the last write of the state file, and while no agent runs, counts as well.
    world.send(&container, 972, 200)?;
    world.agent().metrics()?;
    world.agent.take().context("it runs")?.signal(9)?;
    world.send(&container, 972, 250)?;
    world.agent = Some(world.setup.start()?);
    // A used-up quota is no breach of who keeps still.
    world.agent().metrics()?;
    ensure!(metric(&world, BREACHED, &container)? == 0, "it is said to breach its quota, and sends nothing");
    world.send(&container, 972, 1)?;
    let breached = wait_for(&world, BREACHED, &container, 1);
    breached.with_context(|| format!("{:?}\n{}", world.agent().list(), world.agent().log().unwrap_or_default()))?;
    wait_for(&world, CONTAINED, &container, 1)?;
    let breach = &world.agent().breaches()?[0];
    ensure!(breach["limit"] == "quota" && breach["allowed"] == 1e6, "{breach}");
    let figure = breach["figure"].as_f64().context("a figure")?;
    ensure!((1.0e6..=1.2e6).contains(&figure), "{breach}");
    Ok(())
}

#[test]
fn a_hundred_times_its_normal_is_found_within_five_samples() -> Result<()> {
    let baseline = "sample: {interval: 200ms}\npolicies:\n  - name: normal\n    match: {}\n    \
                    egress: {baseline: {factor: 100, floor: 100KB/s, learn: 5s}}\n";
    let world = World::new(baseline)?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let normal = sender(&world, &container, 20_000)?;
    thread::sleep(Duration::from_secs(9));
    ensure!(metric(&world, BREACHED, &container)? == 0, "its normal is said to be a breach");
    drop(normal);
    let samples = |world: &World| anyhow::Ok(world.agent().scrape()?.get("egress_guard_sample_seconds_count"));
    let before = samples(&world)?.context("samples")?;
    let _attack = sender(&world, &container, 2_500_000)?;
    wait_for(&world, BREACHED, &container, 1)?;
    let after = samples(&world)?.context("samples")?;
    // The attack began within the first, and the metric may be a sample late.
    ensure!(after - before <= 7, "found after {} samples", after - before);
    let breach = &world.agent().breaches()?[0];
    ensure!(breach["limit"] == "baseline" && breach["policy"] == "normal", "{breach}");
    Ok(())
}

#[test]
fn whoever_asks_is_told_where_the_bytes_went() -> Result<()> {
    let world = World::new(&config("observe", ""))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    world.send(&container, 972, 200)?;
    for name in [container.label(), &container.id, &container.id[..8], &format!("{}", container.path.display())] {
        // Beside v1 controllers, or alone.
        let name = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .iter()
            .find_map(|root| name.strip_prefix(root))
            .unwrap_or(name);
        let answer = world.agent().verb(&["destinations", name, "--json"])?;
        let found: Vec<Value> = serde_json::from_str(&answer)?;
        ensure!(found.len() == 1 && found[0]["address"] == EXTERNAL_V4 && found[0]["port"] == 9100, "{answer}");
    }
    let found = world.agent().ask(&format!("/containers/{}/destinations", container.id))?;
    ensure!(found.contains(&format!("\"address\":\"{EXTERNAL_V4}\"")), "{found}");
    let table = world.agent().verb(&["destinations", container.label()])?;
    ensure!(table.contains(EXTERNAL_V4) && table.contains("udp"), "{table}");
    let unknown = world.agent().verb(&["destinations", "nobody"]).err().context("nobody is found")?;
    ensure!(unknown.to_string().contains("no container is named \"nobody\""), "{unknown}");
    Ok(())
}
