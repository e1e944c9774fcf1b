//! Doing the steps of a plan.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use guard_e2e::{Fault as EvictionFault, Space};
use guard_node::{Installation, Node, agent};
use guard_soak::{
    evictions::{Allowed, Deeds, Granted},
    invariants::Checker,
    leaks::{Bounds, Held},
    plan::{Action, Fault, Kind, Step},
    violation::{Soak, Violation},
};
use jiff::Timestamp;

use crate::{
    pods::{self, PATIENCE, Pods},
    report::Report,
    say,
};

/// What the soak's configuration allows.
const ALLOWED: Allowed = Allowed {
    node: 3,
    workload: 1,
    per: Duration::from_mins(3),
    late: Duration::from_secs(20),
    on_its_way: Duration::from_secs(30),
    engages: Duration::from_secs(10),
    lasts: Duration::from_mins(2),
};

/// What holds for the pods of a namespace: nothing that is normal is held, and a breach is found within a second.
fn config(namespace: &str) -> String {
    let Allowed { node, workload, per, lasts, .. } = ALLOWED;
    let (per, length) = (format!("{}s", per.as_secs()), format!("{}s", lasts.as_secs()));
    format!(
        "mode: evict
budgets:
  node: {{evictions: {node}, per: {per}}}
  workload: {{evictions: {workload}, per: {per}}}
  cluster: {{evictions: {node}, per: {per}}}
storm: {{workloads: 5, pods: 60%, per: 1m}}
policies:
  - name: soak
    match: {{namespaces: [{namespace}]}}
    egress: {{rate: 48KB/s, burst: 192KB}}
    onBreach:
      contain: {{throttle: 24KB/s, for: {length}}}
      evict: {{after: 5s, grace: 2s, minAge: 0s}}
"
    )
}

/// Between two looks at the agent in mid traffic.
const GLANCE: Duration = Duration::from_secs(10);

/// So many evictions may come while they are delayed or refused.
const FAULTS: usize = 16;

/// The node, and what is known of it.
pub(crate) struct Stage<'a> {
    pub(crate) node: &'a Node,
    soak: Soak,
    pub(crate) space: Space,
    begun: Instant,
    pub(crate) begun_at: Timestamp,
    workloads: BTreeMap<String, Kind>,
    pub(crate) pods: Pods,
    /// Which pod of a workload breaches.
    breaching: BTreeMap<String, String>,
    pub(crate) deeds: Deeds,
    pub(crate) granted: Vec<Granted>,
    pub(crate) checker: Checker,
    pub(crate) done: BTreeMap<&'static str, u32>,
    pub(crate) violations: Vec<Violation>,
    fault: Option<Fault>,
    /// What needs the API server and came while it was away.
    waiting: Vec<Action>,
    pub(crate) held: Vec<Held>,
    /// When it was at rest, and how many containers there were.
    pub(crate) rested: Vec<(Duration, u64)>,
    /// When how many containers began, at most.
    pub(crate) began: Vec<(Duration, u64)>,
    pub(crate) restless: u32,
    rounds: u32,
}

impl<'a> Stage<'a> {
    /// Installs the agent.
    pub(crate) async fn new(node: &'a Node, soak: Soak) -> Result<Self> {
        pods::prepare(node)?;
        let space = node.space().await?;
        let config = config(&space.name);
        node.install(&Installation::of("evict", &config)).await?;
        Ok(Self {
            node,
            soak,
            space,
            begun: Instant::now(),
            begun_at: Timestamp::now(),
            workloads: BTreeMap::new(),
            pods: Pods::default(),
            breaching: BTreeMap::new(),
            deeds: Deeds::default(),
            granted: vec![],
            checker: Checker::new(soak, ALLOWED, Bounds::default()),
            done: BTreeMap::new(),
            violations: vec![],
            fault: None,
            waiting: vec![],
            held: vec![],
            rested: vec![],
            began: vec![],
            restless: 0,
            rounds: 0,
        })
    }

