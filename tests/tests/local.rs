//! Eviction without a cluster: real processes in real cgroups.

use std::{
    cell::Cell,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{fs::MetadataExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use guard_agent::{
    core::identity::Labels,
    node::hierarchy,
    orchestrator::local::{EvictError, Local, Outcome, Protection, Target},
};
use guard_tests::{pods::Pods, process::wait, require_root};

/// Ends when it is asked to.
const OBEYS: &str = "echo ready; exec sleep 60";
/// Does not.
const IGNORES: &str = "trap '' TERM; echo ready; for i in $(seq 600); do sleep 0.1; done";
/// Does not, and starts new processes all the time, in groups and sessions of their own too.
const FORKS: &str = "trap '' TERM; echo ready; \
                     for i in $(seq 2000); do sleep 1 & setsid sleep 1 & sleep 0.01; done";

/// More than it takes when nobody waits for the grace.
const SOON: Duration = Duration::from_secs(2);

/// A pods' tree whose processes end with it.
struct World {
    pods: Pods,
    root: PathBuf,
}

/// A shell in a cgroup.
struct Shell(Child);

impl World {
    fn new() -> Result<Self> {
        require_root()?;
        Ok(Self { pods: Pods::new()?, root: hierarchy::cgroup_root(None)? })
    }

    fn target(&self, cgroup: &Path) -> Result<Target> {
        let path = cgroup.strip_prefix(&self.root)?.to_str().context("a cgroup's name is text")?;
        let cgroup_id = fs::metadata(cgroup)?.ino();
        Ok(Target { cgroup_id, cgroup_path: format!("/{path}"), labels: Labels::default() })
    }

    fn evict(&self, cgroup: &Path, grace: Duration) -> Result<Outcome> {
        evict(&self.root, &self.target(cgroup)?, grace, || false)
    }
}

fn evict(root: &Path, target: &Target, grace: Duration, kill_switch: impl Fn() -> bool) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    Ok(runtime.block_on(Local::new(root.to_owned())?.evict(target, grace, kill_switch)))
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.pods.base.join("cgroup.kill"), "1") {
            eprintln!("processes are left: {error}");
        }
    }
}

