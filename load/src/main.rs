//! `load`: the only program in the images of the whole-node tests' pods. It serves HTTP, polls a service, and sends what it
//! is told to.
//!
//! ```text
//! load pause                                      waits to be ended
//! load serve [--port 8080] [--send TO,SIZE,RATE]... [--poll IP:PORT [--every MS]] [--drain SECONDS]
//! load send TO,SIZE,RATE,SECONDS                  sends and ends
//! load get IP:PORT/PATH                           prints the answer, fails unless it is 200
//! load nest NAME ARGUMENTS...                     goes on with ARGUMENTS in a cgroup of this name beneath its own
//! load enter FOLDER ARGUMENTS...                  goes on with ARGUMENTS in this cgroup
//! load churn COUNT TO,SIZE,RATE,SECONDS           makes so many pods' cgroups, has a process of its own send in each, and removes it
//! load world                                      takes everything that comes: UDP 9100, TCP 9101, HTTP 80
//! ```
//!
//! TO is `udp:IP:PORT`, `tcp:IP:PORT`, or `frames:INTERFACE` past the IP stack; SIZE the payload of a datagram, write or frame in bytes, RATE payload bytes per second.
//!
//! `serve` goes on for `--drain` seconds when it is to end (SIGTERM), as who is behind a service has to: nodes hear late that
//! a pod is not to be asked any more. What it answers: `/` its host's name; `/send?TO,SIZE,RATE` begins a stream, in the place of the one to the same
//! address, and says when (Unix time in nanoseconds); `/stop` ends all streams; `/sent` what they have sent so far, and
//! `/polled` what the poll found, both as JSON.

mod http;
mod poll;
mod stream;

use std::{
    fs,
    io::ErrorKind,
    net::{TcpListener, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{
    poll::Poll,
    stream::{Order, Streams},
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        [] | ["pause"] => pause(),
        ["serve", options @ ..] => serve(options),
        ["send", order] => send(order),
        ["get", url] => {
            print!("{}", http::get(url, Duration::from_secs(30))?);
            Ok(())
        }
        ["nest", name, rest @ ..] => nest(name).and_then(|()| run(rest)),
        ["enter", folder, rest @ ..] => enter(Path::new(folder)).and_then(|()| run(rest)),
        ["churn", count, order] => churn(count.parse()?, order),
        ["world"] => world(),
        _ => bail!("no such arguments: {arguments:?}"),
    }
}

/// Ends the process so long after it is asked to.
fn end_after(drain: Duration) -> Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&asked))?;
    }
    thread::spawn(move || {
        while !asked.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(50));
        }
        thread::sleep(drain);
        std::process::exit(0);
    });
    Ok(())
}

fn pause() -> Result<()> {
    end_after(Duration::ZERO)?;
    loop {
        thread::park();
    }
}

fn serve(mut options: &[&str]) -> Result<()> {
    let (mut port, mut every, mut polled) = (8080, Duration::from_millis(200), None);
    let mut drain = Duration::ZERO;
    let streams = Arc::new(Streams::default());
    while let [name, value, rest @ ..] = options {
        match *name {
            "--port" => port = value.parse()?,
            "--every" => every = Duration::from_millis(value.parse()?),
            "--poll" => polled = Some(*value),
            "--drain" => drain = Duration::from_secs(value.parse()?),
            "--send" => drop(streams.begin(value.parse()?)?),
            _ => bail!("no such option: {name}"),
        }
        options = rest;
    }
    ensure!(options.is_empty(), "an option without a value: {options:?}");
    end_after(drain)?;
    let poll = Arc::new(Poll::default());
    if let Some(address) = polled {
        let (poll, address) = (Arc::clone(&poll), address.to_owned());
        thread::spawn(move || poll.run(&address, every));
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?;
    let listener = TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("bind port {port}"))?;
    http::serve(&listener, move |path, query| match path {
        "/" => Ok(host.clone()),
        "/send" => streams.begin(query.parse()?).map(|began| format!("{began}\n")),
        "/stop" => streams.stop().map(|()| "stopped\n".to_owned()),
        "/sent" => Ok(streams.json()),
        "/polled" => Ok(poll.json()),
        _ => bail!("nothing is at {path}"),
    })
}

/// `TO,SIZE,RATE,SECONDS`
fn send(order: &str) -> Result<()> {
    end_after(Duration::ZERO)?;
    let (order, seconds) = order.rsplit_once(',').context("no seconds")?;
    let order: Order = order.parse()?;
    let streams = Streams::default();
    streams.begin(order)?;
    thread::sleep(Duration::from_secs_f64(seconds.parse()?));
    streams.stop()?;
    print!("{}", streams.json());
    Ok(())
}

/// A cgroup beneath the container's own, which is the root of its cgroup namespace, or, if it is privileged, lies where the
/// host has it. The filesystem must be mounted writable, as it is for privileged containers.
fn nest(name: &str) -> Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2")?;
    let cgroup = Path::new("/sys/fs/cgroup").join(own).join(name);
    fs::create_dir_all(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
    enter(&cgroup)
}

fn enter(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("enter {}", cgroup.display()))
}

/// Cgroups as a runtime makes them under systemd, one after the other, of pods that the kubelet does not know: it may end
/// their processes, and remove them, at any time. Prints how many have sent all that they were to, and how many cgroups
/// are left.
fn churn(count: u32, order: &str) -> Result<()> {
    let (mut sent, mut left) = (0, 0);
    for number in 1..=count {
        let pod = format!("kubepods-besteffort-pod{number:08x}_5eed_5eed_5eed_000000000000.slice");
        let pod = Path::new("/sys/fs/cgroup/kubepods.slice/kubepods-besteffort.slice").join(pod);
        let scope = pod.join(format!("cri-containerd-{number:064x}.scope"));
        if fs::create_dir_all(&scope).is_err() {
            continue;
        }
        let mut sender = Command::new("/proc/self/exe");
        let ended = sender
            .arg("enter")
            .arg(&scope)
            .args(["send", order])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        sent += u32::from(ended.success());
        for folder in [&scope, &pod] {
            let removed = fs::remove_dir(folder);
            left += u32::from(removed.is_err_and(|error| error.kind() != ErrorKind::NotFound));
        }
    }
    println!("{sent} {left}");
    Ok(())
}

fn world() -> Result<()> {
    let udp = UdpSocket::bind("0.0.0.0:9100").context("bind UDP 9100")?;
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        loop {
            // What arrives here is not of interest.
            let _taken = udp.recv(&mut buffer);
        }
    });
    let sink = TcpListener::bind("0.0.0.0:9101").context("bind TCP 9101")?;
    thread::spawn(move || {
        for mut stream in sink.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    http::serve(&TcpListener::bind("0.0.0.0:80").context("bind TCP 80")?, |_, _| Ok("world\n".to_owned()))
}
