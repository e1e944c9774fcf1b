//! An API server in a test's hands: every request is seen, every answer made.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, channel::Channel, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::time::timeout;
use tower_test::mock::{self, SendResponse};

pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// The other end of a [`Client`].
pub(crate) struct Server(mock::Handle<Request<Body>, Answer>);

/// A request, and where its answer goes.
pub(crate) struct Asked {
    pub(crate) method: http::Method,
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) content_type: String,
    /// Its body; null without one.
    pub(crate) body: Value,
    to: SendResponse<Answer>,
}

/// The answer to a watch, which is written as things happen.
pub(crate) struct Stream(http_body_util::channel::Sender<Bytes, std::io::Error>);

pub(crate) fn pair() -> (Client, Server) {
    let (service, server) = mock::pair();
    (Client::new(service, "default"), Server(server))
}

impl Server {
    /// The next request, within an hour.
    pub(crate) async fn asked(&mut self) -> Asked {
        let asked = timeout(Duration::from_hours(1), self.0.next_request()).await.expect("a request in an hour");
        let (request, to) = asked.expect("the client is there");
        let (head, body) = request.into_parts();
        let query = head.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let query = query.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let content_type = head.headers.get(http::header::CONTENT_TYPE).map(|kind| kind.to_str().expect("text").into());
        let body = body.collect_bytes().await.expect("a body");
        Asked {
            method: head.method,
            path: head.uri.path().to_owned(),
            query,
            content_type: content_type.unwrap_or_default(),
            body: if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") },
            to,
        }
    }

    /// Nothing is asked for so long.
    pub(crate) async fn quiet(&mut self, time: Duration) {
        if let Ok(asked) = timeout(time, self.0.next_request()).await {
            panic!("asked within {time:?}: {:?}", asked.map(|(request, _)| request));
        }
    }
}

impl Asked {
    pub(crate) fn answer(self, code: u16, body: &Value) {
        let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed_unsync();
        self.to.send_response(Response::builder().status(code).body(body).expect("an answer"));
    }

    /// The API server says no.
    pub(crate) fn refuse(self, code: u16, reason: &str) {
        self.answer(code, &status(code, reason));
    }

    /// There is no way to it.
    pub(crate) fn fail(self) {
        self.to.send_error(std::io::Error::other("connection refused"));
    }

    /// A watch begins.
    pub(crate) fn stream(self) -> Stream {
        let (sender, channel) = Channel::new(1);
        self.to.send_response(Response::new(channel.boxed_unsync()));
        Stream(sender)
    }
}

impl Stream {
    pub(crate) async fn tell(&mut self, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        self.0.send_data(line.into()).await.expect("somebody listens");
    }

    /// The connection breaks.
    pub(crate) fn tear(self) {
        self.0.abort(std::io::Error::other("torn"));
    }
}

/// What the API server says when it says no.
pub(crate) fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code})
}
