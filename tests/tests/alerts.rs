//! A real agent tells its alerts to a webhook.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    agent::Setup,
    eventually,
    net::EXTERNAL_V4,
    pods::{Container, uid},
    process::Traffic,
    receiver::{Receiver, free_address},
    world::World,
};
use serde_json::Value;

/// An alert that is not to be waited for is told within this.
const SOON: Duration = Duration::from_secs(10);

fn config(webhook: &str) -> String {
    format!(
        "mode: contain\nsample: {{interval: 100ms}}\nalerts: {{webhook: '{webhook}'}}\npolicies:\n  - name: small\n    \
         match: {{}}\n    egress: {{rate: 100KB/s, burst: 100KB}}\n    \
         onBreach: {{contain: {{throttle: 50KB/s, for: 10m}}}}\n"
    )
}

fn world(webhook: &str) -> Result<World> {
    World::prepared(|_, setup: &mut Setup| {
        setup.environment.push(("NODE_NAME".into(), "node-7".into()));
        setup.configure(&config(webhook))
    })
}

fn attack(world: &World, container: &Container) -> Result<Traffic> {
    let send = format!("udp-send --to {EXTERNAL_V4}:9100 --sizes 972 --rate 2000000 --seconds 600 --stubborn");
    Traffic::start(&world.wires.node, Some(container), &send)
}

fn is_of(container: &Container) -> impl Fn(&Value) -> bool {
    |alert| alert["labels"]["container"] == container.label()
}

fn text<'a>(alert: &'a Value, annotation: &str) -> Result<&'a str> {
    alert["annotations"][annotation].as_str().with_context(|| format!("no {annotation} in {alert}"))
}

#[test]
fn a_breach_is_told_with_its_top_destination_and_told_again_when_it_is_over() -> Result<()> {
    let receiver = Receiver::listen(free_address()?)?;
    let world = world(&receiver.url())?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let attack = attack(&world, &container)?;
    let held = |alert: &Value| text(alert, "done").is_ok_and(|done| done.starts_with("throttled to 50"));
    let firing = receiver.wait("the alert", SOON, |alert| is_of(&container)(alert) && held(alert))?;
    let labels = [
        ("alertname", "EgressLimitExceeded"),
        ("severity", "critical"),
        ("node", "node-7"),
        ("limit", "rate"),
        ("pod", &uid(1)),
        ("container", container.label()),
    ];
    let told = firing["labels"].as_object().context("labels")?;
    ensure!(told.len() == labels.len() && labels.iter().all(|(name, value)| told[*name] == *value), "{firing}");
    ensure!(text(&firing, "policy")? == "small" && text(&firing, "container_id")? == container.id, "{firing}");
    ensure!(text(&firing, "summary")?.contains("crossed its rate limit"), "{firing}");
    let path = container.path.to_str().context("a path is text")?;
    ensure!(path.ends_with(text(&firing, "cgroup")?), "{firing}");
    let top = text(&firing, "destinations")?;
    ensure!(top.starts_with(&format!("{EXTERNAL_V4}:9100 udp")) && top.contains("100 %"), "{firing}");
    ensure!(firing["startsAt"].is_string() && firing["endsAt"].is_null(), "{firing}");

    drop(attack);
    let over = receiver.wait("the end", 2 * SOON, |alert| is_of(&container)(alert) && alert["endsAt"].is_string())?;
    ensure!(over["labels"] == firing["labels"] && over["startsAt"] == firing["startsAt"], "{over}");
    ensure!(over["endsAt"].as_str() > over["startsAt"].as_str(), "{over}");
    let told = receiver.alerts().len() as u64;
    eventually("all are counted", SOON, || {
        let sent = world.agent().scrape()?.get("egress_guard_alerts_total{result=\"sent\"}");
        ensure!(sent == Some(told), "{sent:?} of {told}");
        Ok(())
    })
}

#[test]
fn a_receiver_that_is_down_gets_its_alerts_once_it_is_up() -> Result<()> {
    let address = free_address()?;
    let world = world(&format!("http://{address}/api/v2/alerts"))?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let _attack = attack(&world, &container)?;
    world.agent().hear("trying again", SOON)?;
    let receiver = Receiver::listen(address)?;
    // The pauses grow, and a busy machine may have let some pass.
    receiver.wait("the alert", Duration::from_secs(30), is_of(&container))?;
    world.agent().hear("it takes alerts again", SOON)?;
    ensure!(world.agent().said("alerts.webhook: ")? == 2, "{}", world.agent().log()?);
    let metrics = world.agent().scrape()?;
    for result in ["failed", "dropped"] {
        ensure!(metrics.get(&format!("egress_guard_alerts_total{{result=\"{result}\"}}")) == Some(0));
    }
    Ok(())
}

#[test]
fn after_a_reload_the_next_alert_goes_to_the_new_receiver() -> Result<()> {
    let receivers = [Receiver::listen(free_address()?)?, Receiver::listen(free_address()?)?];
    let world = world(&receivers[0].url())?;
    let (_sink, containers) = (world.sink()?, [world.container(1, 1)?, world.container(1, 2)?]);
    let _first = attack(&world, &containers[0])?;
    receivers[0].wait("the first alert", SOON, is_of(&containers[0]))?;
    world.setup.configure(&config(&receivers[1].url()))?;
    world.agent().hear("the configuration has changed", SOON)?;
    let _second = attack(&world, &containers[1])?;
    receivers[1].wait("the second alert", SOON, is_of(&containers[1]))?;
    ensure!(!receivers[0].alerts().iter().any(is_of(&containers[1])), "{:?}", receivers[0].alerts());
    // What is still open is told to the new one too, within a minute.
    receivers[1].wait("what is open", Duration::from_secs(70), is_of(&containers[0]))?;
    Ok(())
}
