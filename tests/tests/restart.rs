//! Agents come and go, and every byte stays counted.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    agent::{Agent, Metrics},
    eventually,
    net::EXTERNAL_V4,
    pods::remove_tree,
    process::Traffic,
    sibling,
    world::{CONFIG, World},
};

/// Keeps traffic going while `change` is done with the agent, which it leaves running; then compares with the wire.
fn in_mid_traffic(world: &mut World, change: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    let containers = [world.container(1, 1)?, world.container(1, 2)?];
    let _echo = Traffic::serve(&world.wires.world, None, &format!("udp-echo --bind {EXTERNAL_V4}:9101"))?;
    let _sink = world.sink()?;
    let before = world.read(&containers.each_ref())?;
    let start = world.agent().metrics()?;
    // Each call waits for its echo: nothing is under way when the socket closes.
    let one = format!("udp-call --to {EXTERNAL_V4}:9101 --size 700 --seconds 50 --until-told --threads 2");
    let other =
        format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 1,999 --rate 5000000 --seconds 50 --until-told --threads 4");
    let mut traffic = [
        Traffic::start(&world.wires.node, Some(&containers[0]), &one)?,
        Traffic::start(&world.wires.node, Some(&containers[1]), &other)?,
    ];
    thread::sleep(Duration::from_millis(800));
    change(world)?;
    traffic_only(&start).assert_not_above(&world.agent().metrics()?)?;
    // The new agent has seen traffic as well.
    thread::sleep(Duration::from_secs(1));
    for traffic in &mut traffic {
        ensure!(traffic.is_running()?, "the traffic ended before the agent was there");
        traffic.go()?;
    }
    traffic.into_iter().try_for_each(Traffic::finish)?;
    let wire = world.assert_exact(before, &containers.each_ref())?;
    ensure!(wire.tx.packets > 10_000, "there was traffic: {wire:?}");
    let last = world.agent().metrics()?;
    ensure!(last.get("egress_guard_unattributed_egress_bytes_total{class=\"external\"}") == Some(0));
    Ok(())
}

/// The series of the traffic, which go on when an agent is restarted; those of the agent itself do not.
fn traffic_only(metrics: &Metrics) -> Metrics {
    let traffic = ["_container_", "_node_", "_unattributed_"];
    let series = metrics.0.iter().filter(|(series, _)| traffic.iter().any(|part| series.contains(part)));
    Metrics(series.map(|(series, value)| (series.clone(), *value)).collect())
}

#[test]
fn kill_9_in_mid_traffic_and_a_restart_after_2_s_lose_nothing() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    in_mid_traffic(&mut world, |world| {
        world.agent.take().context("the agent runs")?.signal(libc::SIGKILL)?;
        thread::sleep(Duration::from_secs(2));
        world.agent = Some(world.setup.start()?);
        Ok(())
    })
}

#[test]
fn a_rebuilt_binary_takes_over_in_mid_traffic() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    let build = |agent: &Agent| -> Result<String> {
        let text = agent.get("/metrics")?;
        Ok(text.lines().find(|line| line.starts_with("egress_guard_build_info")).context("no build info")?.into())
    };
    let before = build(world.agent())?;
    in_mid_traffic(&mut world, |world| {
        world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
        // `cargo xtask test` builds it.
        world.setup.binary = sibling("guard-agent-rebuilt")?;
        // Other CIDRs: not only the agent, the kernel programs too are others.
        world.setup.configure(&format!("{CONFIG}destinations: {{cluster: [203.0.113.0/24, 198.18.0.0/15]}}\n"))?;
        world.agent = Some(world.setup.start()?);
        Ok(())
    })?;
    let after = build(world.agent())?;
    ensure!(after != before && after.contains("rebuilt"), "{before} became {after}");
    // What was external to the first agent's programs is cluster to the second's.
    let list = world.agent().list()?;
    for row in &list {
        ensure!(row.egress.external.packets > 100 && row.egress.cluster.packets > 100, "{row:?}");
    }
    ensure!(list.len() == 2, "{list:?}");
    Ok(())
}

