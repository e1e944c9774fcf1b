//! Tells alerts to a webhook that speaks Alertmanager's v2 API.

pub(crate) mod alert;
mod endpoint;

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    error::Error as StdError,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use prometheus::{IntCounterVec, Opts, core::Collector};
use tokio::{sync::Notify, time};
use tracing::{info, warn};

pub use alert::Alert;
pub use endpoint::{Endpoint, NotAnEndpoint};

/// Alerts that wait, and alerts in one request, at most.
const QUEUE: usize = 256;

/// How long a request may take, from connecting to the answer's head.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often an open alert is told again: Alertmanager takes it for resolved after `resolve_timeout`, 5 minutes.
const REFRESH: Duration = Duration::from_mins(1);

/// The first pause between attempts, give or take; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest, which is also how long a server that is back may wait for what happened meanwhile, give or take.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long the pauses may be together: what is still open after that is told anew anyway.
const PAUSES: Duration = Duration::from_mins(5);

/// Why nothing can be sent at all.
#[derive(Debug, thiserror::Error)]
#[error(
    "alerts.webhook is an https URL, and there is no certificate authority to trust: {0}. Install the system's \
     (package ca-certificates), or name a file of them in SSL_CERT_FILE"
)]
pub struct NoRoots(io::Error);

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
enum PostError {
    #[error("it does not answer within {TIMEOUT:?}")]
    Timeout,
    #[error("{0}")]
    Transport(String),
    #[error("it redirects ({0}), which is not followed: put the final URL into alerts.webhook")]
    Redirect(StatusCode),
    #[error("it answers {0}")]
    Status(StatusCode),
}

