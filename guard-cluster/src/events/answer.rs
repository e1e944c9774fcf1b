//! What the API server's answers mean for what is told.

use kube::Error;

/// What becomes of something that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// This.
    Ended(Outcome),
    /// It may be taken later, for now there is this.
    Again(String),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Sent,
    Repeated,
    Gone,
    Forbidden,
    Refused,
    Failed,
    Dropped,
}

impl Outcome {
    pub(super) const ALL: [Self; 7] =
        [Self::Sent, Self::Repeated, Self::Gone, Self::Forbidden, Self::Refused, Self::Failed, Self::Dropped];

    /// The label in metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Repeated => "repeated",
            Self::Gone => "gone",
            Self::Forbidden => "forbidden",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

impl Answer {
    pub(super) fn of(error: &Error) -> Self {
        let Error::Api(status) = error else { return Self::Again(error.to_string()) };
        let causes = || status.details.iter().flat_map(|details| &details.causes);
        // A namespace that is being deleted takes nothing new.
        let ending = || causes().any(|cause| cause.reason == "NamespaceTerminating");
        let of_another = || causes().any(|cause| cause.field == "metadata.uid");
        match status.code {
            404 => Self::Ended(Outcome::Gone),
            // What is applied with the UID of a pod that is gone: there is no other now, or there is.
            409 if status.reason == "Conflict" => Self::Ended(Outcome::Gone),
            422 if of_another() => Self::Ended(Outcome::Gone),
            403 if ending() => Self::Ended(Outcome::Gone),
            403 => Self::Ended(Outcome::Forbidden),
            401 | 408 | 409 | 429 | 500.. => Self::Again(status.message.clone()),
            _ => Self::Ended(Outcome::Refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_is_gone_is_no_failure() {
        let ended = |outcome| Some(outcome);
        let cases = [
            (404, "NotFound", ended(Outcome::Gone)),
            (409, "Conflict", ended(Outcome::Gone)),
            (409, "AlreadyExists", None),
            (403, "Forbidden", ended(Outcome::Forbidden)),
            // A token that has expired is replaced.
            (401, "Unauthorized", None),
            (422, "Invalid", ended(Outcome::Refused)),
            (400, "BadRequest", ended(Outcome::Refused)),
            (429, "TooManyRequests", None),
            (500, "InternalError", None),
            (503, "ServiceUnavailable", None),
            (504, "Timeout", None),
        ];
        for (code, reason, expected) in cases {
            let status = json!({"status": "Failure", "message": "m", "reason": reason, "code": code});
            let error = Error::Api(serde_json::from_value(status).expect("a status"));
            let expected = expected.map_or_else(|| Answer::Again("m".into()), Answer::Ended);
            assert_eq!(Answer::of(&error), expected, "{code} {reason}");
        }
        let gone = [
            (403, json!({"reason": "NamespaceTerminating", "message": "m", "field": "metadata.namespace"})),
            (422, json!({"reason": "FieldValueInvalid", "message": "m", "field": "metadata.uid"})),
        ];
        for (code, cause) in gone {
            let status = json!({"status": "Failure", "code": code, "details": {"causes": [cause]}});
            let error = Error::Api(serde_json::from_value(status).expect("a status"));
            assert_eq!(Answer::of(&error), Answer::Ended(Outcome::Gone), "{error}");
        }
        let error = Error::Service(std::io::Error::other("connection refused").into());
        assert!(matches!(Answer::of(&error), Answer::Again(_)), "{error}");
    }
}
