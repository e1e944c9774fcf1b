//! What may be between an agent and its API server: evictions are refused, held or left without an answer, watches end, and
//! all stands still, when a test says so. Everything else passes as it is.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use kube::{
    Client, Config,
    client::Body,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::{ControlPlane, credentials, eventually};

/// What becomes of one eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with this status, as by a server that has too much to do, which never hears of it.
    Refuse {
        /// The status.
        code: u16,
        /// The header `Retry-After`, in seconds.
        retry_after: Option<u64>,
    },
    /// The server gets it, and the connection is closed instead of the answer.
    LoseAnswer,
    /// The server gets it once [`Proxy::pass_on`] says so.
    DelayRequest,
    /// The server never gets it, and there is never an answer.
    HoldRequest,
    /// The server gets it, and there is never an answer.
    HoldAnswer,
}

/// On which side of the server a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The server has not got it.
    Before,
    /// The server has answered it, and nobody knows yet.
    After,
}

/// A proxy on loopback, without TLS unless it is asked for. Whoever asks through it has the identity of the token that comes with the request.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<Infallible>,
}

struct Shared {
    /// Without an identity of its own.
    client: Client,
    /// For the evictions to come, one each.
    faults: Mutex<VecDeque<Fault>>,
    evictions: Mutex<Vec<Eviction>>,
    /// How many requests came.
    requests: Mutex<usize>,
    /// One that is delayed passes.
    pass_on: Notify,
    /// The request at which all stands still, by its number.
    halt: Mutex<Option<(usize, Side)>>,
    /// Requests pass.
    open: watch::Sender<bool>,
    /// Changes: the watches that there are end.
    end: watch::Sender<()>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// An eviction that came to the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// When.
    pub at: Instant,
    /// What it says.
    pub body: Value,
    /// The server's answer, if it was asked and has answered.
    pub answered: Option<u16>,
}

type AnyBody = UnsyncBoxBody<Bytes, kube::Error>;

impl Proxy {
    /// Before the server that a kubeconfig names.
    pub async fn start(kubeconfig: &Path) -> Result<Self> {
        Self::launch(kubeconfig, None).await
    }

