//! `guard-agent`: counts every container's traffic on a node, in the kernel, and shows it.

mod cli;

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, FromArgMatches as _, parser::ValueSource};
use guard_agent::{
    agent, audit,
    breaches::Destination,
    check_config, client, config,
    core::{identity::Labels, policy::Subject},
    kernel::{kill_switch::KillSwitch, pins::Pins, probe},
    kill_switch::verb,
    orchestrator::{self, Orchestrator},
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

use cli::{
    Audit, Bpffs, CheckConfig, Cleanup, Cli, Command, Destinations, List, LogFormat, Output, Record, Release, Resume,
    Run, Simulate, Switch,
};

/// How long the agent may take to end once it is asked to.
const GOODBYE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    match try_main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the causes are.
            eprintln!("guard-agent: {}", format!("{error:#}").replace('\n', " "));
            error.downcast_ref::<audit::Error>().map_or(ExitCode::FAILURE, |error| error.exit_code().into())
        }
    }
}

fn try_main() -> Result<()> {
    let matches = Cli::command().get_matches();
    let asked = |id: &str| {
        let run = matches.subcommand_matches("run");
        run.and_then(|run| run.value_source(id)).is_some_and(|source| source != ValueSource::DefaultValue)
    };
    let cli = Cli::from_arg_matches(&matches)?;
    match cli.command {
        Command::Run(run) => work(run, asked("config")),
        Command::CheckConfig(CheckConfig { file, pod, container, labels }) => {
            let config = config::read(&file, true)?;
            let asked = pod.is_some() || container.is_some();
            let (namespace, pod) = pod.unwrap_or_default();
            let names = Labels { namespace, pod, container: container.unwrap_or_default() };
            let subject = Subject { names, labels: labels.into_iter().collect(), ..Subject::default() };
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
        Command::Release(Release { container, socket }) => Runtime::new()?.block_on(async {
            println!("{}", client::release(&socket.socket, &container).await?);
            Ok(())
        }),
        Command::Resume(Resume { socket }) => Runtime::new()?.block_on(async {
            println!("{}", client::resume(&socket.socket).await?);
            Ok(())
        }),
        Command::Destinations(Destinations { container, json, socket }) => Runtime::new()?.block_on(async {
            let body = client::destinations(&socket.socket, &container).await?;
            if json {
                println!("{}", String::from_utf8_lossy(&body));
            } else {
                let found: Vec<Destination> = serde_json::from_slice(&body)?;
                println!("{}", client::destinations_table(&found));
            }
            Ok(())
        }),
        Command::Record(Record { output, duration, socket }) => Runtime::new()?.block_on(async {
            let recorded = record::run(&socket.socket, &output, duration, asked_to_stop()?).await?;
            eprintln!("recorded {recorded} to {}", output.display());
            Ok(())
        }),
        Command::Simulate(asked) => replay(asked),
        Command::Audit(asked) => Ok(look_over(asked)?),
        Command::KillSwitch(switch) => {
            probe::privileges()?;
            Runtime::new()?.block_on(async {
                match switch {
                    Switch::On { reason, bpffs, socket } => {
                        verb::on(&bpffs.bpffs, &socket.socket, reason.as_deref()).await
                    }
                    Switch::Off { bpffs, socket } => verb::off(&bpffs.bpffs, &socket.socket).await,
                    Switch::Status { json, bpffs, socket } => verb::show(&bpffs.bpffs, &socket.socket, json).await,
                }
            })
        }
        Command::Cleanup(Cleanup { bpffs: Bpffs { bpffs } }) => {
            probe::privileges()?;
            let Some(pins) = Pins::existing(&bpffs)? else {
                println!("removed 0 pins from {}", bpffs.display());
                return Ok(());
            };
            let engaged = KillSwitch::existing(&bpffs)?.is_some_and(|switch| switch.engaged());
            println!("removed {} pins from {}", pins.remove_all(engaged)?, bpffs.display());
            if engaged {
                println!(
                    "kept the kill switch, which is engaged: see `guard-agent kill-switch status`, release it and clean up \
                     again"
                );
            }
            Ok(())
        }
    }
}

fn work(run: Run, config_asked: bool) -> Result<()> {
    start_log(run.log_format, run.log_kernel);
    let options = agent::Options {
        config: run.config,
        config_asked,
        state_dir: run.state_dir,
        orchestrator: run.orchestrator.unwrap_or_else(Orchestrator::here),
        identity: orchestrator::identity(run.node_name.filter(|name| !name.is_empty())),
        cgroup_root: run.cgroup_root,
        pods_root: run.pods_root,
        bpffs: run.bpffs.bpffs,
        listen: run.listen,
        socket: run.socket.socket,
        node_process: run.node_process,
        log_kernel: run.log_kernel,
    };
    // The meters have this thread, whoever asks has the worker.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let socket = options.socket.clone();
    let result = runtime.block_on(async { agent::run(options, stop_signal(socket)?).await });
    runtime.shutdown_timeout(GOODBYE);
    result
}

fn replay(Simulate { trace, config: file, mode, json }: Simulate) -> Result<()> {
    let mut config = config::read(&file, true)?;
    config.policies.mode = mode.unwrap_or(config.policies.mode);
    let Simulated { report, notice } = simulate::run(&trace, &config)?;
    if let Some(notice) = notice {
        eprintln!("guard-agent: {notice}");
    }
    let said = if json { format!("{}\n", simulate::json(&report, &config)) } else { simulate::text(&report, &config) };
    say(&said).context("cannot write to stdout")
}

fn look_over(Audit { namespace, context, config, agent_namespace, output }: Audit) -> Result<(), audit::Error> {
    let question = audit::Question { namespace, context, config, agent_namespace };
    let runtime = Runtime::new().map_err(audit::Error::Runtime)?;
    let rows = runtime.block_on(audit::rows(question))?;
    let said = match output {
        Output::Table => audit::text(&rows),
        Output::Json => format!("{}\n", audit::json(&rows)),
    };
    say(&said).map_err(audit::Error::Write)?;
    audit::verdict(&rows)
}

/// To stdout.
fn say(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough: `head`, a pager.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
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
    // Of a request that fails its caller speaks, once. What the library says at each attempt is for whoever asks for it; a
    // CA that cannot be read again nobody else says.
    if std::env::var_os("RUST_LOG").is_none() {
        let quiet = ["kube_runtime=off", "kube_client::client=off", "kube_client::client::tls=warn"];
        filter = quiet.iter().filter_map(|quiet| quiet.parse().ok()).fold(filter, EnvFilter::add_directive);
    }
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
}
