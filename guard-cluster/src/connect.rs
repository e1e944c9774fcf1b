//! The way to the API server.

use std::time::Duration;

use kube::{Client, Config};

/// How long an answer may take. Watches have their own limit.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Who this agent is in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node's name: `--node-name`, else `NODE_NAME`, else the host's name.
    pub node: String,
    /// The agent's namespace: `POD_NAMESPACE`, else `egress-guard`.
    pub namespace: String,
    /// The agent's pod: `POD_NAME`, else its node's name.
    pub pod: String,
    /// Its UID: `POD_UID`; empty outside a cluster.
    pub pod_uid: String,
}

/// Clients for one API server.
#[derive(Clone)]
pub struct Clients {
    /// For what is asked again until it is answered: watches, lists, gets.
    pub patient: Client,
    /// For what acts. It never repeats a request by itself: 429 is the answer of a disruption budget, and what to do about it
    /// is ours to say. Whoever uses it puts [`PATIENCE`] around it.
    pub once: Client,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clients")
    }
}

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a service account's files nor a kubeconfig that can be used.
    #[error(
        "there is no way to a Kubernetes API server: {0}; run it in a pod with a service account, point KUBECONFIG to a \
         kubeconfig, or say --orchestrator none"
    )]
    Config(#[from] kube::config::InferConfigError),
    /// The clients cannot be made of it.
    #[error("cannot make a client of the Kubernetes configuration: {0}")]
    Client(#[from] kube::Error),
}

/// Whether there is a configuration of a cluster: a pod's service account, or `KUBECONFIG`. A kubeconfig in the home folder
/// alone does not count: an agent on a workstation does not act on whatever cluster was used last.
#[must_use]
pub fn is_configured() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    set("KUBERNETES_SERVICE_HOST") || set("KUBECONFIG")
}

/// Makes the clients. Nothing is sent yet: an API server that is away is no error.
pub async fn connect() -> Result<Clients, ConnectError> {
    let mut config = Config::infer().await?;
    let patient = Client::try_from(config.clone())?;
    config.default_retry = false;
    config.read_timeout = Some(PATIENCE);
    config.reset_reader_on_write = true;
    let once = Client::try_from(config)?;
    Ok(Clients { patient, once })
}
