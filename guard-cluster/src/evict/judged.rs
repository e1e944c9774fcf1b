//! From the judge's words to the responder's, and back.

use std::time::Duration;

use guard_core::{budget::Allowance, judge};

use super::{Attempt, Limits, Outcome};
use crate::events::What;

/// When a pod is looked at again for which there is nothing left to try: something may have changed.
const LATER: Duration = Duration::from_mins(10);

impl From<Allowance> for Limits {
    /// What the judge does not enforce itself.
    fn from(Allowance { workload, cluster, node: _, storm: _ }: Allowance) -> Self {
        Self { cluster, at_once: workload.at_once, percent: workload.share.get() }
    }
}

impl Attempt {
    /// What the judge is to be told of it. `now`: by the judge's clock, in nanoseconds.
    #[must_use]
    pub fn ended(&self, now: u64) -> judge::Evicted {
        let after = self.retry_after.unwrap_or(LATER);
        let retry_at = now.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX));
        match &self.outcome {
            Outcome::Done(_) | Outcome::DryRun => judge::Evicted::Done,
            // Gone counts as none of ours, unless an earlier attempt may have been one: the judge knows of those.
            Outcome::NotCured { .. } => judge::Evicted::NotCured,
            outcome if outcome.is_untouched() => judge::Evicted::Untouched { retry_at },
            _ => judge::Evicted::Broken { retry_at },
        }
    }

    /// What its Event says. `None`: nothing that would be news.
    #[must_use]
    pub fn event(&self) -> Option<What> {
        let why = self.outcome.to_string();
        Some(match &self.outcome {
            Outcome::Done(_) => What::Evicted { why },
            Outcome::Gone => return None,
            Outcome::NotCured { .. } => What::RestartDidNotCure { why },
            outcome => {
                let budget = if let Outcome::Blocked { budget, .. } = outcome { budget.clone() } else { None };
                What::EvictionRefused { cause: outcome.name().into(), budget, why }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use guard_core::judge::Evicted::{Broken, Done, NotCured, Untouched};

    use super::*;
    use crate::evict::EvictError;

    const NOW: u64 = 5_000_000_000;

    fn attempt(outcome: Outcome, retry_after: Option<u64>) -> Attempt {
        Attempt { pod: "shop/web-1".into(), outcome, retry_after: retry_after.map(Duration::from_secs) }
    }

    fn blocked() -> Outcome {
        Outcome::Blocked { budget: Some("web".into()), message: String::new(), settling: false, retry_after: None }
    }

    fn not_cured() -> Outcome {
        Outcome::NotCured { workload: String::new(), evictions: 2, retry_after: Duration::ZERO }
    }

    #[test]
    fn the_judge_is_told_what_is_certain_and_when_to_try_again() {
        let overloaded = |maybe| Outcome::Overloaded { status: 503, message: String::new(), retry_after: None, maybe };
        let cases = [
            (Outcome::Gone, None, Untouched { retry_at: NOW + 600_000_000_000 }),
            (Outcome::DryRun, None, Done),
            (not_cured(), Some(60), NotCured),
            (blocked(), Some(10), Untouched { retry_at: 15_000_000_000 }),
            (Outcome::KillSwitch, None, Untouched { retry_at: NOW + 600_000_000_000 }),
            (overloaded(false), Some(1), Untouched { retry_at: 6_000_000_000 }),
            (overloaded(true), Some(1), Broken { retry_at: 6_000_000_000 }),
            (EvictError::Lost(String::new()).into(), Some(30), Broken { retry_at: 35_000_000_000 }),
            (EvictError::NoDate.into(), Some(u64::MAX), Untouched { retry_at: u64::MAX }),
        ];
        for (outcome, retry_after, expected) in cases {
            let attempt = attempt(outcome, retry_after);
            assert_eq!(attempt.ended(NOW), expected, "{attempt}");
        }
    }

    #[test]
    fn an_event_names_the_budget_that_refuses() {
        let told = attempt(blocked(), None).event();
        assert!(
            matches!(&told, Some(What::EvictionRefused { cause, budget, .. })
            if cause == "blocked" && budget.as_deref() == Some("web")),
            "{told:?}"
        );
        let told = attempt(Outcome::KillSwitch, None).event();
        assert!(matches!(&told, Some(What::EvictionRefused { cause, budget: None, .. }) if cause == "kill_switch"));
        assert!(matches!(attempt(not_cured(), None).event(), Some(What::RestartDidNotCure { .. })));
        assert_eq!(attempt(Outcome::Gone, None).event(), None);
    }
}