    /// Before a control plane's API server, and taken for it: with its certificate.
    pub async fn of(plane: &ControlPlane) -> Result<Self> {
        let [certificate, key] = [credentials::SERVER.0, credentials::SERVER.1].map(|file| plane.folder().join(file));
        let certificates = CertificateDer::pem_file_iter(&certificate)?.collect::<Result<_, _>>()?;
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(certificates, PrivateKeyDer::from_pem_file(&key)?)?;
        Self::launch(&plane.kubeconfig_admin(), Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn launch(kubeconfig: &Path, tls: Option<TlsAcceptor>) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.auth_info = AuthInfo::default();
        config.default_retry = false;
        let shared = Arc::new(Shared {
            client: Client::try_from(config)?,
            faults: Mutex::default(),
            evictions: Mutex::default(),
            requests: Mutex::default(),
            pass_on: Notify::new(),
            halt: Mutex::default(),
            open: watch::Sender::new(true),
            end: watch::Sender::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(serve(listener, tls, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// The port on loopback.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Writes a kubeconfig beside another one: the same identity, through the proxy.
    pub fn kubeconfig(&self, through: &Path) -> Result<PathBuf> {
        let text = fs::read_to_string(through).with_context(|| format!("read {}", through.display()))?;
        let mut kubeconfig: Value = serde_json::from_str(&text)?;
        kubeconfig["clusters"][0]["cluster"] = json!({"server": format!("http://{}", self.address)});
        let path = through.with_added_extension("proxy");
        fs::write(&path, kubeconfig.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// What is to become of the next evictions, one after the other; those after them pass.
    pub fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.shared.faults).extend(faults);
    }

    /// The evictions that came so far.
    pub fn evictions(&self) -> Vec<Eviction> {
        lock(&self.shared.evictions).clone()
    }

    /// Waits until so many evictions have come; fails if there are more.
    pub async fn come(&self, count: usize, limit: Duration) -> Result<Vec<Eviction>> {
        let found = eventually(&format!("{count} evictions come to the proxy"), limit, async || {
            let found = self.evictions();
            ensure!(found.len() >= count, "{} came", found.len());
            Ok(found)
        })
        .await?;
        ensure!(found.len() == count, "{} evictions instead of {count}: {found:?}", found.len());
        Ok(found)
    }

    /// Waits until the server has answered so many evictions, with this status.
    pub async fn answered(&self, count: usize, code: u16, limit: Duration) -> Result<()> {
        eventually(&format!("{count} evictions are answered with {code}"), limit, async || {
            let found = self.evictions();
            let answered = found.iter().filter(|eviction| eviction.answered == Some(code)).count();
            ensure!(answered == count, "{found:?}");
            Ok(())
        })
        .await
    }

    /// How many requests came so far.
    pub fn requests(&self) -> usize {
        *lock(&self.shared.requests)
    }

    /// Lets the server have an eviction that is delayed.
    pub fn pass_on(&self) {
        self.shared.pass_on.notify_one();
    }

    /// Lets requests wait from so many further ones on: the last of those stands on this side of the server meanwhile.
    pub fn stop_after(&self, requests: usize, side: Side) {
        *lock(&self.shared.halt) = Some((self.requests() + requests, side));
    }

    /// Whether requests wait.
    pub fn is_stopped(&self) -> bool {
        !*self.shared.open.borrow()
    }

    /// From now on nothing is wrong: requests pass, evictions too, and those that are delayed.
    pub fn heal(&self) {
        lock(&self.shared.faults).clear();
        *lock(&self.shared.halt) = None;
        self.shared.pass_on.notify_waiters();
        self.go_on();
    }

    /// Lets requests wait from now on.
    pub fn stop(&self) {
        self.shared.open.send_replace(false);
    }

    /// Lets them pass.
    pub fn go_on(&self) {
        self.shared.open.send_replace(true);
    }

    /// Ends the watches that there are, as a server does whose time for them is over.
    pub fn end_watches(&self) {
        self.shared.end.send_replace(());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) -> Infallible {
    // Connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // One that is gone before it is taken is nothing to end for.
        if let Ok((stream, _)) = listener.accept().await {
            let (tls, shared) = (tls.clone(), Arc::clone(&shared));
            connections.spawn(async move {
                match tls {
                    None => connection(stream, shared).await,
                    Some(tls) => {
                        // Who does not trust the certificate says so itself.
                        if let Ok(stream) = tls.accept(stream).await {
                            connection(stream, shared).await;
                        }
                    }
                }
            });
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, shared: Arc<Shared>) {
    let answer = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { shared.answer(request).await }
    });
    // How it ended is the business of who asked.
    let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

impl Shared {
    /// An error closes the connection.
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<AnyBody>> {
        let number = {
            let mut requests = lock(&self.requests);
            *requests += 1;
            *requests
        };
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        self.halt(number, Side::Before);
        self.open.subscribe().wait_for(|open| *open).await?;
        let mut request = Request::builder().method(parts.method.clone()).uri(parts.uri.clone());
        if let Some(headers) = request.headers_mut() {
            *headers = passing(parts.headers);
        }
        let request = request.body(Body::from(body.clone()))?;
        let answer = if parts.method == Method::POST && parts.uri.path().ends_with("/eviction") {
            self.eviction(request, serde_json::from_slice(&body)?).await
        } else {
            self.pass(request).await
        };
        if self.halt(number, Side::After) {
            self.open.subscribe().wait_for(|open| *open).await?;
        }
        answer
    }

    /// Has all stand still if this is where it is to.
    fn halt(&self, number: usize, side: Side) -> bool {
        let here = lock(&self.halt).take_if(|halt| *halt == (number, side)).is_some();
        if here {
            self.open.send_replace(false);
        }
        here
    }

    async fn eviction(&self, request: Request<Body>, body: Value) -> Result<Response<AnyBody>> {
        let number = {
            let mut evictions = lock(&self.evictions);
            evictions.push(Eviction { at: Instant::now(), body, answered: None });
            evictions.len() - 1
        };
        let fault = lock(&self.faults).pop_front();
        match fault {
            Some(Fault::Refuse { code, retry_after }) => return refusal(code, retry_after),
            Some(Fault::HoldRequest) => return std::future::pending().await,
            Some(Fault::DelayRequest) => self.pass_on.notified().await,
            Some(Fault::LoseAnswer | Fault::HoldAnswer) | None => {}
        }
        let answer = self.pass(request).await?;
        lock(&self.evictions)[number].answered = Some(answer.status().as_u16());
        match fault {
            Some(Fault::LoseAnswer) => bail!("the answer is lost"),
            Some(Fault::HoldAnswer) => std::future::pending().await,
            _ => Ok(answer),
        }
    }

    async fn pass(&self, request: Request<Body>) -> Result<Response<AnyBody>> {
        let mut end = self.end.subscribe();
        let answer = self.client.send(request).await?;
        let (mut parts, body) = answer.into_parts();
        parts.headers = passing(parts.headers);
        // What is not streamed is over before that.
        let ended = async move { end.changed().await };
        let body = StreamBody::new(BodyStream::new(body).take_until(Box::pin(ended)));
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }
}

/// Without what is about a connection and not about the request.
fn passing(mut headers: HeaderMap) -> HeaderMap {
    for name in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers
}

/// As the API server's own filter for too many requests says it: without a `Status`.
fn refusal(code: u16, retry_after: Option<u64>) -> Result<Response<AnyBody>> {
    let mut answer = Response::builder().status(code);
    if let Ok(now) = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now()) {
        answer = answer.header(header::DATE, now);
    }
    if let Some(seconds) = retry_after {
        answer = answer.header(header::RETRY_AFTER, seconds);
    }
    let body = Full::new(Bytes::from_static(b"Too many requests, please try again later."));
    Ok(answer.body(body.map_err(|never: Infallible| match never {}).boxed_unsync())?)
}

/// A test that panicked while it held it left it as it is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