/// A scrape at any moment of a restart sees either nothing or no less than before.
#[test]
fn no_scrape_during_a_restart_sees_a_counter_that_went_down() -> Result<()> {
    let mut world = World::new(&format!("{CONFIG}meters: {{max: 40}}\n"))?;
    let _sink = world.sink()?;
    // Some that find no meter, so that there is something unattributed too.
    let containers = (0..50).map(|n| world.pods.container(n, 1)).collect::<Result<Vec<_>>>()?;
    thread::sleep(Duration::from_millis(500));
    for container in &containers {
        world.send(container, 100, 20)?;
    }
    let before = traffic_only(&world.agent().metrics()?);
    ensure!(before.0.iter().any(|(series, bytes)| series.contains("_unattributed_") && *bytes > 0.0), "{before:?}");
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        world.agent.take().context("the agent runs")?.signal(signal)?;
        let agent = world.setup.spawn()?;
        let mut seen = 0;
        let ready = Instant::now();
        while agent.get("/readyz").is_err() || seen == 0 {
            ensure!(ready.elapsed() < Duration::from_secs(20), "not ready, or never seen");
            let Ok(now) = agent.scrape() else { continue };
            let known = now.0.keys().any(|series| series.contains("_node_"));
            if known {
                before.assert_not_above(&now)?;
                seen += 1;
            }
        }
        world.agent = Some(agent);
    }
    Ok(())
}

/// Another root that comes and goes, nearer to the hierarchy's, neither moves the node's meter nor doubles a container's.
#[test]
fn a_second_pods_root_that_comes_and_goes_changes_nothing() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    world.setup.unset("--pods-root");
    world.agent = Some(world.setup.start()?);
    let container = world.container(1, 1)?;
    let _sink = world.sink()?;
    let second = world.pods.base.parent().context("the hierarchy's root")?.join("kubepods");
    let before = world.read(&[&container])?;
    world.send(&container, 100, 10)?;
    world.assert_exact(before, &[&container])?;
    fs::create_dir(&second).context("this machine has pods of its own: the test needs one without")?;
    let result = (|| {
        world.send(&container, 100, 10)?;
        world.assert_exact(before, &[&container])
    })();
    fs::remove_dir(&second)?;
    result?;
    for _ in 0..2 {
        world.send(&container, 100, 10)?;
        world.assert_exact(before, &[&container])?;
        world.agent.take().context("the agent runs")?.signal(libc::SIGKILL)?;
        world.agent = Some(world.setup.start()?);
    }
    ensure!(world.agent().metrics()?.get("egress_guard_meters") == Some(1), "one container, one meter");
    Ok(())
}

#[test]
fn the_pods_root_may_come_late_go_and_come_again() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    fs::remove_dir(&world.pods.root)?;
    world.agent = Some(world.setup.start()?);
    ensure!(world.agent().log()?.contains("no pods' root"), "{}", world.agent().log()?);
    let _sink = world.sink()?;
    world.wires.quiet()?;
    let wire = world.wires.node.interface()?;
    for round in 1..=3 {
        let container = world.container(round, 1)?;
        world.send(&container, 100, 10)?;
        remove_tree(&world.pods.root)?;
    }
    world.wires.quiet()?;
    let wire = (world.wires.node.interface()? - wire).tx;
    eventually("all is counted", Duration::from_secs(5), || {
        let metrics = world.agent().metrics()?;
        let node = metrics.get("egress_guard_node_egress_bytes_total{class=\"external\"}");
        ensure!(node == Some(wire.bytes) && metrics.all_containers("external") == wire.bytes, "{node:?}, {wire:?}");
        Ok(())
    })
}

/// All that a flag says, the environment can say too.
#[test]
fn the_environment_stands_for_the_flags() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    let flags = ["--pods-root", "--bpffs", "--listen", "--socket", "--state-dir", "--config"];
    let arguments = std::mem::take(&mut world.setup.arguments);
    world.setup.arguments.push(arguments[0].clone());
    for pair in arguments[1..].chunks(2) {
        ensure!(flags.contains(&pair[0].as_str()), "{pair:?}");
        let name = format!("EGRESS_GUARD_{}", pair[0].trim_start_matches('-').replace('-', "_").to_uppercase());
        world.setup.environment.push((name, pair[1].clone()));
    }
    for (name, value) in [("LOG_FORMAT", "json"), ("LOG_KERNEL", "")] {
        world.setup.environment.push((format!("EGRESS_GUARD_{name}"), value.into()));
    }
    let before = fs::metadata(world.setup.log())?.len() as usize;
    world.agent = Some(world.setup.start()?);
    let container = world.container(1, 1)?;
    ensure!(world.agent().list()?.iter().any(|row| row.container_id == container.id));
    let log = world.agent().log()?;
    for line in log[before..].lines() {
        let json: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        ensure!(json["level"].is_string() && json["fields"]["message"].is_string(), "{line}");
    }
    ensure!(log[before..].contains("\"ready\""), "{log}");
    Ok(())
}