    /// How many rounds were gone through.
    pub(crate) fn rounds(&self) -> u32 {
        self.rounds
    }

    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Does the steps of a round, each when it is due; late ones at once.
    pub(crate) async fn round(&mut self, steps: &[Step]) -> Result<()> {
        let begun = Instant::now();
        let mut glanced = Instant::now();
        for Step { at, action, .. } in steps {
            while begun.elapsed() < *at {
                if glanced.elapsed() > GLANCE {
                    self.glance();
                    glanced = Instant::now();
                }
                let left = at.saturating_sub(begun.elapsed());
                tokio::time::sleep(left.min(Duration::from_millis(500))).await;
            }
            self.step(action).await?;
        }
        self.rounds += 1;
        Ok(())
    }

    async fn step(&mut self, action: &Action) -> Result<()> {
        if self.fault == Some(Fault::Away) && asks(action) {
            self.waiting.push(action.clone());
            return Ok(());
        }
        say(self.now(), &format!("{action:?}"));
        self.act(action).await.with_context(|| format!("{action:?}"))
    }

    async fn act(&mut self, action: &Action) -> Result<()> {
        let mut happened = true;
        match action {
            Action::Make { name, kind } => self.make(name, *kind)?,
            Action::Remove { name } => self.remove(name)?,
            Action::Breach { name, replica } => happened = self.breach(name, *replica)?,
            Action::EndBreach { name } => happened = self.end_breach(name)?,
            Action::KillAgent => {
                happened = self.shell("kill -KILL $(pgrep -o -x guard-agent)\n")?;
                if happened {
                    self.checker.agent_killed();
                }
            }
            Action::Rollout => {
                self.checker.agent_ends(self.begun.elapsed());
                let object = format!("daemonset/{}", agent::NAME);
                self.node.kubectl(&["rollout", "restart", "-n", agent::NAME, &object]).map(drop)?;
            }
            Action::KillContainer { name, replica } => happened = self.kill_container(name, *replica)?,
            Action::Fault(fault) => self.begin_fault(*fault),
            Action::EndFault => self.end_fault().await?,
            Action::KillSwitch(on) => self.kill_switch(*on)?,
            Action::Churn(cgroups) => happened = self.shell(&churn(*cgroups))?,
            Action::Checkpoint => self.checkpoint().await?,
        }
        if happened {
            self.began.push((self.now(), begins(action)));
            *self.done.entry(action.word()).or_default() += 1;
        } else {
            say(self.now(), "there was nothing to do it to");
        }
        Ok(())
    }

    /// Whether the script succeeded.
    pub(crate) fn shell(&self, script: &str) -> Result<bool> {
        Ok(self.node.shell(script, PATIENCE)?.status == 0)
    }

    fn make(&mut self, name: &str, kind: Kind) -> Result<()> {
        self.node.apply(&pods::objects(&self.space.name, name, kind).to_string())?;
        self.workloads.insert(name.to_owned(), kind);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        let kind = self.workloads.remove(name).with_context(|| format!("{name} is not there"))?;
        let resource = pods::resource(kind);
        self.node.kubectl(&["delete", resource, name, "-n", &self.space.name, "--wait=false"]).map(drop)
    }

    fn breach(&mut self, name: &str, replica: u32) -> Result<bool> {
        let pods = self.pods.of(name);
        let Some((pod, talker)) = pods.get(replica as usize % pods.len().max(1)) else { return Ok(false) };
        let (pod, script) = ((*pod).clone(), talker.send(true));
        let now = self.now();
        if !self.shell(&script)? {
            return Ok(false);
        }
        self.deeds.breached.entry(pod.clone()).or_default().push((now, None));
        self.breaching.insert(name.to_owned(), pod);
        Ok(true)
    }

