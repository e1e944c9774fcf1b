//! Containers and agents come and go, and every byte stays counted.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    agent::{Agent, Metrics},
    eventually,
    net::{EXTERNAL_V4, Wire},
    pods::Container,
    process::Traffic,
    world::{CONFIG, World},
};

const HEADERS: u64 = 28;

fn sink(world: &World) -> Result<Traffic> {
    Traffic::serve(&world.wires.world, None, &format!("udp-sink --bind {EXTERNAL_V4}:9100"))
}

/// Sends datagrams from a container; returns what they are on the wire.
fn send(world: &World, container: &Container, size: u64, count: u64) -> Result<Wire> {
    let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes {size} --count {count}");
    Traffic::run(&world.wires.node, Some(container), &send)?;
    Ok(Wire { bytes: count * (size + HEADERS), packets: count })
}

fn external(metrics: &Metrics, container: &Container) -> Wire {
    metrics.container(container, "egress", "external")
}

/// Fails if a counter is smaller than it was, or is no longer there.
fn assert_monotonic(before: &Metrics, after: &Metrics) -> Result<()> {
    for (series, was) in before.0.iter().filter(|(series, _)| series.contains("_total")) {
        let now = after.0.get(series).with_context(|| format!("{series} is gone"))?;
        ensure!(now >= was, "{series} went down from {was} to {now}");
    }
    Ok(())
}

#[test]
fn a_container_that_lives_50_ms_is_counted_whole() -> Result<()> {
    let world = World::new(CONFIG)?;
    let _sink = sink(&world)?;
    world.wires.quiet()?;
    let wire = world.wires.node.interface()?;
    let mut sent = Vec::new();
    for index in 0..20 {
        let container = world.pods.container(index, 1)?;
        // A runtime takes longer than this from making the cgroup to starting a process in it.
        thread::sleep(Duration::from_millis(10));
        let expected = send(&world, &container, 100 + u64::from(index), 200)?;
        container.remove()?;
        sent.push((container, expected));
    }
    world.wires.quiet()?;
    let wire = (world.wires.node.interface()? - wire).tx;
    let metrics = world.agent().metrics()?;
    for (container, expected) in &sent {
        let found = external(&metrics, container);
        ensure!(found == *expected, "{}: {found:?} instead of {expected:?}", container.label());
    }
    let all: u64 = sent.iter().map(|(_, sent)| sent.bytes).sum();
    ensure!(wire.bytes == all, "the wire says {wire:?} instead of {all} bytes");
    Ok(())
}

