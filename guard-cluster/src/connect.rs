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
    /// For watches and lists, which those who ask repeat with a backoff of their own: kube's would hide for minutes that the
    /// API server is away. It waits for an answer for ever, since a watch is
    /// one, and does not repeat a request by itself either: kube's own retries of 429, 503 and 504 go on for minutes, in
    /// which nobody would know that the API server is away.
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
    clients(Config::infer().await?)
}

/// Makes the clients for a configuration that is known.
pub fn clients(mut config: Config) -> Result<Clients, ConnectError> {
    config.default_retry = false;
    let patient = Client::try_from(config.clone())?;
    config.read_timeout = Some(PATIENCE);
    config.reset_reader_on_write = true;
    let once = Client::try_from(config)?;
    Ok(Clients { patient, once })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use http::Request;
    use kube::client::Body;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn what_acts_is_never_repeated() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.expect("a connection");
                let mut buffer = [0; 4096];
                while socket.read(&mut buffer).await.expect("a request") > 0 {
                    count.fetch_add(1, Ordering::SeqCst);
                    let refusal = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\ncontent-length: 2\r\n\r\n{}";
                    socket.write_all(refusal.as_bytes()).await.expect("an answer");
                }
            }
        });
        let url = format!("http://{address}").parse().expect("a URL");
        let config = Config::new(url);
        let Clients { patient, once } = clients(config.clone()).expect("clients");
        let request = || Request::get("/api/v1").body(Body::empty()).expect("a request");
        for (requests, client) in [(1, once), (2, patient)] {
            let answer = client.send(request()).await.expect("an answer");
            assert_eq!((answer.status().as_u16(), asked.load(Ordering::SeqCst)), (429, requests));
        }
        // kube's own would: a budget's refusal would be repeated for minutes.
        let usual = Client::try_from(config).expect("a client");
        let usual = tokio::spawn(async move { usual.send(request()).await });
        tokio::time::timeout(Duration::from_mins(1), async {
            while asked.load(Ordering::SeqCst) < 4 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("a second try of kube's client");
        usual.abort();
    }
}
