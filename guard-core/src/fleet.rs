//! The fleet's kill switch and policy file: what a ConfigMap and its mounted copy say, and what follows on a node.
//!
//! Nothing is released because somebody fell silent: what is engaged stays so until the API server, or a file that is newer
//! than the engagement, says `off`.

use std::{borrow::Cow, path::Path};

/// The ConfigMap's name, in the agent's own namespace.
pub const CONFIG_MAP: &str = "egress-guard";

/// Its key with the policy file.
pub const CONFIG: &str = "config.yaml";

/// Its key with the kill switch, and the name of the mounted file.
pub const KILL_SWITCH: &str = "kill-switch";

/// All that does not engage it.
const OFF: &str = "off";

/// So many characters of a value that is no word of ours are repeated.
const QUOTED: usize = 20;

/// What the ConfigMap has for the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// `config.yaml`.
    pub config: Option<String>,
    /// `kill-switch`.
    pub kill_switch: Option<String>,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

/// What the API server said last of the ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Word {
    /// Nothing since this agent's start.
    #[default]
    Unknown,
    /// There is none.
    Missing,
    /// This.
    Present(Map),
}

/// How it stands with the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Contact {
    /// There is none to be asked.
    #[default]
    Nobody,
    /// It says at once if the ConfigMap changes: what it said last holds.
    Fresh,
    /// It was silent for too long: what it said last may be old.
    Away,
    /// It says no, in these words.
    Denied(String),
}

/// The mounted file `kill-switch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Its text. `None`: it is there, but it cannot be read.
    pub text: Option<String>,
    /// It was written after the kill switch was engaged for the cluster; also true while it is not.
    pub newer: bool,
}

/// All that the fleet's part in the kill switch follows from.
#[derive(Clone, Debug)]
pub struct World<'a> {
    /// The ConfigMap: `NAMESPACE/NAME`.
    pub name: &'a str,
    /// What the API server said.
    pub word: &'a Word,
    /// Whether that holds.
    pub contact: &'a Contact,
    /// Where the mounted file would be.
    pub path: &'a Path,
    /// The mounted file. `None`: it is not there, so it says nothing.
    pub file: Option<&'a Mounted>,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// What becomes of the cluster's engagement of the kill switch.
    pub switch: Switch,
    /// Why nothing is evicted on any node that is in this position; containment goes on.
    pub nothing: Option<Cow<'static, str>>,
}

/// What becomes of the cluster's engagement of the kill switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It is engaged, by whom.
    Engaged(String),
    /// Nobody says anything new: engaged stays engaged, and what is not is not.
    AsItWas,
    /// It is released.
    Released,
}

/// Rules.
#[must_use]
pub fn rule(world: &World<'_>) -> Ruling {
    Ruling { switch: switch(world), nothing: nothing(world) }
}

fn switch(world: &World<'_>) -> Switch {
    let World { name, word, contact, path, file } = world;
    match (contact, word) {
        (Contact::Fresh, Word::Present(map)) if !map.engages() => return Switch::Released,
        (_, Word::Present(map)) if map.engages() => return Switch::Engaged(map.who(name)),
        (Contact::Fresh, Word::Missing) => return Switch::AsItWas,
        // Nobody has a last word: the file is asked.
        (_, Word::Unknown | Word::Missing | Word::Present(_)) => {}
    }
    match file {
        None => Switch::AsItWas,
        Some(file) if !file.engages() => {
            if file.newer {
                Switch::Released
            } else {
                Switch::AsItWas
            }
        }
        Some(Mounted { text: None, .. }) => Switch::Engaged(format!("{} cannot be read", path.display())),
        Some(Mounted { text: Some(text), .. }) => {
            Switch::Engaged(format!("{KILL_SWITCH}: {} in {}", quoted(text), path.display()))
        }
    }
}

fn nothing(world: &World<'_>) -> Option<Cow<'static, str>> {
    let World { name, word, contact, .. } = world;
    let why = match (contact, word) {
        (Contact::Nobody, _) | (Contact::Fresh, Word::Present(_)) => return None,
        (Contact::Fresh, Word::Missing) => {
            format!("the ConfigMap {name} is missing: make it, with the key {KILL_SWITCH}: \"{OFF}\"")
        }
        (Contact::Denied(why), _) => {
            format!("the ConfigMap {name} may not be read: grant the agent get, list and watch of it ({why})")
        }
        (Contact::Away | Contact::Fresh, Word::Unknown) => {
            format!("the API server has not told of the ConfigMap {name}, which has the fleet's kill switch, yet")
        }
        (Contact::Away, Word::Missing | Word::Present(_)) => {
            format!("the API server does not tell of the ConfigMap {name}, which has the fleet's kill switch, any more")
        }
    };
    Some(why.into())
}

impl Map {
    /// Anything but `off` engages, nothing at all too.
    fn engages(&self) -> bool {
        self.kill_switch.as_deref() != Some(OFF)
    }

    fn who(&self, name: &str) -> String {
        let Self { kill_switch, resource_version, .. } = self;
        match kill_switch {
            Some(value) => {
                format!("{KILL_SWITCH}: {} in ConfigMap {name}, resourceVersion {resource_version}", quoted(value))
            }
            None => format!(
                "no {KILL_SWITCH} in ConfigMap {name}, resourceVersion {resource_version}: \"{OFF}\" releases it"
            ),
        }
    }
}

impl Mounted {
    /// As the map; but a file may end its line.
    fn engages(&self) -> bool {
        let line = self.text.as_deref().map(|text| text.strip_suffix('\n').unwrap_or(text));
        line != Some(OFF)
    }
}

fn quoted(value: &str) -> String {
    let cut = value.char_indices().nth(QUOTED).map_or(value.len(), |(at, _)| at);
    let dots = if cut < value.len() { "..." } else { "" };
    format!("{:?}{dots}", &value[..cut])
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
