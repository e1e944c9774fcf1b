//! Containers come and go, and every byte stays counted.

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::AsFd as _, unix::fs::PermissionsExt as _},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::RawTracePoint;
use guard_agent::kernel::{
    object::{OBJECT, Options, Programs},
    sys::prog_stats,
};
use guard_tests::{
    eventually,
    net::{EXTERNAL_V4, Wire},
    process::Traffic,
    statistics::Statistics,
    world::{CONFIG, HEADERS, World},
};

#[test]
fn a_container_that_lives_50_ms_is_counted_whole() -> Result<()> {
    let world = World::new(CONFIG)?;
    let _sink = world.sink()?;
    world.wires.quiet()?;
    let wire = world.wires.node.interface()?;
    let mut sent = Vec::new();
    for index in 0..20 {
        let container = world.pods.container(index, 1)?;
        // A runtime takes longer than the agent from making the cgroup to starting a process in it.
        eventually("the container is attached to", Duration::from_secs(5), || {
            let attached = world.agent().attached()?;
            ensure!(attached == u64::from(index) + 1, "{attached} attached");
            Ok(())
        })?;
        let expected = world.send(&container, 100 + u64::from(index), 200)?;
        container.remove()?;
        sent.push((container, expected));
    }
    world.wires.quiet()?;
    let wire = (world.wires.node.interface()? - wire).tx;
    let metrics = world.agent().metrics()?;
    for (container, expected) in &sent {
        let found = metrics.external(container);
        ensure!(found == *expected, "{}: {found:?} instead of {expected:?}", container.label());
    }
    let all: u64 = sent.iter().map(|(_, sent)| sent.bytes).sum();
    ensure!(wire.bytes == all, "the wire says {wire:?} instead of {all} bytes");
    Ok(())
}

#[test]
fn three_hundred_containers_in_a_row_leak_no_slot_and_mix_no_series() -> Result<()> {
    let world = World::new(&format!("{CONFIG}meters: {{max: 64}}\n"))?;
    let _sink = world.sink()?;
    world.wires.quiet()?;
    let wire = world.wires.node.interface()?;
    let mut sent = BTreeMap::new();
    let mut last = world.agent().metrics()?;
    for index in 0..300 {
        let container = world.pods.container(index, 1)?;
        world.agent().wait_for(&container)?;
        let count = 1 + u64::from(index % 7);
        let expected = world.send(&container, 40 + u64::from(index), count)?;
        container.remove()?;
        sent.insert(container.label().to_owned(), expected);
        if index % 50 == 49 {
            let now = world.agent().metrics()?;
            last.assert_not_above(&now)?;
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
    let links = fs::read_dir(world.setup.pins().join("links"))?.count();
    ensure!(links == 2, "{links} links are left, and only the node's two should be");
    let files = fs::read_dir(format!("/proc/{}/fd", world.agent().pid()))?.count();
    // At most two programs for each of 65 slots, the node's links, maps, sockets.
    ensure!(files < 2 * 65 + 40, "{files} open files");
    Ok(())
}

#[test]
fn containers_beyond_meters_max_are_unattributed_and_nothing_else_suffers() -> Result<()> {
    let world = World::new(&format!("{CONFIG}meters: {{max: 2}}\n"))?;
    let _sink = world.sink()?;
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
        sent.push(world.send(container, 100 * (index as u64 + 1), 10)?.bytes);
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
    let expected = world.send(lucky, 1000, 3)?;
    world.wires.quiet()?;
    let later = world.agent().metrics()?;
    ensure!(later.external(lucky) == expected, "{:?}", later.external(lucky));
    ensure!(later.external(&metered[0]).bytes == sent[0], "the gone one's series stays as it was");
    metrics.assert_not_above(&later)
}

#[test]
fn an_extra_meter_that_restarts_adds_to_its_series() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    world.setup.configure(&format!("{CONFIG}meters: {{extra: ['{}']}}\n", world.pods.services()))?;
    world.agent = Some(world.setup.start()?);
    let _sink = world.sink()?;
    let mut total = 0;
    for round in 1..=4u64 {
        let service = world.pods.service("a")?;
        eventually("the service is metered", Duration::from_secs(5), || {
            ensure!(world.agent().list()?.iter().any(|row| row.container == service.label()), "not listed");
            Ok(())
        })?;
        total += world.send(&service, 300 * round, 2)?.bytes;
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
        let found = world.agent().metrics()?.labelled(service.label(), "egress", "external");
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
    let _sink = world.sink()?;
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
        let found = world.agent().metrics()?.external(&container);
        ensure!(found == Wire { bytes: 50 * (200 + HEADERS), packets: 50 }, "{found:?}");
        Ok(())
    })?;
    eventually("its meter is free", Duration::from_secs(5), || {
        ensure!(world.agent().metrics()?.get("egress_guard_meters") == Some(0));
        Ok(())
    })
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
    ensure!(row.cgroup_id == container.cgroup_id()? && row.cgroup_path.contains(&container.id), "{row:?}");
    ensure!(row.pod == row.pod_uid && row.container == container.label(), "{row:?}");
    Ok(())
}

