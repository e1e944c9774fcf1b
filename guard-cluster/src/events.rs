//! What is told of pods where their owners look for it: Events, and the flag.
//!
//! Whoever tells is never blocked. One task sends, one request at a time; what fails goes to the end of the queue, so that one
//! namespace that refuses all does not hold up the others, until it is too old to be worth anything.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use guard_core::inventory::Pod;
use kube::{
    Client, Error,
    runtime::events::{Recorder, Reporter},
};
use prometheus::{IntCounterVec, Opts, core::Collector};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

pub use self::tell::{Tell, What};
use self::{
    answer::{Answer, Outcome},
    tell::Key,
};
use crate::{
    backoff::Backoff,
    connect::PATIENCE,
    flag::{self, Flag},
};

mod answer;
mod tell;

/// Who reports, in `reportingController`.
const CONTROLLER: &str = "egress-guard";

/// The API server takes no longer name of who reports in person (`reportingInstance`).
const INSTANCE: usize = 128;

/// How much may wait.
const QUEUE: usize = 256;

/// The same of the same container is sent no sooner: a breach that comes and goes is one Event with a count, and what is
/// counted is minutes.
const GAP: Duration = Duration::from_mins(1);

/// What was told longer ago begins another Event (kube's recorder: 6 minutes, of the wall clock).
const SERIES: Duration = Duration::from_mins(7);

/// What could not be sent for so long is given up.
const OLD: Duration = Duration::from_mins(10);

/// Between two attempts, as long as none succeeds.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// Takes what is to be told. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Teller {
    queue: Arc<Mutex<Queue>>,
    filled: Arc<Notify>,
    events: IntCounterVec,
    flags: IntCounterVec,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Job>,
    /// That it overflows was said.
    overflows: bool,
}

#[derive(Debug)]
struct Job {
    what: Message,
    since: Instant,
}

#[derive(Debug)]
enum Message {
    Event(Tell),
    Flag(Flag),
}

impl Teller {
    /// An empty queue, which [`Self::run`] empties.
    pub fn new() -> Result<Self, prometheus::Error> {
        let help = "Events on pods: sent, repeated (not sent, for the same was within a minute), gone (with its namespace), \
                    forbidden, refused, failed for good, or dropped because too many waited.";
        let events = IntCounterVec::new(Opts::new("egress_guard_events_total", help), &["reason", "result"])?;
        let help = "The annotation egress-guard.dev/flagged on pods; results as of egress_guard_events_total.";
        let flags = IntCounterVec::new(Opts::new("egress_guard_flags_total", help), &["result"])?;
        for outcome in Outcome::ALL {
            flags.with_label_values(&[outcome.name()]);
            for reason in What::REASONS {
                events.with_label_values(&[reason, outcome.name()]);
            }
        }
        Ok(Self { queue: Arc::default(), filled: Arc::default(), events, flags })
    }

    /// The metrics, to be registered.
    #[must_use]
    pub fn collectors(&self) -> [Box<dyn Collector>; 2] {
        [Box::new(self.events.clone()), Box::new(self.flags.clone())]
    }

    /// An Event on a pod. It returns at once; when too many wait, the oldest goes.
    pub fn tell(&self, tell: Tell) {
        self.push(Job { what: Message::Event(tell), since: Instant::now() });
    }

    /// The annotation `egress-guard.dev/flagged` on a pod: since when (RFC 3339), and which limit. As [`Self::tell`].
    pub fn flag(&self, pod: Arc<Pod>, since: &str, limit: &str) {
        let flag = Flag { pod, value: format!("{since} {limit}") };
        self.push(Job { what: Message::Flag(flag), since: Instant::now() });
    }

