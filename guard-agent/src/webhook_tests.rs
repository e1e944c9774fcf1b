//! Against a real server on the loopback device. Time stands still until a test lets it pass.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, mpsc as std_mpsc},
    time::SystemTime,
};

use axum::{
    Router,
    extract::{Request as Received, State},
    http::{HeaderMap, HeaderName, HeaderValue},
    response::IntoResponse as _,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};

use super::*;
use crate::{
    breaches::{Done, Held, Time, example},
    core::breach::Limit,
};

const OK: u16 = 200;
/// Answers nothing, ever.
const HANG: u16 = 0;

/// What the server has got.
struct Got {
    method: String,
    uri: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn alerts(&self) -> Vec<Value> {
        serde_json::from_slice(&self.body).expect("a JSON array")
    }

    /// Whose alerts they are, with + for a beginning and - for an end.
    fn names(&self) -> Vec<String> {
        let name = |alert: &Value| {
            let sign = if alert.get("endsAt").is_some() { '-' } else { '+' };
            format!("{sign}{}", alert["labels"]["pod"].as_str().expect("a pod"))
        };
        self.alerts().iter().map(name).collect()
    }
}

type Script = Arc<Mutex<VecDeque<u16>>>;

/// A server, the webhook that sends to it, and a clock that the test turns.
struct World {
    webhook: Webhook,
    got: mpsc::UnboundedReceiver<Got>,
    script: Script,
    runs: JoinHandle<Result<Infallible, NoRoots>>,
    _still: std_mpsc::Sender<()>,
}

impl World {
    /// The server answers with the script's statuses, then with 200.
    async fn new(script: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://user:secret@{}?token=secret", listener.local_addr().expect("an address"));
        let (sender, got) = mpsc::unbounded_channel();
        let script: Script = Arc::new(Mutex::new(script.iter().copied().collect()));
        let router = Router::new().fallback(answer).with_state((sender, Arc::clone(&script)));
        tokio::spawn(crate::http::serve(listener, router));

        let webhook = Webhook::new().expect("metrics");
        let (running, endpoint) = (webhook.clone(), url.parse::<Endpoint>().expect("a URL"));
        let runs = tokio::spawn(async move { running.run(&endpoint).await });
        // While there is a blocking task, tokio's paused clock does not run ahead of the sockets.
        let (still, wait) = std_mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || wait.recv());
        Self { webhook, got, script, runs, _still: still }
    }

    /// Lets time pass until the next request; returns it and how much has passed.
    async fn next(&mut self) -> (Got, Duration) {
        let begun = time::Instant::now();
        loop {
            if let Some(got) = self.quiet() {
                return (got, begun.elapsed());
            }
            assert!(begun.elapsed() < Duration::from_mins(20), "there is no request");
            pass(Duration::from_millis(100)).await;
        }
    }

    /// A request that has come already.
    fn quiet(&mut self) -> Option<Got> {
        self.got.try_recv().ok()
    }

    fn count(&self, result: &str) -> u64 {
        self.webhook.alerts.with_label_values(&[result]).get()
    }

    /// Waits for an answer to be counted, without letting time pass.
    async fn counted(&self, result: &str, expected: u64) {
        for _ in 0..2000 {
            if self.count(result) >= expected {
                break;
            }
            pass(Duration::ZERO).await;
        }
        assert_eq!(self.count(result), expected, "{result}");
    }
}

/// Turns the clock, and gives the sockets a moment of real time.
async fn pass(duration: Duration) {
    std::thread::sleep(Duration::from_micros(200));
    time::advance(duration).await;
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

async fn answer(
    State((sender, script)): State<(mpsc::UnboundedSender<Got>, Script)>,
    request: Received,
) -> axum::response::Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
    let (method, uri) = (head.method.to_string(), head.uri.to_string());
    let status = script.lock().expect("a script").pop_front().unwrap_or(OK);
    sender.send(Got { method, uri, headers: head.headers, body }).expect("the test goes on");
    if status == HANG {
        std::future::pending::<()>().await;
    }
    let location = [(HeaderName::from_static("location"), HeaderValue::from_static("/elsewhere"))];
    (StatusCode::from_u16(status).expect("a status"), location).into_response()
}

