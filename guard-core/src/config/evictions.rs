//! When pods are evicted and which never are, as the file has it.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::scalars::{at_least, globs, number, truth};
use crate::{
    policy::{Evict, Globs},
    safety::{Leave, Protect},
};

#[expect(clippy::struct_excessive_bools, reason = "each is a key of the file")]
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EvictText {
    #[serde(deserialize_with = "at_least::<0, _>")]
    after: Duration,
    #[serde(default, deserialize_with = "grace")]
    grace: Option<Duration>,
    #[serde(default, deserialize_with = "truth")]
    unmanaged: bool,
    #[serde(default, deserialize_with = "truth")]
    daemon_sets: bool,
    #[serde(default, deserialize_with = "truth")]
    last_replica: bool,
    #[serde(default = "min_ready", deserialize_with = "number")]
    min_ready: u32,
    #[serde(default = "min_age", deserialize_with = "at_least::<0, _>")]
    min_age: Duration,
    #[serde(default = "empty_dir", deserialize_with = "truth")]
    empty_dir: bool,
    #[serde(default, deserialize_with = "truth")]
    local_volumes: bool,
}

fn grace<'de, D: Deserializer<'de>>(yaml: D) -> Result<Option<Duration>, D::Error> {
    at_least::<0, _>(yaml).map(Some)
}

const fn min_ready() -> u32 {
    Leave::USUAL.min_ready
}

const fn min_age() -> Duration {
    Leave::USUAL.min_age
}

const fn empty_dir() -> bool {
    Leave::USUAL.empty_dir
}

impl<'de> Deserialize<'de> for Evict {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let EvictText {
            after,
            grace,
            unmanaged,
            daemon_sets,
            last_replica,
            min_ready,
            min_age,
            empty_dir,
            local_volumes,
        } = EvictText::deserialize(yaml)?;
        let leave = Leave { unmanaged, daemon_sets, last_replica, min_ready, min_age, empty_dir, local_volumes };
        Ok(Self { after, grace, leave })
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProtectText {
    #[serde(deserialize_with = "protected")]
    namespaces: Option<Globs>,
}

fn protected<'de, D: Deserializer<'de>>(yaml: D) -> Result<Option<Globs>, D::Error> {
    let empty = "an empty list protects nothing but the agent's own namespace: name those that no pod must be evicted \
                 from, such as kube-system";
    globs(yaml, empty).map(Some)
}

impl<'de> Deserialize<'de> for Protect {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let ProtectText { namespaces } = ProtectText::deserialize(yaml)?;
        let usual = Self::default();
        Ok(Self { namespaces: namespaces.unwrap_or(usual.namespaces), ..usual })
    }
}
