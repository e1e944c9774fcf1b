//! What containers send past their meters: found where it is, and only there.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use guard_agent::core::bypass::{NOISE, SHARE, SLACK};
use guard_tests::{
    eventually,
    limits::{BREACHED, CONTAINED, metric, wait_for},
    net::{EXTERNAL_V4, NODE, Wires, run},
    pods::{Container, uid},
    process::Traffic,
    world::{CONFIG, World},
};

const BYPASSED: &str = "egress_guard_bypass_bytes_total";
const WATCHED: &str = "egress_guard_bypass_watched";

/// A series of a pod.
fn of_pod(world: &World, name: &str, pod: u32) -> Result<u64> {
    let series = format!("{name}{{container=\"\",namespace=\"\",pod=\"{}\"}}", uid(pod));
    world.agent().metrics()?.get(&series).with_context(|| format!("no {series}: {:?}", world.agent().log()))
}

/// A container of pod 1 with a process, whose interface is watched.
fn watched(world: &World) -> Result<(Container, Traffic)> {
    let container = world.container(1, 1)?;
    let idle = Traffic::shell(&world.wires.node, Some(&container), "exec sleep 600")?;
    wait_until_watched(world, 1, 1)?;
    Ok((container, idle))
}

fn wait_until_watched(world: &World, pod: u32, is: u64) -> Result<()> {
    eventually(&format!("pod {pod} is watched: {is}"), Duration::from_secs(20), || {
        let found = of_pod(world, WATCHED, pod)?;
        ensure!(found == is, "it is {found}: {}", world.agent().log()?);
        Ok(())
    })
}

/// Sends frames through `AF_PACKET`; returns their bytes.
fn frames(world: &World, container: &Container, size: u64, count: u64) -> Result<u64> {
    let send = format!("frame-send --device node0 --size {size} --count {count}");
    Traffic::run(&world.wires.node, Some(container), &send)?;
    Ok(size * count)
}

/// Told is no more than was sent, and no less but for so much.
fn assert_told(world: &World, sent: u64, forgiven: u64) -> Result<()> {
    world.wires.quiet()?;
    let told = of_pod(world, BYPASSED, 1)?;
    ensure!(told <= sent && told + forgiven >= sent, "{told} bytes are told of {sent}, {forgiven} may be missing");
    Ok(())
}

#[test]
fn frames_past_the_ip_stack_are_found_to_within_what_is_forgiven() -> Result<()> {
    let (world, _node) = World::uplinked(|_, setup| setup.configure(CONFIG))?;
    let (container, _idle) = watched(&world)?;
    assert_told(&world, 0, 0)?;
    // The noise of half a minute, at the most.
    let forgiven = SLACK + 30 * NOISE;
    let mut sent = frames(&world, &container, 1000, 20_000)?;
    assert_told(&world, sent, forgiven)?;
    // The slack was given once.
    sent += frames(&world, &container, 100, 50_000)?;
    assert_told(&world, sent, forgiven)?;
    // No meter has seen any of it.
    let metered = world.read(&[&container])?.metered.tx;
    ensure!(metered.bytes == 0, "{metered:?}");
    Ok(())
}

#[test]
fn what_left_for_a_cgroup_outside_the_pods_is_found() -> Result<()> {
    let (world, _node) = World::uplinked(|_, setup| setup.configure(CONFIG))?;
    let (container, _idle) = watched(&world)?;
    // The first reading forgives what may have been sent while it was taken.
    assert_told(&world, 0, 0)?;
    let _sink = world.sink()?;
    let outside = world.pods.service("outside")?;
    let sent = world.send(&outside, 1000, 20_000)?;
    assert_told(&world, sent.bytes, SLACK + 30 * NOISE)?;
    let metered = world.read(&[&container])?.metered.tx;
    ensure!(metered.bytes == 0, "{metered:?}");
    Ok(())
}

