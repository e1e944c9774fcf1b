//! Stands between an agent and the API server, and holds its evictions back until the test lets them pass.

use std::{convert::Infallible, fs};

use anyhow::{Context as _, Result};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kube::{
    Client, Config,
    client::Body,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc, oneshot},
    task::JoinHandle,
};

use crate::{ControlPlane, Installation};

/// Until it is dropped.
#[derive(Debug)]
pub struct Gate {
    waiting: Mutex<mpsc::UnboundedReceiver<Held>>,
    task: JoinHandle<()>,
}

/// An eviction that waits. It passes when this is dropped.
#[derive(Debug)]
pub struct Held {
    /// The Eviction, as the agent sent it.
    pub body: Value,
    _go: oneshot::Sender<()>,
}

impl Gate {
    /// The installation's agents go through it from now on, as themselves.
    pub async fn new(plane: &ControlPlane, installation: &mut Installation) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let upstream = upstream(plane).await?;
        let mut kubeconfig: Value = serde_json::from_slice(&fs::read(&installation.kubeconfig)?)?;
        kubeconfig["clusters"][0]["cluster"] = json!({"server": format!("http://{address}")});
        installation.kubeconfig.set_extension("gate");
        fs::write(&installation.kubeconfig, kubeconfig.to_string())?;
        let (hold, waiting) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (upstream, hold) = (upstream.clone(), hold.clone());
                let service = service_fn(move |request| answer(request, upstream.clone(), hold.clone()));
                // Whoever breaks a connection makes another.
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
            }
        });
        Ok(Self { waiting: Mutex::new(waiting), task })
    }

    /// The next eviction.
    pub async fn next(&self) -> Result<Held> {
        let next = tokio::time::timeout(crate::stage::SOON, async { self.waiting.lock().await.recv().await });
        next.await.context("no eviction was asked for")?.context("the gate has ended")
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client that says of itself only what those say who go through.
async fn upstream(plane: &ControlPlane) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(plane.kubeconfig_admin())?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.auth_info = AuthInfo::default();
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

async fn answer(
    request: Request<Incoming>,
    upstream: Client,
    hold: mpsc::UnboundedSender<Held>,
) -> Result<Response<Body>, Infallible> {
    Ok(pass(request, upstream, hold).await.unwrap_or_else(|error| {
        let mut broken = Response::new(Body::from(format!("{error:#}").into_bytes()));
        *broken.status_mut() = http::StatusCode::BAD_GATEWAY;
        broken
    }))
}

async fn pass(
    request: Request<Incoming>,
    upstream: Client,
    hold: mpsc::UnboundedSender<Held>,
) -> Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    if parts.uri.path().ends_with("/eviction") {
        let (go, dropped) = oneshot::channel();
        // A test that is over hears of nothing any more.
        let _unheard = hold.send(Held { body: serde_json::from_slice(&body)?, _go: go });
        let _let_go = dropped.await;
    }
    Ok(upstream.send(Request::from_parts(parts, Body::from(body.to_vec()))).await?)
}
