//! The kill switch as the agent sees it: what it logs, shows and takes orders for. Whether it is engaged, only the map
//! in the kernel knows.

pub mod verb;

use std::{fmt, path::Path, sync::Arc};

use prometheus::{
    core::{Collector, Desc},
    proto::{MetricFamily, MetricType},
};
use serde::{Deserialize, Serialize};

use crate::{
    kernel::kill_switch::{Engaged, Engagements, KillSwitch, KillSwitchError, Source},
    metrics::{family, gauge},
    snapshot::rfc3339,
};

/// The sources' names, by the index of their entries.
const NAMES: [&str; 4] = ["operator", "file", "cluster", "other"];

/// Whether it is engaged, for the outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Somebody has engaged it.
    pub engaged: bool,
    /// All who have.
    pub by: Vec<By>,
}

/// That a source has engaged it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// `operator`, `file`, `cluster`, or `other`: a source that this version does not know.
    pub source: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// Who did it.
    pub who: String,
}

impl Status {
    /// What the map says.
    pub fn of(switch: &KillSwitch) -> Result<Self, KillSwitchError> {
        Ok(switch.engagements()?.into())
    }

    fn has(&self, source: Source) -> bool {
        self.by.iter().any(|by| by.source == NAMES[source as usize])
    }
}

impl From<Engagements> for Status {
    fn from(engagements: Engagements) -> Self {
        let by = NAMES.into_iter().zip(engagements).filter_map(|(source, engaged)| {
            let Engaged { since, who } = engaged?;
            Some(By { source: source.into(), since: rfc3339(since), who })
        });
        let by: Vec<By> = by.collect();
        Self { engaged: !by.is_empty(), by }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, since, who } = self;
        write!(f, "{source} since {since}: {who}")
    }
}

/// What is worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is engaged, by these; or these are others than before.
    Engaged(Vec<By>),
    /// Nobody engages it any more. These had.
    Released(Vec<By>),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (said, by) = match self {
            Self::Engaged(by) => {
                ("the kill switch is engaged, nothing is contained or evicted and every containment lifted; by", by)
            }
            Self::Released(by) => ("the kill switch is released; it was engaged by", by),
        };
        let by: Vec<String> = by.iter().map(ToString::to_string).collect();
        write!(f, "{said} {}", by.join("; "))
    }
}

/// The kill switch, and what the agent said of it last.
#[derive(Debug)]
pub struct View {
    switch: Arc<KillSwitch>,
    said: Status,
}

impl View {
    /// Nothing was said yet: one that is engaged from the start is a change.
    pub fn new(switch: Arc<KillSwitch>) -> Self {
        Self { switch, said: Status::default() }
    }

    /// Whether it is engaged now: to be asked before every action.
    pub fn engaged(&self) -> bool {
        self.switch.engaged()
    }

    /// Takes over what the configuration's file says, at the agent's start and with every reload.
    pub fn set_file(&self, engaged: bool, path: &Path) -> Result<(), KillSwitchError> {
        if engaged {
            self.switch.engage(Source::File, &format!("killSwitch: true in {}", path.display()))
        } else {
            self.switch.release(Source::File)
        }
    }

    /// Takes over what the cluster says: who engages it, if anybody does.
    pub fn set_cluster(&self, who: Option<&str>) -> Result<(), KillSwitchError> {
        match who {
            Some(who) => self.switch.engage(Source::Cluster, who),
            None => self.switch.release(Source::Cluster),
        }
    }

    /// What has changed since the last call, to be logged.
    pub fn poll(&mut self) -> Result<Option<Change>, KillSwitchError> {
        let now = Status::of(&self.switch)?;
        Ok(self.change(now))
    }

    fn change(&mut self, now: Status) -> Option<Change> {
        if now == self.said {
            return None;
        }
        let before = std::mem::replace(&mut self.said, now);
        Some(if self.said.engaged { Change::Engaged(self.said.by.clone()) } else { Change::Released(before.by) })
    }

    /// A source's engagement. The operator's and the cluster's are kept through a reboot: see [`KillSwitch::open`].
    pub fn engaged_by(&self, source: Source) -> Result<Option<Engaged>, KillSwitchError> {
        Ok(self.switch.engagements()?[source as usize].take())
    }
}

/// `egress_guard_kill_switch`, as it is when it is asked for.
#[derive(Debug)]
pub struct Gauge {
    switch: Arc<KillSwitch>,
    desc: Desc,
}

impl Gauge {
    const NAME: &str = "egress_guard_kill_switch";
    const HELP: &str = "1 while this source engages the kill switch.";

    /// Of this kill switch.
    pub fn new(switch: Arc<KillSwitch>) -> Result<Self, prometheus::Error> {
        let desc = Desc::new(Self::NAME.into(), Self::HELP.into(), vec![], std::collections::HashMap::new())?;
        Ok(Self { switch, desc })
    }
}

impl Collector for Gauge {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // What cannot be read is not said to be 0.
        let Ok(status) = Status::of(&self.switch) else { return vec![] };
        let sources = [Source::Operator, Source::File, Source::Cluster].into_iter();
        let values = sources
            .map(|source| gauge(&[("source", NAMES[source as usize])], if status.has(source) { 1.0 } else { 0.0 }));
        vec![family(Self::NAME, Self::HELP, MetricType::GAUGE, values.collect())]
    }
}
