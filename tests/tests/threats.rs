//! What a hostile container tries against counting and containment; docs/threat-model.md says what each test is for.

use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use guard_agent::{
    core::ledger::Slot,
    kernel::{
        controls::{Controls, Orders},
        object::{OBJECT, Options, Parameters, Programs},
        sys::{self, Hook},
    },
};
use guard_tests::{
    eventually, hostile,
    limits::{BLOCK, BREACHED, CONTAINED, config, flows, wait_for},
    net::{EXTERNAL_V4, EXTERNAL_V6, Wire},
    pods::Container,
    process::Traffic,
    world::{CONFIG, HEADERS, World},
};

const MENDED: &str = "egress_guard_meters_mended_total";

/// Makes the agent look at everything now: a cgroup with a path that no event has room for.
fn have_it_walk(container: &Container) -> Result<()> {
    container.nested(&format!("{0}/{0}", "n".repeat(250))).map(drop)
}

/// Waits until so many meters were put right, and it was said.
fn mended(world: &World, count: u64, said: &str) -> Result<()> {
    eventually("it is put right", Duration::from_secs(5), || {
        let mended = world.agent().scrape()?.get(MENDED);
        ensure!(mended == Some(count), "{mended:?}");
        Ok(())
    })?;
    ensure!(world.agent().said(said)? > 0, "{}", world.agent().log()?);
    Ok(())
}

/// Programs of somebody else's that count elsewhere.
fn others_program(name: &str, hook: Hook) -> Result<OwnedFd> {
    let programs = Programs::load(Options { object: OBJECT, slots: 2, log: false, pins: None })?;
    Ok(programs.load_program(name, &Parameters::new(&[]).with_slot(1), hook)?)
}

#[test]
fn a_detached_meter_counts_again_and_that_is_said() -> Result<()> {
    let world = World::new(CONFIG)?;
    let (container, other) = (world.container(1, 1)?, world.container(1, 2)?);
    let _sink = world.sink()?;
    let node = fs::metadata(&world.pods.root)?.ino();
    for cgroup in [container.cgroup_id()?, node] {
        let links = hostile::links_of(cgroup)?;
        ensure!(links.len() == 2, "{} links on cgroup {cgroup}", links.len());
        hostile::detach(links)?;
    }
    // What it sends until the next walk is lost: that much is not promised.
    world.send(&container, 100, 10)?;
    ensure!(world.agent().metrics()?.external(&container).bytes == 0, "it was not detached");
    have_it_walk(&container)?;
    mended(&world, 2, "somebody had detached this meter")?;
    let before = world.read(&[&container, &other])?;
    world.send(&container, 200, 100)?;
    world.send(&other, 300, 100)?;
    world.assert_exact(before, &[&container, &other])?;
    // The pins are the new links': the next agent goes on with them.
    ensure!(hostile::links_of(container.cgroup_id()?)?.len() == 2, "a link too many");
    have_it_walk(&other)?;
    world.agent().metrics()?;
    ensure!(world.agent().scrape()?.get(MENDED) == Some(2), "what is right was put right again");
    Ok(())
}

#[test]
fn a_mended_meter_is_the_next_agents() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    let container = world.container(1, 1)?;
    let _sink = world.sink()?;
    hostile::detach(hostile::links_of(container.cgroup_id()?)?)?;
    have_it_walk(&container)?;
    mended(&world, 1, "somebody had detached this meter")?;
    let before = world.read(&[&container])?;
    world.agent.take().context("it runs")?.signal(libc::SIGKILL)?;
    world.send(&container, 200, 100)?;
    world.agent = Some(world.setup.start()?);
    world.assert_exact(before, &[&container])?;
    Ok(())
}