impl Shell {
    /// Starts a shell in a cgroup and waits until it is ready.
    fn start(cgroup: &Path, script: &str) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec sh -c \"$1\""]).arg(cgroup).arg(script);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("it has a stdout")?).read_line(&mut line)?;
        if line != "ready\n" {
            bail!("the shell says {line:?}, and ends with {}", wait(&mut child, SOON)?);
        }
        Ok(Self(child))
    }

    /// The signal that ended it.
    fn signal(&mut self) -> Result<Option<i32>> {
        Ok(wait(&mut self.0, SOON)?.signal())
    }

    fn lives(&mut self) -> Result<bool> {
        // It would need a moment to die.
        thread::sleep(Duration::from_millis(50));
        Ok(self.0.try_wait()?.is_none())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn is_empty(cgroup: &Path) -> Result<bool> {
    Ok(fs::read_to_string(cgroup.join("cgroup.events"))?.contains("populated 0"))
}

#[test]
fn who_obeys_sigterm_ends_within_the_grace_and_nobody_else_does() -> Result<()> {
    let world = World::new()?;
    let (container, other) = (world.pods.container(1, 1)?, world.pods.container(1, 2)?);
    let nested = container.nested("a/b")?;
    let mut shells = [Shell::start(&container.path, OBEYS)?, Shell::start(&nested.path, OBEYS)?];
    let mut neighbour = Shell::start(&other.path, OBEYS)?;
    let begun = Instant::now();
    let outcome = world.evict(&container.path, Duration::from_secs(20))?;
    ensure!(matches!(outcome, Outcome::Done { killed: false }), "{outcome:?}");
    ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    for shell in &mut shells {
        ensure!(shell.signal()? == Some(libc::SIGTERM), "{:?}", shell.signal());
    }
    ensure!(neighbour.lives()?, "the container beside it was hit");
    Ok(())
}

#[test]
fn who_ignores_it_is_killed_after_the_grace_and_nobody_else_is() -> Result<()> {
    const GRACE: Duration = Duration::from_millis(500);
    let world = World::new()?;
    let (container, other) = (world.pods.container(1, 1)?, world.pods.container(1, 2)?);
    let nested = container.nested("a/b")?;
    let mut obeys = Shell::start(&container.path, OBEYS)?;
    let mut shells = [Shell::start(&container.path, FORKS)?, Shell::start(&nested.path, IGNORES)?];
    let mut neighbour = Shell::start(&other.path, IGNORES)?;
    let begun = Instant::now();
    let outcome = world.evict(&container.path, GRACE)?;
    ensure!(matches!(outcome, Outcome::Done { killed: true }), "{outcome:?}");
    ensure!((GRACE..GRACE + SOON).contains(&begun.elapsed()), "it took {:?}", begun.elapsed());
    ensure!(is_empty(&container.path)?, "not all are gone");
    ensure!(obeys.signal()? == Some(libc::SIGTERM), "{:?}", obeys.signal());
    for shell in &mut shells {
        ensure!(shell.signal()? == Some(libc::SIGKILL), "{:?}", shell.signal());
    }
    ensure!(neighbour.lives()?, "the container beside it was hit");
    Ok(())
}

#[test]
fn another_cgroup_of_the_same_path_is_not_hit() -> Result<()> {
    let world = World::new()?;
    let container = world.pods.container(1, 1)?;
    let target = world.target(&container.path)?;
    container.remove()?;
    let outcome = evict(&world.root, &target, Duration::ZERO, || false)?;
    ensure!(matches!(outcome, Outcome::Gone), "removed: {outcome:?}");
    let again = world.pods.container(1, 1)?;
    let mut shell = Shell::start(&again.path, OBEYS)?;
    let outcome = evict(&world.root, &target, Duration::ZERO, || false)?;
    ensure!(matches!(outcome, Outcome::Gone), "made again: {outcome:?}");
    ensure!(shell.lives()?, "the new container was hit");
    Ok(())
}

#[test]
fn what_a_quick_supervisor_starts_meanwhile_is_not_hit() -> Result<()> {
    // Right before SIGTERM, and right before SIGKILL, which is when the kill switch is asked.
    for swapped_at in [1, 2] {
        let world = World::new()?;
        let container = world.pods.container(1, 1)?;
        let target = world.target(&container.path)?;
        let old = Cell::new(Some(Shell::start(&container.path, IGNORES)?));
        let (asked, fresh) = (Cell::new(0), Cell::new(None));
        let swap = || {
            asked.set(asked.get() + 1);
            if asked.get() == swapped_at {
                fs::write(container.path.join("cgroup.kill"), "1")?;
                drop(old.take());
                container.remove()?;
                fresh.set(Some(Shell::start(&world.pods.container(1, 1)?.path, OBEYS)?));
            }
            anyhow::Ok(())
        };
        let failed = Cell::new(None);
        let asks = || swap().map_err(|error| failed.set(Some(error))).is_err();
        let outcome = evict(&world.root, &target, Duration::from_millis(100), asks)?;
        if let Some(error) = failed.take() {
            return Err(error.context(format!("swapping the containers before signal {swapped_at}")));
        }
        ensure!(matches!(outcome, Outcome::Done { killed } if killed == (swapped_at == 2)), "{outcome:?}");
        ensure!(fresh.take().context("nothing was started")?.lives()?, "the fresh container was hit");
    }
    Ok(())
}

#[test]
fn the_kill_switch_stops_it_before_each_signal() -> Result<()> {
    let world = World::new()?;
    let container = world.pods.container(1, 1)?;
    let target = world.target(&container.path)?;
    let (mut obeys, mut ignores) = (Shell::start(&container.path, OBEYS)?, Shell::start(&container.path, IGNORES)?);
    let outcome = evict(&world.root, &target, Duration::ZERO, || true)?;
    ensure!(matches!(outcome, Outcome::KillSwitch), "{outcome:?}");
    ensure!(obeys.lives()?, "SIGTERM was sent with the kill switch engaged");

    let asked = Cell::new(0);
    let between = || asked.replace(asked.get() + 1) > 0;
    let outcome = evict(&world.root, &target, Duration::from_millis(200), between)?;
    ensure!(matches!(outcome, Outcome::KillSwitch), "{outcome:?}");
    ensure!(obeys.signal()? == Some(libc::SIGTERM), "{:?}", obeys.signal());
    ensure!(ignores.lives()?, "SIGKILL was sent with the kill switch engaged");
    ensure!(asked.get() == 2, "asked {} times", asked.get());
    Ok(())
}

/// Set for a test that has a process of its own: what its process does to itself hits no other test's children.
const ALONE: &str = "EGRESS_GUARD_TEST_ALONE";

/// Whether this is a test's own process. If not, that is run here, to its end.
fn is_alone(test: &str) -> Result<bool> {
    if std::env::var_os(ALONE).is_some() {
        return Ok(true);
    }
    let output = Command::new(std::env::current_exe()?).args(["--exact", test]).env(ALONE, "").output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(false)
}

/// This process in another cgroup, until it is dropped.
struct Moved(PathBuf);

impl Moved {
    fn to(root: &Path, cgroup: &Path) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("a cgroup v2 line")?;
        let back = Self(root.join(own));
        fs::write(cgroup.join("cgroup.procs"), "0")?;
        Ok(back)
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.0.join("cgroup.procs"), "0") {
            eprintln!("this process stays where it is: {error}");
        }
    }
}