    /// Sends what is told, for ever. `client` must not repeat requests by itself; `agent`: the agent's pod.
    pub async fn run(self, client: Client, agent: &str) -> Infallible {
        let mut sender = Sender::new(client, agent);
        let mut backoff = BACKOFF;
        loop {
            let Some(job) = self.pop() else {
                self.filled.notified().await;
                continue;
            };
            match sender.send(&job.what).await {
                Answer::Ended(outcome) => {
                    if outcome == Outcome::Sent {
                        backoff.reset();
                    }
                    self.count(&job.what, outcome);
                }
                Answer::Again(why) if job.since.elapsed() >= OLD => {
                    warn!("given up after {OLD:?}, {} is not said: {why}", job.what);
                    self.count(&job.what, Outcome::Failed);
                }
                Answer::Again(why) => {
                    debug!("{} is not said yet: {why}", job.what);
                    self.again(job);
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    fn push(&self, job: Job) {
        let mut queue = self.lock();
        if queue.waiting.iter().any(|waiting| waiting.what.key() == job.what.key()) {
            drop(queue);
            return self.count(&job.what, Outcome::Repeated);
        }
        let dropped = if queue.waiting.len() == QUEUE { queue.waiting.pop_front() } else { None };
        let first = dropped.is_some() && !std::mem::replace(&mut queue.overflows, true);
        queue.waiting.push_back(job);
        drop(queue);
        if let Some(dropped) = dropped {
            self.count(&dropped.what, Outcome::Dropped);
        }
        if first {
            warn!("more than {QUEUE} Events wait for the API server: the oldest are dropped until there is room");
        }
        self.filled.notify_one();
    }

    /// To the end of the queue. If that is full, newer ones say more about now.
    fn again(&self, job: Job) {
        let mut queue = self.lock();
        if queue.waiting.len() == QUEUE {
            drop(queue);
            self.count(&job.what, Outcome::Dropped);
        } else {
            queue.waiting.push_back(job);
        }
    }

    fn pop(&self) -> Option<Job> {
        let mut queue = self.lock();
        let job = queue.waiting.pop_front();
        if job.is_none() {
            queue.overflows = false;
        }
        job
    }

    fn count(&self, what: &Message, outcome: Outcome) {
        match what {
            Message::Event(tell) => self.events.with_label_values(&[tell.what.reason(), outcome.name()]).inc(),
            Message::Flag(_) => self.flags.with_label_values(&[outcome.name()]).inc(),
        }
    }

    /// No use of the queue can panic halfway.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Message {
    /// What is the same has the same.
    fn key(&self) -> Key {
        match self {
            Self::Event(tell) => tell.key(),
            Self::Flag(Flag { pod, .. }) => Key::flag(pod),
        }
    }
}

impl std::fmt::Display for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, pod) = match self {
            Self::Event(Tell { pod, what, .. }) => (what.reason(), pod),
            Self::Flag(Flag { pod, .. }) => ("the flag", pod),
        };
        write!(f, "{what} on the pod {}/{}", pod.namespace, pod.name)
    }
}

/// Sends, and knows what it has sent.
struct Sender {
    client: Client,
    reporter: Reporter,
    recorder: Recorder,
    /// When each was sent last, if that is less than [`SERIES`] ago.
    sent: HashMap<Key, Instant>,
    /// That a right is missing was said: for Events, for flags.
    forbidden: [bool; 2],
}

impl Sender {
    fn new(client: Client, agent: &str) -> Self {
        let agent = &agent[..agent.floor_char_boundary(INSTANCE)];
        let reporter = Reporter { controller: CONTROLLER.into(), instance: Some(agent.into()) };
        let recorder = Recorder::new(client.clone(), reporter.clone());
        Self { client, reporter, recorder, sent: HashMap::new(), forbidden: [false; 2] }
    }

    async fn send(&mut self, what: &Message) -> Answer {
        let now = Instant::now();
        self.sent.retain(|_, at| now.saturating_duration_since(*at) < SERIES);
        let key = what.key();
        let before = self.sent.get(&key).map(|at| now.saturating_duration_since(*at));
        if before.is_some_and(|before| before < GAP) {
            return Answer::Ended(Outcome::Repeated);
        }
        let (answered, kind, right) = match what {
            Message::Event(tell) => {
                (self.event(tell, before.is_some()).await, 0, "create and patch of events in the group events.k8s.io")
            }
            Message::Flag(flag) => {
                (limited(flag::apply(&self.client, flag)).await, 1, "patch of pods, or say flag.annotation: false")
            }
        };
        let error = match answered {
            None => return Answer::Again(format!("there is no answer within {PATIENCE:?}")),
            Some(Err(error)) => error,
            Some(Ok(())) => {
                self.sent.insert(key, now);
                self.forbidden[kind] = false;
                return Answer::Ended(Outcome::Sent);
            }
        };
        let answer = Answer::of(&error);
        match answer {
            Answer::Ended(Outcome::Forbidden) if !self.forbidden[kind] => {
                self.forbidden[kind] = true;
                warn!("the API server does not let the agent say {what}: {error}; grant its service account {right}");
            }
            Answer::Ended(Outcome::Refused) => warn!("the API server does not take {what}: {error}"),
            Answer::Ended(_) | Answer::Again(_) => {}
        }
        answer
    }

    /// The recorder tells an Event again as a series, of which the API server lets only the count and the time change. If
    /// one that was there is gone, somebody has deleted it: it is forgotten with all others, and made anew.
    async fn event(&mut self, tell: &Tell, was_there: bool) -> Option<Result<(), Error>> {
        let (event, pod) = (tell.event(), tell.regarding());
        let told = limited(self.recorder.publish(&event, &pod)).await;
        match &told {
            Some(Err(Error::Api(status))) if was_there && status.code == 404 => {
                self.recorder = Recorder::new(self.client.clone(), self.reporter.clone());
                limited(self.recorder.publish(&event, &pod)).await
            }
            _ => told,
        }
    }
}

/// `None`: there is no answer.
async fn limited<T>(request: impl Future<Output = Result<T, Error>>) -> Option<Result<T, Error>> {
    timeout(PATIENCE, request).await.ok()
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
