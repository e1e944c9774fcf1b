//! A client that asks a service all the while.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::http;

/// A user would have given up.
const LIMIT: Duration = Duration::from_secs(20);

/// What was found so far.
#[derive(Default)]
pub(crate) struct Poll(Mutex<Found>);

#[derive(Default)]
struct Found {
    answered: u64,
    failed: u64,
    longest: Duration,
    error: String,
}

impl Poll {
    /// Polls for ever, each request on a connection of its own.
    pub(crate) fn run(&self, address: &str, every: Duration) {
        loop {
            let start = Instant::now();
            let result = http::get(address, LIMIT);
            {
                let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                match result {
                    Ok(_) => found.answered += 1,
                    Err(error) => {
                        eprintln!("no answer of {address}: {error:#}");
                        found.failed += 1;
                        found.error = format!("{error:#}");
                    }
                }
                found.longest = found.longest.max(start.elapsed());
            }
            thread::sleep(every.saturating_sub(start.elapsed()));
        }
    }

    pub(crate) fn json(&self) -> String {
        let Found { answered, failed, longest, error } = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = longest.as_millis();
        // Debug's quotes are JSON's for what errors say.
        format!(
            "{{\"answered\": {answered}, \"failed\": {failed}, \"longestMillis\": {longest}, \"error\": {error:?}}}\n"
        )
    }
}
