//! How often what was seen: worlds in which nothing happens would prove nothing.

use std::collections::BTreeMap;

/// How often what was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen(BTreeMap<(&'static str, &'static str), u64>);

/// What must have been seen in some world.
const ALL: [(&str, &str); 49] = [
    ("opened", "rate"),
    ("opened", "quota"),
    ("opened", "baseline"),
    ("opened", "ingress"),
    ("closed", "clear"),
    ("closed", "gone"),
    ("closed", "unlimited"),
    ("closed", "let_go"),
    ("contain", ""),
    ("kernel", ""),
    ("release", "kill_switch"),
    ("release", "operator"),
    ("release", "mode"),
    ("release", "policy"),
    ("release", "over"),
    ("evict", ""),
    ("evict", "again"),
    ("evict", "after it was lost"),
    ("evicted", "done"),
    ("evicted", "untouched"),
    ("evicted", "broken"),
    ("evicted", "not_cured"),
    ("evict", "a pod again"),
    ("evict", "a pod after it was lost"),
    ("evict", "dry"),
    ("evict", "in earnest after dry"),
    ("decline", "kill_switch"),
    ("decline", "protected"),
    ("decline", "no_pod"),
    ("decline", "unknown_pod"),
    ("decline", "namespace"),
    ("decline", "terminating"),
    ("decline", "unmanaged"),
    ("decline", "daemon_set"),
    ("decline", "too_young"),
    ("decline", "not_cured"),
    ("decline", "storm"),
    ("decline", "node_budget"),
    ("decline", "workload_budget"),
    ("storm", ""),
    ("storm", "by share"),
    ("resume", ""),
    ("resume", "while they breach"),
    ("not_cured", ""),
    ("not_cured", "told"),
    ("breach", "of a pod that was evicted"),
    ("calm", ""),
    ("restart", ""),
    ("restart", "in a breach"),
];

impl Seen {
    pub(crate) fn saw(&mut self, what: &'static str, why: &'static str) {
        *self.0.entry((what, why)).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(*what).or_default() += count;
        }
    }

    pub(crate) fn missing(&self) -> Vec<(&'static str, &'static str)> {
        ALL.into_iter().filter(|what| !self.0.contains_key(what)).collect()
    }
}