    fn end_breach(&mut self, name: &str) -> Result<bool> {
        let Some(pod) = self.breaching.remove(name) else { return Ok(false) };
        // It may be gone by now.
        let ended = self.pods.0.get(&pod).map(|talker| self.shell(&talker.send(false))).transpose()?;
        let now = self.now();
        if ended != Some(false)
            && let Some((_, end)) = self.deeds.breached.get_mut(&pod).and_then(|spans| spans.last_mut())
        {
            *end = Some(now);
        }
        Ok(ended.unwrap_or(false))
    }

    fn kill_container(&mut self, name: &str, replica: u32) -> Result<bool> {
        let pods = self.pods.of(name);
        let Some((_, talker)) = pods.get(replica as usize % pods.len().max(1)) else { return Ok(false) };
        self.shell(&talker.kill())
    }

    fn begin_fault(&mut self, fault: Fault) {
        self.fault = Some(fault);
        let api = &self.node.pods_api;
        let every = |fault: EvictionFault| std::iter::repeat_n(fault, FAULTS);
        match fault {
            Fault::Away => self.node.plane.kill_api(),
            Fault::Frozen => api.stop(),
            Fault::Slow => api.faults(every(EvictionFault::DelayRequest)),
            Fault::Refusing(code) => {
                let retry_after = (code == 429).then_some(2);
                api.faults(every(EvictionFault::Refuse { code, retry_after }));
            }
            Fault::LosesAnswers => api.faults(every(EvictionFault::LoseAnswer)),
            Fault::EndsWatches => api.end_watches(),
        }
    }

    async fn end_fault(&mut self) -> Result<()> {
        if self.fault.take() == Some(Fault::Away) {
            self.node.plane.restart_api().await?;
        }
        self.node.pods_api.heal();
        for action in std::mem::take(&mut self.waiting) {
            say(self.now(), &format!("{action:?}, now that the API server is back"));
            Box::pin(self.act(&action)).await?;
        }
        Ok(())
    }

    fn kill_switch(&mut self, on: bool) -> Result<()> {
        if !on && let Some((_, end @ None)) = self.deeds.engaged.last_mut() {
            // Once it is told, it may be off.
            *end = Some(self.begun.elapsed());
        }
        self.node.agent().kill_switch(if on { "on" } else { "off" })?;
        if on {
            self.deeds.engaged.push((self.now(), None));
        }
        Ok(())
    }

    /// What came of it all.
    pub(crate) fn end(self) -> (Report, Vec<Violation>) {
        let report = Report {
            soak: self.soak,
            took: self.begun.elapsed(),
            done: self.done,
            evictions: self.granted.len(),
            compared: self.checker.compared(),
            held: self.held,
            restless: self.restless,
            violations: self.violations.len(),
        };
        (report, self.violations)
    }
}

/// How many containers begin because of it, at most; a pod has a sandbox besides its container.
fn begins(action: &Action) -> u64 {
    match action {
        Action::Make { kind, .. } => 2 * u64::from(kind.pods()),
        Action::Churn(cgroups) => u64::from(*cgroups),
        Action::KillContainer { .. } | Action::KillAgent => 1,
        Action::Rollout => 2,
        _ => 0,
    }
}

/// Whether the API server is asked for it.
fn asks(action: &Action) -> bool {
    matches!(action, Action::Make { .. } | Action::Remove { .. } | Action::Rollout | Action::KillSwitch(_))
}

/// Cgroups as a runtime makes them, of a pod that the kubelet knows nothing of.
fn churn(cgroups: u32) -> String {
    format!(
        "cd /sys/fs/cgroup/kubepods.slice/kubepods-besteffort.slice || exit 1
pod=kubepods-besteffort-pod00000000_5eed_5eed_5eed_000000000000.slice
for index in $(seq 1 {cgroups}); do
    scope=$pod/cri-containerd-$(printf '%064x' $index).scope
    # The kubelet removes pods that it does not know, at any time.
    mkdir -p $scope && rmdir $scope
done 2>/dev/null
rmdir $pod 2>/dev/null
[ ! -d $pod ]
"
    )
}
