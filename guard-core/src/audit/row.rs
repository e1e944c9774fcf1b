//! What is found of a workload.

use std::cmp::Reverse;

use serde::Serialize;

use crate::{inventory::Workload, safety::Unsafe};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing speaks against an eviction.
    Ok,
    /// It is never evicted, so nothing else is looked at.
    Protected,
    /// It may be evicted; what is said would make that safer.
    Risk,
    /// An eviction would be an outage or lose data, or can never succeed. The agent declines the former two, unless there
    /// is leave.
    Unsafe,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Whether it may be evicted at all.
    Protection,
    /// Somebody makes another.
    Controller,
    /// Others are ready meanwhile.
    Replicas,
    /// Exactly one `PodDisruptionBudget` selects it, which allows an eviction now.
    Budget,
    /// No data stays behind on the node or is lost.
    Volumes,
    /// The pods are on more than one node.
    Spread,
    /// It has time to end by itself, and not too much.
    Grace,
    /// Requests and limits for CPU and memory.
    Resources,
    /// The root file systems are read-only.
    RootFilesystem,
    /// The images are pinned by digest.
    Image,
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// How bad it is.
    pub verdict: Verdict,
    /// The agent declines to evict for this reason: [`Unsafe::name`].
    pub declined: Option<&'static str>,
    /// What is so.
    pub reason: String,
    /// What to do about it; empty if it is well.
    pub remedy: String,
}

/// What is found of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Whose pods.
    #[serde(flatten)]
    pub workload: Workload,
    /// The worst of the findings'.
    pub verdict: Verdict,
    /// How many pods there are that neither have ended nor are terminating. Without one, the template is judged.
    pub pods: usize,
    /// A finding of each check, or several; the worst first.
    pub findings: Vec<Finding>,
}

impl Row {
    pub(super) fn new(workload: Workload, pods: usize, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| (Reverse(finding.verdict), finding.check));
        let verdict = findings.first().map_or(Verdict::Ok, |worst| worst.verdict);
        Self { workload, verdict, pods, findings }
    }
}

impl Finding {
    pub(super) fn new(check: Check, verdict: Verdict, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict, declined: None, reason: reason.into(), remedy: remedy.into() }
    }

    /// What the agent declines for, in its words.
    pub(super) fn declined(check: Check, why: &Unsafe, remedy: impl Into<String>) -> Self {
        Self { declined: Some(why.name()), ..Self::new(check, Verdict::Unsafe, why.to_string(), remedy) }
    }
}

impl Verdict {
    /// Its name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Protected => "protected",
            Self::Risk => "risk",
            Self::Unsafe => "unsafe",
        }
    }
}

impl Check {
    /// Its name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protection => "protection",
            Self::Controller => "controller",
            Self::Replicas => "replicas",
            Self::Budget => "budget",
            Self::Volumes => "volumes",
            Self::Spread => "spread",
            Self::Grace => "grace",
            Self::Resources => "resources",
            Self::RootFilesystem => "root_filesystem",
            Self::Image => "image",
        }
    }
}
