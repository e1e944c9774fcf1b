//! The kill switch's command, socket and pin: with an agent, with one that hangs, and without any.

use std::{
    ffi::CString,
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use guard_agent::{
    kernel::{
        kill_switch::{Engaged, KillSwitch, Source},
        object::{OBJECT, Options, Programs},
        pins::Pins,
        sys,
    },
    kill_switch::{Change, Status, View},
};
use guard_tests::{
    agent::Setup,
    eventually,
    pods::Pods,
    require_root, sibling,
    world::{CONFIG, World},
};

/// Nothing listens there.
const NO_SOCKET: &str = "/nowhere.sock";

/// A folder in bpffs, removed in the end; not made.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        require_root()?;
        Ok(Self(Path::new("/sys/fs/bpf").join(guard_tests::unique())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let removed = Pins::existing(&self.0).map(|pins| pins.map(|pins| pins.remove_all(false)));
        if !matches!(removed, Ok(None | Some(Ok(_)))) {
            eprintln!("left behind {}: {removed:?}", self.0.display());
        }
    }
}

fn run(arguments: &[&str], bpffs: &Path, socket: &Path) -> Result<Output> {
    let mut command = Command::new(sibling("guard-agent")?);
    command.arg("kill-switch").args(arguments).arg("--bpffs").arg(bpffs).arg("--socket").arg(socket);
    Ok(command.env_remove("SUDO_UID").output()?)
}

/// Runs a verb that must succeed; returns what it said.
fn verb(arguments: &[&str], bpffs: &Path, socket: &Path) -> Result<String> {
    let output = run(arguments, bpffs, socket)?;
    ensure!(output.status.success(), "{arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn status(bpffs: &Path) -> Result<Status> {
    let said = verb(&["status", "--json"], bpffs, Path::new(NO_SOCKET))?;
    serde_json::from_str(&said).with_context(|| said)
}

/// One request; returns the answer's status and body.
fn http(socket: &Path, method: &str, body: &str) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    let length = body.len();
    write!(stream, "{method} /kill-switch HTTP/1.1\r\nhost: agent\r\ncontent-length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
    let code = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((code, body.to_owned()))
}

#[test]
fn engaged_before_any_agent_ran_it_holds_for_the_first() -> Result<()> {
    require_root()?;
    let pods = Pods::new()?;
    let setup = Setup::new(&pods, CONFIG)?;
    let nowhere = Path::new(NO_SOCKET);

    let said = verb(&["status"], &setup.bpffs, nowhere)?;
    ensure!(said.starts_with(&format!("not engaged (nothing is pinned at {})\n", setup.bpffs.display())), "{said}");
    ensure!(status(&setup.bpffs)? == Status::default());
    ensure!(!setup.bpffs.exists(), "status made the folder");

    let before = SystemTime::now();
    let said = verb(&["on", "--reason", "a drill"], &setup.bpffs, nowhere)?;
    ensure!(said.contains(", via guard-agent kill-switch: a drill\n"), "{said}");
    ensure!(said.contains("lifts every containment at once") && said.contains("no agent answers at"), "{said}");
    let engaged = status(&setup.bpffs)?;
    ensure!(engaged.engaged && engaged.by.len() == 1 && engaged.by[0].source == "operator", "{engaged:?}");
    let switch = KillSwitch::existing(&setup.bpffs)?.context("it is pinned")?;
    let since = switch.engagements()?[0].as_ref().context("engaged")?.since;
    ensure!((before..=SystemTime::now()).contains(&since), "{since:?} is not now");

    // The agent's programs take the very map over.
    let agent = setup.start()?;
    let (code, body) = http(agent.socket(), "GET", "")?;
    ensure!((code, serde_json::from_str::<Status>(&body)?) == (200, engaged.clone()), "{code} {body}");
    let held = maps(agent.pid())?.into_iter().filter(|id| *id == map_id(&setup.bpffs).unwrap_or(0)).count();
    ensure!(held == 2, "the agent and its programs should hold the map once each, not {held} times");
    let metrics = agent.scrape()?;
    for (source, value) in [("operator", 1), ("file", 0), ("cluster", 0)] {
        let series = format!("egress_guard_kill_switch{{source=\"{source}\"}}");
        ensure!(metrics.get(&series) == Some(value), "{series}: {:?}", metrics.get(&series));
    }

    // Another agent, and one that is killed, change nothing.
    agent.signal(libc::SIGKILL)?;
    ensure!(status(&setup.bpffs)? == engaged);
    let agent = setup.start()?;
    ensure!(status(&setup.bpffs)? == engaged);
    let said = verb(&["off"], &setup.bpffs, agent.socket())?;
    ensure!(said.contains("a drill") && said.contains("answers, and goes by it"), "{said}");
    ensure!(agent.scrape()?.get("egress_guard_kill_switch{source=\"operator\"}") == Some(0));
    ensure!(status(&setup.bpffs)? == Status::default());
    Ok(())
}

fn map_id(bpffs: &Path) -> Result<u32> {
    let pin = sys::obj_get(&CString::new(bpffs.join("kill-switch").as_os_str().as_bytes())?)?;
    Ok(sys::map_info(pin.as_fd())?.id)
}

/// The ids of the maps that a process holds.
fn maps(pid: u32) -> Result<Vec<u32>> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten();
    let texts = infos.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let ids = texts.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok()));
    Ok(ids.collect())
}

