//! Two hundred agents on one API server: what they ask of it when nothing happens, and what they do when all breach at once.
//!
//! What counts is the API server's own account: its audit log, and the pods as another client sees them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use guard_e2e::{
    Behaviour, ControlPlane, Fleet, Installation, Kubelet, Request, Space,
    audit::uses,
    eventually,
    fleet::{Onlooker, raise_file_limit},
    objects::deployment,
    space::is_ready,
};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::api::ListParams;
use tokio::time::{Instant, sleep};

const AGENTS: usize = 200;
const REPLICAS: usize = 5;
const WORKLOADS: usize = AGENTS / REPLICAS;

/// How many evictions the cluster's budget allows.
const MOST: usize = 10;

/// A replacement takes so long to be Ready: meanwhile its workload is one short.
const READY: Duration = Duration::from_secs(3);

const SOON: Duration = Duration::from_mins(1);

/// Two hundred nodes with an agent and a pod each.
struct World {
    plane: &'static ControlPlane,
    installation: Installation,
    fleet: Fleet,
    onlooker: Onlooker,
    _kubelet: Kubelet,
}

fn config(cluster: &str) -> String {
    format!(
        "mode: evict\nbudgets: {{cluster: {cluster}}}\npolicies:\n  - name: small\n    match: {{}}\n    egress: {{rate: \
         1MB/s}}\n    onBreach: {{evict: {{after: 0s, minAge: 0s}}}}\n"
    )
}

