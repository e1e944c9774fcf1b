//! `guard-agent record` with a real agent and real traffic.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use guard_agent::core::trace::{Header, Reader, Record};
use guard_common::Class;
use guard_tests::{
    eventually,
    net::NODE,
    pods::Container,
    process::{Traffic, kill, wait},
    sibling,
    world::{CONFIG, HEADERS, World},
};

/// A recorder; ended when dropped.
struct Recorder {
    child: Child,
    output: PathBuf,
}

/// What a trace says.
#[derive(Debug)]
struct Trace {
    header: Header,
    samples: Vec<u64>,
    /// By the container's name.
    containers: BTreeMap<String, Told>,
}

/// External bytes of egress and ingress.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    before: [u64; 2],
    moved: [u64; 2],
    gone: bool,
}

impl Recorder {
    fn start(world: &World, name: &str, duration: Option<&str>) -> Result<Self> {
        let output = world.setup.file(name);
        let mut command = Command::new(sibling("guard-agent")?);
        command.arg("record").arg("--socket").arg(world.agent().socket()).arg("--output").arg(&output);
        command.args(duration.iter().flat_map(|duration| ["--duration", duration]));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        Ok(Self { child, output })
    }

    /// Waits until what it has recorded so far is `whole`. It may break off in the middle of a record.
    fn wait(&self, what: &str, whole: impl Fn(&Trace) -> bool) -> Result<()> {
        eventually(what, Duration::from_secs(10), || {
            let trace = Trace::read(&self.output)?;
            ensure!(whole(&trace), "{trace:?}");
            Ok(())
        })
    }

