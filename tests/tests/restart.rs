//! Agents come and go, and every byte stays counted.

use std::{fs, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    agent::{Agent, Metrics},
    eventually,
    net::EXTERNAL_V4,
    process::Traffic,
    world::{CONFIG, World},
};

/// Keeps traffic going while `change` is done with the agent, which it leaves running; then compares with the wire.
fn in_mid_traffic(world: &mut World, change: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    let containers = [world.container(1, 1)?, world.container(1, 2)?];
    let echo = format!("udp-echo --bind {EXTERNAL_V4}:9101");
    let _echo = Traffic::serve(&world.wires.world, None, &echo)?;
    let _sink = world.sink()?;
    let before = world.read(&containers.each_ref())?;
    let start = world.agent().metrics()?;
    let one = format!("udp-send --to {EXTERNAL_V4}:9101 --sizes 100,700,1300 --rate 20000000 --seconds 6");
    let other = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 1,999 --rate 5000000 --seconds 6 --threads 4");
    let traffic = [
        Traffic::start(&world.wires.node, Some(&containers[0]), &one)?,
        Traffic::start(&world.wires.node, Some(&containers[1]), &other)?,
    ];
    thread::sleep(Duration::from_millis(800));
    change(world)?;
    containers_only(&start).assert_not_above(&world.agent().metrics()?)?;
    for traffic in traffic {
        traffic.finish()?;
    }
    let wire = world.assert_exact(before, &containers.each_ref())?;
    ensure!(wire.tx.packets > 10_000, "there was traffic: {wire:?}");
    let last = world.agent().metrics()?;
    ensure!(last.get("egress_guard_unattributed_egress_bytes_total{class=\"external\"}") == Some(0));
    Ok(())
}

/// The series of containers and node, which go on when an agent is restarted; those of the agent itself do not.
fn containers_only(metrics: &Metrics) -> Metrics {
    let series = metrics.0.iter().filter(|(series, _)| series.contains("_container_") || series.contains("_node_"));
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
    let current = world.setup.binary.clone();
    let commit = |agent: &Agent| -> Result<String> {
        let text = agent.get("/metrics")?;
        Ok(text.lines().find(|line| line.starts_with("egress_guard_build_info")).context("no build info")?.into())
    };
    let before = commit(world.agent())?;
    let rebuilt = world.setup.binary.with_file_name("guard-agent-rebuilt");
    rebuild("rebuilt")?;
    fs::copy(&current, &rebuilt)?;
    rebuild("")?;
    in_mid_traffic(&mut world, |world| {
        world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
        world.setup.binary.clone_from(&rebuilt);
        // Other CIDRs: not only the agent, the kernel programs too are others.
        world.setup.configure(&format!("{CONFIG}destinations: {{cluster: [10.77.0.0/24, 198.18.0.0/15]}}\n"))?;
        world.agent = Some(world.setup.start()?);
        Ok(())
    })?;
    let after = commit(world.agent())?;
    ensure!(after != before && after.contains("rebuilt"), "{before} became {after}");
    drop(world);
    Ok(fs::remove_file(rebuilt)?)
}

/// Builds the agent again, as another version than it was.
fn rebuild(commit: &str) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--package", "guard-agent"]).env_remove("EGRESS_GUARD_COMMIT");
    if !commit.is_empty() {
        cargo.env("EGRESS_GUARD_COMMIT", commit);
    }
    let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status()?;
    ensure!(status.success(), "the agent did not build");
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
        ensure!(world.setup.bpffs.join("v1/links/1-egress").exists(), "the pins are gone");
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
    ensure!(String::from_utf8_lossy(&done.stdout).starts_with("removed 6 pins"), "{done:?}");
    ensure!(!world.setup.bpffs.exists(), "the folder is still there");
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
            fs::rename(world.setup.bpffs.join("v1"), world.setup.bpffs.join("v0"))?;
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