#[test]
fn it_needs_no_agent_that_answers() -> Result<()> {
    let world = World::new(CONFIG)?;
    let (bpffs, socket) = (&world.setup.bpffs, world.agent().socket());
    world.agent().stop_and_continue(|| {
        let start = Instant::now();
        let said = verb(&["on"], bpffs, socket)?;
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(1), "it took {took:?}");
        ensure!(said.contains("does not answer: it hangs") && said.contains("is engaged, by operator"), "{said}");
        let said = verb(&["status"], bpffs, socket)?;
        ensure!(said.starts_with("engaged: ") && said.contains("by operator since 2"), "{said}");
        let again = verb(&["on", "--reason", "second"], bpffs, socket)?;
        ensure!(again.contains("was engaged already") && again.contains(": second"), "{again}");
        Ok(())
    })?;
    let by = status(bpffs)?;
    eventually("the agent sees it", Duration::from_secs(2), || {
        let (_, body) = http(socket, "GET", "")?;
        ensure!(serde_json::from_str::<Status>(&body)? == by, "{body}");
        Ok(())
    })
}

#[test]
fn orders_come_in_through_the_socket_and_never_over_tcp() -> Result<()> {
    let world = World::new(CONFIG)?;
    let socket = world.agent().socket();
    let (code, body) = http(socket, "POST", r#"{"engaged": true, "who": "ann\n", "reason": "drill"}"#)?;
    let answer: Status = serde_json::from_str(&body)?;
    ensure!(code == 200 && answer.engaged && answer.by[0].who == "ann , via the socket: drill", "{code} {body}");
    ensure!(status(&world.setup.bpffs)? == answer);
    let long = format!(r#"{{"engaged": false, "reason": "{}"}}"#, "x".repeat(5000));
    for (wrong, expected) in [
        (r#"{"engaged": false, "force": true}"#, 400),
        (r#"{"engaged": "no"}"#, 400),
        (r#"{"who": "ann"}"#, 400),
        ("", 400),
        ("off", 400),
        (&long, 413),
    ] {
        let (code, body) = http(socket, "POST", wrong)?;
        ensure!(code == expected, "{wrong} is answered {code}: {body}");
    }
    ensure!(http(socket, "DELETE", "")?.0 == 405);
    ensure!(world.agent().get("/kill-switch").is_err(), "it is served over TCP");
    ensure!(status(&world.setup.bpffs)? == answer, "something that was refused has changed it");
    let (code, body) = http(socket, "POST", r#"{"engaged": false}"#)?;
    ensure!(code == 200 && serde_json::from_str::<Status>(&body)? == Status::default(), "{code} {body}");
    ensure!(status(&world.setup.bpffs)? == Status::default());
    Ok(())
}

#[test]
fn released_by_one_it_stays_engaged_by_another() -> Result<()> {
    let folder = Folder::new()?;
    let switch = Arc::new(KillSwitch::open(&folder.0, &[])?);
    let mut agent = View::new(Arc::clone(&switch));
    ensure!(agent.poll()?.is_none() && !agent.engaged());
    agent.set_file(true, Path::new("/etc/guard.yaml"))?;
    verb(&["on"], &folder.0, Path::new(NO_SOCKET))?;
    let change = agent.poll()?;
    ensure!(matches!(&change, Some(Change::Engaged(by)) if by.len() == 2) && agent.engaged(), "{change:?}");
    ensure!(agent.poll()?.is_none(), "it is said twice");

    let off = run(&["off"], &folder.0, Path::new(NO_SOCKET))?;
    let said = String::from_utf8(off.stderr)?;
    ensure!(off.status.code() == Some(1) && said.lines().count() == 1, "{said}");
    for part in ["STILL ENGAGED by file", "killSwitch: true in /etc/guard.yaml", "set `killSwitch: false` in that file"]
    {
        ensure!(said.contains(part), "{said}\ndoes not say {part:?}");
    }
    let left = status(&folder.0)?;
    ensure!(left.engaged && left.by.len() == 1 && left.by[0].source == "file", "{left:?}");
    ensure!(matches!(agent.poll()?, Some(Change::Engaged(by)) if by == left.by));
    agent.set_file(false, Path::new("/etc/guard.yaml"))?;
    ensure!(matches!(agent.poll()?, Some(Change::Released(by)) if by == left.by) && !agent.engaged());
    let said = verb(&["off"], &folder.0, Path::new(NO_SOCKET))?;
    ensure!(said.starts_with("the kill switch was not engaged by the operator\n"), "{said}");
    Ok(())
}

#[test]
fn sources_do_not_get_into_each_others_way() -> Result<()> {
    const TIMES: usize = 5000;
    let folder = Folder::new()?;
    // Whoever makes the map, all have the same.
    let switches: Vec<_> = thread::scope(|scope| {
        let open = || scope.spawn(|| KillSwitch::open(&folder.0, &[]));
        let opening: Vec<_> = (0..8).map(|_| open()).collect();
        opening.into_iter().map(|thread| thread.join().expect("it does not panic")).collect::<Result<_, _>>()
    })?;
    switches[0].engage(Source::File, "the file")?;
    let file = switches[0].engagements()?[Source::File as usize].clone();
    for switch in &switches {
        ensure!(switch.engagements()?[Source::File as usize] == file, "one has another map");
    }
    thread::scope(|scope| {
        let flip = |switch, source| {
            scope.spawn(move || {
                let switch: &KillSwitch = switch;
                for _ in 0..TIMES {
                    switch.engage(source, "flip")?;
                    switch.release(source)?;
                }
                anyhow::Ok(())
            })
        };
        let flips = [flip(&switches[1], Source::Operator), flip(&switches[2], Source::Cluster)];
        for _ in 0..TIMES {
            switches[3].engage(Source::File, "the file")?;
            let now = switches[3].engagements()?[Source::File as usize].clone();
            ensure!(now == file, "{now:?} instead of {file:?}");
            ensure!(switches[3].engaged());
        }
        flips.into_iter().try_for_each(|flip| flip.join().expect("it does not panic"))
    })?;
    let [operator, left, cluster, other] = switches[4].engagements()?;
    ensure!((operator, cluster, other) == (None, None, None) && left == file);
    Ok(())
}

#[test]
fn cleanup_keeps_one_that_is_engaged_and_removes_one_that_is_not() -> Result<()> {
    let mut world = World::new(CONFIG)?;
    let bpffs = world.setup.bpffs.clone();
    world.agent.take().context("the agent runs")?.signal(libc::SIGTERM)?;
    verb(&["on", "--reason", "keep me"], &bpffs, Path::new(NO_SOCKET))?;
    let engaged = status(&bpffs)?;
    let cleanup = || -> Result<String> {
        let output = Command::new(&world.setup.binary).arg("cleanup").arg("--bpffs").arg(&bpffs).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let said = cleanup()?;
    ensure!(said.contains("kept the kill switch, which is engaged"), "{said}");
    let left: Vec<_> = fs::read_dir(&bpffs)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["kill-switch"] && status(&bpffs)? == engaged, "{left:?}");
    verb(&["off"], &bpffs, Path::new(NO_SOCKET))?;
    ensure!(cleanup()?.starts_with("removed 1 pins"));
    ensure!(!bpffs.exists(), "the folder is still there");
    Ok(())
}

#[test]
fn after_a_reboot_what_was_remembered_holds_unless_it_was_released() -> Result<()> {
    let engaged = Engaged { since: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000), who: "ann".into() };
    let remembered = [(Source::Operator, engaged.clone()), (Source::Cluster, engaged.clone())];
    let folder = Folder::new()?;
    let switch = Arc::new(KillSwitch::open(&folder.0, &remembered)?);
    let agent = View::new(Arc::clone(&switch));
    for source in [Source::Operator, Source::Cluster] {
        ensure!(agent.engaged() && agent.engaged_by(source)? == Some(engaged.clone()), "{source:?}");
        switch.release(source)?;
    }
    // The pin says more than what is remembered.
    ensure!(!KillSwitch::open(&folder.0, &remembered)?.engaged());

    let fresh = Folder::new()?;
    verb(&["off"], &fresh.0, Path::new(NO_SOCKET))?;
    ensure!(!KillSwitch::open(&fresh.0, &remembered)?.engaged(), "it was released before the agent started");
    Ok(())
}

#[test]
fn what_is_pinned_in_its_place_is_refused() -> Result<()> {
    require_root()?;
    let pods = Pods::new()?;
    let setup = Setup::new(&pods, CONFIG)?;
    let programs = Programs::load(Options { object: OBJECT, slots: 2, log: false, pins: None })?;
    fs::create_dir(&setup.bpffs)?;
    let pin = setup.bpffs.join("kill-switch");
    for other in ["EVENTS_LOST", "EVIDENCE", "COUNTERS"] {
        sys::obj_pin(programs.map(other)?, &CString::new(pin.as_os_str().as_bytes())?)?;
        let expected = format!("{} is no kill switch of this program: stop what uses it", pin.display());
        for arguments in [&["on"][..], &["off"], &["status"]] {
            let output = run(arguments, &setup.bpffs, Path::new(NO_SOCKET))?;
            let said = String::from_utf8(output.stderr)?;
            ensure!(output.status.code() == Some(1) && said.contains(&expected), "{other}, {arguments:?}: {said}");
        }
        let (code, said) = setup.fail(|_| {})?;
        ensure!(code == Some(1) && said.contains(&expected), "the agent with {other}: {said}");
        fs::remove_file(&pin)?;
    }
    Ok(())
}

#[test]
fn an_agent_with_other_pins_is_told() -> Result<()> {
    let world = World::new(CONFIG)?;
    let folder = Folder::new()?;
    let on = run(&["on"], &folder.0, world.agent().socket())?;
    let said = String::from_utf8(on.stderr)?;
    ensure!(on.status.code() == Some(1), "{said}");
    ensure!(on.stdout.is_empty() && said.contains("to no effect: the agent at"), "{said}");
    ensure!(said.contains("goes by another kill switch, and that is not engaged: pass the --bpffs"), "{said}");
    let said = verb(&["status"], &folder.0, world.agent().socket())?;
    ensure!(said.contains("BUT the agent at"), "{said}");
    Ok(())
}
