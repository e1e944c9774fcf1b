//! What is looked at, in mid traffic and at rest.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use guard_e2e::eventually;
use guard_node::agent;
use guard_soak::{
    evictions::Granted,
    invariants::{Checkpoint, Pod},
    leaks::KEPT,
    reading::{Reading, WORLD},
    violation::Violation,
};

use crate::{look, pods, say, steps::Stage};

/// An agent that the kubelet does not start again within this time, for it has ended too often, gets a new pod.
const AWAY: Duration = Duration::from_secs(40);

/// How long a service of the cluster may take to come to what it should be.
const SOON: Duration = Duration::from_mins(8);

impl Stage<'_> {
    /// In mid traffic. An agent that is not there has nothing to say.
    pub(crate) fn glance(&mut self) {
        if let Ok(reading) = look::glance(self.node) {
            let now = self.now();
            let found = self.checker.scraped(now, reading.life, &reading.books);
            self.found(found);
        }
    }

    fn found(&mut self, violations: Vec<Violation>) {
        for violation in &violations {
            say(self.now(), &violation.to_string());
        }
        if !violations.is_empty() {
            say(self.now(), &self.agent_says());
        }
        self.violations.extend(violations);
    }

    /// The end of the agent's log.
    fn agent_says(&self) -> String {
        let selector = format!("app.kubernetes.io/name={}", agent::NAME);
        let log = self.node.kubectl(&["logs", "-n", agent::NAME, "-l", &selector, "--tail=15"]);
        log.unwrap_or_else(|error| format!("{error:#}"))
    }

    pub(crate) async fn checkpoint(&mut self) -> Result<()> {
        self.agent_is_there().await?;
        self.all_run().await?;
        self.pods.refresh(self.node, &self.space.name)?;
        let stop: String = self.pods.0.values().map(pods::Talker::stop).collect();
        self.shell(&stop)?;
        let granted = self.evictions()?;
        let new = granted.len().saturating_sub(self.granted.len()) as u64;
        self.began.push((self.now(), 2 * new));
        let mut reading = look::rest(self.node, &self.pods)?;
        let (since, there) = self.there_before(self.now().saturating_sub(KEPT));
        let begun = self.began.iter().filter(|(at, _)| *at >= since).map(|(_, count)| count);
        reading.held.recent = there.unwrap_or(reading.held.containers) + begun.sum::<u64>();
        self.compare(&reading);
        let found = self.checker.evicted(self.now(), &granted, &self.deeds);
        self.granted = granted;
        self.found(found);
        let go_on: String = self.pods.0.values().map(|talker| talker.send(false)).collect();
        self.shell(&go_on)?;
        Ok(())
    }

    /// When it was at rest last before this, and how many containers there were.
    fn there_before(&self, end: Duration) -> (Duration, Option<u64>) {
        let last = self.rested.iter().rev().find(|(at, _)| *at <= end);
        last.map_or((Duration::ZERO, None), |(at, containers)| (*at, Some(*containers)))
    }

    fn compare(&mut self, reading: &Reading) {
        let now = self.now();
        let Reading { rested, moved, life, held, books, wires } = reading;
        if !rested {
            self.restless += 1;
            say(now, &format!("it did not come to rest: {moved:?} moved, {held:?}\n{}", self.agent_says()));
            let found = self.checker.restless(now, *life, books, moved.is_empty().then_some(*held));
            return self.found(found);
        }
        let namespace = &self.space.name;
        let pods = wires.iter().filter(|(name, _)| *name != WORLD);
        let pods = pods.map(|(name, wire)| Pod { namespace: namespace.clone(), name: name.clone(), wire: *wire });
        let world = wires.get(WORLD).copied().unwrap_or_default();
        let seen = Checkpoint { life: *life, books: books.clone(), pods: pods.collect(), world, held: *held };
        let found = self.checker.checkpoint(now, &seen);
        say(now, &format!("{:?}, {held:?}", self.checker.compared()));
        self.held.push(*held);
        self.rested.push((now, held.containers));
        self.found(found);
    }

    /// Waits for an agent; one that its kubelet holds back gets a new pod.
    async fn agent_is_there(&mut self) -> Result<()> {
        let there = "pid=$(pgrep -o -x guard-agent) && nsenter -t $pid -n /run/node/load get 127.0.0.1:9469/readyz";
        let end = Instant::now() + AWAY;
        while !self.shell(there)? {
            if Instant::now() > end {
                say(self.now(), "the kubelet holds the agent back: it gets a new pod");
                // One that is there and does not answer is replaced, too.
                if !self.shell("pgrep -o -x guard-agent >/dev/null")? {
                    let found = self.checker.agent_is_away(self.now());
                    self.found(found);
                }
                let selector = format!("app.kubernetes.io/name={}", agent::NAME);
                self.node.kubectl(&["delete", "pods", "-n", agent::NAME, "-l", &selector, "--wait=false"])?;
                self.checker.agent_ends(self.now());
                *self.done.entry("agent pod replaced").or_default() += 1;
                self.began.push((self.now(), 2));
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        eventually("an agent answers", SOON, async || {
            ensure!(self.shell(there)?, "none does");
            Ok(())
        })
        .await
        .with_context(|| self.node.describe_agent())
    }

    /// Waits until every pod has come to what it is to be: none is about to start or to end.
    async fn all_run(&self) -> Result<()> {
        let form =
            "jsonpath={range .items[*]}{.metadata.name} {.status.phase} {.metadata.deletionTimestamp}{\"\\n\"}{end}";
        let settled = eventually("no pod comes or goes", SOON, async || {
            let pods = self.node.kubectl(&["get", "pods", "-n", &self.space.name, "-o", form])?;
            let moving = pods.lines().find(|pod| pod.contains("Pending") || pod.contains('T') && pod.contains(':'));
            match moving {
                Some(pod) => bail!("{pod}"),
                None => Ok(()),
            }
        });
        if let Err(error) = settled.await {
            say(self.now(), &format!("{error:#}"));
        }
        Ok(())
    }

    /// By what the API server says.
    fn evictions(&self) -> Result<Vec<Granted>> {
        let account = format!("system:serviceaccount:{0}:{0}", agent::NAME);
        let requests = self.node.plane.requests()?;
        let granted = requests.into_iter().filter(|request| {
            request.user == account && request.resource == "pods/eviction" && (200..300).contains(&request.code)
        });
        let granted = granted.map(|request| {
            let at = Duration::try_from(request.at.duration_since(self.begun_at)).unwrap_or_default();
            Granted { at, pod: request.name }
        });
        Ok(granted.collect())
    }
}
