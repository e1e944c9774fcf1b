//! What must not happen around restarts, reloads and containers that go.

use std::{io::Write as _, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    eventually,
    limits::{BLOCK, BREACHED, CONTAINED, config, flows, metric, said, sender, wait_for},
    world::World,
};

#[test]
fn a_breach_that_was_long_over_is_no_news_to_the_next_agent() -> Result<()> {
    let mut world = World::new(&config("contain", "contain: {block: true, for: 1s}"))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let sender = sender(&world, &container, 1_000_000)?;
    wait_for(&world, BREACHED, &container, 1)?;
    drop(sender);
    wait_for(&world, BREACHED, &container, 0)?;
    // Longer than a sign of it would keep it open.
    thread::sleep(Duration::from_secs(11));
    world.agent.take().context("it runs")?.signal(15)?;
    let before = said(&world.setup.log(), "breach ")?;
    world.agent = Some(world.setup.start()?);
    world.agent().metrics()?;
    ensure!(metric(&world, BREACHED, &container)? == 0 && metric(&world, CONTAINED, &container)? == 0);
    ensure!(said(&world.setup.log(), "breach ")? == before, "{}", world.agent().log()?);
    Ok(())
}

#[test]
fn the_sockets_of_a_removed_container_are_held_as_it_was() -> Result<()> {
    let world = World::new(&config("contain", BLOCK))?;
    let (_sink, container, other) = (world.sink()?, world.container(1, 1)?, world.container(1, 2)?);
    let sender = sender(&world, &container, 1_000_000)?;
    wait_for(&world, CONTAINED, &container, 1)?;
    // Its process moves on, and its socket stays charged to it.
    other.procs()?.write_all(sender.pid().to_string().as_bytes())?;
    container.remove()?;
    let said_so = said(&world.setup.log(), "contained by its meter")?;
    thread::sleep(Duration::from_secs(12));
    flows(&world, 0, 1000, Duration::from_millis(200))?;
    ensure!(said(&world.setup.log(), "contained by its meter")? == said_so, "{}", world.agent().log()?);
    let actions = world.agent().scrape()?.get("egress_guard_actions_total{action=\"contain\"}");
    ensure!(actions == Some(1), "{actions:?}");
    ensure!(metric(&world, CONTAINED, &other)? == 0, "another container is held for it");
    // Who changes the rules changes them for it too.
    world.setup.configure(&config("observe", BLOCK))?;
    flows(&world, 500_000, 2_000_000, Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn the_file_that_releases_the_kill_switch_holds_before_it_does() -> Result<()> {
    let world = World::new(&format!("killSwitch: true\n{}", config("contain", BLOCK)))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let _sender = sender(&world, &container, 1_000_000)?;
    wait_for(&world, BREACHED, &container, 1)?;
    ensure!(metric(&world, CONTAINED, &container)? == 0);
    // Released, and with policies that do nothing.
    world.setup.configure(&config("observe", BLOCK))?;
    eventually("the file is in force", Duration::from_secs(5), || {
        let engaged = world.agent().scrape()?.get("egress_guard_kill_switch{source=\"file\"}");
        ensure!(engaged == Some(0), "{engaged:?}");
        Ok(())
    })?;
    world.agent().metrics()?;
    let actions = world.agent().scrape()?.get("egress_guard_actions_total{action=\"contain\"}");
    ensure!(actions == Some(0), "contained by policies that hold no longer: {}", world.agent().log()?);
    Ok(())
}
