//! `guard-agent audit`: may pods be evicted without an outage? It only reads.

use std::path::{Path, PathBuf};

use comfy_table::{Table, presets};
use guard_cluster::audit::{AuditError, client, cluster};
use serde_json::{Value, json};

use crate::{
    config::{self, ConfigError},
    core::{
        audit::{Finding, Row, Rules, Verdict, audit},
        inventory::Workload,
        safety::Protect,
    },
};

/// What is asked.
#[derive(Debug)]
pub struct Question {
    /// The namespace; else all.
    pub namespace: Option<String>,
    /// The context of the kubeconfig; else its current one.
    pub context: Option<String>,
    /// The configuration to judge by; else as if a policy evicted every pod and gave no leave.
    pub config: Option<PathBuf>,
    /// Where the agent runs or will run.
    pub agent_namespace: String,
}

/// Why an audit does not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is an audit's answer, and not the one hoped for.
    #[error("mode evict would be unsafe: {0} of {1} workloads have an unsafe finding")]
    Unsafe(usize, usize),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The cluster cannot be asked.
    #[error(transparent)]
    Cluster(#[from] AuditError),
    /// It cannot be begun.
    #[error("cannot start threads: {0}")]
    Runtime(std::io::Error),
    /// Nobody hears of it.
    #[error("cannot write to stdout: {0}")]
    Write(std::io::Error),
}

impl Error {
    /// 1: there is an answer, which is no. 2: there is none.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Unsafe(..) => 1,
            Self::Config(_) | Self::Cluster(_) | Self::Runtime(_) | Self::Write(_) => 2,
        }
    }
}

/// What is found of every workload.
pub async fn rows(question: Question) -> Result<Vec<Row>, Error> {
    let Question { namespace, context, config, agent_namespace } = question;
    let rules = rules(config.as_deref(), agent_namespace)?;
    let cluster = cluster(client(context).await?, namespace.as_deref()).await?;
    Ok(audit(&cluster, &rules))
}

fn rules(config: Option<&Path>, own_namespace: String) -> Result<Rules, ConfigError> {
    let Some(file) = config else {
        return Ok(Rules { protect: Protect { own_namespace, ..Protect::default() }, policies: None });
    };
    let config = config::read(file, true)?;
    Ok(Rules { protect: Protect { own_namespace, ..config.protect }, policies: Some(config.policies) })
}

/// Whether all is well enough.
pub fn verdict(rows: &[Row]) -> Result<(), Error> {
    match count(rows, Verdict::Unsafe) {
        0 => Ok(()),
        some => Err(Error::Unsafe(some, rows.len())),
    }
}

/// For a terminal: what is not as it should be of every workload, and what to do about it.
pub fn text(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAMESPACE", "WORKLOAD", "VERDICT", "CHECK", "WHY, AND WHAT TO DO"]);
    for Row { workload: Workload { kind, namespace, name }, verdict, pods: _, findings } in rows {
        let (mut verdicts, mut checks, mut reasons) = (vec![], vec![], vec![]);
        for Finding { check, verdict, declined: _, reason, remedy } in findings {
            if *verdict != Verdict::Ok {
                verdicts.push(verdict.name());
                checks.push(check.name());
                // What the API server says may have several lines.
                let remedy = if remedy.is_empty() { String::new() } else { format!("; {remedy}") };
                reasons.push(format!("{reason}{remedy}").replace('\n', " "));
            }
        }
        // The worst is the first.
        if verdicts.is_empty() {
            (verdicts, checks, reasons) = (vec![verdict.name()], vec!["-"], vec!["-".into()]);
        }
        let (namespace, workload) = (namespace.clone(), format!("{kind}/{name}"));
        table.add_row([namespace, workload, verdicts.join("\n"), checks.join("\n"), reasons.join("\n")]);
    }
    let table = table.to_string();
    let table: Vec<&str> = table.lines().map(str::trim_end).collect();
    let table = if rows.is_empty() { String::new() } else { format!("{}\n\n", table.join("\n")) };
    let of = |verdict: Verdict| format!("{} {}", count(rows, verdict), verdict.name());
    let counts = [Verdict::Unsafe, Verdict::Risk, Verdict::Protected, Verdict::Ok].map(of).join(", ");
    format!("{table}{} workloads: {counts}\n", rows.len())
}

/// For a program.
pub fn json(rows: &[Row]) -> Value {
    json!({
        "workloads": rows,
        "summary": {
            "unsafe": count(rows, Verdict::Unsafe),
            "risk": count(rows, Verdict::Risk),
            "protected": count(rows, Verdict::Protected),
            "ok": count(rows, Verdict::Ok),
        },
    })
}

fn count(rows: &[Row], verdict: Verdict) -> usize {
    rows.iter().filter(|row| row.verdict == verdict).count()
}
