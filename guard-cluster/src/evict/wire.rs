//! One request, one answer: with the API server's clock, counted, never repeated.

use std::time::Duration;

use http::{HeaderMap, Method, Request, header};
use k8s_openapi::jiff::fmt::rfc2822::DateTimeParser;
use kube::{Client, Error, client::Body};
use prometheus::{IntCounterVec, Opts};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time;

use super::{EvictError, Outcome, answer};
use crate::{connect::PATIENCE, convert::chain};

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Evict,
    Pod,
    Workload,
    Claim,
    Lease,
    Budget,
    Discovery,
    /// The watch for a replacement: counted when it begins, and when it breaks.
    Watch,
}

/// Asks the API server, and counts it.
#[derive(Clone)]
pub(crate) struct Wire {
    client: Client,
    requests: IntCounterVec,
}

/// What the API server answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The API server's clock: its `Date`, in seconds since 1970.
    pub(crate) date: Option<i64>,
    /// How long it wants to be left alone.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Vec<u8>,
}

/// There is no answer.
#[derive(Clone, Debug)]
pub(crate) struct Silence {
    pub(crate) error: String,
    /// It may have arrived.
    pub(crate) sent: bool,
}

impl What {
    const ALL: [Self; 8] =
        [Self::Evict, Self::Pod, Self::Workload, Self::Claim, Self::Lease, Self::Budget, Self::Discovery, Self::Watch];

    /// The label in metrics.
    const fn name(self) -> &'static str {
        match self {
            Self::Evict => "evict",
            Self::Pod => "pod",
            Self::Workload => "workload",
            Self::Claim => "claim",
            Self::Lease => "lease",
            Self::Budget => "budget",
            Self::Discovery => "discovery",
            Self::Watch => "watch",
        }
    }

    /// For `cannot ...`.
    const fn doing(self) -> &'static str {
        match self {
            Self::Evict => "evict the pod",
            Self::Pod => "read the pod",
            Self::Workload => "read the pod's workload",
            Self::Claim => "read where the pod's volumes are",
            Self::Lease => "use a Lease of the agent's namespace",
            Self::Budget => "list the PodDisruptionBudgets",
            Self::Discovery => "find out how pods are evicted here",
            Self::Watch => "watch for the replacement",
        }
    }
}

impl Wire {
    /// `client` must not repeat requests by itself.
    pub(crate) fn new(client: Client) -> Result<Self, prometheus::Error> {
        let help = "Requests to the API server for evictions, by what they are about and how they ended.";
        let requests = IntCounterVec::new(Opts::new("egress_guard_cluster_requests_total", help), &["what", "result"])?;
        for what in What::ALL {
            for result in ["ok", "refused", "failed"] {
                requests.with_label_values(&[what.name(), result]);
            }
        }
        Ok(Self { client, requests })
    }

    pub(crate) const fn requests(&self) -> &IntCounterVec {
        &self.requests
    }

    pub(crate) fn count(&self, what: What, status: Option<u16>) {
        let result = match status {
            Some(..400) => "ok",
            Some(400..500) => "refused",
            _ => "failed",
        };
        self.requests.with_label_values(&[what.name(), result]).inc();
    }

