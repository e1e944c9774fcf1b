//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{FalseyValueParser, PossibleValuesParser, TypedValueParser as _},
};
use guard_agent::{core::policy::Mode, orchestrator::Orchestrator};

#[derive(Debug, Parser)]
#[command(version, about = "Counts every container's traffic in the kernel, exactly, and shows it")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the agent on this node
    Run(Run),
    /// Validates a configuration file and shows which policy holds for whom
    CheckConfig(CheckConfig),
    /// Shows the containers of a running agent
    List(List),
    /// Shows where a container's bytes went in the last one to two minutes, by estimate
    Destinations(Destinations),
    /// Lets go of a container that is contained, and leaves it alone until its breach is over
    Release(Release),
    /// Ends a storm: evictions may take place again, though many breach their limits
    Resume(Resume),
    /// Records the samples of a running agent, to try limits on them
    Record(Record),
    /// Replays a trace: who would have crossed which limit, and what would have been done
    Simulate(Simulate),
    /// Says of every workload of a cluster whether its pods may be evicted without an outage; needs only a kubeconfig
    ///
    /// The exit code is 1 if mode `evict` would be unsafe, and 2 if that cannot be known.
    Audit(Audit),
    /// Stops all containing and evicting on this node, whether an agent runs, hangs or is dead
    #[command(subcommand)]
    KillSwitch(Switch),
    /// Removes every pin: all meters and totals of a stopped agent
    Cleanup(Cleanup),
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Configuration file (YAML); the default need not be there
    #[arg(long, env = "EGRESS_GUARD_CONFIG", value_name = "FILE", default_value = "/etc/egress-guard/config.yaml")]
    pub(crate) config: PathBuf,
    /// Root of the cgroup v2 hierarchy [default: as mounted]
    #[arg(long, env = "EGRESS_GUARD_CGROUP_ROOT", value_name = "DIR")]
    pub(crate) cgroup_root: Option<PathBuf>,
    /// The pods' cgroup [default: kubepods, kubepods.slice or *-kubepods.slice, up to three levels deep]
    #[arg(long, env = "EGRESS_GUARD_PODS_ROOT", value_name = "DIR")]
    pub(crate) pods_root: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) bpffs: Bpffs,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, env = "EGRESS_GUARD_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:9469")]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) socket: Socket,
    /// Folder of the state file: what is normal, what quotas have used up, what was evicted
    #[arg(long, env = "EGRESS_GUARD_STATE_DIR", value_name = "DIR", default_value = "/var/lib/egress-guard")]
    pub(crate) state_dir: PathBuf,
    /// Who starts an evicted container afresh: none (nothing is evicted), local (whatever supervises it on this node), or
    /// kubernetes [default: kubernetes in a pod or with KUBECONFIG, else none]
    #[arg(long, env = "EGRESS_GUARD_ORCHESTRATOR", value_name = "NAME")]
    pub(crate) orchestrator: Option<Orchestrator>,
    /// The node's name in Kubernetes, and in alerts [default: the host's]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// A process whose network is the node's, where the other ends of the pods' interfaces are
    #[arg(long, env = "EGRESS_GUARD_NODE_PROCESS", value_name = "PID", default_value_t = 1)]
    pub(crate) node_process: u32,
    /// Format of the log on stderr
    #[arg(long, env = "EGRESS_GUARD_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Log the kernel programs' diagnostics too
    #[arg(long, env = "EGRESS_GUARD_LOG_KERNEL", value_parser = FalseyValueParser::new())]
    pub(crate) log_kernel: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckConfig {
    /// Configuration file (YAML)
    pub(crate) file: PathBuf,
    /// Show which policy holds for this pod
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pair('/', "a namespace and a name, like batch/load-7"))]
    pub(crate) pod: Option<(String, String)>,
    /// ... for this container of it, or outside Kubernetes for the one with this cgroup path
    #[arg(long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// ... with this label; may be there several times
    #[arg(long = "label", value_name = "KEY=VALUE", requires = "pod",
          value_parser = pair('=', "a label with its value, like app=loader"))]
    pub(crate) labels: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON instead of a table
    #[arg(long, env = "EGRESS_GUARD_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

