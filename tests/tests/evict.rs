//! Eviction without a cluster: a supervisor, real traffic, a real agent that may evict.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    eventually,
    net::EXTERNAL_V4,
    pods::Container,
    process::Traffic,
    receiver::{Receiver, free_address},
    supervisor::Supervisor,
    world::World,
};

/// A limit of a rate, and one of a quota, of which normal traffic is far.
const RATE: &str = "rate: 100KB/s, burst: 100KB";
const QUOTA: &str = "quota: {bytes: 1MB, per: 1h}";

/// What a service sends as long as all is well.
const NORMAL: u64 = 20_000;
/// And what it sends when it is taken over.
const ATTACK: u64 = 2_000_000;

/// More than it takes from a breach to the eviction that is due, and to everything that follows from it.
const SOON: Duration = Duration::from_secs(15);

/// A world whose services may be evicted 2 s after their breach. `rest`: further sections of the configuration.
fn world(limits: &str, grace: &str, rest: &str) -> Result<World> {
    world_of("local", limits, grace, rest)
}

fn world_of(orchestrator: &str, limits: &str, grace: &str, rest: &str) -> Result<World> {
    World::prepared(|pods, setup| {
        setup.set("--orchestrator", orchestrator);
        setup.configure(&format!(
            "mode: evict\nsample: {{interval: 100ms}}\nmeters: {{extra: ['{}']}}\n{rest}\npolicies:\n  - name: small\n    \
             match: {{}}\n    egress: {{{limits}}}\n    onBreach:\n      contain: {{throttle: 50KB/s, for: 10m}}\n      \
             evict: {{after: 2s, grace: {grace}}}\n",
            pods.services()
        ))
    })
}

/// The generator's arguments for a sender of so many bytes per second that goes on for ever.
fn sender(rate: u64) -> String {
    format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 972 --rate {rate} --seconds 600 --stubborn")
}

fn attack(world: &World, container: &Container) -> Result<Traffic> {
    Traffic::start(&world.wires.node, Some(container), &sender(ATTACK))
}

/// A process that does this when it has SIGTERM, and otherwise nothing; and the file that it may write to.
fn on_term(world: &World, container: &Container, what: &str) -> Result<(Traffic, PathBuf)> {
    let mark = world.setup.file("mark");
    // The shell would say of each sleep that it was terminated.
    let script = format!(
        "exec 2>/dev/null; mark={}; trap '{what}' TERM; echo ready; while :; do sleep 0.05; done",
        mark.display()
    );
    let mut process = Traffic::shell(&world.wires.node, Some(container), &script)?;
    ensure!(process.line()? == "ready");
    Ok((process, mark))
}

fn sent(mark: &Path) -> Result<()> {
    ensure!(mark.exists(), "no {}", mark.display());
    Ok(())
}

const OBEYS: &str = "echo obeyed > $mark; exit 0";
const IGNORES: &str = "echo ignored > $mark";

fn counter(world: &World, series: &str) -> Result<u64> {
    Ok(world.agent().scrape()?.get(series).unwrap_or(0))
}

fn evictions(world: &World, result: &str) -> Result<u64> {
    counter(world, &format!("egress_guard_evictions_total{{result=\"{result}\"}}"))
}

fn begun(world: &World) -> Result<u64> {
    counter(world, "egress_guard_actions_total{action=\"evict\"}")
}

fn declined(world: &World, reason: &str) -> Result<u64> {
    counter(world, &format!("egress_guard_declined_total{{action=\"evict\",reason=\"{reason}\"}}"))
}

fn wait(what: &str, figure: impl Fn() -> Result<u64>, value: u64) -> Result<()> {
    eventually(&format!("{what} is {value}"), SOON, || {
        let found = figure()?;
        ensure!(found == value, "it is {found}");
        Ok(())
    })
}

const CONTAINED: &str = "egress_guard_contained";
const BREACHED: &str = "egress_guard_container_breached";
/// How the log begins to tell of an eviction that is not made.
const NOT_DONE: &str = "its policy says evict, and it is not done";

/// Longer than until an eviction that must not come would have come.
fn let_it_come_if_it_does() {
    thread::sleep(Duration::from_secs(4));
}

