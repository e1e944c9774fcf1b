//! What annotations may change, as the file has it.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};

use super::scalars::{at_least, burst, factor, scalar, some};
use crate::{
    overrides::{Key, Max, Overrides},
    policy::Globs,
    units::{Rate, Size},
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OverridesText {
    allow: BTreeSet<Key>,
    max: Max,
    #[serde(deserialize_with = "some")]
    namespaces: Option<Globs>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct MaxText {
    #[serde(deserialize_with = "some")]
    rate: Option<Rate>,
    #[serde(deserialize_with = "burst")]
    burst: Option<Size>,
    #[serde(deserialize_with = "some")]
    quota: Option<Size>,
    #[serde(deserialize_with = "some_factor")]
    baseline_factor: Option<f64>,
    #[serde(deserialize_with = "some_time")]
    exempt: Option<Duration>,
}

fn some_factor<'de, D: Deserializer<'de>>(yaml: D) -> Result<Option<f64>, D::Error> {
    factor(yaml).map(Some)
}

fn some_time<'de, D: Deserializer<'de>>(yaml: D) -> Result<Option<Duration>, D::Error> {
    at_least::<1, _>(yaml).map(Some)
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let names = Self::ALL.map(Self::name).join(", ");
        scalar(yaml, &format!("one of {names}"), |text: &str| Self::ALL.into_iter().find(|key| key.name() == text))
    }
}

impl<'de> Deserialize<'de> for Max {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let MaxText { rate, burst, quota, baseline_factor, exempt } = MaxText::deserialize(yaml)?;
        Ok(Self { rate, burst, quota, baseline_factor, exempt })
    }
}

impl<'de> Deserialize<'de> for Overrides {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let OverridesText { allow, max, namespaces } = OverridesText::deserialize(yaml)?;
        let useless = Key::ALL.into_iter().find(|key| max.has(*key) && !allow.contains(key));
        if let Some(key) = useless {
            let (max, name) = (key.max(), key.name());
            return Err(D::Error::custom(format!(
                "max.{max} is of no use, for nothing may loosen that: add {name} to allow, or remove max.{max}"
            )));
        }
        if namespaces.is_some() && allow.is_empty() {
            let message = "namespaces is of no use without allow: add allow, or remove namespaces";
            return Err(D::Error::custom(message));
        }
        Ok(Self { allow, max, namespaces })
    }
}
