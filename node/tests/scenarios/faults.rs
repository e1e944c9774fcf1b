//! What else may happen while a pod breaches: kubelet and containerd are restarted, the API server is away, the agent is
//! killed at every step of an eviction. There are never two evictions for one breach, and no containment is left behind.

use std::{
    env,
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use guard_e2e::{Side, Space, eventually};
use guard_node::{
    Agent, Clock, Installation, Load, Node, SOON, WORLD, Wire, load,
    stages::{self, Stages},
};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{Api, ResourceExt as _, api::DeleteParams};

use crate::kill_switch::rate;

/// Whoever breaches has nobody beside it: that is one pod less to come up, ten times.
const CONFIG: &str = "mode: evict
budgets:
  node: {evictions: 100, per: 10m}
  cluster: {evictions: 100, per: 10m}
policies:
  - name: default
    match: {}
    egress: {rate: 50KB/s, burst: 64KiB}
    onBreach:
      contain: {throttle: 20KB/s, for: 20m}
      evict: {after: 5s, grace: 1s, minAge: 0s, lastReplica: true, minReady: 0}
";

/// Payload bytes per second that are too many, and that are not.
const ATTACK: u64 = 200_000;
const ALLOWED: u64 = 40_000;
/// Of the policy: what passes before the limit is crossed.
const BURST: u64 = 64 << 10;
/// What a throttle of 20 KB/s lets pass at the most, with its first quarter of a second. A slow node sends less than it is told to.
pub(crate) const HELD: u64 = 23_000;

/// As long as a containment outlives its agent.
const LAPSE: Duration = Duration::from_secs(10);

/// An eviction takes so many requests at least, those about Events among them.
const REQUESTS: u64 = 16;

fn stream(rate: u64) -> String {
    format!("udp:{WORLD}:9100,1000,{rate}")
}

/// A Deployment of one.
async fn one<'a>(node: &'a Node, space: &Space, name: &str) -> Result<Load<'a>> {
    space.create::<Deployment>(load::deployment(name, 1, &["serve"])).await?;
    let one = node.loads(space, name, 1).await?.remove(0);
    node.agent().named(&one.pod, "main").await?;
    Ok(one)
}

/// Waits until another pod is in its place, which sends what is allowed, and fails unless this one was evicted once, and of
/// its namespace nobody else has been since those before.
async fn replaced_once(node: &Node, space: &Space, app: &str, breacher: &Load<'_>, before: &[String]) -> Result<()> {
    let fresh = node.load(stages::replacement(space, app, &[&breacher.pod]).await?.pod)?;
    node.agent().ready().await?;
    node.agent().named(&fresh.pod, "main").await?;
    fresh.send(&stream(ALLOWED))?;
    let rate = rate(node, &fresh).await?;
    ensure!(rate > HELD, "{rate} bytes/s of {ALLOWED}: the replacement is held");
    nobody_is_held(node.agent()).await?;
    let taken = evictions(node, space)?;
    let expected: Vec<String> = before.iter().cloned().chain([breacher.pod.name_any()]).collect();
    ensure!(taken == expected, "these evictions were carried out: {taken:?}");
    Ok(())
}

/// The pods of a namespace whose eviction the API server has taken.
fn evictions(node: &Node, space: &Space) -> Result<Vec<String>> {
    let requests = node.plane.requests()?.into_iter();
    let taken = requests.filter(|it| it.resource == "pods/eviction" && it.namespace == space.name && it.code == 201);
    Ok(taken.map(|it| it.name).collect())
}

/// Fails if a container of the node is held.
pub(crate) async fn nobody_is_held(agent: Agent<'_>) -> Result<()> {
    eventually("nobody is held", SOON, async || {
        let listed = agent.list().await?;
        let held: Vec<_> = listed.iter().filter(|it| it.standing.contained).collect();
        ensure!(held.is_empty(), "{held:?}");
        Ok(())
    })
    .await
}

/// Restarts a service of the node once a pod is contained, and before it is evicted.
async fn restarted(unit: &str) -> Result<()> {
    let node = Node::shared().await?;
    let agent = node.install(&Installation::of("evict", &CONFIG.replace("after: 5s", "after: 90s"))).await?;
    let space = node.space().await?;
    let breacher = one(&node, &space, "web").await?;
    let clock = Clock::of(&node)?;
    let began = breacher.send(&stream(ATTACK))?;
    let contained = contained_at(agent, &breacher).await?;
    let held = rate(&node, &breacher).await?;
    ensure!(held < HELD, "{held} bytes/s: it is not held");
    node.run(&format!("systemctl restart {unit}"))?;
    let restarted = Timestamp::now();
    let held = rate(&node, &breacher).await?;
    ensure!(held < HELD, "{held} bytes/s: it is not held any more, after a restart of {unit}");
    let accepted = stages::eviction_of(&node.plane, &breacher.pod).await?;
    ensure!(accepted > restarted, "it was evicted before {unit} was restarted");
    let replaced = stages::replacement(&space, "web", &[&breacher.pod]).await?;
    replaced_once(&node, &space, "web", &breacher, &[]).await?;
    let mut stages = Stages::since(clock.on_host(began)?);
    stages.reached("contained", clock.on_host(contained)?);
    stages.reached(&format!("{unit} restarted"), restarted);
    stages.reached("eviction accepted", accepted);
    stages.reached("replacement Ready", replaced.ready);
    stages.tell(unit)?;
    node.leave(space).await
}