/// Whoever can reach the port can keep scrapers away, but not the meters.
#[test]
fn idle_connections_take_no_descriptors_from_the_meters() -> Result<()> {
    let world = World::new(CONFIG)?;
    let _idle = (0..100).map(|_| world.agent().connect()).collect::<Result<Vec<_>>>()?;
    let container = world.pods.container(1, 1)?;
    eventually("the container is listed", Duration::from_secs(5), || {
        let listed = world.agent().list()?.iter().any(|row| row.container_id == container.id);
        ensure!(listed, "not yet");
        Ok(())
    })?;
    let files = fs::read_dir(format!("/proc/{}/fd", world.agent().pid()))?.count();
    ensure!(files < 64 + 100, "{files} open files");
    // They are ended after a while, and the port serves again.
    eventually("the port serves", Duration::from_mins(1), || world.agent().get("/healthz"))?;
    Ok(())
}

#[test]
fn what_an_overflowing_ring_lost_is_found_by_a_walk() -> Result<()> {
    // Three cgroups each; the ring has room for about 1,000 events.
    const MADE: u32 = 600;
    let world = World::new(CONFIG)?;
    world.agent().stop_and_continue(|| {
        // More events than the ring has room for, while nobody reads it.
        for index in 0..MADE {
            world.pods.container(index, 1)?;
        }
        Ok(())
    })?;
    let metrics = eventually("all are metered", Duration::from_mins(1), || {
        let metrics = world.agent().metrics()?;
        let meters = metrics.get("egress_guard_meters");
        ensure!(meters == Some(u64::from(MADE)), "{meters:?} of {MADE}");
        Ok(metrics)
    })?;
    // Not only the regular walk found them.
    ensure!(world.agent().log()?.contains("kernel events were lost; walking the tree instead"));
    ensure!(metrics.get("egress_guard_events_lost_total") > Some(0), "the ring did not overflow");
    Ok(())
}

#[test]
fn the_kernel_programs_diagnostics_are_shown_on_demand_and_else_not_there() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    world.container(1, 1)?;
    ensure!(!world.agent().log()?.contains("cgroup event"), "it was not asked for");
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    world.setup.arguments.push("--log-kernel".into());
    world.agent = Some(world.setup.start()?);
    world.container(1, 2)?;
    eventually("the mkdir is logged", Duration::from_secs(5), || {
        let log = world.agent().log()?;
        ensure!(log.contains("guard_ebpf") && log.contains("cgroup event 1 with a path of"), "{log}");
        Ok(())
    })?;
    let machine_code = |log| -> Result<u32> {
        let mut programs = Programs::load(Options { object: OBJECT, slots: 2, log, pins: None })?;
        let program: &mut RawTracePoint =
            programs.ebpf.program_mut("cgroup_mkdir").context("no program")?.try_into()?;
        program.load()?;
        Ok(prog_stats(program.fd()?.as_fd())?.jited_len)
    };
    let (off, on) = (machine_code(false)?, machine_code(true)?);
    ensure!(off * 2 < on, "the verifier left {off} bytes of machine code without diagnostics, of {on} with them");
    Ok(())
}

#[test]
fn the_kernels_program_statistics_are_shown_while_they_are_on() -> Result<()> {
    let world = World::new(CONFIG)?;
    let container = world.container(1, 1)?;
    let _sink = world.sink()?;
    world.wires.quiet()?;
    let _statistics = Statistics::on()?;
    world.send(&container, 100, 1000)?;
    let metrics = world.agent().metrics()?;
    // Each datagram runs the container's program and the node's.
    let runs = metrics.get("egress_guard_program_runs_total{program=\"egress\"}");
    ensure!(runs == Some(2000), "{runs:?} runs");
    let seconds = metrics.0.get("egress_guard_program_run_seconds_total{program=\"egress\"}");
    ensure!(seconds.is_some_and(|seconds| *seconds > 0.0), "{seconds:?}");
    Ok(())
}
