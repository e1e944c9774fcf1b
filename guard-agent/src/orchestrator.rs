//! Who makes a container start afresh.

pub mod local;

use clap::ValueEnum;
use guard_cluster::connect::{self, Clients, ConnectError, Identity};

/// Who carries out evictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Orchestrator {
    /// Nobody: nothing is evicted
    None,
    /// The agent ends the container's processes; systemd, podman or docker starts it afresh
    Local,
    /// A Kubernetes API server, which also tells of the pods
    Kubernetes,
}

impl Orchestrator {
    /// Kubernetes in a pod with a service account, and where `KUBECONFIG` is set; else nobody.
    pub fn here() -> Self {
        if connect::is_configured() { Self::Kubernetes } else { Self::None }
    }

    /// The way to the API server, if there is to be one. Nothing is sent yet: one that is away keeps nobody from counting.
    pub async fn clients(self) -> Result<Option<Clients>, ConnectError> {
        match self {
            Self::Kubernetes => Ok(Some(connect::connect().await?)),
            Self::None | Self::Local => Ok(None),
        }
    }
}

/// Who this agent is: the node's name as asked for, or the host's; the rest is what the pod's specification says in the
/// environment.
pub fn identity(node: Option<String>) -> Identity {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let node = node.unwrap_or_else(host);
    Identity {
        namespace: set("POD_NAMESPACE").unwrap_or_else(|| "egress-guard".into()),
        pod: set("POD_NAME").unwrap_or_else(|| node.clone()),
        pod_uid: set("POD_UID").unwrap_or_default(),
        node,
    }
}