#[test]
fn a_breaching_service_is_held_then_evicted_and_its_fresh_container_is_clean() -> Result<()> {
    for (limits, limit) in [(RATE, "rate"), (QUOTA, "quota")] {
        let world = world(limits, "1s", "")?;
        let (_sink, service) = (world.sink()?, world.service("leaky")?);
        let before = world.read(&[&service])?;
        let supervisor = Supervisor::start(&world, &service, &sender(NORMAL))?;
        let first = service.cgroup_id()?;
        let mut attack = attack(&world, &service)?;
        let agent = world.agent();
        agent.wait_for_gauge(CONTAINED, &service, 1)?;
        ensure!(begun(&world)? == 0 && attack.is_running()?, "evicted at once");
        supervisor.started(2)?;
        let status = attack.ended()?;
        ensure!(status.signal() == Some(libc::SIGTERM), "the sender ended with {status}");
        agent.hear("a fresh container has taken the place", SOON)?;
        wait("breached", || agent.gauge(BREACHED, &service), 0)?;

        ensure!(evictions(&world, "done")? == 1 && begun(&world)? == 1, "{}", agent.log()?);
        ensure!(counter(&world, "egress_guard_replacement_seconds_count")? == 1);
        let took = agent.scrape()?.0["egress_guard_replacement_seconds_sum"];
        ensure!((0.001..5.0).contains(&took), "the replacement took {took} s");
        // What it sends now is normal, and may come in a burst.
        world.send(&service, 972, 60)?;
        let (list, id) = (agent.list()?, service.cgroup_id()?);
        let fresh = list.iter().find(|row| row.cgroup_id == id).with_context(|| format!("{list:?}"))?;
        ensure!(id != first && fresh.container == service.label(), "{fresh:?}");
        ensure!(!fresh.standing.breached && !fresh.standing.contained && fresh.dropped_bytes == 0, "{fresh:?}");
        ensure!(agent.gauge(CONTAINED, &service)? == 0);

        let breaches = agent.breaches()?;
        let [breach] = breaches.as_slice() else { anyhow::bail!("{breaches:?}") };
        ensure!(breach["state"] == "closed" && breach["limit"] == limit && breach["cgroup_id"] == first, "{breach}");
        let [contained, evicted] = breach["done"].as_array().context("a list")?.as_slice() else {
            anyhow::bail!("{breach}")
        };
        ensure!(contained["action"] == "contained" && contained["how"]["throttle"] == 50_000, "{breach}");
        ensure!(evicted["action"] == "evicted", "{breach}");
        drop((supervisor, attack));
        let wire = world.read(&[&service])?.moved(before)?;
        ensure!(wire.tx.bytes > 200_000, "there was traffic: {wire:?}");
    }
    Ok(())
}

#[test]
fn whoever_ends_on_sigterm_is_not_killed_and_whoever_does_not_is_after_the_grace() -> Result<()> {
    for (what, killed) in [(OBEYS, false), (IGNORES, true)] {
        let world = world(RATE, "2s", "")?;
        let (_sink, service) = (world.sink()?, world.service("a")?);
        let (mut process, mark) = on_term(&world, &service, what)?;
        let _attack = attack(&world, &service)?;
        eventually("SIGTERM", SOON, || sent(&mark))?;
        let asked = Instant::now();
        let status = process.ended()?;
        let took = asked.elapsed();
        wait("evictions", || evictions(&world, "done"), 1)?;
        ensure!(world.agent().said(&format!("evicted cgroup={} killed={killed}", service.label()))? == 1);
        if killed {
            ensure!(status.signal() == Some(libc::SIGKILL), "it ended with {status}");
            ensure!((1.5..4.0).contains(&took.as_secs_f64()), "its grace was {took:?} instead of 2 s");
        } else {
            ensure!(status.code() == Some(0), "it ended with {status}");
            ensure!(took < Duration::from_secs(1), "it ended {took:?} after SIGTERM");
        }
    }
    Ok(())
}

#[test]
fn a_burst_that_is_over_in_time_evicts_nobody() -> Result<()> {
    let world = world(RATE, "0s", "")?;
    let (_sink, service) = (world.sink()?, world.service("a")?);
    let (mut process, mark) = on_term(&world, &service, OBEYS)?;
    let burst = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 972 --count 600 --stubborn");
    Traffic::run(&world.wires.node, Some(&service), &burst)?;
    world.agent().wait_for_gauge(CONTAINED, &service, 1)?;
    // To its end, 10 s later.
    wait("breached", || world.agent().gauge(BREACHED, &service), 0)?;
    ensure!(begun(&world)? == 0 && process.is_running()? && !mark.exists(), "{}", world.agent().log()?);
    ensure!(counter(&world, "egress_guard_breaches_total{limit=\"rate\"}")? == 1);
    Ok(())
}