#[test]
fn the_agents_cgroup_and_the_root_are_protected() -> Result<()> {
    if !is_alone("the_agents_cgroup_and_the_root_are_protected")? {
        return Ok(());
    }
    let world = World::new()?;
    let container = world.pods.container(1, 1)?;
    let (beneath, beside) = (container.nested("a/b")?, world.pods.container(1, 2)?);
    let mut shell = Shell::start(&beneath.path, OBEYS)?;
    let moved = Moved::to(&world.root, &container.path)?;
    let protected = |cgroup: &Path| match world.evict(cgroup, Duration::ZERO)? {
        Outcome::Protected(why) => Ok(why),
        outcome => anyhow::bail!("{}: {outcome:?}", cgroup.display()),
    };
    // Itself, those above it, those beneath it.
    let above = container.path.ancestors().take_while(|path| *path != world.root);
    for cgroup in above {
        ensure!(protected(cgroup)? == Protection::Agent, "{}", cgroup.display());
    }
    ensure!(protected(&beneath.path)? == Protection::AgentsOwn);
    ensure!(protected(&world.root)? == Protection::Root);
    ensure!(shell.lives()?, "a process was hit");
    // One beside it is not protected.
    let mut other = Shell::start(&beside.path, OBEYS)?;
    let outcome = world.evict(&beside.path, SOON)?;
    ensure!(matches!(outcome, Outcome::Done { killed: false }), "{outcome:?}");
    ensure!(other.signal()? == Some(libc::SIGTERM));
    drop(moved);
    Ok(())
}

/// Where the half of the next test that runs in a pid namespace finds the cgroups.
const INIT: &str = "EGRESS_GUARD_TEST_INIT";

