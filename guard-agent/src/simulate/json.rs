//! What came of it, for a program.

use serde_json::{Value, json};

use super::{LIMITS, Sum, sums, time};
use crate::{
    breaches::Held,
    config::Config,
    core::{
        budget::Alarm,
        identity::Labels,
        policy::Containment,
        replay::{Breached, Container, Deed, Report},
        watch::Closing,
    },
};

/// What came of it as JSON. Times are RFC 3339, rates bytes per second, all else bytes.
pub fn json(report: &Report, config: &Config) -> Value {
    let breach = |breached: &Breached| {
        let Breached { container, policy, breach, closed, deeds } = breached;
        let Labels { namespace, pod, container } = &report.containers[*container].names;
        json!({
            "opened": time(report, breach.since),
            "closed": closed.map(|(at, _)| time(report, at)),
            "closed_because": closed.map(|(_, why)| closing(why)),
            "namespace": namespace,
            "pod": pod,
            "container": container,
            "policy": policy,
            "limit": breach.limit.name(),
            "figure": breach.figure,
            "allowed": breach.allowed,
            "done": deeds.iter().map(|(at, deed)| deed_json(report, *at, deed)).collect::<Vec<_>>(),
        })
    };
    json!({
        "from": report.span.map(|(first, _)| time(report, first)),
        "to": report.span.map(|(_, last)| time(report, last)),
        "samples": report.samples,
        "mode": config.policies.mode.to_string(),
        "kill_switch": config.kill_switch,
        "breaches": report.breaches.iter().map(breach).collect::<Vec<_>>(),
        "containers": report.containers.iter().map(container).collect::<Vec<_>>(),
        "policies": sums(report, config).iter().map(|(name, sum)| policy(*name, sum)).collect::<Vec<_>>(),
        "alarms": report.alarms.iter().map(|(at, alarm)| match alarm {
            Alarm::Storm { workloads, .. } => {
                json!({"at": time(report, *at), "alarm": "storm", "workloads": workloads})
            }
            Alarm::NotCured { workload } => {
                json!({"at": time(report, *at), "alarm": "not_cured", "workload": &**workload})
            }
            Alarm::Calm => json!({"at": time(report, *at), "alarm": "calm"}),
        }).collect::<Vec<_>>(),
    })
}

fn container(container: &Container) -> Value {
    let Container { names: Labels { namespace, pod, container }, policy, totals, unlearned } = container;
    json!({
        "namespace": namespace,
        "pod": pod,
        "container": container,
        "policy": policy.as_ref().map(|policy| &policy.name),
        "egress": {"cluster": totals.egress.bytes[0], "external": totals.egress.bytes[1]},
        "egress_dropped": totals.dropped(),
        "ingress": {"cluster": totals.ingress.bytes[0], "external": totals.ingress.bytes[1]},
        "baseline_unlearned": unlearned,
    })
}

fn policy(name: Option<&str>, sum: &Sum) -> Value {
    let Sum { containers, breaches, contained, evicted, declined, dropped } = sum;
    let breaches: serde_json::Map<String, Value> =
        LIMITS.iter().zip(breaches).map(|(limit, count)| (limit.name().to_owned(), (*count).into())).collect();
    json!({
        "policy": name,
        "containers": containers,
        "breaches": breaches,
        "contained": contained,
        "evicted": evicted,
        "declined": declined,
        "dropped": dropped,
    })
}

fn deed_json(report: &Report, at: u64, deed: &Deed) -> Value {
    let at = time(report, at);
    match deed {
        Deed::Contained { how, until } => {
            let how = match how {
                Containment::Throttle(rate) => Held::Throttle(rate.bytes_per_second()),
                Containment::Block => Held::Block,
            };
            json!({"at": at, "action": "contained", "how": how, "until": time(report, *until)})
        }
        Deed::Released(why) => json!({"at": at, "action": "released", "why": why.name()}),
        Deed::Evicted => json!({"at": at, "action": "evicted"}),
        Deed::Declined { what, why } => {
            json!({"at": at, "action": "nothing", "declined": what.to_string(), "why": why.name()})
        }
    }
}

const fn closing(why: Closing) -> &'static str {
    match why {
        Closing::Clear => "clear",
        Closing::Gone => "gone",
        Closing::Unlimited => "unlimited",
        Closing::LetGo => "released",
    }
}
