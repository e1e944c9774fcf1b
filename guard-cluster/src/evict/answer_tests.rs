use serde_json::{Value, json};

use super::*;

fn answer(status: u16, body: &Value) -> Answer {
    Answer { status, date: Some(0), retry_after: None, body: body.to_string().into_bytes() }
}

fn budget_cause(message: &str) -> Value {
    json!({
        "kind": "Status", "code": 429, "reason": "TooManyRequests",
        "message": "Cannot evict pod as it would violate the pod's disruption budget.",
        "details": {"causes": [{"reason": "DisruptionBudget", "message": message}]},
    })
}

fn message(text: &str) -> Value {
    json!({"kind": "Status", "message": text})
}

/// The name, whether it is certain that nothing was done, and what is said.
#[track_caller]
fn says(status: u16, body: &Value, name: &str, untouched: bool, text: &str) {
    let Said::No(outcome) = classify(&answer(status, body)) else { panic!("{status} {body} is no refusal") };
    assert_eq!((outcome.name(), outcome.is_untouched()), (name, untouched), "{status} {body}");
    let said = outcome.to_string();
    assert!(said.contains(text), "{text:?} is not in {said:?}");
}

#[test]
fn accepted() {
    for status in [200, 201, 202] {
        let said = classify(&answer(status, &json!({"kind": "Status", "status": "Success"})));
        assert!(matches!(said, Said::Accepted), "{status}: {said:?}");
    }
}

#[test]
fn a_budgets_refusal_is_told_from_a_busy_server() {
    let needs = "The disruption budget web-pdb needs 2 healthy pods and has 2 currently";
    says(429, &budget_cause(needs), "blocked", true, "the PodDisruptionBudget web-pdb does not allow it now");
    let settling = "The disruption budget web-pdb is still being processed by the server.";
    says(429, &budget_cause(settling), "blocked", true, "web-pdb");
    let Said::No(Outcome::Blocked { settling, .. }) = classify(&answer(429, &budget_cause(settling))) else {
        panic!("no refusal of a budget")
    };
    assert!(settling, "a budget whose status is not there yet");
    // Without a cause.
    says(
        429,
        &message("The disruption budget b is still being processed by the server."),
        "blocked",
        true,
        "budget b ",
    );
    let old = message("Cannot evict pod as it would violate the pod's disruption budget.");
    says(429, &old, "blocked", true, "a PodDisruptionBudget of its namespace does not allow it now");
    // Priority and fairness.
    says(429, &message("Too many requests, please try again later."), "overloaded", true, "answers 429: Too many");
    says(429, &json!("x"), "overloaded", true, "429");
    let negative = json!({
        "message": "poddisruptionbudgets.policy \"b\" is forbidden: pdb disruptions allowed is negative",
        "details": {"kind": "poddisruptionbudgets", "name": "b", "group": "policy"},
    });
    says(403, &negative, "blocked", true, "the PodDisruptionBudget b does not allow it now");
}

#[test]
fn gone_already() {
    let not_found = json!({"message": "pods \"web-1\" not found", "details": {"name": "web-1", "kind": "pods"}});
    says(404, &not_found, "gone", true, "gone already");
    for other in [
        "Operation cannot be fulfilled on Pod \"web-1\": the UID in the precondition (a) does not match the UID in record (b). \
         The object might have been deleted and then recreated",
        "Operation cannot be fulfilled on pods \"web-1\": Precondition failed: UID in precondition: a, UID in object meta: b",
    ] {
        says(409, &message(other), "gone", true, "gone already");
    }
    // Another conflict says nothing of the kind.
    says(
        409,
        &message("Operation cannot be fulfilled on pods \"web-1\": the object has been modified"),
        "failed",
        true,
        "409",
    );
}

#[test]
fn another_version_is_no_refusal() {
    let cases = [
        (404, message("the server could not find the requested resource")),
        (404, json!("404 page not found")),
        (400, message("no kind \"Eviction\" is registered for version \"policy/v1\" in scheme \"k8s.io/api\"")),
        (
            400,
            message("the API version in the data (policy/v1) does not match the expected API version (policy/v1beta1)"),
        ),
    ];
    for (status, body) in cases {
        let said = classify(&answer(status, &body));
        assert!(matches!(said, Said::OtherVersion(_)), "{status} {body}: {said:?}");
    }
    says(
        400,
        &message("name in URL does not match name in Eviction object"),
        "failed",
        true,
        "answers 400: name in URL",
    );
}

#[test]
fn rights_are_told_from_admission() {
    let rbac = "pods \"web-1\" is forbidden: User \"system:serviceaccount:guard:guard\" cannot create resource \"pods/eviction\" \
                in API group \"\" in the namespace \"shop\"";
    says(403, &message(rbac), "forbidden", true, "the agent may not create pods/eviction; apply the ClusterRole");
    let webhook = "admission webhook \"policy.example.com\" denied the request: not on Fridays";
    says(
        403,
        &message(webhook),
        "forbidden",
        true,
        "admission webhook or policy of the cluster, forbids it: admission",
    );
    let ending =
        "pods \"web-1\" is forbidden: unable to create new content in namespace shop because it is being terminated";
    says(403, &message(ending), "forbidden", true, "being terminated");
    says(401, &message("Unauthorized"), "forbidden", true, "Unauthorized");
    let refused = refusal("read the pod", &answer(403, &message(rbac)));
    let missing = Missing { verb: "create".into(), resource: "pods/eviction".into() };
    assert!(matches!(&refused, Outcome::Forbidden { missing: Some(it), .. } if *it == missing), "{refused:?}");
}

#[test]
fn what_may_have_happened_is_not_taken_for_nothing() {
    let two = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
    says(500, &message(two), "misconfigured", true, "more than one PodDisruptionBudget selects it");
    says(
        500,
        &message("Internal error occurred: etcdserver: request timed out"),
        "overloaded",
        false,
        "it may have been",
    );
    says(502, &json!("bad gateway"), "overloaded", false, "502: \"bad gateway\"");
    says(503, &message("apiserver is shutting down"), "overloaded", false, "it may have been evicted");
    says(
        504,
        &message("Timeout: request did not complete within 10s"),
        "overloaded",
        false,
        "it may have been evicted",
    );
    // Before the eviction nothing can have happened.
    assert!(refusal("read the pod", &answer(503, &Value::Null)).is_untouched());
    says(
        422,
        &message("Eviction.policy is invalid"),
        "failed",
        true,
        "cannot evict the pod: the API server answers 422",
    );
}

#[test]
fn how_long_to_wait_is_in_the_header_or_in_the_details() {
    let after = |header: Option<u64>, details: u64| {
        let mut answer = answer(429, &json!({"message": "busy", "details": {"retryAfterSeconds": details}}));
        answer.retry_after = header.map(Duration::from_secs);
        match classify(&answer) {
            Said::No(Outcome::Overloaded { retry_after, .. }) => retry_after.map(|it| it.as_secs()),
            said => panic!("{said:?}"),
        }
    };
    assert_eq!(
        [after(None, 0), after(Some(3), 0), after(None, 5), after(Some(3), 5)],
        [None, Some(3), Some(5), Some(5)]
    );
}

#[test]
fn names_of_outcomes_are_the_closed_set() {
    let outcomes = [
        Outcome::DryRun,
        Outcome::Gone,
        Outcome::KillSwitch,
        Outcome::Misconfigured { budgets: vec![] },
        EvictError::NoDate.into(),
        EvictError::Lost(String::new()).into(),
    ];
    for outcome in outcomes {
        assert!(super::super::RESULTS.contains(&outcome.name()), "{outcome:?}");
    }
}
