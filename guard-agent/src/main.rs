//! `guard-agent`: counts every container's traffic on a node, in the kernel, and shows it.

use std::{
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{FalseyValueParser, PossibleValuesParser, TypedValueParser as _},
    parser::ValueSource,
};
use guard_agent::{
    agent, check_config, client, config,
    core::{
        identity::Labels,
        policy::{Mode, Subject},
    },
    kernel::{pins::Pins, probe},
    record,
    simulate::{self, Simulated},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time,
};
use tracing_subscriber::EnvFilter;

/// How long the agent may take to end once it is asked to.
const GOODBYE: Duration = Duration::from_millis(500);

#[derive(Debug, Parser)]
#[command(version, about = "Counts every container's traffic in the kernel, exactly, and shows it")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent on this node
    Run(Run),
    /// Validates a configuration file and shows which policy holds for whom
    CheckConfig(CheckConfig),
    /// Shows the containers of a running agent
    List(List),
    /// Records the samples of a running agent, to try limits on them
    Record(Record),
    /// Replays a trace: who would have crossed which limit, and what would have been done
    Simulate(Simulate),
    /// Removes every pin: all meters and totals of a stopped agent
    Cleanup(Cleanup),
}

#[derive(Debug, Args)]
struct Run {
    /// Configuration file (YAML); the default need not be there
    #[arg(long, env = "EGRESS_GUARD_CONFIG", value_name = "FILE", default_value = "/etc/egress-guard/config.yaml")]
    config: PathBuf,
    /// Root of the cgroup v2 hierarchy [default: as mounted]
    #[arg(long, env = "EGRESS_GUARD_CGROUP_ROOT", value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    /// The pods' cgroup [default: kubepods, kubepods.slice or *-kubepods.slice, up to three levels deep]
    #[arg(long, env = "EGRESS_GUARD_PODS_ROOT", value_name = "DIR")]
    pods_root: Option<PathBuf>,
    #[command(flatten)]
    bpffs: Bpffs,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, env = "EGRESS_GUARD_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:9469")]
    listen: SocketAddr,
    #[command(flatten)]
    socket: Socket,
    /// Format of the log on stderr
    #[arg(long, env = "EGRESS_GUARD_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Log the kernel programs' diagnostics too
    #[arg(long, env = "EGRESS_GUARD_LOG_KERNEL", value_parser = FalseyValueParser::new())]
    log_kernel: bool,
}