#[test]
fn the_kill_switch_stops_an_eviction_that_is_under_way() -> Result<()> {
    let world = world(RATE, "3s", "")?;
    let (_sink, service) = (world.sink()?, world.service("a")?);
    let (mut process, mark) = on_term(&world, &service, IGNORES)?;
    let _attack = attack(&world, &service)?;
    eventually("SIGTERM", SOON, || sent(&mark))?;
    world.kill_switch("on")?;
    wait("held back", || evictions(&world, "kill_switch"), 1)?;
    let_it_come_if_it_does();
    ensure!(process.is_running()? && evictions(&world, "done")? == 0 && begun(&world)? == 1);
    let breach = &world.agent().breaches()?[0];
    let last = breach["done"].as_array().and_then(|done| done.last()).context("something was done")?;
    ensure!(last["action"] == "nothing" && last["why"] == "not evicted: the kill switch is engaged", "{breach}");
    Ok(())
}

#[test]
fn while_the_kill_switch_is_engaged_no_eviction_is_begun() -> Result<()> {
    let world = world(RATE, "1s", "")?;
    let (_sink, service) = (world.sink()?, world.service("a")?);
    let (mut process, mark) = on_term(&world, &service, OBEYS)?;
    world.kill_switch("on")?;
    let mut attack = attack(&world, &service)?;
    wait("declined", || declined(&world, "kill_switch"), 1)?;
    let_it_come_if_it_does();
    ensure!(process.is_running()? && attack.is_running()? && !mark.exists());
    ensure!(begun(&world)? == 0 && declined(&world, "kill_switch")? == 1 && world.agent().said(NOT_DONE)? == 1);
    ensure!(world.agent().gauge(CONTAINED, &service)? == 0 && world.agent().gauge(BREACHED, &service)? == 1);
    // The breach goes on, and its time is long over.
    world.kill_switch("off")?;
    wait("evictions", || evictions(&world, "done"), 1)?;
    ensure!(mark.exists());
    Ok(())
}

#[test]
fn the_nodes_budget_holds_and_who_is_spared_stays_contained() -> Result<()> {
    let world = world(RATE, "0s", "budgets: {node: {evictions: 1, per: 10m}}")?;
    let (_sink, services) = (world.sink()?, [world.service("a")?, world.service("b")?]);
    let mut attacks = [attack(&world, &services[0])?, attack(&world, &services[1])?];
    wait("declined", || declined(&world, "node_budget"), 1)?;
    wait("evictions", || evictions(&world, "done"), 1)?;
    let_it_come_if_it_does();
    ensure!(begun(&world)? == 1 && declined(&world, "node_budget")? == 1 && world.agent().said(NOT_DONE)? == 1);
    let running = [attacks[0].is_running()?, attacks[1].is_running()?];
    let spared = match running {
        [true, false] => &services[0],
        [false, true] => &services[1],
        _ => anyhow::bail!("one of two is evicted, and running are {running:?}"),
    };
    ensure!(world.agent().gauge(CONTAINED, spared)? == 1 && world.agent().gauge(BREACHED, spared)? == 1);
    Ok(())
}

#[test]
fn a_service_that_breaches_again_after_its_restart_is_not_evicted_again() -> Result<()> {
    let world = world(RATE, "0s", "")?;
    let (_sink, service) = (world.sink()?, world.service("a")?);
    let supervisor = Supervisor::start(&world, &service, &sender(ATTACK))?;
    wait("declined", || declined(&world, "workload_budget"), 1)?;
    let_it_come_if_it_does();
    ensure!(supervisor.starts() == 2, "it was started {} times", supervisor.starts());
    ensure!(begun(&world)? == 1 && evictions(&world, "done")? == 1 && declined(&world, "workload_budget")? == 1);
    ensure!(counter(&world, "egress_guard_breaches_total{limit=\"rate\"}")? == 2);
    ensure!(world.agent().gauge(CONTAINED, &service)? == 1 && world.agent().said(NOT_DONE)? == 1);
    Ok(())
}