#[derive(Debug, Args)]
pub(crate) struct Release {
    /// The container: its id or the beginning of it, its name, NAMESPACE/POD/CONTAINER, or its cgroup's path
    pub(crate) container: String,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    pub(crate) socket: Socket,
}

#[derive(Debug, Args)]
pub(crate) struct Destinations {
    /// The container: its id or the beginning of it, its name, NAMESPACE/POD/CONTAINER, or its cgroup's path
    pub(crate) container: String,
    /// Print JSON instead of a table
    #[arg(long, env = "EGRESS_GUARD_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

#[derive(Debug, Args)]
pub(crate) struct Record {
    /// The trace file; it must not be there yet
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// How long, like 90s, 1h or 1d [default: until Ctrl-C]
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) duration: Option<Duration>,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Switch {
    /// Engages it: every containment is lifted at once, nothing new is contained or evicted
    On {
        /// Why, for whoever asks for the status
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        bpffs: Bpffs,
        #[command(flatten)]
        socket: Socket,
    },
    /// Releases it; fails if the configuration file or the cluster still engages it
    Off {
        #[command(flatten)]
        bpffs: Bpffs,
        #[command(flatten)]
        socket: Socket,
    },
    /// Says whether it is engaged, by whom and since when
    Status {
        /// Print JSON instead
        #[arg(long, env = "EGRESS_GUARD_JSON", value_parser = FalseyValueParser::new())]
        json: bool,
        #[command(flatten)]
        bpffs: Bpffs,
        #[command(flatten)]
        socket: Socket,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// A file that `record` made
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: PathBuf,
    /// Configuration file (YAML) with the limits to try
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// As if the file said this `mode`
    #[arg(long, value_name = "MODE", value_parser = PossibleValuesParser::new(["observe", "contain", "evict"]).map(|name| mode(&name)))]
    pub(crate) mode: Option<Mode>,
    /// Print JSON instead of a table
    #[arg(long, env = "EGRESS_GUARD_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Only this namespace [default: all]
    #[arg(short, long, value_name = "NAMESPACE", value_parser = namespace)]
    pub(crate) namespace: Option<String>,
    /// Context of the kubeconfig, which is KUBECONFIG or ~/.kube/config [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Configuration file (YAML) with policies and protection to judge by [default: a policy evicts every pod, without leave]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the agent runs or will run: it is protected
    #[arg(long, value_name = "NAMESPACE", default_value = "egress-guard", value_parser = namespace)]
    pub(crate) agent_namespace: String,
    /// Print a table, or JSON
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Cleanup {
    #[command(flatten)]
    pub(crate) bpffs: Bpffs,
}

#[derive(Debug, Args)]
pub(crate) struct Bpffs {
    /// Folder of the pins, in bpffs (mounted if it is not)
    #[arg(long, env = "EGRESS_GUARD_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/egress-guard")]
    pub(crate) bpffs: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Socket {
    /// Unix socket for root, which tells of traffic in detail
    #[arg(long, env = "EGRESS_GUARD_SOCKET", value_name = "PATH", default_value = "/run/egress-guard/agent.sock")]
    pub(crate) socket: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Parses two texts and what separates them.
fn pair(separator: char, expected: &'static str) -> impl Fn(&str) -> Result<(String, String), String> + Clone {
    move |text| {
        let pair = text.split_once(separator).filter(|(first, _)| !first.is_empty());
        let (first, second) = pair.ok_or_else(|| format!("expected {expected}"))?;
        Ok((first.to_owned(), second.to_owned()))
    }
}

/// A label of RFC 1123, which a namespace's name is.
fn namespace(text: &str) -> Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let well = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| inner(byte) || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if well { Ok(text.to_owned()) } else { Err("expected a namespace's name, like kube-system".into()) }
}

/// The mode of one of its names.
fn mode(name: &str) -> Mode {
    [Mode::Contain, Mode::Evict].into_iter().find(|mode| mode.to_string() == name).unwrap_or_default()
}