#[test]
fn ordinary_traffic_is_never_taken_for_it() -> Result<()> {
    let (world, _node) = World::uplinked(|_, setup| setup.configure(CONFIG))?;
    let (container, _idle) = watched(&world)?;
    let run = |arguments: &str| Traffic::run(&world.wires.node, Some(&container), arguments);
    for offload in [false, true] {
        if offload {
            world.wires.offload()?;
        }
        let _sink = world.sink()?;
        for sizes in ["20,1400", "2000,9000,60000"] {
            run(&format!("udp-send --to {EXTERNAL_V4}:9100 --sizes {sizes} --count 3000 --threads 2"))?;
        }
        run(&format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 6000 --gso 100 --count 2000"))?;
        // Both ways, as fast as it goes, while samples are taken.
        let sink = format!("tcp-sink --bind {EXTERNAL_V4}:9001 --connections 4 --patience 20000");
        let sink = Traffic::serve(&world.wires.world, None, &sink)?;
        run(&format!("tcp-send --to {EXTERNAL_V4}:9001 --connections 4 --seconds 3 --close-first"))?;
        sink.finish()?;
        let sink = format!("tcp-sink --bind {}:9002 --connections 4 --patience 20000", NODE[1]);
        let sink = Traffic::serve(&world.wires.node, Some(&container), &sink)?;
        let send = format!("tcp-send --to {}:9002 --connections 4 --seconds 3 --close-first", NODE[1]);
        Traffic::run(&world.wires.world, None, &send)?;
        sink.finish()?;
        ensure!(of_pod(&world, BYPASSED, 1)? == 0, "{} bytes are told", of_pod(&world, BYPASSED, 1)?);
    }
    Ok(())
}

#[test]
fn what_the_kernel_answers_by_itself_is_never_taken_for_it() -> Result<()> {
    let (world, _node) = World::uplinked(|_, setup| setup.configure(CONFIG))?;
    let (container, _idle) = watched(&world)?;
    // Raw sockets take a copy of what it answers.
    for sockets in [0, 1, 3] {
        let copy = format!("copy --sockets {sockets}");
        let mut listener = Traffic::attack(&world.wires.node, Some(&container), &copy)?;
        listener.socket_made()?;
        let before = world.read(&[&container])?;
        // Whoever wants a pod evicted could ping it, or knock at closed doors.
        let echo = format!(
            "frame-send --device world0 --size 1400 --count 20000 --echo {EXTERNAL_V4} {} --mac 02:00:00:00:00:01",
            NODE[1]
        );
        Traffic::run(&world.wires.world, None, &echo)?;
        let knock = format!("udp-scan --address {} --ports 5000 --rounds 4", NODE[1]);
        Traffic::run(&world.wires.world, None, &knock)?;
        let after = world.read(&[&container])?;
        let wire = after.wire - before.wire;
        ensure!(wire.tx.bytes > 20_000_000, "the kernel has not answered: {wire:?}");
        let copied = after.metered.rx.bytes - before.metered.rx.bytes;
        ensure!(copied >= sockets * 20_000_000, "{sockets} raw sockets have taken {copied} bytes");
        let told = of_pod(&world, BYPASSED, 1)?;
        ensure!(told == 0, "{told} bytes are told beside {sockets} raw sockets");
        ensure!(of_pod(&world, WATCHED, 1)? == 1, "{}", world.agent().log()?);
    }
    Ok(())
}

#[test]
fn it_is_found_beside_a_stream_at_full_speed() -> Result<()> {
    let (world, _node) = World::uplinked(|_, setup| setup.configure(CONFIG))?;
    let (container, _idle) = watched(&world)?;
    world.wires.offload()?;
    let sink = format!("tcp-sink --bind {EXTERNAL_V4}:9001 --connections 1 --patience 30000");
    let sink = Traffic::serve(&world.wires.world, None, &sink)?;
    let before = world.read(&[&container])?.metered.tx.bytes;
    let stream = format!("tcp-send --to {EXTERNAL_V4}:9001 --bytes 500000000 --close-first");
    let stream = Traffic::start(&world.wires.node, Some(&container), &stream)?;
    let sent = frames(&world, &container, 1400, 100_000)?;
    stream.finish()?;
    sink.finish()?;
    let metered = world.read(&[&container])?.metered.tx.bytes - before;
    // A part in 25, the headers of segments (52 in 1,448 bytes) and of received acknowledgements (72 for each two
    // segments), and what may pass between two readings.
    let forgiven = metered / SHARE + metered * 52 / 1448 + metered * 72 / 2896 + SLACK + 30 * NOISE + (16 << 20);
    ensure!(forgiven < sent / 2, "this would show nothing: {forgiven} of {sent}");
    assert_told(&world, sent, forgiven)
}

#[test]
fn it_is_a_breach_that_no_containment_holds_and_an_eviction_ends() -> Result<()> {
    let policy = "{name: raw, match: {}, egress: {bypass: 100KB/s}, \
                  onBreach: {contain: {block: true, for: 10m}, evict: {after: 1s, grace: 2s}}}";
    let config = format!("{CONFIG}mode: evict\npolicies: [{policy}]\nstorm: {{workloads: 5, pods: 100%, per: 1m}}\n");
    let (world, _node) = World::uplinked(|_, setup| {
        setup.set("--orchestrator", "local");
        setup.configure(&config)
    })?;
    let (container, mut idle) = watched(&world)?;
    let (_sink, other) = (world.sink()?, world.container(1, 2)?);
    let send = "frame-send --device node0 --size 1000 --rate 2000000 --seconds 60";
    let mut sender = Traffic::start(&world.wires.node, Some(&container), send)?;
    wait_for(&world, BREACHED, &container, 1)?;
    // It is evicted, and ordinary traffic of it was never held.
    eventually("the container is evicted", Duration::from_secs(15), || {
        ensure!(!sender.is_running()? && !idle.is_running()?, "{}", world.agent().log()?);
        Ok(())
    })?;
    let breaches = world.agent().breaches()?;
    let breach = breaches.iter().find(|breach| breach["limit"] == "bypass").context("no such breach")?;
    ensure!(breach["allowed"] == 100_000.0 && breach["figure"].as_f64() > Some(1e5), "{breach:#}");
    ensure!(breach["destinations"] == serde_json::json!([]), "{breach:#}");
    let done = breach["done"].to_string();
    ensure!(
        done.contains("evicted") && done.contains("no containment holds") && !done.contains("contained\""),
        "{done}"
    );
    ensure!(metric(&world, CONTAINED, &container)? == 0 && metric(&world, BREACHED, &other)? == 0);
    let metrics = world.agent().scrape()?;
    ensure!(metrics.get("egress_guard_breaches_total{limit=\"bypass\"}") == Some(1), "{:?}", world.agent().log()?);
    let declined = "egress_guard_declined_total{action=\"contain\",reason=\"bypass\"}";
    ensure!(metrics.get(declined) == Some(1), "{:?}", world.agent().log()?);
    Ok(())
}

#[test]
fn a_pod_that_has_another_way_out_is_not_watched() -> Result<()> {
    let other = Wires::new()?;
    let (world, _node) = World::uplinked(|_, setup| setup.configure(CONFIG))?;
    let (pod, elsewhere) = (&world.wires.node.name, &other.world.name);
    run(&format!("ip -n {pod} link add net1 type veth peer name far netns {elsewhere}"))?;
    // On top of what it has, that is another matter.
    run(&format!("ip -n {pod} link add within type veth peer name within1"))?;
    let container = world.container(1, 1)?;
    let _idle = Traffic::shell(&world.wires.node, Some(&container), "exec sleep 600")?;
    world
        .agent()
        .hear("is not watched: it has an interface that has no veth's end on the node", Duration::from_secs(15))?;
    ensure!(of_pod(&world, WATCHED, 1)? == 0);
    run(&format!("ip -n {pod} link del net1"))?;
    wait_until_watched(&world, 1, 1)
}

#[test]
fn who_is_not_watched_is_shown_and_said() -> Result<()> {
    let (world, node) = World::uplinked(|_, setup| setup.configure(CONFIG))?;
    // One in the node's network ...
    let host = world.container(2, 1)?;
    let _host = Traffic::shell(&world.wires.world, Some(&host), "exec sleep 600")?;
    world.agent().hear("is not watched: it has the node's network", Duration::from_secs(15))?;
    ensure!(of_pod(&world, WATCHED, 2)? == 0);
    // ... one that no interface of the node leads to ...
    let other = Wires::new()?;
    let apart = world.container(3, 1)?;
    let _apart = Traffic::shell(&other.node, Some(&apart), "exec sleep 600")?;
    world.agent().hear("is not watched: no interface of the node leads to it", Duration::from_secs(15))?;
    ensure!(of_pod(&world, WATCHED, 3)? == 0);
    // ... and two that share what another pod has.
    let (_container, _idle) = watched(&world)?;
    let guest = world.container(4, 1)?;
    let guests = Traffic::shell(&world.wires.node, Some(&guest), "exec sleep 600")?;
    wait_until_watched(&world, 1, 0)?;
    ensure!(of_pod(&world, WATCHED, 4)? == 0);
    drop(guests);
    guest.remove()?;
    wait_until_watched(&world, 1, 1)?;
    // Without the node's process nobody is watched, and that is said; counting goes on.
    drop(node);
    world.agent().hear("the node's interfaces cannot be read", Duration::from_secs(15))?;
    thread::sleep(Duration::from_millis(300));
    world.agent().metrics()?;
    Ok(())
}