#[test]
fn pid_1_is_protected_and_what_is_not_seen_is_not_touched() -> Result<()> {
    if let Ok(cgroups) = std::env::var(INIT) {
        return within_a_pid_namespace(&cgroups);
    }
    let world = World::new()?;
    let cgroups = [1, 2, 3].map(|index| world.pods.container(1, index));
    let [init, agent, foreign] = cgroups;
    let (init, agent, foreign) = (init?, agent?, foreign?);
    let mut shell = Shell::start(&foreign.path, OBEYS)?;
    // Pid 1 of a pid namespace is in the first cgroup; this test's other half moves to the second.
    let script = "echo 0 > \"$0/cgroup.procs\"; \"$@\"; exit $?";
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "sh", "-c", script]).arg(&init.path).arg(std::env::current_exe()?);
    command.args(["--exact", "pid_1_is_protected_and_what_is_not_seen_is_not_touched"]);
    let paths = [&init, &agent, &foreign].map(|cgroup| cgroup.path.as_os_str());
    let output = command.env(INIT, paths.join(std::ffi::OsStr::new(":"))).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(shell.lives()?, "a process was hit");
    Ok(())
}

/// The other half of it.
fn within_a_pid_namespace(cgroups: &str) -> Result<()> {
    let paths: Vec<&Path> = cgroups.split(':').map(Path::new).collect();
    let [init, agent, foreign] = paths[..] else { anyhow::bail!("three paths instead of {paths:?}") };
    let root = hierarchy::cgroup_root(None)?;
    fs::write(agent.join("cgroup.procs"), "0")?;
    let outcome = |cgroup: &Path| {
        let path = cgroup.strip_prefix(&root)?.to_string_lossy().into_owned();
        let target = Target { cgroup_id: fs::metadata(cgroup)?.ino(), cgroup_path: path, labels: Labels::default() };
        evict(&root, &target, Duration::ZERO, || false)
    };
    let protected = outcome(init)?;
    ensure!(matches!(protected, Outcome::Protected(Protection::Init)), "{protected:?}");
    let unseen = outcome(foreign)?;
    ensure!(matches!(unseen, Outcome::Failed(EvictError::OtherPids)), "{unseen:?}");
    Ok(())
}

#[test]
fn a_threaded_cgroup_is_refused_and_its_domain_is_not() -> Result<()> {
    let world = World::new()?;
    let container = world.pods.container(1, 1)?;
    let threaded = container.nested("threaded")?;
    fs::write(threaded.path.join("cgroup.type"), "threaded")?;
    let mut shell = Shell::start(&threaded.path, IGNORES)?;
    let outcome = world.evict(&threaded.path, Duration::ZERO)?;
    ensure!(matches!(&outcome, Outcome::Failed(EvictError::Threaded(kind)) if kind == "threaded"), "{outcome:?}");
    ensure!(shell.lives()?, "it was hit all the same");
    let outcome = world.evict(&container.path, Duration::ZERO)?;
    ensure!(matches!(outcome, Outcome::Done { killed: true }), "{outcome:?}");
    ensure!(shell.signal()? == Some(libc::SIGKILL));
    Ok(())
}

#[test]
fn a_kernel_without_cgroup_kill_is_told_before_anything_is_done() -> Result<()> {
    let world = World::new()?;
    let container = world.pods.container(1, 1)?;
    let mut shell = Shell::start(&container.path, OBEYS)?;
    // Looks like a cgroup of such a kernel.
    let root = std::env::temp_dir().join(guard_tests::unique());
    let cgroup = root.join("a");
    fs::create_dir_all(&cgroup)?;
    for name in ["cgroup.type", "cgroup.procs", "cgroup.controllers", "cgroup.events"] {
        fs::copy(container.path.join(name), cgroup.join(name))?;
    }
    let target = Target { cgroup_id: fs::metadata(&cgroup)?.ino(), cgroup_path: "a".into(), labels: Labels::default() };
    let outcome = evict(&root, &target, Duration::ZERO, || false)?;
    fs::remove_dir_all(&root)?;
    ensure!(matches!(outcome, Outcome::Failed(EvictError::NoKill)), "{outcome:?}");
    ensure!(shell.lives()?, "it was hit all the same");
    Ok(())
}
