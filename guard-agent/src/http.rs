//! What is served: metrics and health over TCP, everything else on a unix socket for root.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
    serve::Listener,
};
use futures_util::StreamExt as _;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::fs::Mode;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
    time::{self, Instant},
};

pub use self::orders::orders;
use crate::{
    breaches::Breaches,
    clock,
    metrics::{CONTENT_TYPE, Metrics},
    reload,
    snapshot::Snapshot,
    trace_stream,
};

mod orders;

/// Connections that are served at once, on each of port and socket; further ones wait.
const CONNECTIONS: usize = 64;

/// How long a client may take to send a request's head.
const HEAD: Duration = Duration::from_secs(10);

/// How long a connection is kept at all, unless its [`Lease`] is renewed: one that does not read its answer ends too.
const CONNECTION: Duration = Duration::from_mins(1);

/// Why the port or the socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct HttpError {
    what: String,
    cause: io::Error,
}

/// What the handlers see.
#[derive(Clone)]
pub struct Shared {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The last sample.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The last breaches.
    pub breaches: Breaches,
    /// Programs attached and first walk done.
    pub ready: watch::Receiver<bool>,
    /// How it is with the configuration file.
    pub config: watch::Receiver<reload::Status>,
    /// How old the last sample may be for the agent to be healthy.
    pub stale_after: Duration,
}

#[cfg(test)]
impl Shared {
    /// What handlers see of an agent that is ready.
    pub(crate) fn ready(snapshots: watch::Receiver<Arc<Snapshot>>, stale_after: Duration) -> Self {
        Self {
            metrics: Arc::new(Metrics::new(snapshots.clone()).expect("metrics")),
            snapshots,
            breaches: Breaches::default(),
            ready: watch::channel(true).1,
            config: watch::channel(reload::Status { refused: None, since: std::time::SystemTime::UNIX_EPOCH }).1,
            stale_after,
        }
    }
}

/// How long a connection is still kept. A handler that streams renews it with each part that the client takes.
#[derive(Clone, Debug)]
pub struct Lease(Arc<watch::Sender<Instant>>);

impl Lease {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Instant::now() + CONNECTION)))
    }

    /// Keeps the connection for at least so long from now on.
    pub fn renew(&self, length: Duration) {
        let until = Instant::now() + length.max(CONNECTION);
        self.0.send_if_modified(|end| {
            *end = until.max(*end);
            false
        });
    }

    async fn over(&self) {
        loop {
            let until = *self.0.borrow();
            if Instant::now() >= until {
                return;
            }
            time::sleep_until(until).await;
        }
    }
}

/// For a scraper and a kubelet.
pub fn public(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shared)
}

/// For root on the node, on the socket.
pub fn private(shared: Shared) -> Router {
    Router::new()
        .route("/breaches", get(breaches))
        .route("/containers", get(containers))
        .route("/trace", get(trace))
        .with_state(shared)
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn healthz(State(shared): State<Shared>) -> Response {
    let at = shared.snapshots.borrow().at;
    let age = Duration::from_nanos(clock::boottime().saturating_sub(at));
    if at != 0 && age > shared.stale_after {
        let said = format!("the last sample is {age:.0?} old\n");
        return (StatusCode::SERVICE_UNAVAILABLE, said).into_response();
    }
    "ok\n".into_response()
}

async fn readyz(State(shared): State<Shared>) -> Response {
    if *shared.ready.borrow() {
        // It does its work, by the configuration that it has.
        let refused = shared.config.borrow().refused.clone();
        let detail =
            refused.map(|why| format!("the configuration is refused, and the one before is in force: {why}\n"));
        return format!("ok\n{}", detail.unwrap_or_default()).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "attaching the meters\n").into_response()
}

async fn containers(State(shared): State<Shared>) -> Response {
    let snapshot = Arc::clone(&shared.snapshots.borrow());
    Json(&snapshot.containers).into_response()
}

/// Samples as they are taken, for as long as the client reads them.
async fn trace(State(shared): State<Shared>, Extension(lease): Extension<Lease>) -> Response {
    let Shared { snapshots, stale_after, .. } = shared;
    lease.renew(stale_after);
    let frames = trace_stream::frames(snapshots).inspect(move |_| lease.renew(stale_after));
    ([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(frames)).into_response()
}

async fn breaches(State(shared): State<Shared>) -> Response {
    Json(shared.breaches.newest_first()).into_response()
}

/// Serves for ever, a bounded number of connections at once: whoever can reach the port cannot take the agent's
/// descriptors away.
pub async fn serve<L: Listener>(mut listener: L, router: Router) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&free).acquire_owned().await {
        let (stream, _) = listener.accept().await;
        let lease = Lease::new();
        let service = TowerToHyperService::new(router.clone().layer(Extension(lease.clone())));
        tokio::spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            // A request each, so that the limit never cuts a later one off.
            http.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false);
            tokio::select! {
                // However the client ends it: there is nobody to tell.
                _ = http.serve_connection(TokioIo::new(stream), service) => {}
                () = lease.over() => {}
            }
            drop(permit);
        });
    }
}

/// Opens the TCP port.
pub async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address).await.map_err(|cause| {
        let remedy = match cause.kind() {
            io::ErrorKind::AddrInUse => "; another process has the port: pass another --listen",
            _ => "",
        };
        HttpError { what: format!("cannot listen on {address}{remedy}"), cause }
    })
}

/// The unix socket, removed at the end.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Socket {
    /// Opens the socket, for root only. One that a dead agent left is replaced.
    pub fn open(path: &Path) -> Result<Self, HttpError> {
        let failed = |what: &str| {
            let what = format!("cannot {what} --socket {}", path.display());
            move |cause| HttpError { what, cause }
        };
        if let Some(parent) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
            made.map_err(failed("make the folder of"))?;
        }
        if StdUnixStream::connect(path).is_ok() {
            let cause = io::ErrorKind::AddrInUse.into();
            return Err(failed("listen on (another agent answers there; stop it, or pass another)")(cause));
        }
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => fs::remove_file(path).map_err(failed("replace"))?,
            Ok(_) => return Err(failed("replace what is no socket at")(io::ErrorKind::AlreadyExists.into())),
            Err(_) => {}
        }
        let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(umask);
        let listener = bound.map_err(failed("listen on"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
        Ok(Self { path: path.to_owned(), listener: Some(listener) })
    }

    /// Takes the listener, to serve on it.
    pub fn take(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Gone already is as good.
        let _gone = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{Method, Request};
    use hyper::service::Service as _;

    use super::*;

    async fn answer(router: Router, method: Method, path: &str) -> StatusCode {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("a request");
        TowerToHyperService::new(router).call(request).await.expect("it never fails").status()
    }

    #[tokio::test]
    async fn over_tcp_nothing_can_be_done_but_read() {
        let (_snapshots, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let router = public(Shared::ready(snapshots, Duration::from_secs(1)));
        for path in ["/metrics", "/healthz", "/readyz"] {
            assert_eq!(answer(router.clone(), Method::GET, path).await, StatusCode::OK, "{path}");
            for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS] {
                let status = answer(router.clone(), method.clone(), path).await;
                assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            }
        }
        for path in [
            "/kill-switch",
            "/kill-switch/",
            "/release",
            "/resume",
            "/containers",
            "/destinations",
            "/trace",
            "/breaches",
            "/",
        ] {
            for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
                let status = answer(router.clone(), method.clone(), path).await;
                assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}");
            }
        }
    }
}
