//! An API server in the test's hands: it lists and watches pods, tells of single objects, and may be away.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
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
    /// By namespace and name.
    pods: BTreeMap<(String, String), Value>,
    /// Other objects, by their paths.
    objects: BTreeMap<String, Value>,
    /// What happened to pods, with the version that it led to.
    events: Vec<(u64, &'static str, Value)>,
    /// What happened before is forgotten.
    oldest: u64,
    away: bool,
    stopped: bool,
    connections: Vec<TcpStream>,
    asked: Vec<String>,
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

    /// A pod appears or changes.
    pub fn apply(&self, pod: &Value) {
        let mut state = self.shared.lock();
        let kind = if state.pods.contains_key(&key(pod)) { "MODIFIED" } else { "ADDED" };
        state.happen(kind, pod.clone());
        drop(state);
        self.shared.changed.notify_all();
    }

    /// A pod goes.
    pub fn delete(&self, pod: &Value) {
        self.shared.lock().happen("DELETED", pod.clone());
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

    /// The requests up to now: the path and query of each.
    pub fn asked(&self) -> Vec<String> {
        self.shared.lock().asked.clone()
    }
}

fn key(pod: &Value) -> (String, String) {
    let text = |name: &str| pod["metadata"][name].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

impl State {
    fn happen(&mut self, kind: &'static str, mut pod: Value) {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = self.version.to_string().into();
        if kind == "DELETED" {
            self.pods.remove(&key(&pod));
        } else {
            self.pods.insert(key(&pod), pod.clone());
        }
        self.events.push((self.version, kind, pod));
    }

    fn of_node<'a>(pods: impl Iterator<Item = &'a Value>) -> Vec<&'a Value> {
        pods.filter(|pod| pod["spec"]["nodeName"] == NODE).collect()
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
            let target = first.split_whitespace().nth(1).context("a request")?.to_owned();
            let mut header = first;
            while !header.trim().is_empty() {
                header.clear();
                reader.read_line(&mut header)?;
            }
            self.lock().asked.push(target.clone());
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let asked = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            if path == PODS && asked("fieldSelector") != Some(&format!("spec.nodeName%3D{NODE}")) {
                answer(&mut connection, 403, &json!({"kind": "Status", "code": 403, "reason": "Forbidden"}))?;
            } else if path == PODS && asked("watch").is_some() {
                let version = asked("resourceVersion").context("a version")?.parse()?;
                return self.watch(connection, version);
            } else if path == PODS {
                let list = {
                    let state = self.lock();
                    let items = State::of_node(state.pods.values());
                    let metadata = json!({"resourceVersion": state.version.to_string()});
                    json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items})
                };
                answer(&mut connection, 200, &list)?;
            } else {
                let found = self.lock().objects.get(path).cloned();
                let (code, body) = match found {
                    Some(object) => (200, object),
                    None => (404, json!({"kind": "Status", "code": 404, "reason": "NotFound"})),
                };
                answer(&mut connection, code, &body)?;
            }
        }
    }

    /// Tells of what happens after a version, until the connection breaks.
    fn watch(&self, mut connection: TcpStream, mut version: u64) -> Result<()> {
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
            for (at, kind, pod) in &state.events {
                if *at > version && !State::of_node(std::iter::once(pod)).is_empty() {
                    tell(kind, pod)?;
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