impl World {
    async fn new(cluster: &str) -> Result<Self> {
        // The API server inherits it.
        raise_file_limit(20 * AGENTS as u64)?;
        let plane = ControlPlane::shared().await?;
        let client = plane.admin().await?;
        let installation = Installation::new(plane, "evict", &config(cluster)).await?;
        let space = Space::new(&client).await?;
        let nodes: Vec<String> = (0..AGENTS).map(|number| format!("{}-node-{number}", space.name)).collect();
        let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let kubelet = Kubelet::start(&client, &space.name, &names, Behaviour::default()).await?;
        for number in 0..WORKLOADS {
            space.create::<Deployment>(deployment(&format!("web-{number}"), REPLICAS as u32)).await?;
        }
        let pods = eventually("all pods are ready", SOON, async || {
            let pods = space.api::<Pod>().list(&ListParams::default()).await?.items;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            ensure!(ready == AGENTS, "{ready} of {AGENTS} are");
            Ok(pods)
        })
        .await?;
        let status = async || {
            let workloads = space.api::<Deployment>().list(&ListParams::default()).await?.items;
            let ready = |it: &&Deployment| it.status.as_ref().and_then(|it| it.ready_replicas) == Some(REPLICAS as i32);
            ensure!(workloads.iter().filter(ready).count() == WORKLOADS, "their status lags behind");
            Ok(())
        };
        eventually("all workloads say so", SOON, status).await?;
        let used: std::collections::BTreeSet<_> =
            pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_ref()).collect();
        ensure!(used.len() == AGENTS, "{} of {AGENTS} nodes have a pod", used.len());
        kubelet.change(|behaviour| behaviour.ready_after = Some(READY));
        let onlooker = Onlooker::new(&space);
        let begun = Instant::now();
        let fleet = Fleet::start(&installation, &nodes).await?;
        eprintln!("{AGENTS} agents know their pods after {:.1?}", begun.elapsed());
        Ok(Self { plane, installation, fleet, onlooker, _kubelet: kubelet })
    }

    /// What the agents asked in a span of time.
    fn asked(&self, from: Timestamp, to: Timestamp) -> Result<Vec<Request>> {
        let user = format!("system:serviceaccount:{}:egress-guard", self.installation.space.name);
        let mut requests = self.plane.requests_in(&(from..to))?;
        requests.retain(|request| request.user == user);
        Ok(requests)
    }

    /// How many requests each agent made: the fewest first.
    fn each(&self, requests: &[Request]) -> Vec<usize> {
        let mut each: BTreeMap<String, usize> = self.fleet.agents().map(|agent| (agent.name(), 0)).collect();
        for request in requests {
            if let Some(count) = each.get_mut(&request.agent) {
                *count += 1;
            }
        }
        let mut each: Vec<usize> = each.into_values().collect();
        each.sort_unstable();
        each
    }

    /// How each agent's last attempt ended, and how often there is that.
    fn results(&self) -> BTreeMap<&'static str, usize> {
        let mut results = BTreeMap::new();
        for agent in self.fleet.agents() {
            *results.entry(agent.attempts().last().map_or("none", |last| last.result)).or_default() += 1;
        }
        results
    }

    /// Waits until at least so many pods were evicted.
    async fn evicted(&self, least: usize, limit: Duration) -> Result<()> {
        eventually(&format!("{least} pods are evicted"), limit, async || {
            let evicted = self.onlooker.terminated();
            ensure!(evicted >= least, "{evicted} are; the last attempts: {:?}", self.results());
            Ok(())
        })
        .await
    }

    /// No more than `most` are evicted for so long.
    async fn holds(&self, most: usize, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        while Instant::now() < end {
            let evicted = self.onlooker.terminated();
            ensure!(evicted <= most, "{evicted} pods are evicted, and {most} may be");
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// What must never happen, by all that was asked since the beginning. Returns when evictions were asked for that took
    /// place.
    fn check(&self, since: Timestamp) -> Result<Vec<Timestamp>> {
        let seen = self.onlooker.seen();
        for (app, least) in &seen.least {
            assert!(
                *least >= REPLICAS - 1,
                "{app} had {least} Ready pods of {REPLICAS}: more than one was evicted at once"
            );
        }
        assert_eq!(seen.least.len(), WORKLOADS);
        let mut done = self.asked(since, Timestamp::now())?;
        done.retain(|request| request.resource == "pods/eviction" && request.code == 201);
        let mut names: Vec<_> = done.iter().map(|request| &request.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a pod was evicted twice: {names:?}");
        assert_eq!(names.len(), seen.terminated.len(), "pods that terminate, and evictions");
        Ok(done.iter().map(|request| request.at).collect())
    }
}

/// At most [`MOST`] in any window of this length.
fn never_more(evictions: &[Timestamp], window: Duration) {
    for (first, next) in evictions.iter().zip(evictions.iter().skip(MOST)) {
        let apart = next.duration_since(*first).unsigned_abs();
        assert!(apart > window, "{} evictions within {apart:?}, from {first} on", MOST + 1);
    }
}

fn say(what: &str, each: &[usize], requests: &[Request]) {
    let (median, most) = (each[each.len() / 2], each[each.len() - 1]);
    eprintln!("{what}: {median} requests of an agent in the median, {most} at most, {} of all", requests.len());
    let mut kinds = BTreeMap::<_, usize>::new();
    for ((_, verb, resource), count) in uses(requests) {
        *kinds.entry((verb, resource)).or_default() += count;
    }
    let refused = requests.iter().filter(|request| request.code == 429 || request.code >= 500).count();
    let conflicts = requests.iter().filter(|request| request.code == 409).count();
    eprintln!("  of which {refused} were answered 429 or 5xx, {conflicts} 409: {kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_agents_leave_it_alone_at_rest_and_evict_ten_when_all_breach() -> Result<()> {
    const REST: Duration = Duration::from_mins(2);
    let world = World::new("{evictions: 10, per: 10m}").await?;
    // What the start takes is over.
    sleep(Duration::from_secs(2)).await;
    let from = Timestamp::now();
    sleep(REST).await;
    let rest = world.asked(from, Timestamp::now())?;
    let each = world.each(&rest);
    say("at rest, in two minutes", &each, &rest);
    let rate = |count: usize| count as f64 / REST.as_secs_f64();
    eprintln!(
        "  {:.4} a second and agent in the mean, {:.4} at most",
        rate(rest.len()) / AGENTS as f64,
        rate(each[AGENTS - 1])
    );
    assert!(!rest.is_empty(), "nobody asked for anything: are they there?");
    assert!(rate(each[AGENTS - 1]) < 0.1, "{each:?} requests in {REST:?}");

    let from = Timestamp::now();
    world.fleet.breach();
    let begun = Instant::now();
    world.evicted(MOST, SOON).await?;
    world.holds(MOST, SOON.saturating_sub(begun.elapsed())).await?;
    let evictions = world.check(from)?;
    let after = |at: &Timestamp| at.duration_since(from).unsigned_abs();
    eprintln!("all breach; evicted after: {:.1?}", evictions.iter().map(after).collect::<Vec<_>>());
    assert_eq!(evictions.len(), MOST);
    let storm = world.asked(from, Timestamp::now())?;
    say("in the storm's first minute", &world.each(&storm), &storm);
    let results = world.results();
    eprintln!("  how the agents' last attempts ended: {results:?}");
    assert_eq!(results, [("budget", AGENTS - MOST), ("done", MOST)].into(), "the others are told why");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_come_free_and_the_kill_switch_ends_a_storm_on_all_nodes() -> Result<()> {
    const WINDOW: Duration = Duration::from_secs(20);
    let world = World::new("{evictions: 10, per: 20s}").await?;
    let from = Timestamp::now();
    world.fleet.breach();
    world.evicted(MOST, SOON).await?;
    // A slot is held half a minute longer than the window.
    world.holds(MOST, WINDOW).await?;
    world.evicted(2 * MOST, SOON).await?;
    world.holds(2 * MOST, WINDOW).await?;
    let evictions = world.check(from)?;
    never_more(&evictions, WINDOW);
    let after = |number: usize| evictions[number].duration_since(evictions[0]).unsigned_abs();
    eprintln!(
        "10 per 20s: the 10th after {:.1?}, the 11th after {:.1?}, the 20th after {:.1?}",
        after(9),
        after(10),
        after(19)
    );

    // Many at once, so that there is a storm to be ended.
    world.installation.write("config.yaml", &config("{evictions: 100, per: 20s}")).await?;
    world.evicted(2 * MOST + 5, 2 * SOON).await?;
    let written = Timestamp::now();
    world.installation.kill_switch("on").await?;
    let heard = world.fleet.switched(true, written).await?;
    let took = heard.duration_since(written).unsigned_abs();
    let stopped_at = world.onlooker.terminated();
    eprintln!("the kill switch was engaged on {AGENTS} nodes after {took:.1?}, with {stopped_at} pods evicted");
    assert!(took < Duration::from_secs(2), "{took:?}");
    // Those that were sent already.
    sleep(Duration::from_secs(1)).await;
    let stopped_at = world.onlooker.terminated();
    world.holds(stopped_at, WINDOW).await?;
    let last = world.check(from)?.pop().context("there was none")?;
    assert!(
        last <= heard + Duration::from_millis(500),
        "one was sent at {last}, and the last agent had heard at {heard}"
    );
    let released = Timestamp::now();
    world.installation.kill_switch("off").await?;
    world.fleet.switched(false, released).await?;
    world.evicted(stopped_at + 5, SOON).await?;
    let written = Timestamp::now();
    world.installation.kill_switch("on").await?;
    world.fleet.switched(true, written).await?;
    sleep(Duration::from_secs(1)).await;
    let evictions = world.check(from)?;
    assert!(!evictions.iter().any(|at| *at > last && *at < released), "{evictions:?}");
    let all = world.asked(from, Timestamp::now())?;
    say("in the whole storm", &world.each(&all), &all);
    Ok(())
}
