//! What an API server's answer means.

use std::time::Duration;

use serde::Deserialize;

use super::{EvictError, Missing, Outcome, wire::Answer};

/// The answer to an eviction.
#[derive(Debug)]
pub(crate) enum Said {
    /// It is done, or would be.
    Accepted,
    /// The server does not know an Eviction of this version.
    OtherVersion(EvictError),
    /// Anything else.
    No(Outcome),
}

/// `v1.Status`, as far as it matters. Every version of Kubernetes leaves out what it has nothing to say to.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    message: String,
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    name: String,
    kind: String,
    causes: Vec<Cause>,
    retry_after_seconds: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

/// What the API server says to an eviction.
pub(crate) fn classify(answer: &Answer) -> Said {
    let (status, details) = parse(answer);
    let message = status.message.clone();
    let refused = || EvictError::Refused { what: "evict the pod", status: answer.status, message: message.clone() };
    let outcome = match answer.status {
        200..300 => return Said::Accepted,
        // A pod's, not that of a resource which this server does not have.
        404 if details.kind == "pods" && !details.name.is_empty() => Outcome::Gone,
        404 => return Said::OtherVersion(refused()),
        400 if message.contains("policy/v1") || message.contains("no kind \"Eviction\"") => {
            return Said::OtherVersion(refused());
        }
        409 if is_of_another(&message) => Outcome::Gone,
        429 => too_many(answer, &status, &details),
        500 if message.contains("more than one PodDisruptionBudget") => Outcome::Misconfigured { budgets: vec![] },
        _ => refusal_of(answer, &status, &details, "evict the pod", true),
    };
    Said::No(outcome)
}

/// The pod of that name has another UID than the one that was to be evicted. It is said in the first words by what looks at
/// the pod (`k8s.io/apiserver` `rest.BeforeDelete`), in the others by what deletes it (`storage.Preconditions.Check`).
fn is_of_another(message: &str) -> bool {
    ["the UID in the precondition", "Precondition failed: UID"].iter().any(|said| message.contains(said))
}

/// What the API server says to a question that is asked before the eviction: nothing was done.
pub(crate) fn refusal(what: &'static str, answer: &Answer) -> Outcome {
    let (status, details) = parse(answer);
    refusal_of(answer, &status, &details, what, false)
}

fn refusal_of(answer: &Answer, status: &Status, details: &Details, what: &'static str, maybe: bool) -> Outcome {
    let message = status.message.clone();
    let retry_after = asked_for(answer, details);
    match answer.status {
        401 => {
            let message = format!("{message}; is the agent's ServiceAccount still there?");
            Outcome::Forbidden { missing: None, message }
        }
        403 => forbidden(message, details),
        // What is refused for load has not been begun.
        429 => Outcome::Overloaded { status: 429, message, retry_after, maybe: false },
        500.. => Outcome::Overloaded { status: answer.status, message, retry_after, maybe },
        status => EvictError::Refused { what, status, message }.into(),
    }
}

/// 429 is what a budget says, and a busy server.
fn too_many(answer: &Answer, status: &Status, details: &Details) -> Outcome {
    let retry_after = asked_for(answer, details);
    let cause = details.causes.iter().find(|cause| cause.reason == "DisruptionBudget");
    let message = cause.map(|cause| &cause.message).filter(|message| !message.is_empty()).unwrap_or(&status.message);
    let settling = message.contains("still being processed by the server");
    if cause.is_none() && !settling && !status.message.contains("disruption budget") {
        return Outcome::Overloaded { status: 429, message: status.message.clone(), retry_after, maybe: false };
    }
    Outcome::Blocked { budget: budget(message), message: message.clone(), settling, retry_after }
}

/// Of `The disruption budget web needs 2 healthy pods and has 2 currently`.
fn budget(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("The disruption budget ")?;
    let name = rest.split_whitespace().next()?;
    Some(name.trim_matches('"').to_owned())
}

/// Of `pods "web" is forbidden: User "system:serviceaccount:..." cannot create resource "pods/eviction" in API group ...`.
fn forbidden(message: String, details: &Details) -> Outcome {
    let missing = message.split_once("\" cannot ").and_then(|(_, rest)| {
        let (verb, rest) = rest.split_once(" resource \"")?;
        let (resource, _) = rest.split_once('"')?;
        Some(Missing { verb: verb.to_owned(), resource: resource.to_owned() })
    });
    // A budget whose bookkeeping is out of order.
    if missing.is_none() && details.kind.starts_with("poddisruptionbudget") {
        let budget = Some(details.name.clone()).filter(|name| !name.is_empty());
        return Outcome::Blocked { budget, message, settling: false, retry_after: None };
    }
    Outcome::Forbidden { missing, message }
}

fn asked_for(answer: &Answer, details: &Details) -> Option<Duration> {
    let seconds = (details.retry_after_seconds > 0).then_some(Duration::from_secs(details.retry_after_seconds));
    answer.retry_after.max(seconds)
}

/// What is no `Status` comes from something between: its own words are what there is.
fn parse(answer: &Answer) -> (Status, Details) {
    let mut status: Status = serde_json::from_slice(&answer.body).unwrap_or_default();
    if status.message.is_empty() {
        let text = String::from_utf8_lossy(&answer.body);
        status.message = text.trim().chars().take(200).collect();
    }
    let details = status.details.take().unwrap_or_default();
    (status, details)
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