impl PostError {
    /// Whether another attempt makes sense.
    fn may_pass(&self) -> bool {
        match self {
            Self::Timeout | Self::Transport(_) => true,
            Self::Redirect(_) => false,
            Self::Status(status) => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// Takes alerts and tells them in the order in which they came. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Webhook {
    queue: Arc<Mutex<Queue>>,
    filled: Arc<Notify>,
    alerts: IntCounterVec,
}

/// What is to be told.
#[derive(Debug, Default)]
struct Queue {
    /// Once.
    pending: VecDeque<Alert>,
    /// Every [`REFRESH`], by the labels: as many as breaches are open at most.
    open: BTreeMap<BTreeMap<String, String>, Alert>,
}

impl Webhook {
    /// An empty queue, which [`Self::run`] empties.
    pub fn new() -> Result<Self, prometheus::Error> {
        let help = "Alerts told to alerts.webhook, those told again among them: sent, failed for good, or dropped \
                    because too many waited.";
        let alerts = IntCounterVec::new(Opts::new("egress_guard_alerts_total", help), &["result"])?;
        for result in ["sent", "failed", "dropped"] {
            alerts.with_label_values(&[result]);
        }
        Ok(Self { queue: Arc::default(), filled: Arc::default(), alerts })
    }

    /// The metrics, to be registered.
    pub fn collectors(&self) -> [Box<dyn Collector>; 1] {
        [Box::new(self.alerts.clone())]
    }

    /// Queues an alert and returns at once. One without an end is told again every minute until one with the same
    /// labels and an end is sent.
    ///
    /// When too many wait, the oldest goes: newer ones say more about now, an open one is told again anyway, and one
    /// whose end gets lost is resolved by Alertmanager because it is not told again.
    pub fn send(&self, alert: Alert) {
        let mut queue = self.lock();
        if alert.ends_at.is_none() {
            queue.open.insert(alert.labels.clone(), alert.clone());
        } else {
            // The end of one container's breach is not that of its successor's, which has the same labels.
            let newer = |open: &Alert| open.starts_at > alert.starts_at;
            if queue.open.get(&alert.labels).is_some_and(newer) {
                return;
            }
            queue.open.remove(&alert.labels);
        }
        if queue.pending.len() == QUEUE {
            queue.pending.pop_front();
            self.count("dropped", 1);
        }
        queue.pending.push_back(alert);
        drop(queue);
        self.filled.notify_one();
    }

    /// Sends what is queued, for ever. It may be dropped at any time, to go on with another endpoint: what is still open
    /// is then told within a minute.
    pub async fn run(&self, endpoint: &Endpoint) -> Result<Infallible, NoRoots> {
        let client = Poster::new(endpoint)?;
        let mut refresh = time::interval_at(time::Instant::now() + REFRESH, REFRESH);
        refresh.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            let mut batch: Vec<Alert> = self.lock().pending.drain(..).collect();
            if batch.is_empty() {
                tokio::select! {
                    () = self.filled.notified() => continue,
                    _ = refresh.tick() => {}
                }
                let mut queue = self.lock();
                // What came in this moment comes first: it may be the end of what has begun anew since.
                batch.extend(queue.pending.drain(..));
                batch.extend(queue.open.values().cloned());
            }
            for part in batch.chunks(QUEUE) {
                self.deliver(&client, endpoint, part).await;
            }
        }
    }

    /// Sends alerts until they are taken, refused, or it has taken too long.
    async fn deliver(&self, client: &Poster, endpoint: &Endpoint, alerts: &[Alert]) {
        let body: Bytes = match serde_json::to_vec(alerts) {
            Ok(body) => body.into(),
            Err(error) => unreachable!("text with text for keys: {error}"),
        };
        let mut tries = 1;
        let pauses = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_total_delay(Some(PAUSES))
            .without_max_times();
        let attempt = || client.post(endpoint, body.clone());
        let taken = attempt.retry(pauses).when(PostError::may_pass).notify(|error, _| {
            if tries == 1 {
                warn!(%endpoint, "alerts.webhook: {error}; trying again for {}", humantime::format_duration(PAUSES));
            }
            tries += 1;
        });
        match taken.await {
            Ok(()) => {
                self.count("sent", alerts.len());
                if tries > 1 {
                    info!(%endpoint, tries, "alerts.webhook: it takes alerts again");
                }
            }
            Err(error) => {
                self.count("failed", alerts.len());
                warn!(%endpoint, tries, "alerts.webhook: {} alerts are not delivered: {error}", alerts.len());
            }
        }
    }

    fn count(&self, result: &str, alerts: usize) {
        self.alerts.with_label_values(&[result]).inc_by(alerts as u64);
    }

    /// No use of the queue can panic halfway.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends one request. An http URL needs no certificates.
enum Poster {
    Http(Client<HttpConnector, Full<Bytes>>),
    Https(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Poster {
    fn new(endpoint: &Endpoint) -> Result<Self, NoRoots> {
        // A request a minute: a connection that is kept would be closed by the time it is needed.
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_max_idle_per_host(0);
        if !endpoint.is_https() {
            return Ok(Self::Http(builder.build_http()));
        }
        let tls = HttpsConnectorBuilder::new().with_native_roots().map_err(NoRoots)?;
        Ok(Self::Https(builder.build(tls.https_only().enable_http1().build())))
    }

    async fn post(&self, endpoint: &Endpoint, body: Bytes) -> Result<(), PostError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = endpoint.uri().clone();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let agent = concat!("egress-guard/", env!("CARGO_PKG_VERSION"));
        headers.insert(header::USER_AGENT, header::HeaderValue::from_static(agent));
        if let Some(authorization) = endpoint.authorization() {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        let answer = match self {
            Self::Http(client) => client.request(request),
            Self::Https(client) => client.request(request),
        };
        let answer = time::timeout(TIMEOUT, answer).await.map_err(|_| PostError::Timeout)?;
        // What the answer's body says may repeat the URL with its secrets: it is not read.
        match answer.map_err(|error| PostError::Transport(causes(&error)))?.status() {
            status if status.is_success() => Ok(()),
            status if status.is_redirection() => Err(PostError::Redirect(status)),
            status => Err(PostError::Status(status)),
        }
    }
}

/// An error with what led to it.
fn causes(error: &(dyn StdError + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;
