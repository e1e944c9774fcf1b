//! An API server in the test's hands: it lists and watches pods and the agent's ConfigMap, tells of single objects, takes what is
//! said of pods, and may be away.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The node whose pods are asked for.
pub const NODE: &str = "node-1";

/// Where pods are.
const PODS: &str = "/api/v1/pods";

/// Where the agent's ConfigMap is.
const MAPS: &str = "/api/v1/namespaces/egress-guard/configmaps";

/// A server on loopback; it ends when it is dropped.
#[derive(Debug)]
pub struct Api {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// Pods and config maps, by kind, namespace and name.
    watched: BTreeMap<[String; 3], Value>,
    /// Other objects, by their paths.
    objects: BTreeMap<String, Value>,
    /// What happened to pods and config maps, with the version that it led to.
    events: Vec<(u64, &'static str, Value)>,
    /// What happened before is forgotten.
    oldest: u64,
    away: bool,
    stopped: bool,
    connections: Vec<TcpStream>,
    asked: Vec<String>,
    written: Vec<Written>,
    /// Paths that nobody may ask for.
    forbidden: Vec<String>,
}

/// A request that changes something, which is taken as it is.
#[derive(Clone, Debug)]
pub struct Written {
    /// Such as `PATCH`.
    pub method: String,
    /// Its path and query.
    pub target: String,
    /// What is to be written.
    pub body: Value,
}

impl Api {
    /// Starts one without pods.
    pub fn new() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::<Shared>::default();
        shared.lock().version = 1;
        let serving = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let mut state = serving.lock();
                if state.stopped {
                    return;
                }
                // As one that has just died: the connection is there, and breaks.
                if !state.away
                    && let Ok(clone) = connection.try_clone()
                {
                    state.connections.push(clone);
                    let shared = Arc::clone(&serving);
                    thread::spawn(move || shared.serve(connection));
                }
            }
        });
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Writes what a client needs to find it.
    pub fn kubeconfig(&self, path: &Path) -> Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        Ok(fs::write(path, config.to_string())?)
    }

    /// A pod or a ConfigMap appears or changes.
    pub fn apply(&self, object: &Value) {
        let mut state = self.shared.lock();
        let kind = if state.watched.contains_key(&key(object)) { "MODIFIED" } else { "ADDED" };
        state.happen(kind, object.clone());
        drop(state);
        self.shared.changed.notify_all();
    }

    /// A pod or a ConfigMap goes.
    pub fn delete(&self, object: &Value) {
        self.shared.lock().happen("DELETED", object.clone());
        self.shared.changed.notify_all();
    }

    /// Another object is there.
    pub fn put(&self, path: &str, object: Value) {
        self.shared.lock().objects.insert(path.to_owned(), object);
    }

    /// Goes away, with all connections, or comes back.
    pub fn set_away(&self, away: bool) {
        let mut state = self.shared.lock();
        state.away = away;
        if away {
            for connection in state.connections.drain(..) {
                // Closed by the other end is as good.
                let _closed = connection.shutdown(Shutdown::Both);
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Forgets what happened up to now: who goes on from an older version is told that it is gone.
    pub fn forget(&self) {
        let mut state = self.shared.lock();
        state.oldest = state.version;
        state.events.clear();
    }

    /// What was written up to now.
    pub fn written(&self) -> Vec<Written> {
        self.shared.lock().written.clone()
    }

    /// The ConfigMap may not be read any more, or it may again; watches of everything end.
    pub fn forbid_map(&self, forbidden: bool) {
        self.shared.lock().forbidden = if forbidden { vec![MAPS.to_owned()] } else { vec![] };
        self.set_away(true);
        self.set_away(false);
    }

    /// The requests up to now: the path and query of each.
    pub fn asked(&self) -> Vec<String> {
        self.shared.lock().asked.clone()
    }
}

fn key(object: &Value) -> [String; 3] {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    [text(&object["kind"]), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"])]
}

/// What is watched there, and how it must be asked for.
fn collection(path: &str) -> Option<(&'static str, String)> {
    match path {
        PODS => Some(("Pod", format!("spec.nodeName%3D{NODE}"))),
        MAPS => Some(("ConfigMap", "metadata.name%3Degress-guard".into())),
        _ => None,
    }
}

/// Whether an object is among what is asked for there.
fn is_there(kind: &str, object: &Value) -> bool {
    object["kind"] == kind && (kind != "Pod" || object["spec"]["nodeName"] == NODE)
}

impl State {
    fn happen(&mut self, kind: &'static str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if kind == "DELETED" {
            self.watched.remove(&key(&object));
        } else {
            self.watched.insert(key(&object), object.clone());
        }
        self.events.push((self.version, kind, object));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the requests of a connection until it breaks.
    fn serve(&self, connection: TcpStream) {
        // A client that has gone is no failure.
        let _ended = self.try_serve(connection);
    }

    fn try_serve(&self, mut connection: TcpStream) -> Result<()> {
        let mut reader = BufReader::new(connection.try_clone()?);
        loop {
            let mut first = String::new();
            reader.read_line(&mut first)?;
            let mut words = first.split_whitespace().map(str::to_owned);
            let (method, target) = words.next().zip(words.next()).context("a request")?;
            let (mut header, mut length) = (first, 0);
            while !header.trim().is_empty() {
                header.clear();
                reader.read_line(&mut header)?;
                if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse()?;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            if method != "GET" {
                let body: Value = serde_json::from_slice(&body)?;
                answer(&mut connection, if method == "POST" { 201 } else { 200 }, &body)?;
                self.lock().written.push(Written { method, target, body });
                continue;
            }
            self.lock().asked.push(target.clone());
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let asked = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            let forbidden = self.lock().forbidden.iter().any(|forbidden| forbidden == path);
            match collection(path) {
                Some((_, selector)) if forbidden || asked("fieldSelector") != Some(&selector) => {
                    let status = json!({
                        "kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden",
                        "message": "the test forbids it",
                    });
                    answer(&mut connection, 403, &status)?;
                }
                Some((kind, _)) if asked("watch").is_some() => {
                    let version = asked("resourceVersion").context("a version")?.parse()?;
                    return self.watch(connection, kind, version);
                }
                Some((kind, _)) => {
                    let list = {
                        let state = self.lock();
                        let items: Vec<&Value> =
                            state.watched.values().filter(|object| is_there(kind, object)).collect();
                        let metadata = json!({"resourceVersion": state.version.to_string()});
                        json!({"kind": format!("{kind}List"), "apiVersion": "v1", "metadata": metadata, "items": items})
                    };
                    answer(&mut connection, 200, &list)?;
                }
                None => {
                    let found = self.lock().objects.get(path).cloned();
                    let (code, body) = match found {
                        Some(object) => (200, object),
                        None => (404, json!({"kind": "Status", "code": 404, "reason": "NotFound"})),
                    };
                    answer(&mut connection, code, &body)?;
                }
            }
        }
    }

    /// Tells of what happens after a version, until the connection breaks.
    fn watch(&self, mut connection: TcpStream, of: &str, mut version: u64) -> Result<()> {
        connection
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")?;
        let mut tell = |kind: &str, object: &Value| {
            let line = format!("{}\n", json!({"type": kind, "object": object}));
            connection.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())
        };
        let mut state = self.lock();
        while !state.away && !state.stopped {
            if version < state.oldest {
                tell("ERROR", &json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}))?;
                return Ok(());
            }
            for (at, kind, object) in &state.events {
                if *at > version && is_there(of, object) {
                    tell(kind, object)?;
                }
            }
            version = version.max(state.version);
            let waited = self.changed.wait_timeout(state, Duration::from_secs(1));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

fn answer(connection: &mut TcpStream, code: u16, body: &Value) -> Result<()> {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {code} -\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    Ok(connection.write_all((head + &body).as_bytes())?)
}

impl Drop for Api {
    fn drop(&mut self) {
        self.set_away(true);
        self.shared.lock().stopped = true;
        // Wakes it up.
        let woken = TcpStream::connect(self.address).map(drop);
        let ended = self.thread.take().map(JoinHandle::join);
        if woken.is_err() || !matches!(ended, Some(Ok(()))) {
            eprintln!("the API server in the test failed: {woken:?}, {ended:?}");
        }
    }
}