#[test]
fn in_a_storm_nobody_is_evicted_and_that_is_said_once_and_loudly() -> Result<()> {
    let receiver = Receiver::listen(free_address()?)?;
    let rest = format!("storm: {{workloads: 2, per: 1m}}\nalerts: {{webhook: '{}'}}", receiver.url());
    let world = world(RATE, "0s", &rest)?;
    let (_sink, services) = (world.sink()?, [world.service("a")?, world.service("b")?]);
    let mut attacks = [attack(&world, &services[0])?, attack(&world, &services[1])?];
    wait("declined", || declined(&world, "storm"), 2)?;
    let_it_come_if_it_does();
    ensure!(begun(&world)? == 0 && declined(&world, "storm")? == 2 && world.agent().said(NOT_DONE)? == 2);
    let log = world.agent().log()?;
    let alarms: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("2 workloads (") && line.contains("breach their limits at once"))
        .collect();
    ensure!(matches!(alarms.as_slice(), [alarm] if alarm.contains("ERROR")), "{alarms:?}");
    let alerts = receiver.alerts();
    let storms: Vec<_> = alerts.iter().filter(|alert| alert["labels"]["alertname"] == "EgressEvictionStorm").collect();
    ensure!(matches!(storms.as_slice(), [storm] if storm["labels"]["severity"] == "critical"), "{storms:?}");
    for (service, attack) in services.iter().zip(&mut attacks) {
        ensure!(attack.is_running()? && world.agent().gauge(CONTAINED, service)? == 1);
    }
    Ok(())
}

#[test]
fn an_agent_that_dies_while_it_evicts_has_spent_its_budget() -> Result<()> {
    let mut world = world(RATE, "10s", "budgets: {node: {evictions: 1, per: 10m}}")?;
    let (_sink, services) = (world.sink()?, [world.service("a")?, world.service("b")?]);
    let (mut process, _mark) = on_term(&world, &services[0], IGNORES)?;
    let _attack = attack(&world, &services[0])?;
    world.agent().hear(" evicting ", SOON)?;
    world.agent.take().context("it runs")?.signal(libc::SIGKILL)?;
    world.agent = Some(world.setup.start()?);
    let _attacks = [attack(&world, &services[0])?, attack(&world, &services[1])?];
    wait("declined", || declined(&world, "node_budget"), 1)?;
    let_it_come_if_it_does();
    ensure!(begun(&world)? == 0 && world.agent().said(" evicting ")? == 1, "{}", world.agent().log()?);
    ensure!(process.is_running()?, "it was killed after all");
    for service in &services {
        ensure!(world.agent().gauge(CONTAINED, service)? == 1);
    }
    Ok(())
}

#[test]
fn the_agent_never_evicts_itself() -> Result<()> {
    let world = world(RATE, "0s", "budgets: {node: {evictions: 1, per: 10m}}")?;
    let (_sink, own, other) = (world.sink()?, world.service("agent")?, world.service("other")?);
    fs::write(own.path.join("cgroup.procs"), world.agent().pid().to_string())?;
    let mut attack_own = attack(&world, &own)?;
    wait("refused", || evictions(&world, "protected"), 1)?;
    let_it_come_if_it_does();
    ensure!(attack_own.is_running()? && evictions(&world, "protected")? == 1 && begun(&world)? == 1);
    ensure!(world.agent().said("not evicted: the agent runs in it")? == 1, "{}", world.agent().log()?);
    ensure!(world.agent().gauge(CONTAINED, &own)? == 1);
    let breach = &world.agent().breaches()?[0];
    let last = breach["done"].as_array().and_then(|done| done.last()).context("something was done")?;
    ensure!(last["action"] == "nothing" && last["why"] == "not evicted: the agent runs in it", "{breach}");
    // What was not done is not spent.
    let _attack = attack(&world, &other)?;
    wait("evictions", || evictions(&world, "done"), 1)
}

#[test]
fn without_an_orchestrator_nobody_is_evicted_and_that_is_said_once() -> Result<()> {
    let world = world_of("none", RATE, "0s", "")?;
    let (_sink, service) = (world.sink()?, world.service("a")?);
    let mut attack = attack(&world, &service)?;
    wait("declined", || declined(&world, "protected"), 1)?;
    let_it_come_if_it_does();
    ensure!(attack.is_running()? && begun(&world)? == 0 && declined(&world, "protected")? == 1);
    ensure!(world.agent().said(NOT_DONE)? == 1 && world.agent().said("--orchestrator none")? == 1);
    ensure!(world.agent().gauge(CONTAINED, &service)? == 1);
    Ok(())
}