    /// Waits for its end; whether that was a good one, and what it said.
    fn end(mut self) -> Result<(bool, String)> {
        let status = wait(&mut self.child, Duration::from_secs(10))?;
        let mut said = String::new();
        self.child.stderr.as_mut().context("it has a stderr")?.read_to_string(&mut said)?;
        Ok((status.success(), said))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Trace {
    fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let reader = Reader::new(&bytes)?;
        let mut trace = Self { header: reader.header(), samples: vec![], containers: BTreeMap::new() };
        let mut names = BTreeMap::new();
        for record in reader {
            match record? {
                Record::Appears(container) => {
                    let name = container.subject.names.container;
                    let told = Told { before: external(&container.totals), ..Told::default() };
                    ensure!(trace.containers.insert(name.clone(), told).is_none(), "{name} appears twice");
                    names.insert(container.id, name);
                }
                Record::Gone(id) => trace.of(&names[&id])?.gone = true,
                Record::Sample(sample) => {
                    trace.samples.push(sample.at);
                    for (id, moved) in sample.moved {
                        let told = trace.of(&names[&id])?;
                        let [egress, ingress] = external(&moved);
                        told.moved = [told.moved[0] + egress, told.moved[1] + ingress];
                    }
                }
            }
        }
        Ok(trace)
    }

    fn of(&mut self, name: &str) -> Result<&mut Told> {
        self.containers.get_mut(name).with_context(|| format!("no {name}"))
    }

    fn told(&self, container: &Container) -> Told {
        self.containers.get(container.label()).cloned().unwrap_or_default()
    }
}

fn external(totals: &guard_common::Totals) -> [u64; 2] {
    [&totals.egress, &totals.ingress].map(|tally| tally.bytes[Class::External as usize])
}

#[test]
fn a_recording_s_sums_are_the_meters() -> Result<()> {
    let world = World::new(CONFIG)?;
    let (_sink, container, goes) = (world.sink()?, world.container(1, 1)?, world.container(1, 2)?);
    let bind = format!("udp-sink --bind {}:9300", NODE[1]);
    let _ingress = Traffic::serve(&world.wires.node, Some(&container), &bind)?;
    let earlier = world.send(&container, 700, 30)?.bytes;
    world.agent().metrics()?;

    let recorder = Recorder::start(&world, "trace", None)?;
    recorder.wait("it records", |trace| !trace.samples.is_empty())?;
    let before = world.read(&[&container, &goes])?;
    let start = world.agent().metrics()?;
    world.send(&container, 900, 300)?;
    let received = format!("udp-send --to {}:9300 --sizes 500 --count 40", NODE[1]);
    Traffic::run(&world.wires.world, None, &received)?;
    let last = world.send(&goes, 300, 20)?.bytes;
    let comes = world.container(2, 1)?;
    let first = world.send(&comes, 400, 10)?.bytes;
    let wire = world.assert_exact(before, &[&container, &goes, &comes])?;
    goes.remove()?;
    // All that is in the series by now is in the trace, too.
    let end = world.agent().metrics()?;
    recorder.wait("it knows who has gone", |trace| trace.told(&goes).gone)?;
    kill(recorder.child.id(), libc::SIGTERM);
    let output = recorder.output.clone();
    let (success, said) = recorder.end()?;
    ensure!(success && said.contains("of 3 containers over"), "{said}");

    let trace = Trace::read(&output)?;
    let moved = |direction: &str| {
        let at = |metrics: &guard_tests::agent::Metrics| metrics.container(&container, direction, "external").bytes;
        at(&end) - at(&start)
    };
    let told = Told { before: [earlier, 0], moved: [moved("egress"), moved("ingress")], gone: false };
    ensure!(trace.told(&container) == told, "{:?} instead of {told:?}", trace.told(&container));
    ensure!(told.moved == [300 * (900 + HEADERS), 40 * (500 + HEADERS)], "{told:?}");
    ensure!(trace.told(&goes) == Told { before: [0; 2], moved: [last, 0], gone: true }, "{trace:?}");
    ensure!(trace.told(&comes) == Told { before: [0; 2], moved: [first, 0], gone: false }, "{trace:?}");
    let sum: u64 = trace.containers.values().map(|told| told.moved[0]).sum();
    ensure!(sum == wire.tx.bytes, "{sum} bytes are recorded, {} left", wire.tx.bytes);
    ensure!(trace.samples[0] >= trace.header.at && trace.samples.is_sorted(), "{trace:?}");
    Ok(())
}

#[test]
fn a_recording_ends_after_its_duration_and_overwrites_no_file() -> Result<()> {
    let world = World::new(CONFIG)?;
    let _container = world.container(1, 1)?;
    let start = Instant::now();
    let recorder = Recorder::start(&world, "trace", Some("2s"))?;
    let output = recorder.output.clone();
    let (success, said) = recorder.end()?;
    let took = start.elapsed().as_secs_f64();
    ensure!(success && said.contains("recorded ") && said.contains(&format!("{}", output.display())), "{said}");
    ensure!((2.0..4.0).contains(&took), "it took {took} s instead of 2");
    let trace = Trace::read(&output)?;
    // A sample each 100 ms, where the machine is not too busy.
    ensure!((10..=22).contains(&trace.samples.len()), "{} samples in 2 s", trace.samples.len());

    let whole = fs::read(&output)?;
    let (success, said) = Recorder::start(&world, "trace", Some("1s"))?.end()?;
    ensure!(!success && said.contains("is there already") && said.contains("--output"), "{said}");
    ensure!(fs::read(&output)? == whole, "the recording is not what it was");
    Ok(())
}

#[test]
fn a_recording_ends_with_its_agent_and_keeps_what_it_has() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    let (_sink, container) = (world.sink()?, world.container(1, 1)?);
    let recorder = Recorder::start(&world, "trace", None)?;
    recorder.wait("it records", |trace| !trace.samples.is_empty())?;
    let sent = world.send(&container, 600, 25)?.bytes;
    recorder.wait("it has it all", |trace| trace.told(&container).moved[0] == sent)?;
    world.agent.take().context("it runs")?.signal(libc::SIGKILL)?;
    let output = recorder.output.clone();
    match recorder.end()? {
        (false, said) if said.contains("the agent ended") => {}
        other => bail!("{other:?}"),
    }
    let trace = Trace::read(&output)?;
    ensure!(trace.told(&container).moved[0] == sent, "{trace:?} instead of {sent}");
    Ok(())
}