/// When the agent said that it holds a pod, by the guest's clock.
async fn contained_at(agent: Agent<'_>, breacher: &Load<'_>) -> Result<Timestamp> {
    stages::logged_at(&agent.says(&["\"contained", &breacher.pod.name_any()]).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_is_restarted_in_a_breach() -> Result<()> {
    restarted("kubelet").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_is_restarted_in_a_breach() -> Result<()> {
    restarted("containerd").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_for_five_minutes_in_a_breach() -> Result<()> {
    let node = Node::shared().await?;
    let agent = node.install(&Installation::of("evict", CONFIG)).await?;
    let space = node.space().await?;
    let breacher = one(&node, &space, "web").await?;
    let clock = Clock::of(&node)?;
    let (wire, away) = (Wire::of(&node, breacher.address())?, Instant::now());
    let before = wire.read()?;
    node.plane.kill_api();
    let began = breacher.send(&stream(ATTACK))?;
    tokio::time::sleep(Duration::from_mins(5)).await;
    let (sent, seconds) = (wire.since(before)?.tx.bytes, away.elapsed().as_secs());
    ensure!(sent < 2 * BURST + HELD * seconds, "{sent} bytes in {seconds} s: it is not held all the while");
    let back = Timestamp::now();
    node.plane.restart_api().await?;
    let accepted = stages::eviction_of(&node.plane, &breacher.pod).await?;
    let replaced = stages::replacement(&space, "web", &[&breacher.pod]).await?.ready;
    let contained = contained_at(agent, &breacher).await?;
    replaced_once(&node, &space, "web", &breacher, &[]).await?;
    let mut stages = Stages::since(clock.on_host(began)?);
    stages.reached("contained", clock.on_host(contained)?);
    stages.reached("the API server started again", back);
    stages.reached("eviction accepted", accepted);
    stages.reached("replacement Ready", replaced);
    stages.tell("api-away")?;
    node.leave(space).await
}

/// Where an agent is killed: once so many requests have come of it since the breach, on this side of the last one.
#[derive(Clone, Copy, Debug)]
struct Point {
    requests: usize,
    side: Side,
}

/// As many as `EGRESS_GUARD_POINTS` says, four if it does not, out of `EGRESS_GUARD_SEED`.
fn points() -> Result<(u64, Vec<Point>)> {
    let number = |name: &str| match env::var(name) {
        Ok(text) => text.parse().map(Some).with_context(|| format!("{name}={text:?} is not a number")),
        Err(_) => Ok(None),
    };
    let seed = number("EGRESS_GUARD_SEED")?.unwrap_or_else(|| Timestamp::now().as_nanosecond() as u64 % 1_000_000);
    let count = number("EGRESS_GUARD_POINTS")?.unwrap_or(4);
    // Spread over all steps, at another place within each part.
    let mut random = seed;
    let points = (0..count).map(|index| {
        // Knuth's MMIX generator: any will do.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let within = random >> 33;
        let (first, next) = (REQUESTS * index / count, REQUESTS * (index + 1) / count);
        let side = if within & 1 == 0 { Side::Before } else { Side::After };
        Point { requests: (1 + first + (within >> 1) % (next - first).max(1)) as usize, side }
    });
    Ok((seed, points.collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_at_any_step_of_an_eviction() -> Result<()> {
    let (seed, points) = points()?;
    let node = Node::shared().await?;
    let agent = node.install(&Installation::of("evict", CONFIG)).await?;
    let space = node.space().await?;
    let (mut taken, count) = (vec![], points.len());
    let mut table =
        format!("| agent killed (seed {seed}) | seconds | evicted by then | eviction accepted | replacement Ready |\n");
    table.push_str("| --- | --- | --- | --- | --- |\n");
    for (index, point) in points.into_iter().enumerate() {
        let killed = killed_at(&node, agent, &space, &format!("web-{index}"), point)
            .await
            .with_context(|| format!("at {point:?}: EGRESS_GUARD_SEED={seed} repeats it"))?;
        taken.extend(killed.reached.then_some(killed.already));
        killed.tell(point, &mut table)?;
        fresh_agent(&node, agent).await?;
    }
    ensure!(count < 2 || taken.contains(&false), "none was killed before its eviction was carried out: {taken:?}");
    ensure!(count < 2 || taken.contains(&true), "none was killed after its eviction was carried out: {taken:?}");
    stages::document("killed", &table)?;
    node.leave(space).await
}

/// What came of an agent that was killed.
#[derive(Debug)]
struct Killed {
    /// At its point, and not after everything.
    reached: bool,
    /// The eviction had been carried out.
    already: bool,
    /// Of the agent's end, the eviction and the replacement, since the first byte.
    stages: Stages,
}

impl Killed {
    fn tell(&self, Point { requests, side }: Point, table: &mut String) -> Result<()> {
        let side = match side {
            Side::Before => "before",
            Side::After => "after",
        };
        let place = if self.reached { format!("{side} request {requests}") } else { "after everything".into() };
        let seconds: Vec<_> = self.stages.all()?.iter().map(|(_, took)| format!("{:.1}", took.as_secs_f64())).collect();
        let [killed, accepted, replaced] = &seconds[..] else { bail!("{seconds:?}") };
        let already = if self.already { "yes" } else { "no" };
        writeln!(table, "| {place} | {killed} | {already} | {accepted} | {replaced} |")?;
        Ok(())
    }
}

async fn killed_at(node: &Node, agent: Agent<'_>, space: &Space, app: &str, point: Point) -> Result<Killed> {
    let breacher = one(node, space, app).await?;
    let before = evictions(node, space)?;
    let done = || evictions(node, space).is_ok_and(|now| now.len() > before.len());
    let clock = Clock::of(node)?;
    node.pods_api.stop_after(point.requests, point.side);
    let mut stages = Stages::since(clock.on_host(breacher.send(&stream(ATTACK))?)?);
    // Fewer requests than that: the eviction is over, and so is what the agent says of it.
    let (begun, mut over_since) = (Instant::now(), None);
    while !node.pods_api.is_stopped() {
        if done() {
            over_since.get_or_insert_with(Instant::now);
        }
        if over_since.is_some_and(|since| since.elapsed() > Duration::from_secs(20)) {
            break;
        }
        ensure!(begun.elapsed() < SOON, "it is neither evicted nor does the agent ask");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (reached, already) = (node.pods_api.is_stopped(), done());
    node.run(KILL)?;
    stages.reached("killed", Timestamp::now());
    // What the agent had asked for and waits still goes with its connections.
    tokio::time::sleep(Duration::from_secs(3)).await;
    node.pods_api.heal();
    stages.reached("accepted", stages::eviction_of(&node.plane, &breacher.pod).await?);
    stages.reached("replaced", stages::replacement(space, app, &[&breacher.pod]).await?.ready);
    replaced_once(node, space, app, &breacher, &before).await?;
    agent.ready().await?;
    Ok(Killed { reached, already, stages })
}

/// Ends the agent as nothing else does.
const KILL: &str = "kill -KILL $(pgrep -o -x guard-agent)";

/// Another pod of the agent: one that was killed more than once is held back by its kubelet.
async fn fresh_agent(node: &Node, agent: Agent<'_>) -> Result<()> {
    let old = agent.pod().await?;
    let pods: Api<Pod> = Api::namespaced(node.client().await?, &old.namespace().unwrap_or_default());
    pods.delete(&old.name_any(), &DeleteParams::default()).await?;
    eventually("another pod of the agent is there", SOON, async || {
        ensure!(agent.pod().await?.uid() != old.uid(), "it is the same");
        Ok(())
    })
    .await?;
    agent.ready().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_dead_lets_go() -> Result<()> {
    let node = Node::shared().await?;
    let agent = node.install(&Installation::of("evict", &CONFIG.replace("after: 5s", "after: 1h"))).await?;
    let space = node.space().await?;
    let breacher = one(&node, &space, "web").await?;
    let clock = Clock::of(&node)?;
    let mut stages = Stages::since(clock.on_host(breacher.send(&stream(ATTACK))?)?);
    stages.reached("contained", clock.on_host(contained_at(agent, &breacher).await?)?);
    let held = rate(&node, &breacher).await?;
    ensure!(held < HELD, "{held} bytes/s: it is not held");
    // Nobody starts it again.
    node.run(&format!("systemctl stop kubelet && {KILL}"))?;
    stages.reached("agent killed", Timestamp::now());
    tokio::time::sleep(LAPSE + Duration::from_secs(1)).await;
    let free = rate(&node, &breacher).await?;
    stages.reached("seen to send as it likes", Timestamp::now());
    node.run("systemctl start kubelet")?;
    ensure!(free > ATTACK / 2, "{free} bytes/s of {ATTACK}: held by nobody, for longer than its deadline");
    // The agent that comes back finds it at it, and holds it again.
    eventually("it is held again", SOON, async || {
        ensure!(agent.listed(&breacher.pod, "main").await?.standing.contained);
        Ok(())
    })
    .await?;
    stages.reached("held again, by the next agent", Timestamp::now());
    stages.tell("dead")?;
    ensure!(evictions(&node, &space)? == [] as [String; 0], "it was evicted");
    node.leave(space).await
}