#[test]
fn another_program_in_a_meters_link_is_put_out_of_it() -> Result<()> {
    let world = World::new(CONFIG)?;
    let container = world.container(1, 1)?;
    let _sink = world.sink()?;
    let others = others_program("meter_egress", Hook::Egress)?;
    let links = hostile::links_of(container.cgroup_id()?)?;
    for link in links {
        sys::link_update(link.as_fd(), others.as_fd())?;
    }
    world.send(&container, 100, 10)?;
    ensure!(world.agent().metrics()?.external(&container).bytes == 0, "it was not replaced");
    have_it_walk(&container)?;
    mended(&world, 1, "put another program in its place")?;
    let before = world.read(&[&container])?;
    world.send(&container, 200, 100)?;
    world.assert_exact(before, &[&container])?;
    Ok(())
}

#[test]
fn limits_that_were_taken_out_of_the_kernel_are_put_back() -> Result<()> {
    let world = World::new(&config("contain", BLOCK))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let array = hostile::pinned(&world.setup.pins().join("POLICE_EGRESS"))?;
    // One that has no limits.
    let others = others_program("police_egress", Hook::Egress)?;
    sys::program_array_set(array.as_fd(), 0, others.as_fd())?;
    let _sender = guard_tests::limits::sender(&world, &container, 1_000_000)?;
    flows(&world, 500_000, 2_000_000, Duration::from_secs(5))?;
    have_it_walk(&container)?;
    mended(&world, 1, "taken the limits' programs out")?;
    wait_for(&world, CONTAINED, &container, 1)?;
    flows(&world, 0, 1000, Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn limits_that_were_loosened_in_the_kernel_hold_again_with_the_next_sample() -> Result<()> {
    const SLOTS: u32 = 1025;
    let world = World::new(&config("contain", BLOCK))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let map = hostile::pinned(&world.setup.pins().join("CONTROLS"))?;
    let controls = Controls::open(map.as_fd(), SLOTS)?;
    let id = container.cgroup_id()?;
    let slot = (1..SLOTS).map(Slot).find(|slot| controls.owner(*slot) == id).context("it has no slot")?;
    controls.order(slot, Orders::default());
    let _sender = guard_tests::limits::sender(&world, &container, 1_000_000)?;
    wait_for(&world, CONTAINED, &container, 1)?;
    flows(&world, 0, 1000, Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn a_kill_switch_that_was_engaged_past_the_agent_is_said() -> Result<()> {
    let world = World::new(CONFIG)?;
    let map = hostile::pinned(&world.setup.bpffs.join("kill-switch"))?;
    let mut engagement = [0; size_of::<guard_common::Engagement>()];
    engagement[..8].copy_from_slice(&1_769_914_800_000_000_000_u64.to_ne_bytes());
    sys::array_set(map.as_fd(), 0, &engagement)?;
    eventually("it is shown", Duration::from_secs(5), || {
        let engaged = world.agent().scrape()?.get("egress_guard_kill_switch{source=\"operator\"}");
        ensure!(engaged == Some(1), "{engaged:?}");
        Ok(())
    })?;
    world.agent().hear("the kill switch is engaged", Duration::from_secs(5))
}

#[test]
fn no_way_of_sending_goes_uncounted() -> Result<()> {
    let world = World::new(CONFIG)?;
    let container = world.container(1, 1)?;
    let _sinks = [EXTERNAL_V4.to_owned(), format!("[{EXTERNAL_V6}]")]
        .map(|address| Traffic::serve(&world.wires.world, None, &format!("udp-sink --bind {address}:9200")));
    let ways = [
        "raw --to 203.0.113.2:0",
        "ping --to 203.0.113.2:0",
        "raw-v6 --to [2001:db8::2]:0",
        "cork --to 203.0.113.2:9200",
        "cork --to [2001:db8::2]:9200",
        "zerocopy --to 203.0.113.2:9200",
        "zerocopy --to [2001:db8::2]:9200",
        "uring --to 203.0.113.2:9200",
        "many --to 203.0.113.255:9200",
        "many --to 239.1.2.3:9200",
    ];
    for way in ways {
        let wire = sent(&world, &container, way)?;
        ensure!(wire.packets >= 50 && wire.bytes > 50 * 700, "{way}: {wire:?} is too little");
    }
    let sink = format!("tcp-sink --bind {EXTERNAL_V4}:9201 --bytes 35000");
    let _sink = Traffic::serve(&world.wires.world, None, &sink)?;
    let wire = sent(&world, &container, "splice --to 203.0.113.2:9201")?;
    ensure!(wire.bytes > 35_000, "{wire:?}");
    Ok(())
}

#[test]
fn what_a_container_sends_to_many_it_has_not_received() -> Result<()> {
    let world = World::new(CONFIG)?;
    let container = world.container(1, 1)?;
    let device = world.wires.node.index()?;
    for (to, headers) in
        [("203.0.113.255:9200", 28), ("239.1.2.3:9200", 28), (&*format!("[ff12::7%{device}]:9200"), 48)]
    {
        let before = world.read(&[&container])?;
        let heard = format!("heard --to {to} --count 50 --size 700");
        Traffic::attack(&world.wires.node, Some(&container), &heard)?.finish()?;
        let after = world.read(&[&container])?;
        let (metered, wire) = (after.metered - before.metered, after.wire - before.wire);
        // Who joins or leaves a group says so by himself, beside the socket.
        ensure!(metered.tx == Wire { bytes: 50 * (700 + headers), packets: 50 }, "{to}: {metered:?}");
        ensure!(metered.rx == wire.rx, "{to}: the meter says {metered:?}, the wire {wire:?}");
    }
    Ok(())
}

/// Sends so from a container: its meter, the node's and the wire agree. What the world's kernel answers to nobody's socket is
/// not about that.
fn sent(world: &World, container: &Container, way: &str) -> Result<Wire> {
    let before = world.read(&[container])?;
    Traffic::attack(&world.wires.node, Some(container), way)?.finish()?;
    let after = world.read(&[container])?;
    let wire = (after.wire - before.wire).tx;
    let metered = (after.metered - before.metered).tx;
    ensure!(metered == wire, "{way}: the meter says {metered:?}, the wire {wire:?}");
    let node = after.node[0] - before.node[0];
    ensure!(node == wire.bytes, "{way}: the node's meter says {node}, the wire {wire:?}");
    Ok(wire)
}

/// A container that lends its socket, and another that waits to send through it.
fn lent(world: &World, lender: &Container, borrower: &Container, how: &str) -> Result<(Traffic, Traffic)> {
    let path = world.setup.file("lent");
    let lend = format!("lend --to {EXTERNAL_V4}:9100 --path {}", path.display());
    let mut lend = Traffic::attack(&world.wires.node, Some(lender), &lend)?;
    lend.socket_made()?;
    let borrow = format!("borrow --path {} {how}", path.display());
    let mut borrow = Traffic::attack(&world.wires.node, Some(borrower), &borrow)?;
    borrow.socket_made()?;
    Ok((lend, borrow))
}

#[test]
fn a_socket_that_was_handed_on_is_charged_to_whoever_made_it() -> Result<()> {
    let world = World::new(CONFIG)?;
    let (lender, borrower) = (world.container(1, 1)?, world.container(2, 1)?);
    let _sink = world.sink()?;
    let before = world.read(&[&lender])?;
    let (_lend, mut borrow) = lent(&world, &lender, &borrower, "--count 50")?;
    borrow.go()?;
    borrow.finish()?;
    let wire = world.assert_exact(before, &[&lender])?;
    ensure!(wire.tx.bytes == 50 * (700 + HEADERS), "{wire:?}");
    ensure!(world.agent().metrics()?.external(&borrower).bytes == 0);
    Ok(())
}

/// Whoever made it is gone, so nobody is said to breach; the limit holds all the same.
#[test]
fn a_socket_that_outlives_its_container_elsewhere_is_held_to_its_rate() -> Result<()> {
    let world = World::new(&config("contain", BLOCK))?;
    let (lender, borrower) = (world.container(1, 1)?, world.container(1, 2)?);
    let _sink = world.sink()?;
    let (lend, mut borrow) = lent(&world, &lender, &borrower, "--count 1000000 --rate 1000000")?;
    lend.finish()?;
    lender.remove()?;
    // Events come before samples: the agent knows that it is gone.
    world.agent().metrics()?;
    let before = world.wires.node.interface()?.tx.bytes;
    borrow.go()?;
    flows(&world, 0, 1000, Duration::from_secs(10))?;
    let passed = world.wires.node.interface()?.tx.bytes - before;
    ensure!((1..300_000).contains(&passed), "{passed} bytes passed a bucket of 100 KB");
    ensure!(borrow.is_running()?, "it tries no more");
    let breaches = world.agent().scrape()?.get("egress_guard_breaches_total{limit=\"rate\"}");
    ensure!(breaches == Some(0), "{breaches:?}: docs/threat-model.md says that none is told");
    ensure!(guard_tests::limits::metric(&world, BREACHED, &borrower)? == 0);
    Ok(())
}

#[test]
fn a_flood_of_cgroups_with_names_too_long_for_events_keeps_the_agent_little_busy() -> Result<()> {
    const FLOOD: usize = 3000;
    let world = World::new(CONFIG)?;
    let others = (0..60).map(|n| world.pods.container(10 + n, 1)).collect::<Result<Vec<_>>>()?;
    let container = world.container(1, 1)?;
    others.iter().try_for_each(|other| world.agent().wait_for(other))?;
    let long = container.nested(&"n".repeat(250))?;
    let before = cpu(world.agent().pid())?;
    for n in 0..FLOOD {
        let name = long.path.join(format!("{n:0>250}"));
        fs::create_dir(&name)?;
        fs::remove_dir(&name)?;
    }
    // Who comes in the middle of it is found all the same.
    world.container(2, 1)?;
    let spent = cpu(world.agent().pid())?.saturating_sub(before);
    ensure!(spent < Duration::from_secs(2), "{spent:?} of CPU for {FLOOD} cgroups");
    Ok(())
}

/// The CPU time of a process (`/proc/<pid>/schedstat`).
fn cpu(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += text.split(' ').next().context("no time")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Not stopped, and said to be so: who can write to other cgroups is no longer one of the pods.
#[test]
fn who_leaves_the_pods_cgroups_is_in_no_figure() -> Result<()> {
    let world = World::new(CONFIG)?;
    let container = world.container(1, 1)?;
    let _sink = world.sink()?;
    let before = world.read(&[&container])?;
    let outside = world.pods.service("outside")?;
    let sent = world.send(&outside, 500, 20)?;
    let after = world.read(&[&container])?;
    ensure!(after.wire.tx.bytes - before.wire.tx.bytes == sent.bytes, "the wire has it");
    ensure!(after.metered == before.metered && after.node == before.node, "{after:?}");
    Ok(())
}

#[test]
fn without_privileges_there_is_no_way_around() -> Result<()> {
    let world = World::new(CONFIG)?;
    let (container, other) = (world.container(1, 1)?, world.container(1, 2)?);
    let attempt = format!(
        "powerless --socket {} --bpffs {} --cgroup {}",
        world.agent().socket().display(),
        world.setup.bpffs.display(),
        other.path.display()
    );
    for attempt in [attempt.clone(), format!("{attempt} --user-namespace")] {
        let mut powerless = Traffic::attack(&world.wires.node, Some(&container), &attempt)?;
        let line = powerless.line()?;
        ensure!(line == "tried all", "{attempt}: a process without rights succeeded in: {line}");
        powerless.finish()?;
    }
    // The same with all rights succeeds: it was tried in earnest.
    drop(hostile::any_link().context("a link")?);
    drop(hostile::any_map().context("a map")?);
    drop(hostile::packet_socket().context("a packet socket")?);
    drop(hostile::pinned(&world.setup.bpffs.join("kill-switch"))?);
    drop(hostile::pinned(&world.setup.pins().join("COUNTERS"))?);
    Ok(())
}
