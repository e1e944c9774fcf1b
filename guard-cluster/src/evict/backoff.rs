//! When an attempt may be repeated.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use guard_core::safety::Unsafe;
use tokio::time::Instant;

use super::{EvictError, Outcome, Spent};

/// Between attempts that a budget refuses.
const REFUSED: Growth = Growth { first: Duration::from_secs(10), most: Duration::from_mins(5) };

/// Between attempts that a busy server refuses, or does not answer.
const OVERLOADED: Growth = Growth { first: Duration::from_secs(30), most: Duration::from_mins(10) };

/// Where somebody has to change something first.
const FOR_SOMEBODY: Duration = Duration::from_mins(10);

/// Attempts further apart than this have nothing to do with each other.
const FORGOTTEN: Duration = Duration::from_hours(1);

/// It doubles.
#[derive(Clone, Copy, Debug)]
struct Growth {
    first: Duration,
    most: Duration,
}

/// How often each pod has been tried in vain, by UID.
#[derive(Debug, Default)]
pub(crate) struct Backoffs(Mutex<HashMap<String, Tries>>);

#[derive(Clone, Copy, Debug)]
struct Tries {
    refused: u32,
    overloaded: u32,
    last: Instant,
}

/// What to do about an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// There is nothing left to try.
    Never,
    /// A budget's refusal, but not before this.
    Refused(Option<Duration>),
    /// A busy server's, but not before this.
    Overloaded(Option<Duration>),
    /// Exactly known.
    Until(Duration),
}

impl Backoffs {
    /// When the pod with this UID may be tried again.
    pub(crate) fn after(&self, uid: &str, outcome: &Outcome) -> Option<Duration> {
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, tries| now.duration_since(tries.last) < FORGOTTEN);
        let wait = wait(outcome);
        if wait == Wait::Never {
            all.remove(uid);
            return None;
        }
        let tries = all.entry(uid.to_owned()).or_insert(Tries { refused: 0, overloaded: 0, last: now });
        tries.last = now;
        let (growth, count, least) = match wait {
            Wait::Never => return None,
            Wait::Until(exactly) => return Some(jittered(exactly, fastrand::f64())),
            Wait::Refused(least) => (REFUSED, &mut tries.refused, least),
            Wait::Overloaded(least) => (OVERLOADED, &mut tries.overloaded, least),
        };
        let delay = growth.delay(*count);
        *count = count.saturating_add(1);
        Some(jittered(delay.max(least.unwrap_or_default()), fastrand::f64()))
    }
}

impl Growth {
    fn delay(self, tries: u32) -> Duration {
        self.first.saturating_mul(1 << tries.min(16)).min(self.most)
    }
}

/// Never sooner, and up to a quarter later, so that those who were refused together do not come back together.
fn jittered(delay: Duration, random: f64) -> Duration {
    delay.saturating_add(delay.mul_f64(random / 4.0))
}

fn wait(outcome: &Outcome) -> Wait {
    match outcome {
        Outcome::Done(_) | Outcome::DryRun | Outcome::Gone => Wait::Never,
        Outcome::Blocked { settling: true, retry_after, .. } => {
            Wait::Until(retry_after.unwrap_or_default().max(REFUSED.first))
        }
        Outcome::Blocked { retry_after, .. } => Wait::Refused(*retry_after),
        Outcome::Overloaded { retry_after, .. } => Wait::Overloaded(*retry_after),
        Outcome::Forbidden { .. } | Outcome::Misconfigured { .. } => Wait::Until(FOR_SOMEBODY),
        Outcome::Protected(Unsafe::TooYoung { age, least }) => Wait::Until(least.saturating_sub(*age)),
        Outcome::Protected(_) | Outcome::Budget(Spent::Workload { .. } | Spent::Contended { .. }) => {
            Wait::Refused(None)
        }
        Outcome::Budget(Spent::Cluster { retry_after, .. }) | Outcome::NotCured { retry_after, .. } => {
            Wait::Until(*retry_after)
        }
        Outcome::KillSwitch => Wait::Until(REFUSED.first),
        // Another configuration of the cluster is needed, or another agent.
        Outcome::Failed(EvictError::NoDate | EvictError::NoEviction | EvictError::Unreadable { .. }) => {
            Wait::Until(FOR_SOMEBODY)
        }
        Outcome::Failed(EvictError::Unanswered { .. } | EvictError::Refused { .. } | EvictError::Lost(_)) => {
            Wait::Overloaded(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(retry_after: Option<u64>) -> Outcome {
        let retry_after = retry_after.map(Duration::from_secs);
        Outcome::Blocked { budget: None, message: String::new(), settling: false, retry_after }
    }

    fn busy() -> Outcome {
        Outcome::Overloaded { status: 503, message: String::new(), retry_after: None, maybe: false }
    }

    #[track_caller]
    fn about(delay: Option<Duration>, seconds: u64) {
        let delay = delay.expect("a delay").as_secs_f64();
        let least = seconds as f64;
        assert!((least..=least * 1.25).contains(&delay), "{delay} s where {least} to a quarter more were expected");
    }

    #[tokio::test(start_paused = true)]
    async fn delays_double_up_to_their_most_for_each_pod() {
        let backoffs = Backoffs::default();
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            about(backoffs.after("a", &blocked(None)), seconds);
        }
        for seconds in [30, 60, 120, 240, 480, 600, 600] {
            about(backoffs.after("a", &busy()), seconds);
        }
        about(backoffs.after("b", &blocked(None)), 10);
        // Done is the end of it.
        assert_eq!(backoffs.after("a", &Outcome::Gone), None);
        about(backoffs.after("a", &blocked(None)), 10);
        // Refused again hours later is another story.
        about(backoffs.after("a", &blocked(None)), 20);
        tokio::time::advance(FORGOTTEN).await;
        about(backoffs.after("a", &blocked(None)), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_how_long_is_heard() {
        let backoffs = Backoffs::default();
        about(backoffs.after("a", &blocked(Some(90))), 90);
        about(backoffs.after("a", &blocked(Some(1))), 20);
        let settling = |retry_after: Option<Duration>| Outcome::Blocked {
            budget: None,
            message: String::new(),
            settling: true,
            retry_after,
        };
        for _ in 0..4 {
            about(backoffs.after("b", &settling(None)), 10);
        }
        about(backoffs.after("b", &settling(Some(Duration::from_secs(12)))), 12);
        let young = Unsafe::TooYoung { age: Duration::from_secs(13), least: Duration::from_mins(1) };
        about(backoffs.after("c", &Outcome::Protected(young)), 47);
        about(backoffs.after("d", &Outcome::Forbidden { missing: None, message: String::new() }), 600);
    }
}
