//! An API server in memory: objects with versions, a clock of its own, evictions as the test says.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http::{Method, Request, Response};
use k8s_openapi::jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Its clock at the start: nothing like that of the machine that runs the test.
pub(super) const EPOCH: i64 = 1_000_000_000;

pub(super) const EVICTION: &str = "/api/v1/namespaces/shop/pods/web-1/eviction";
pub(super) const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/guard/leases";

/// One request that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) uri: String,
    /// Byte by byte.
    pub(super) body: String,
}

/// What it says to an eviction.
#[derive(Clone, Debug)]
pub(super) enum Say {
    Answer(u16, Value),
    /// With a header.
    With(u16, &'static str, &'static str, Value),
    /// Nothing, ever.
    Nothing,
}

pub(super) struct Fake {
    began: Instant,
    /// The most milliseconds that an answer takes, and the same again before it is looked at.
    delay: u64,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) objects: BTreeMap<String, Value>,
    version: u64,
    pub(super) asked: Vec<Asked>,
    /// What is said to evictions, in this order; then 201.
    pub(super) evictions: VecDeque<Say>,
    /// What is said to all other requests whose method and path begin so.
    pub(super) others: BTreeMap<String, Say>,
    /// The version of `pods/eviction`.
    pub(super) policy: &'static str,
    /// Events of watches, one list for each; then nothing happens.
    pub(super) watches: VecDeque<Vec<Value>>,
    /// The answers have no Date.
    pub(super) timeless: bool,
}

impl Fake {
    pub(super) fn new(delay: u64) -> Arc<Self> {
        let state = State { policy: "v1", ..State::default() };
        Arc::new(Self { began: Instant::now(), delay, state: Mutex::new(state) })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    pub(super) fn now(&self) -> i64 {
        EPOCH + self.began.elapsed().as_secs() as i64
    }

    pub(super) fn put(&self, path: &str, object: Value) {
        let mut state = self.state();
        state.keep(path, object);
    }

    /// The requests whose method and path begin so.
    pub(super) fn asked(&self, what: &str) -> Vec<Asked> {
        let is = |it: &&Asked| format!("{} {}", it.method, it.uri).starts_with(what);
        self.state().asked.iter().filter(is).cloned().collect()
    }

    /// All that are under a path.
    pub(super) fn under(&self, path: &str) -> Vec<Value> {
        let state = self.state();
        state.objects.iter().filter(|(name, _)| name.starts_with(path)).map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn client(self: &Arc<Self>) -> Client {
        let (service, mut requests) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let fake = Arc::clone(self);
        tokio::spawn(async move {
            while let Some((request, answer)) = requests.next_request().await {
                let fake = Arc::clone(&fake);
                tokio::spawn(async move {
                    fake.dawdle().await;
                    let said = fake.say(request).await;
                    fake.dawdle().await;
                    match said {
                        Some(said) => answer.send_response(said),
                        None => std::future::pending().await,
                    }
                });
            }
        });
        Client::new(service, "default")
    }

    async fn dawdle(&self) {
        if self.delay > 0 {
            sleep(Duration::from_millis(fastrand::u64(..=self.delay))).await;
        }
    }

    async fn say(&self, request: Request<Body>) -> Option<Response<Body>> {
        let (parts, body) = request.into_parts();
        let body = String::from_utf8(body.collect_bytes().await.expect("a body").to_vec()).expect("text");
        let (method, uri) = (parts.method, parts.uri.to_string());
        let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
        let date = Timestamp::from_second(self.now()).expect("a time");
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&date).expect("a date");
        let mut state = self.state();
        state.asked.push(Asked { method: method.clone(), uri, body: body.clone() });
        let body = serde_json::from_str(&body).unwrap_or(Value::Null);
        let said = state.answer(&method, &path, &query, body);
        let response = if state.timeless { Response::builder() } else { Response::builder().header("date", date) };
        let (response, body) = match said {
            Say::Nothing => return None,
            Say::Answer(status, body) => (response.status(status), body),
            Say::With(status, name, value, body) => (response.status(status).header(name, value), body),
        };
        // A watch's events are a line each.
        let text = match body.as_array() {
            Some(events) => events.iter().flat_map(|event| [event.to_string(), "\n".to_owned()]).collect(),
            None => body.to_string(),
        };
        Some(response.body(Body::from(text.into_bytes())).expect("a response"))
    }
}

impl State {
    fn answer(&mut self, method: &Method, path: &str, query: &str, body: Value) -> Say {
        let said = self.others.iter().find(|(what, _)| format!("{method} {path}").starts_with(*what));
        if let Some((_, said)) = said {
            return said.clone();
        }
        if path == "/api/v1" {
            let eviction =
                json!({"name": "pods/eviction", "kind": "Eviction", "group": "policy", "version": self.policy});
            return Say::Answer(200, json!({"kind": "APIResourceList", "resources": [eviction]}));
        }
        if path.ends_with("/eviction") {
            return self.evictions.pop_front().unwrap_or(Say::Answer(201, json!({"kind": "Status"})));
        }
        if query.contains("watch=true") {
            return self.watches.pop_front().map_or(Say::Nothing, |events| Say::Answer(200, json!(events)));
        }
        match *method {
            Method::GET if is_collection(path) => self.list(path, query),
            Method::GET => match self.objects.get(path) {
                Some(object) => Say::Answer(200, object.clone()),
                None => not_found(path),
            },
            Method::POST => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().expect("a name"));
                if self.objects.contains_key(&path) {
                    return conflict("already exists");
                }
                Say::Answer(201, self.keep(&path, body))
            }
            Method::PUT => {
                let Some(before) = self.objects.get(path) else { return not_found(path) };
                if before["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return conflict("the object has been modified");
                }
                Say::Answer(200, self.keep(path, body))
            }
            Method::DELETE => {
                let Some(before) = self.objects.get(path) else { return not_found(path) };
                if before["metadata"]["resourceVersion"] != body["preconditions"]["resourceVersion"] {
                    return conflict("the object has been modified");
                }
                self.objects.remove(path);
                Say::Answer(200, json!({"kind": "Status"}))
            }
            _ => Say::Answer(405, status(405, "", "the server does not allow this method")),
        }
    }

    fn list(&self, path: &str, query: &str) -> Say {
        let under = format!("{path}/");
        // As far as it is asked for here.
        let label = query.strip_prefix("labelSelector=egress-guard.dev%2Flease%3D");
        let is = |object: &&Value| {
            label.is_none_or(|label| object["metadata"]["labels"]["egress-guard.dev/lease"].as_str() == Some(label))
        };
        let items: Vec<&Value> =
            self.objects.iter().filter(|(name, _)| name.starts_with(&under)).map(|(_, it)| it).filter(is).collect();
        let version = self.version.to_string();
        let list =
            json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items});
        Say::Answer(200, list)
    }

    fn keep(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }
}

fn is_collection(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|last| ["leases", "pods", "poddisruptionbudgets"].contains(&last))
}

pub(super) fn status(code: u16, kind: &str, message: &str) -> Value {
    json!({"kind": "Status", "status": "Failure", "code": code, "message": message, "details": {"kind": kind}})
}

fn conflict(message: &str) -> Say {
    Say::Answer(409, status(409, "leases", message))
}

fn not_found(path: &str) -> Say {
    let mut parts = path.rsplit('/');
    let (name, kind) = (parts.next(), parts.next());
    let message = format!("{} {:?} not found", kind.unwrap_or_default(), name.unwrap_or_default());
    Say::Answer(
        404,
        json!({"kind": "Status", "code": 404, "message": message, "details": {"name": name, "kind": kind}}),
    )
}
