//! The image under containerd: imported as it is, with a root filesystem that is read-only, it meters, finds a breach and
//! tells it to a receiver that it has to look up.

mod containerd;
mod receiver;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use guard_tests::{limits::sender, world::World};

use containerd::{Containerd, Image};
use receiver::Receiver;

#[derive(Parser)]
struct Cli {
    /// An OCI archive
    archive: PathBuf,
    /// The name that it should have once it is imported
    name: String,
    /// The digest of its manifest
    digest: String,
}

/// How long anything may take that is not to be waited for.
const SOON: Duration = Duration::from_secs(15);

/// What cannot be found without a resolver, and is told over TLS: the image has all that takes.
const HOST: &str = "receiver.example";

fn config(webhook: &str) -> String {
    format!(
        "sample: {{interval: 100ms}}\nmeters: {{max: 64}}\nalerts: {{webhook: '{webhook}'}}\npolicies:\n  - name: small\n    \
         match: {{}}\n    egress: {{rate: 100KB/s, burst: 2MB}}\n"
    )
}

fn main() -> Result<()> {
    let Cli { archive, name, digest } = Cli::parse();
    let receiver = Receiver::listen(HOST)?;
    let containerd = Containerd::start()?;
    containerd.import(&archive, &Image { name: &name, digest: &digest })?;
    println!("image: containerd has imported {name}@{digest}");
    let mut world = World::prepared(|pods, setup| {
        setup.configure(&config(&receiver.url()))?;
        containerd.prepare(setup, pods, &name)
    })?;
    containerd.assert_read_only()?;
    println!("image: ready, privileged, with a root filesystem that is read-only");

    let played = play(&world, &containerd, &receiver);
    let agent = world.agent.take().context("the agent runs")?;
    let log = agent.log()?;
    played.with_context(|| format!("the agent's log:\n{log}"))?;

    let (code, took) = agent.signal(libc::SIGTERM)?;
    ensure!(code == Some(0), "asked to stop it ended with {code:?}: {log}");
    println!("image: asked to stop it ends well ({} ms)", took.as_millis());
    Ok(())
}

/// What it does while it runs.
fn play(world: &World, containerd: &Containerd, receiver: &Receiver) -> Result<()> {
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let before = world.read(&[&container])?;
    let sent = world.send(&container, 972, 1000)?;
    let wire = world.assert_exact(before, &[&container])?;
    ensure!(wire.tx == sent, "{sent:?} was sent, the wire says {wire:?}");
    println!("image: it meters: {} bytes, on the wire as many", sent.bytes);

    let listed = containerd.exec(&["guard-agent", "list"])?;
    ensure!(listed.contains(container.label()), "`guard-agent list` in the container says {listed}");

    let _sender = sender(world, &container, 5_000_000)?;
    receiver.wait_for_hello(SOON)?;
    println!("image: a breach is told over TLS to {HOST}, which it looked up");
    Ok(())
}