/// Keeps traffic going while `change` is done with the agent, which it leaves running; then compares with the wire.
fn in_mid_traffic(world: &mut World, change: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    let containers = [world.container(1, 1)?, world.container(1, 2)?];
    let echo = format!("udp-echo --bind {EXTERNAL_V4}:9101");
    let _echo = Traffic::serve(&world.wires.world, None, &echo)?;
    let _sink = sink(world)?;
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
    assert_monotonic(&containers_only(&start), &world.agent().metrics()?)?;
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
fn three_hundred_containers_in_a_row_leak_no_slot_and_mix_no_series() -> Result<()> {
    let world = World::new(&format!("{CONFIG}meters: {{max: 64}}\n"))?;
    let _sink = sink(&world)?;
    world.wires.quiet()?;
    let wire = world.wires.node.interface()?;
    let mut sent = BTreeMap::new();
    let mut last = world.agent().metrics()?;
    for index in 0..300 {
        let container = world.pods.container(index, 1)?;
        world.agent().wait_for(&container)?;
        let count = 1 + u64::from(index % 7);
        let expected = send(&world, &container, 40 + u64::from(index), count)?;
        container.remove()?;
        sent.insert(container.label().to_owned(), expected);
        if index % 50 == 49 {
            let now = world.agent().metrics()?;
            assert_monotonic(&last, &now)?;
            last = now;
        }
    }
    world.wires.quiet()?;
    let settled = eventually("all slots are free", Duration::from_secs(10), || {
        let metrics = world.agent().metrics()?;
        ensure!(metrics.get("egress_guard_meters") == Some(0), "{:?} meters", metrics.get("egress_guard_meters"));
        Ok(metrics)
    })?;
    for (label, expected) in &sent {
        let found = settled.labelled(label, "egress", "external");
        ensure!(found == *expected, "{label}: {found:?} instead of {expected:?}");
    }
    let wire = (world.wires.node.interface()? - wire).tx;
    let all: u64 = sent.values().map(|sent| sent.bytes).sum();
    ensure!(wire.bytes == all && settled.all_containers("external") == all, "{wire:?} and {all}");
    ensure!(settled.get("egress_guard_meters_refused_total") == Some(0));
    let links = fs::read_dir(world.setup.bpffs.join("v1/links"))?.count();
    ensure!(links == 2, "{links} links are left, and only the node's two should be");
    let files = fs::read_dir(format!("/proc/{}/fd", world.agent().pid()))?.count();
    // At most two programs for each of 65 slots, the node's links, maps, sockets.
    ensure!(files < 2 * 65 + 40, "{files} open files");
    Ok(())
}

#[test]
fn containers_beyond_meters_max_are_unattributed_and_nothing_else_suffers() -> Result<()> {
    let world = World::new(&format!("{CONFIG}meters: {{max: 2}}\n"))?;
    let _sink = sink(&world)?;
    let metered = [world.container(1, 1)?, world.container(1, 2)?];
    let others = [world.pods.container(2, 1)?, world.pods.container(2, 2)?, world.pods.container(2, 3)?];
    eventually("three are refused", Duration::from_secs(5), || {
        let refused = world.agent().metrics()?.get("egress_guard_meters_refused_total");
        ensure!(refused == Some(3), "{refused:?}");
        Ok(())
    })?;
    let warnings = world.agent().log()?.matches("all 2 meters are in use").count();
    ensure!(warnings == 1, "{warnings} warnings instead of one");
    world.wires.quiet()?;
    let wire = world.wires.node.interface()?;
    let mut sent = Vec::new();
    for (index, container) in metered.iter().chain(&others).enumerate() {
        sent.push(send(&world, container, 100 * (index as u64 + 1), 10)?.bytes);
    }
    world.wires.quiet()?;
    let wire = (world.wires.node.interface()? - wire).tx;
    let metrics = world.agent().metrics()?;
    let of = |name: &str| metrics.get(&format!("egress_guard_{name}_egress_bytes_total{{class=\"external\"}}"));
    let (node, unattributed) = (of("node").context("node")?, of("unattributed").context("unattributed")?);
    ensure!(node == wire.bytes, "the node's {node} are not the wire's {wire:?}");
    ensure!(metrics.all_containers("external") + unattributed == node, "they do not add up");
    ensure!(unattributed == sent[2..].iter().sum::<u64>(), "{unattributed} of {sent:?}");
    ensure!(metrics.all_containers("external") == sent[..2].iter().sum::<u64>());

    // A meter becomes free: one of those that wait gets it, and its series starts with what it sends from then on.
    metered[0].remove()?;
    let lucky = eventually("one that waited is metered", Duration::from_secs(5), || {
        let list = world.agent().list()?;
        let found = list.iter().find_map(|row| others.iter().find(|other| other.id == row.container_id));
        found.context("none of them")
    })?;
    let expected = send(&world, lucky, 1000, 3)?;
    world.wires.quiet()?;
    let later = world.agent().metrics()?;
    ensure!(external(&later, lucky) == expected, "{:?}", external(&later, lucky));
    ensure!(external(&later, &metered[0]).bytes == sent[0], "the gone one's series stays as it was");
    assert_monotonic(&metrics, &later)
}

#[test]
fn an_extra_meter_that_restarts_adds_to_its_series() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    let relative = world.pods.base.file_name().context("a name")?.to_string_lossy().into_owned();
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    world.setup.configure(&format!("{CONFIG}meters: {{extra: ['{relative}/*.service']}}\n"))?;
    world.agent = Some(world.setup.start()?);
    let _sink = sink(&world)?;
    let label = format!("{relative}/a.service");
    let path = world.pods.base.join("a.service");
    let mut total = 0;
    for round in 1..=4u64 {
        fs::create_dir(&path)?;
        let service = Container { path: path.clone(), id: String::new() };
        eventually("the service is metered", Duration::from_secs(5), || {
            ensure!(world.agent().list()?.iter().any(|row| row.container == label), "not listed");
            Ok(())
        })?;
        total += send(&world, &service, 300 * round, 2)?.bytes;
        if round == 2 {
            world.agent.take().context("the agent runs")?.signal(libc::SIGKILL)?;
            world.agent = Some(world.setup.start()?);
        }
        service.remove()?;
        eventually("its end is seen", Duration::from_secs(5), || {
            ensure!(world.agent().list()?.is_empty(), "still listed");
            Ok(())
        })?;
        if round == 3 {
            world.agent.take().context("the agent runs")?.signal(libc::SIGKILL)?;
            world.agent = Some(world.setup.start()?);
        }
        let found = world.agent().metrics()?.labelled(&label, "egress", "external");
        ensure!(found.bytes == total, "round {round}: {found:?} instead of {total}");
    }
    let metrics = world.agent().metrics()?;
    let node = metrics.get("egress_guard_node_egress_bytes_total{class=\"external\"}");
    ensure!(node == Some(0), "an extra meter is not one of the node's pods: {node:?}");
    ensure!(metrics.get("egress_guard_unattributed_egress_bytes_total{class=\"external\"}") == Some(0));
    Ok(())
}

