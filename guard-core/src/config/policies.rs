//! Policies as the file has them, where that is not as [`crate::policy`] does.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error as _};

use super::scalars::{LEAST_BURST, at_least, burst, name, required, some, truth};
use crate::{
    policy::{BaselineLimit, Contain, Containment, Count, EgressLimits, Matcher, OnBreach, Policy, Quota, RateLimit},
    units::{Rate, Size},
};

/// How long a rate passes at once if the file does not say the burst, in seconds.
const BURST: u64 = 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PolicyText {
    #[serde(deserialize_with = "name")]
    name: String,
    r#match: Option<Matcher>,
    #[serde(default)]
    count: Count,
    #[serde(default)]
    egress: EgressLimits,
    #[serde(default, deserialize_with = "some")]
    ingress: Option<RateLimit>,
    #[serde(default)]
    on_breach: OnBreach,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EgressText {
    #[serde(default, deserialize_with = "some")]
    rate: Option<Rate>,
    #[serde(default, deserialize_with = "burst")]
    burst: Option<Size>,
    #[serde(default, deserialize_with = "some")]
    quota: Option<Quota>,
    #[serde(default, deserialize_with = "some")]
    baseline: Option<BaselineLimit>,
    #[serde(default, deserialize_with = "some")]
    bypass: Option<Rate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IngressText {
    #[serde(deserialize_with = "required")]
    rate: Rate,
    #[serde(default, deserialize_with = "burst")]
    burst: Option<Size>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ContainText {
    #[serde(default, deserialize_with = "some")]
    throttle: Option<Rate>,
    #[serde(default, deserialize_with = "truth")]
    block: bool,
    #[serde(rename = "for", deserialize_with = "at_least::<1, _>")]
    length: Duration,
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let PolicyText { name, r#match, count, egress, ingress, on_breach } = PolicyText::deserialize(yaml)?;
        let Some(matcher) = r#match else {
            return Err(D::Error::custom(format!(
                "{name:?} does not say whom it is for: add match, with {{}} for all containers"
            )));
        };
        if on_breach != OnBreach::default() && egress == EgressLimits::default() {
            return Err(D::Error::custom(format!(
                "{name:?} has onBreach but no egress limit that could be crossed: add one, or remove onBreach"
            )));
        }
        Ok(Self { name, matcher, count, egress, ingress, on_breach })
    }
}

impl<'de> Deserialize<'de> for EgressLimits {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let EgressText { rate, burst, quota, baseline, bypass } = EgressText::deserialize(yaml)?;
        if rate.is_none() && burst.is_some() {
            return Err(D::Error::custom("burst is of no use without rate: add rate, or remove burst"));
        }
        let bypass = bypass.map(|rate| bucket(rate, None));
        Ok(Self { rate: rate.map(|rate| bucket(rate, burst)), quota, baseline, bypass })
    }
}

impl<'de> Deserialize<'de> for RateLimit {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let IngressText { rate, burst } = IngressText::deserialize(yaml)?;
        Ok(bucket(rate, burst))
    }
}

/// A rate limit, with the usual burst if none is said.
pub(crate) fn bucket(rate: Rate, burst: Option<Size>) -> RateLimit {
    let usual = || Size::new(rate.bytes_per_second().saturating_mul(BURST).max(LEAST_BURST));
    RateLimit { rate, burst: burst.or_else(usual).expect("more than zero") }
}

impl<'de> Deserialize<'de> for Contain {
    fn deserialize<D: Deserializer<'de>>(yaml: D) -> Result<Self, D::Error> {
        let ContainText { throttle, block, length } = ContainText::deserialize(yaml)?;
        let how = match (throttle, block) {
            (Some(rate), false) => Containment::Throttle(rate),
            (None, true) => Containment::Block,
            _ => return Err(D::Error::custom("say how: either throttle with a rate like 1MiB/s, or block: true")),
        };
        Ok(Self { how, length })
    }
}

#[cfg(test)]
#[path = "policies_tests.rs"]
mod tests;