/// A breach of a pod as an alert, begun so many seconds after the epoch.
fn alert(pod: &str, since: u64) -> Alert {
    let mut report = example(1);
    report.labels.pod = pod.into();
    report.opened = Time(at(since));
    Alert::of(&report, "node-1")
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn a_breach_is_told_in_alertmanagers_format() {
    let mut world = World::new(&[]).await;
    let mut report = example(7);
    world.webhook.send(Alert::of(&report, "node-1"));
    let (got, _) = world.next().await;
    assert_eq!((got.method.as_str(), got.uri.as_str()), ("POST", "/api/v2/alerts?token=secret"));
    let header = |name| got.headers.get(name).and_then(|value| value.to_str().ok());
    assert_eq!(header("content-type"), Some("application/json"));
    // printf user:secret | base64
    assert_eq!(header("authorization"), Some("Basic dXNlcjpzZWNyZXQ="));
    let expected = concat!(
        r#"[{"labels":{"alertname":"EgressLimitExceeded","container":"worker","limit":"rate","namespace":"batch-1","#,
        r#""node":"node-1","pod":"load-7","severity":"critical"},"#,
        r#""annotations":{"cgroup":"/kubepods.slice/x.scope","container_id":"3f1d","#,
        r#""destinations":"203.0.113.7:25 tcp: 9.0 MB (90 %)","policy":"loaders","#,
        r#""summary":"batch-1/load-7/worker crossed its rate limit: 104.9 MB/s, and 52.4 MB/s is allowed"},"#,
        r#""startsAt":"2026-09-21T14:13:20.250Z"}]"#
    );
    assert_eq!(String::from_utf8_lossy(&got.body), expected);

    let opened = report.opened.0;
    report.done.push(Done::Contained { how: Held::Throttle(1 << 20), until: Time(opened + Duration::from_mins(10)) });
    report.closed = Some(Time(opened + Duration::from_mins(1)));
    world.webhook.send(Alert::of(&report, "node-1"));
    let (end, _) = world.next().await;
    let (begin, end) = (&got.alerts()[0], &end.alerts()[0]);
    assert_eq!(begin["labels"], end["labels"]);
    assert_eq!(
        (&end["startsAt"], &end["endsAt"]),
        (&json!("2026-09-21T14:13:20.250Z"), &json!("2026-09-21T14:14:20.250Z"))
    );
    assert_eq!(end["annotations"]["done"], "throttled to 1.0 MB/s until 2026-09-21T14:23:20.250Z");
    world.counted("sent", 2).await;
}

#[test]
fn what_is_received_is_a_warning_by_another_name_and_a_quota_has_no_rate() {
    let mut report = example(7);
    report.limit = Limit::Ingress;
    let alert = Alert::of(&report, "n");
    assert_eq!((&*alert.labels["alertname"], &*alert.labels["severity"]), ("IngressLimitExceeded", "warning"));
    report.limit = Limit::Quota;
    report.labels.namespace.clear();
    let alert = Alert::of(&report, "n");
    assert!(!alert.labels.contains_key("namespace"));
    assert_eq!(alert.clone().resolved(at(1)).ends_at, Some(alert.starts_at), "the clock was set back");
    assert_eq!(alert.annotations["summary"], "load-7/worker crossed its quota limit: 104.9 MB, and 52.4 MB is allowed");
}

#[tokio::test(start_paused = true)]
async fn what_the_server_cannot_take_now_is_sent_again_and_the_order_is_kept() {
    let mut world = World::new(&[500, 429, 503]).await;
    world.webhook.send(alert("a", 1));
    let (first, _) = world.next().await;
    world.webhook.send(alert("b", 2));
    world.webhook.send(alert("a", 1).resolved(at(3)));
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let (again, after) = world.next().await;
        assert_eq!(again.body, first.body);
        pauses.push(after.as_secs_f64());
    }
    for (pause, shortest) in pauses.iter().zip([1.0, 2.0, 4.0]) {
        // Up to as much again by chance, and the steps of the clock.
        assert!((shortest..shortest * 2.0 + 0.3).contains(pause), "{pauses:?}");
    }
    let (rest, after) = world.next().await;
    assert_eq!(rest.names(), ["+b", "-a"]);
    assert!(after < Duration::from_secs(1), "{after:?}");
    world.counted("sent", 3).await;
    assert_eq!((world.count("failed"), world.count("dropped")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_the_server_refuses_is_not_sent_again() {
    let mut world = World::new(&[400, 404, 302]).await;
    for (index, pod) in ["a", "b", "c"].into_iter().enumerate() {
        world.webhook.send(alert(pod, 1).resolved(at(2)));
        assert_eq!(world.next().await.0.names(), [format!("-{pod}")]);
        world.counted("failed", index as u64 + 1).await;
    }
    for _ in 0..600 {
        pass(Duration::from_millis(100)).await;
    }
    assert!(world.quiet().is_none(), "neither is the redirect followed");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_is_given_up_and_asked_again() {
    let mut world = World::new(&[HANG]).await;
    world.webhook.send(alert("a", 1));
    world.next().await;
    let (again, after) = world.next().await;
    assert_eq!(again.names(), ["+a"]);
    // The timeout and the first pause.
    assert!((11.0..12.3).contains(&after.as_secs_f64()), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_open_is_told_every_minute_until_its_end() {
    let mut world = World::new(&[]).await;
    world.webhook.send(alert("a", 1));
    world.webhook.send(alert("b", 2));
    assert_eq!(world.next().await.0.names(), ["+a", "+b"]);
    for _ in 0..3 {
        let (again, after) = world.next().await;
        assert_eq!(again.names(), ["+a", "+b"]);
        assert!((59.0..61.0).contains(&after.as_secs_f64()), "{after:?}");
    }
    world.webhook.send(alert("a", 1).resolved(at(9)));
    assert_eq!(world.next().await.0.names(), ["-a"]);
    assert_eq!(world.next().await.0.names(), ["+b"]);
    world.webhook.send(alert("b", 2).resolved(at(9)));
    assert_eq!(world.next().await.0.names(), ["-b"]);
    for _ in 0..1300 {
        pass(Duration::from_millis(100)).await;
    }
    assert!(world.quiet().is_none(), "nothing is open");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_older_breach_is_not_that_of_a_newer_one() {
    let mut world = World::new(&[]).await;
    world.webhook.send(alert("a", 5));
    world.webhook.send(alert("a", 1).resolved(at(6)));
    assert_eq!(world.next().await.0.names(), ["+a"]);
    assert_eq!(world.next().await.0.names(), ["+a"], "it is told again");
}

#[tokio::test(start_paused = true)]
async fn while_the_server_is_down_the_newest_are_kept_and_the_rest_is_counted() {
    let mut world = World::new(&[503; 1000]).await;
    world.webhook.send(alert("first", 1));
    world.next().await;
    let pods: Vec<String> = (0..300).map(|pod| format!("{pod:03}")).collect();
    for pod in &pods {
        world.webhook.send(alert(pod, 2).resolved(at(3)));
    }
    world.counted("dropped", 44).await;

    let begun = time::Instant::now();
    while world.count("failed") == 0 {
        assert!(begun.elapsed() < Duration::from_mins(10), "it tries for ever");
        pass(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() > Duration::from_mins(4), "given up after {:?}", begun.elapsed());
    world.script.lock().expect("a script").clear();
    while world.quiet().is_some() {}
    // Those that waited, then what was given up, which is open still.
    let ends: Vec<String> = pods[44..].iter().map(|pod| format!("-{pod}")).collect();
    assert_eq!(world.next().await.0.names(), ends);
    assert_eq!(world.next().await.0.names(), ["+first"]);
    world.counted("sent", 257).await;
    assert_eq!((world.count("failed"), world.count("dropped")), (1, 44));
}

#[tokio::test(start_paused = true)]
async fn another_run_goes_on_with_what_is_open() {
    let mut world = World::new(&[HANG]).await;
    world.webhook.send(alert("a", 1));
    let (got, _) = world.next().await;
    world.runs.abort();
    world.webhook.send(alert("b", 2).resolved(at(3)));
    let host = got.headers["host"].to_str().expect("a host");
    let (webhook, endpoint) = (world.webhook.clone(), format!("http://{host}").parse::<Endpoint>().expect("a URL"));
    tokio::spawn(async move { webhook.run(&endpoint).await });
    assert_eq!(world.next().await.0.names(), ["-b"]);
    assert_eq!(world.next().await.0.names(), ["+a"]);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_without_what_is_secret() {
    // A port that nobody has any more.
    let port = TcpListener::bind("127.0.0.1:0").await.and_then(|l| l.local_addr()).expect("a port").port();
    let endpoint: Endpoint = format!("http://user:secret@127.0.0.1:{port}/secret?secret").parse().expect("a URL");
    let client = Poster::new(&endpoint).expect("no certificates are needed");
    let error = client.post(&endpoint, Bytes::new()).await.expect_err("nobody is there");
    assert!(error.may_pass());
    let said = error.to_string();
    assert!(said.contains("Connection refused") && !said.contains("secret"), "{said}");
}