#[test]
fn a_container_whose_socket_outlives_it_is_charged_to_the_end() -> Result<()> {
    let world = World::new(CONFIG)?;
    let container = world.container(1, 1)?;
    let _sink = sink(&world)?;
    world.wires.quiet()?;
    // Its socket is made while it is in the container; then it moves out, and the container is removed.
    let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 200 --count 50 --wait");
    let mut sender = Traffic::start(&world.wires.node, Some(&container), &send)?;
    sender.socket_made()?;
    fs::write(world.pods.base.join("cgroup.procs"), sender.pid().to_string())?;
    container.remove()?;
    thread::sleep(Duration::from_millis(500));
    sender.go()?;
    sender.finish()?;
    eventually("its last bytes are counted", Duration::from_secs(5), || {
        let found = external(&world.agent().metrics()?, &container);
        ensure!(found == Wire { bytes: 50 * (200 + HEADERS), packets: 50 }, "{found:?}");
        Ok(())
    })?;
    eventually("its meter is free", Duration::from_secs(5), || {
        ensure!(world.agent().metrics()?.get("egress_guard_meters") == Some(0));
        Ok(())
    })
}

#[test]
fn a_container_made_while_no_agent_ran_is_metered_and_one_that_went_is_settled() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    let _sink = sink(&world)?;
    let gone = world.container(1, 1)?;
    let sent = send(&world, &gone, 300, 5)?;
    world.agent.take().context("the agent runs")?.signal(libc::SIGKILL)?;
    let late = send(&world, &gone, 300, 5)?;
    gone.remove()?;
    let new = world.pods.container(1, 2)?;
    thread::sleep(Duration::from_millis(200));
    world.agent = Some(world.setup.start()?);
    let expected = send(&world, &new, 400, 5)?;
    let metrics = world.agent().metrics()?;
    ensure!(external(&metrics, &gone).bytes == sent.bytes + late.bytes, "{:?}", external(&metrics, &gone));
    ensure!(external(&metrics, &new) == expected, "{:?}", external(&metrics, &new));
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
    let _sink = sink(&world)?;
    let container = world.container(1, 1)?;
    for (change, said) in [("layout", "pins of another version"), ("size", "pins with room for 1024 meters instead of 7")] {
        send(&world, &container, 100, 10)?;
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
        let expected = send(&world, &container, 200, 3)?;
        world.wires.quiet()?;
        let found = external(&world.agent().metrics()?, &container);
        ensure!(found == expected, "{change}: {found:?} instead of {expected:?}: the old programs are gone");
    }
    Ok(())
}

#[test]
fn the_socket_is_for_root_and_the_port_tells_no_detail() -> Result<()> {
    let world = World::new(CONFIG)?;
    let container = world.container(1, 1)?;
    let mode = fs::metadata(world.agent().socket())?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "mode {mode:o}");
    for path in ["/healthz", "/readyz"] {
        ensure!(world.agent().get(path)? == "ok\n");
    }
    let error = world.agent().get("/containers").expect_err("not on the port");
    ensure!(error.to_string().contains("404"), "{error}");
    let list = world.agent().list()?;
    let row = list.first().context("one row")?;
    ensure!(row.container_id == container.id && row.runtime == "cri-containerd", "{row:?}");
    ensure!(row.cgroup_id == container.cgroup_id()? && row.cgroup_path.ends_with(".scope"), "{row:?}");
    ensure!(row.pod == row.pod_uid && row.container == container.label(), "{row:?}");
    Ok(())
}

#[test]
fn what_an_overflowing_ring_lost_is_found_by_a_walk() -> Result<()> {
    const MADE: u32 = 1500;
    let world = World::new(&format!("{CONFIG}meters: {{max: 4000}}\n"))?;
    let stopped = Instant::now();
    world.agent().stop_and_continue(|| {
        // More events than the ring has room for, while nobody reads it.
        for index in 0..MADE {
            world.pods.container(index, 1)?;
        }
        Ok(())
    })?;
    let metrics = eventually("all are metered", Duration::from_secs(25), || {
        let metrics = world.agent().metrics()?;
        let meters = metrics.get("egress_guard_meters");
        ensure!(meters == Some(u64::from(MADE)), "{meters:?} of {MADE}");
        Ok(metrics)
    })?;
    ensure!(stopped.elapsed() < Duration::from_secs(29), "the regular walk would have found them anyway");
    ensure!(metrics.get("egress_guard_events_lost_total") > Some(0), "the ring did not overflow");
    Ok(())
}

/// Counted while the kernel keeps statistics of all programs; another user of them is left alone.
#[test]
fn the_kernels_program_statistics_are_shown_while_they_are_on() -> Result<()> {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
    let world = World::new(CONFIG)?;
    let container = world.container(1, 1)?;
    let _sink = sink(&world)?;
    let was = fs::read_to_string(SWITCH)?;
    fs::write(SWITCH, "1")?;
    let result = (|| {
        world.wires.quiet()?;
        send(&world, &container, 100, 1000)?;
        world.agent().metrics()
    })();
    fs::write(SWITCH, was)?;
    let metrics = result?;
    // Each datagram runs the container's program and the node's.
    let runs = metrics.get("egress_guard_program_runs_total{program=\"egress\"}");
    ensure!(runs == Some(2000), "{runs:?} runs");
    let seconds = metrics.0.get("egress_guard_program_run_seconds_total{program=\"egress\"}");
    ensure!(seconds.is_some_and(|seconds| *seconds > 0.0), "{seconds:?}");
    Ok(())
}