#[test]
fn a_container_made_while_no_agent_ran_is_metered_and_one_that_went_is_settled() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    let _sink = world.sink()?;
    let gone = world.container(1, 1)?;
    let sent = world.send(&gone, 300, 5)?;
    world.agent.take().context("the agent runs")?.signal(libc::SIGKILL)?;
    let late = world.send(&gone, 300, 5)?;
    gone.remove()?;
    let new = world.pods.container(1, 2)?;
    thread::sleep(Duration::from_millis(200));
    world.agent = Some(world.setup.start()?);
    let expected = world.send(&new, 400, 5)?;
    let metrics = world.agent().metrics()?;
    ensure!(metrics.external(&gone).bytes == sent.bytes + late.bytes, "{:?}", metrics.external(&gone));
    ensure!(metrics.external(&new) == expected, "{:?}", metrics.external(&new));
    eventually("only the new one has a meter", Duration::from_secs(5), || {
        ensure!(world.agent().metrics()?.get("egress_guard_meters") == Some(1));
        Ok(())
    })
}

#[test]
fn a_stop_is_quick_and_leaves_the_pins_and_cleanup_removes_them() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    let _container = world.container(1, 1)?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let (code, took) = world.agent.take().context("the agent runs")?.signal(signal)?;
        ensure!(code == Some(0), "exit code {code:?}");
        ensure!(took < Duration::from_secs(1), "it took {took:?}");
        ensure!(world.setup.pins().join("links/1-egress").exists(), "the pins are gone");
        world.agent = Some(world.setup.start()?);
    }
    let cleanup = || Command::new(&world.setup.binary).arg("cleanup").arg("--bpffs").arg(&world.setup.bpffs).output();
    let refused = cleanup()?;
    let said = String::from_utf8(refused.stderr)?;
    ensure!(!refused.status.success() && said.contains("another agent is running"), "{said}");
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    let done = cleanup()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // Two maps, and two links of the node and the container each.
    ensure!(String::from_utf8_lossy(&done.stdout).starts_with("removed 10 pins"), "{done:?}");
    ensure!(!world.setup.bpffs.exists(), "the folder is still there");
    Ok(())
}

#[test]
fn a_stop_is_heard_while_hundreds_of_meters_are_attached() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    for n in 0..500 {
        world.pods.container(n, 1)?;
    }
    let agent = world.setup.spawn()?;
    eventually("the port serves", Duration::from_secs(10), || agent.get("/healthz"))?;
    ensure!(agent.get("/readyz").is_err(), "ready already: too few containers for this test");
    let (code, took) = agent.signal(libc::SIGTERM)?;
    ensure!(code == Some(0) && took < Duration::from_secs(1), "exit code {code:?} after {took:?}");
    // A thousand programs: in emulation each takes the kernel some hundredths of a second.
    let begun = Instant::now();
    world.agent = Some(world.setup.start_within(Duration::from_mins(2))?);
    eprintln!("500 containers have their meters after {:?}", begun.elapsed());
    ensure!(world.agent().list()?.len() == 500, "{} meters", world.agent().list()?.len());
    Ok(())
}

#[test]
fn pins_of_another_layout_or_size_are_replaced_with_one_line() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    let _sink = world.sink()?;
    let container = world.container(1, 1)?;
    for (change, said) in
        [("layout", "pins of another version"), ("size", "pins with room for 1024 meters instead of 7")]
    {
        world.send(&container, 100, 10)?;
        world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
        if change == "layout" {
            fs::rename(world.setup.pins(), world.setup.bpffs.join("v0"))?;
        } else {
            world.setup.configure(&format!("{CONFIG}meters: {{max: 7}}\n"))?;
        }
        world.agent = Some(world.setup.start()?);
        let log = world.agent().log()?;
        ensure!(log.matches(said).count() == 1, "{change}: no single line {said:?} in {log}");
        ensure!(!world.setup.bpffs.join("v0").exists(), "the old layout is still there");
        let expected = world.send(&container, 200, 3)?;
        world.wires.quiet()?;
        let found = world.agent().metrics()?.external(&container);
        ensure!(found == expected, "{change}: {found:?} instead of {expected:?}: the old programs are gone");
    }
    Ok(())
}