    /// Whatever the API server says.
    pub(crate) async fn send(
        &self,
        what: What,
        method: Method,
        uri: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Silence> {
        let answer = self.try_send(method, uri, body).await;
        self.count(what, answer.as_ref().ok().map(|answer| answer.status));
        answer
    }

    async fn try_send(&self, method: Method, uri: &str, body: Option<&Value>) -> Result<Answer, Silence> {
        let request = Request::builder().method(method).uri(uri);
        let request = request.header(header::ACCEPT, "application/json");
        let request = match body {
            Some(body) => {
                let body = Body::from(body.to_string().into_bytes());
                request.header(header::CONTENT_TYPE, "application/json").body(body)
            }
            None => request.body(Body::empty()),
        };
        let request = request.map_err(|error| Silence { error: error.to_string(), sent: false })?;
        let answer = async {
            let response = self.client.send(request).await?;
            let (status, date) = (response.status().as_u16(), date(response.headers()));
            let retry_after = retry_after(response.headers(), date);
            let body = response.into_body().collect_bytes().await?.to_vec();
            Ok::<Answer, Error>(Answer { status, date, retry_after, body })
        };
        match time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let sent = !matches!(error, Error::Auth(_) | Error::BuildRequest(_) | Error::HttpError(_));
                Err(Silence { error: chain(&error), sent })
            }
            Err(_) => Err(Silence { error: format!("no answer within {PATIENCE:?}"), sent: true }),
        }
    }

    /// The answer to a question that must be answered before an eviction; `None`: there is no such thing.
    pub(crate) async fn ask(
        &self,
        what: What,
        method: Method,
        uri: &str,
        body: Option<&Value>,
    ) -> Result<Option<Answer>, Outcome> {
        let answer = self.send(what, method, uri, body).await;
        let answer = answer.map_err(|Silence { error, .. }| EvictError::Unanswered { what: what.doing(), error })?;
        match answer.status {
            200..300 => Ok(Some(answer)),
            404 => Ok(None),
            _ => Err(answer::refusal(what.doing(), &answer)),
        }
    }

    /// An object; `None`: it is not there.
    pub(crate) async fn get<T: DeserializeOwned>(&self, what: What, uri: &str) -> Result<Option<(T, Answer)>, Outcome> {
        let Some(answer) = self.ask(what, Method::GET, uri, None).await? else { return Ok(None) };
        Ok(Some((read(what, &answer)?, answer)))
    }
}

/// What is in an answer.
pub(crate) fn read<T: DeserializeOwned>(what: What, answer: &Answer) -> Result<T, EvictError> {
    let unreadable = |error: serde_json::Error| EvictError::Unreadable { what: what.doing(), error: error.to_string() };
    serde_json::from_slice(&answer.body).map_err(unreadable)
}

impl Answer {
    /// The API server's clock. The nodes' may be off, and budgets of the cluster are counted by one clock.
    pub(crate) fn now(&self) -> Result<i64, EvictError> {
        self.date.ok_or(EvictError::NoDate)
    }
}

impl From<EvictError> for Outcome {
    fn from(error: EvictError) -> Self {
        Self::Failed(error)
    }
}

fn date(headers: &HeaderMap) -> Option<i64> {
    instant(headers.get(header::DATE)?.to_str().ok()?)
}

/// RFC 9110 section 10.2.3: seconds, or a date.
fn retry_after(headers: &HeaderMap, date: Option<i64>) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = match text.parse() {
        Ok(seconds) => seconds,
        Err(_) => u64::try_from(instant(text)?.saturating_sub(date?)).ok()?,
    };
    Some(Duration::from_secs(seconds))
}

fn instant(date: &str) -> Option<i64> {
    Some(DateTimeParser::new().parse_timestamp(date).ok()?.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(header::HeaderName, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.clone(), value.parse().expect("a header"))).collect()
    }

    #[test]
    fn the_servers_clock() {
        let said = |text| date(&headers(&[(header::DATE, text)]));
        assert_eq!(said("Fri, 02 Jan 2026 03:04:05 GMT"), Some(1_767_323_045));
        assert_eq!(said("yesterday"), None);
        assert_eq!(date(&HeaderMap::new()), None);
    }

    #[test]
    fn how_long_the_server_wants_to_be_left_alone() {
        let cases = [
            ("10", Some(10)),
            (" 7 ", Some(7)),
            ("Fri, 02 Jan 2026 03:05:05 GMT", Some(60)),
            ("Fri, 02 Jan 2026 03:00:00 GMT", None),
            ("soon", None),
            ("-1", None),
        ];
        for (text, expected) in cases {
            let all = headers(&[(header::RETRY_AFTER, text)]);
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&all, Some(1_767_323_045)), expected, "{text}");
        }
    }
}