#[derive(Debug, Args)]
struct CheckConfig {
    /// Configuration file (YAML)
    file: PathBuf,
    /// Show which policy holds for this pod
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pair('/', "a namespace and a name, like batch/load-7"))]
    pod: Option<(String, String)>,
    /// ... for this container of it, or outside Kubernetes for the one with this cgroup path
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// ... with this label; may be there several times
    #[arg(long = "label", value_name = "KEY=VALUE", requires = "pod",
          value_parser = pair('=', "a label with its value, like app=loader"))]
    labels: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct List {
    /// Print JSON instead of a table
    #[arg(long, env = "EGRESS_GUARD_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Args)]
struct Record {
    /// The trace file; it must not be there yet
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// How long, like 90s, 1h or 1d [default: until Ctrl-C]
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Args)]
struct Simulate {
    /// A file that `record` made
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Configuration file (YAML) with the limits to try
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// As if the file said this `mode`
    #[arg(long, value_name = "MODE", value_parser = PossibleValuesParser::new(["observe", "contain", "evict"]).map(|name| mode(&name)))]
    mode: Option<Mode>,
    /// Print JSON instead of a table
    #[arg(long, env = "EGRESS_GUARD_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

#[derive(Debug, Args)]
struct Cleanup {
    #[command(flatten)]
    bpffs: Bpffs,
}

#[derive(Debug, Args)]
struct Bpffs {
    /// Folder of the pins, in bpffs (mounted if it is not)
    #[arg(long, env = "EGRESS_GUARD_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/egress-guard")]
    bpffs: PathBuf,
}

#[derive(Debug, Args)]
struct Socket {
    /// Unix socket for root, which tells of traffic in detail
    #[arg(long, env = "EGRESS_GUARD_SOCKET", value_name = "PATH", default_value = "/run/egress-guard/agent.sock")]
    socket: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    match try_main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the causes are.
            eprintln!("guard-agent: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn try_main() -> Result<()> {
    let matches = <Cli as clap::CommandFactory>::command().get_matches();
    let asked = |id: &str| {
        let run = matches.subcommand_matches("run");
        run.and_then(|run| run.value_source(id)).is_some_and(|source| source != ValueSource::DefaultValue)
    };
    let cli = <Cli as clap::FromArgMatches>::from_arg_matches(&matches)?;
    match cli.command {
        Command::Run(run) => {
            start_log(run.log_format, run.log_kernel);
            let config = config::read(&run.config, asked("config"))?;
            let options = agent::Options {
                cgroup_root: run.cgroup_root,
                pods_root: run.pods_root,
                bpffs: run.bpffs.bpffs,
                listen: run.listen,
                socket: run.socket.socket,
                log_kernel: run.log_kernel,
            };
            // The meters have this thread, whoever asks has the worker.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            let socket = options.socket.clone();
            let result = runtime.block_on(async { agent::run(options, config, stop_signal(socket)?).await });
            runtime.shutdown_timeout(GOODBYE);
            result
        }
        Command::CheckConfig(CheckConfig { file, pod, container, labels }) => {
            let config = config::read(&file, true)?;
            let asked = pod.is_some() || container.is_some();
            let (namespace, pod) = pod.unwrap_or_default();
            let names = Labels { namespace, pod, container: container.unwrap_or_default() };
            let subject = Subject { names, labels: labels.into_iter().collect() };
            print!("{}", if asked { check_config::answer(&config, &subject) } else { check_config::summary(&config) });
            Ok(())
        }
        Command::List(List { json, socket }) => Runtime::new()?.block_on(async {
            if json {
                let body = client::get(&socket.socket, "/containers").await?;
                println!("{}", String::from_utf8_lossy(&body));
            } else {
                println!("{}", client::table(&client::containers(&socket.socket).await?));
            }
            Ok(())
        }),
        Command::Record(Record { output, duration, socket }) => Runtime::new()?.block_on(async {
            let recorded = record::run(&socket.socket, &output, duration, asked_to_stop()?).await?;
            eprintln!("recorded {recorded} to {}", output.display());
            Ok(())
        }),
        Command::Simulate(Simulate { trace, config: file, mode, json }) => {
            let mut config = config::read(&file, true)?;
            config.policies.mode = mode.unwrap_or(config.policies.mode);
            let Simulated { report, notice } = simulate::run(&trace, &config)?;
            if let Some(notice) = notice {
                eprintln!("guard-agent: {notice}");
            }
            let said =
                if json { format!("{}\n", simulate::json(&report, &config)) } else { simulate::text(&report, &config) };
            match std::io::stdout().write_all(said.as_bytes()) {
                // Whoever reads has seen enough: `head`, a pager.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
                written => written.context("cannot write to stdout"),
            }
        }
        Command::Cleanup(Cleanup { bpffs }) => {
            probe::privileges()?;
            let removed = match Pins::existing(&bpffs.bpffs)? {
                Some(pins) => pins.remove_all()?,
                None => 0,
            };
            println!("removed {removed} pins from {}", bpffs.bpffs.display());
            Ok(())
        }
    }
}

/// The mode of one of its names.
fn mode(name: &str) -> Mode {
    [Mode::Contain, Mode::Evict].into_iter().find(|mode| mode.to_string() == name).unwrap_or_default()
}

/// Parses two texts and what separates them.
fn pair(separator: char, expected: &'static str) -> impl Fn(&str) -> Result<(String, String), String> + Clone {
    move |text| {
        let pair = text.split_once(separator).filter(|(first, _)| !first.is_empty());
        let (first, second) = pair.ok_or_else(|| format!("expected {expected}"))?;
        Ok((first.to_owned(), second.to_owned()))
    }
}

/// Done when the process is asked to stop. If the agent does not hear it in time, because it attaches a thousand meters
/// just now, the process ends as it is: whatever it is at, the next agent goes on from there.
fn stop_signal(socket: PathBuf) -> Result<impl Future<Output = ()>> {
    let asked = asked_to_stop()?;
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(async move {
        asked.await;
        // The agent may have ended by itself.
        let _unheard = stop.send(());
        time::sleep(GOODBYE).await;
        // A socket that stays is replaced by the next agent.
        let _gone = std::fs::remove_file(socket);
        std::process::exit(0);
    });
    Ok(async move {
        // The sender goes only after it has sent.
        let _sent = stopped.await;
    })
}

/// Done at SIGTERM or Ctrl-C.
fn asked_to_stop() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Logs to stderr, at the level that `RUST_LOG` says (info; all that the kernel programs say, if they speak).
fn start_log(format: LogFormat, kernel: bool) {
    let mut filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    if kernel && let Ok(directive) = "guard_ebpf=trace".parse() {
        filter = filter.add_directive(directive);
    }
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
}
