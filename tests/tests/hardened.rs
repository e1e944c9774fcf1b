//! The `hardened` manifest leaves the agent what it needs: its capabilities and no others, no way to new ones, and nothing
//! to write to but its own folders and bpffs.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use guard_tests::{
    agent::Setup,
    eventually,
    limits::{BLOCK, BREACHED, CONTAINED, config, flows, metric, sender, wait_for},
    pods::Pods,
    process::Traffic,
    require_root,
    world::World,
};

const WATCHED: &str = "egress_guard_bypass_watched";

const MANIFEST: &str = include_str!("../../deploy/kustomize/components/hardened/daemonset.yaml");

/// The capabilities that the manifest adds after it has dropped all, as setpriv(1) writes them.
fn capabilities() -> Result<Vec<String>> {
    ensure!(MANIFEST.lines().any(|line| line.trim() == "drop: [ALL]"), "not all are dropped:\n{MANIFEST}");
    let added = MANIFEST.lines().find_map(|line| line.trim().strip_prefix("add: [")?.strip_suffix(']'));
    Ok(added.context("nothing is added")?.split(", ").map(str::to_lowercase).collect())
}

/// Starts the agent as the runtime would start such a container: the rest of the file system read-only, the cgroups too,
/// and no more than these capabilities, whatever it executes.
fn confine(setup: &mut Setup, capabilities: &[String]) -> Result<()> {
    let own = setup.file("");
    let wrapper = setup.file("confined");
    let bounds = capabilities.join(",+");
    let script = format!(
        r#"#!/bin/sh
[ "$1" = confined ] || exec unshare --mount --propagation slave "$0" confined "$@"
shift
mount --bind '{own}' '{own}' && mount -o remount,bind,ro / || exit 9
for cgroups in $(findmnt --noheadings --types cgroup2 --output TARGET); do
    mount -o remount,bind,ro "$cgroups" || exit 9
done
exec setpriv --no-new-privs --bounding-set=-all,+{bounds} --inh-caps=-all --ambient-caps=-all '{agent}' "$@"
"#,
        own = own.display(),
        agent = setup.binary.display(),
    );
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    setup.binary = wrapper;
    Ok(())
}

#[test]
fn its_capabilities_are_all_that_the_agent_needs() -> Result<()> {
    let capabilities = capabilities()?;
    let mut world = World::prepared(|_, setup| {
        setup.configure(&config("contain", BLOCK))?;
        confine(setup, &capabilities)
    })?;
    let status = fs::read_to_string(format!("/proc/{}/status", world.agent().pid()))?;
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    let held = u64::from_str_radix(held.trim(), 16)?.count_ones() as usize;
    ensure!(held == capabilities.len(), "{held} capabilities are held: {status}");
    // It counts, finds, holds and lets go ...
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let before = world.read(&[&container])?;
    let sending = sender(&world, &container, 1_000_000)?;
    wait_for(&world, CONTAINED, &container, 1)?;
    drop(sending);
    world.assert_exact(before, &[&container])?;
    ensure!(!world.agent().breaches()?.is_empty(), "no breach is told");
    // ... and so does the one that takes over from it, from the state file and the pins.
    let stopped = world.agent.take().context("it runs")?.signal(15)?;
    ensure!(stopped.0 == Some(0), "{stopped:?}");
    ensure!(world.setup.file("state/state.json").exists(), "no state file");
    world.agent = Some(world.setup.start()?);
    world.agent().metrics()?;
    ensure!(metric(&world, BREACHED, &container)? == 1, "the breach is forgotten: {}", world.agent().log()?);
    let _sending = sender(&world, &container, 1_000_000)?;
    world.agent().verb(&["release", container.label()])?;
    flows(&world, 500_000, 2_000_000, Duration::from_secs(2))?;
    Ok(())
}

/// It sees the node's processes, as the manifests have it (`hostPID`), and may trace none of them.
#[test]
fn what_bypasses_the_meters_is_seen_with_its_capabilities() -> Result<()> {
    let capabilities = capabilities()?;
    let (world, _node) = World::uplinked(|_, setup| {
        setup
            .configure("sample: {interval: 100ms}\npolicies: [{name: raw, match: {}, egress: {bypass: 100KB/s}}]\n")?;
        confine(setup, &capabilities)
    })?;
    let container = world.container(1, 1)?;
    let _idle = Traffic::shell(&world.wires.node, Some(&container), "exec sleep 600")?;
    eventually("it is watched", Duration::from_secs(20), || {
        let watched = world.agent().scrape()?.0.into_iter().find(|(series, _)| series.starts_with(WATCHED));
        ensure!(watched.as_ref().is_some_and(|(_, value)| *value > 0.0), "{watched:?}: {}", world.agent().log()?);
        Ok(())
    })?;
    let send = "frame-send --device node0 --size 1000 --rate 2000000 --seconds 60";
    let _sender = Traffic::start(&world.wires.node, Some(&container), send)?;
    wait_for(&world, BREACHED, &container, 1)?;
    ensure!(world.agent().breaches()?[0]["limit"] == "bypass", "{:?}", world.agent().breaches()?);
    Ok(())
}

#[test]
fn each_of_its_capabilities_is_needed() -> Result<()> {
    require_root()?;
    let pods = Pods::new()?;
    let all = capabilities()?;
    for missing in &all {
        let mut setup = Setup::new(&pods, "")?;
        let others: Vec<_> = all.iter().filter(|name| *name != missing).cloned().collect();
        confine(&mut setup, &others)?;
        let (code, said) = setup.fail(|_| {})?;
        let name = format!("missing capabilities: CAP_{})", missing.to_uppercase());
        ensure!(code == Some(1) && said.contains(&name), "without {missing}: {code:?}: {said}");
    }
    Ok(())
}
