//! What can be said of a pod, and how an Event says it.

use std::{fmt::Write as _, sync::Arc};

use guard_core::{breach::Limit, inventory::Pod};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType};

/// The API server takes no longer note, in bytes.
const NOTE: usize = 1024;

/// So many characters of an annotation's value are repeated.
const VALUE: usize = 100;

/// Something to be said of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tell {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Which of its containers; empty: all of it.
    pub container: String,
    /// What.
    pub what: What,
}

/// What is said of a pod. What is in words is cut where it is too long for an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A limit is exceeded. To be told again as long as it is: that is counted in the same Event.
    LimitExceeded {
        /// Which.
        limit: Limit,
        /// By how much.
        said: String,
        /// Where the bytes went; as many as there is room for are named.
        destinations: Vec<String>,
    },
    /// Its egress is held.
    Contained {
        /// Nothing passes, or only a rate does.
        block: bool,
        /// How, and until when.
        how: String,
    },
    /// Its egress is not held any more.
    Released {
        /// Why, by the name that logs have for it. Another one is another Event.
        cause: String,
        /// Why, in words.
        why: String,
    },
    /// It is evicted.
    Evicted {
        /// For what.
        why: String,
    },
    /// It is to be evicted, and is not.
    EvictionRefused {
        /// Why, by the name that metrics have for it, such as `blocked`. Another one is another Event.
        cause: String,
        /// The `PodDisruptionBudget` that does not allow it.
        budget: Option<String>,
        /// Why, in words.
        why: String,
    },
    /// Another pod has taken its place.
    Replaced {
        /// Which, after how long, and whether from the same images.
        how: String,
    },
    /// It was evicted before and breaches again.
    RestartDidNotCure {
        /// What that means for it.
        why: String,
    },
    /// An annotation of it is not followed.
    BadAnnotation {
        /// The annotation's whole name.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What is the same Event if it is told again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    uid: String,
    container: String,
    reason: &'static str,
    action: String,
    budget: Option<String>,
}

impl Key {
    /// Of a pod's flag.
    pub(super) fn flag(pod: &Pod) -> Self {
        let none = String::new;
        Self { uid: pod.uid.clone(), container: none(), reason: "", action: none(), budget: None }
    }
}

impl What {
    /// All reasons.
    pub(super) const REASONS: [&'static str; 10] = [
        "EgressLimitExceeded",
        "EgressBypassed",
        "IngressLimitExceeded",
        "EgressContained",
        "EgressReleased",
        "EgressEvicted",
        "EgressEvictionRefused",
        "EgressReplaced",
        "EgressRestartDidNotCure",
        "EgressBadAnnotation",
    ];

    /// The Event's `reason`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::LimitExceeded { limit: Limit::Ingress, .. } => "IngressLimitExceeded",
            Self::LimitExceeded { limit: Limit::Bypass, .. } => "EgressBypassed",
            Self::LimitExceeded { limit: Limit::Rate | Limit::Quota | Limit::Baseline, .. } => "EgressLimitExceeded",
            Self::Contained { .. } => "EgressContained",
            Self::Released { .. } => "EgressReleased",
            Self::Evicted { .. } => "EgressEvicted",
            Self::EvictionRefused { .. } => "EgressEvictionRefused",
            Self::Replaced { .. } => "EgressReplaced",
            Self::RestartDidNotCure { .. } => "EgressRestartDidNotCure",
            Self::BadAnnotation { .. } => "EgressBadAnnotation",
        }
    }

    /// What the guard did when it found that.
    fn action(&self) -> String {
        match self {
            Self::LimitExceeded { limit, .. } => format!("Check{}", camel(limit.name())),
            Self::Contained { block: true, .. } => "Block".into(),
            Self::Contained { block: false, .. } => "Throttle".into(),
            Self::Evicted { .. } | Self::RestartDidNotCure { .. } => "Evict".into(),
            // The note of an Event cannot change (the API server refuses that): what has another is another Event.
            Self::Released { cause, .. } => format!("Release{}", camel(cause)),
            Self::EvictionRefused { cause, .. } => format!("Evict{}", camel(cause)),
            Self::BadAnnotation { key, .. } => format!("Read{}", camel(key.rsplit('/').next().unwrap_or_default())),
            Self::Replaced { .. } => "AwaitReplacement".into(),
        }
    }

    const fn type_(&self) -> EventType {
        match self {
            Self::Released { .. } | Self::Replaced { .. } => EventType::Normal,
            Self::LimitExceeded { .. }
            | Self::Contained { .. }
            | Self::Evicted { .. }
            | Self::EvictionRefused { .. }
            | Self::RestartDidNotCure { .. }
            | Self::BadAnnotation { .. } => EventType::Warning,
        }
    }

    fn note(&self) -> String {
        match self {
            Self::LimitExceeded { said, destinations, .. } => {
                let mut note = cut(said, NOTE);
                for (index, destination) in destinations.iter().enumerate() {
                    let before = if index == 0 { "; most went to " } else { ", " };
                    if note.len() + before.len() + destination.len() > NOTE {
                        break;
                    }
                    note.extend([before, destination]);
                }
                note
            }
            Self::Contained { how, .. } | Self::Replaced { how } => cut(how, NOTE),
            Self::Released { why, .. }
            | Self::Evicted { why }
            | Self::EvictionRefused { why, .. }
            | Self::RestartDidNotCure { why } => cut(why, NOTE),
            Self::BadAnnotation { key, value, why } => {
                let value: String = value.chars().take(VALUE).collect();
                let mut note = String::new();
                // Writing to a String does not fail.
                let _written = write!(note, "{key}: {value:?} is not followed, the policy file holds: {why}");
                cut(&note, NOTE)
            }
        }
    }

    /// The object that it is about beside the pod, and how that is called.
    const fn budget(&self) -> Option<&String> {
        match self {
            Self::EvictionRefused { budget, .. } => budget.as_ref(),
            _ => None,
        }
    }
}

impl Tell {
    pub(super) fn key(&self) -> Key {
        let Self { pod, container, what } = self;
        Key {
            uid: pod.uid.clone(),
            container: container.clone(),
            reason: what.reason(),
            action: what.action(),
            budget: what.budget().cloned(),
        }
    }

    pub(super) fn event(&self) -> Event {
        let budget = self.what.budget().map(|name| ObjectReference {
            api_version: Some("policy/v1".into()),
            kind: Some("PodDisruptionBudget".into()),
            namespace: Some(self.pod.namespace.clone()),
            name: Some(name.clone()),
            ..ObjectReference::default()
        });
        Event {
            type_: self.what.type_(),
            reason: self.what.reason().into(),
            note: Some(self.what.note()),
            action: self.what.action(),
            secondary: budget,
        }
    }

    pub(super) fn regarding(&self) -> ObjectReference {
        let Self { pod, container, .. } = self;
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            // As kubelet names containers.
            field_path: (!container.is_empty()).then(|| format!("spec.containers{{{container}}}")),
            ..ObjectReference::default()
        }
    }
}

/// As much of a text as fits, between characters.
fn cut(text: &str, most: usize) -> String {
    const DOTS: &str = "...";
    if text.len() <= most {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(most - DOTS.len());
    format!("{}{DOTS}", &text[..end])
}

/// `node_budget` as `NodeBudget`, and `baseline-factor` as `BaselineFactor`.
fn camel(name: &str) -> String {
    let word = |word: &str| {
        let mut chars = word.chars();
        chars.next().map(|first| first.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
    };
    name.split(['_', '-', '.']).map(word).collect()
}

#[cfg(test)]
#[path = "tell_tests.rs"]
mod tests;
