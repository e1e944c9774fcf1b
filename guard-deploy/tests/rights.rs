//! The agents' rights: these and no others, and each with its reason.

use std::collections::BTreeSet;

use anyhow::Result;
use guard_deploy::{kustomize, objects, read};
use serde_json::Value;

/// group, resource, verbs; of one namespace or of all.
type Rule = (&'static str, &'static str, &'static str, &'static str);

const WATCHING: [Rule; 9] = [
    ("all", "", "pods", "get list watch patch"),
    ("all", "", "replicationcontrollers", "get"),
    ("all", "apps", "daemonsets", "get"),
    ("all", "apps", "deployments", "get"),
    ("all", "apps", "replicasets", "get"),
    ("all", "apps", "statefulsets", "get"),
    ("all", "batch", "jobs", "get"),
    ("all", "events.k8s.io", "events", "create patch"),
    ("own", "", "configmaps/egress-guard", "list watch"),
];

const EVICTING: [Rule; 5] = [
    ("all", "", "pods/eviction", "create"),
    ("all", "", "persistentvolumeclaims", "get"),
    ("all", "", "persistentvolumes", "get"),
    ("all", "policy", "poddisruptionbudgets", "list"),
    ("own", "coordination.k8s.io", "leases", "get list create update delete"),
];

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Each single right that an overlay grants.
fn granted(mode: &str) -> Result<BTreeSet<String>> {
    let mut rights = BTreeSet::new();
    for object in objects(&kustomize(mode, &[])?)? {
        let scope = match object["kind"].as_str() {
            Some("ClusterRole") => "all",
            Some("Role") => "own",
            _ => continue,
        };
        for rule in object["rules"].as_array().into_iter().flatten() {
            let names = texts(&rule["resourceNames"]);
            for (group, resource) in texts(&rule["apiGroups"])
                .iter()
                .flat_map(|group| texts(&rule["resources"]).into_iter().map(move |resource| (*group, resource)))
            {
                let resource = match names.as_slice() {
                    [] => resource.to_owned(),
                    names => format!("{resource}/{}", names.join(",")),
                };
                rights.extend(texts(&rule["verbs"]).iter().map(|verb| format!("{scope} {group} {resource} {verb}")));
            }
        }
    }
    Ok(rights)
}

fn expected(rules: &[Rule]) -> BTreeSet<String> {
    let rights = rules.iter().flat_map(|(scope, group, resource, verbs)| {
        verbs.split(' ').map(move |verb| format!("{scope} {group} {resource} {verb}"))
    });
    rights.collect()
}

#[test]
fn an_agent_that_may_not_evict_has_no_right_to() -> Result<()> {
    for mode in ["observe", "contain"] {
        assert_eq!(granted(mode)?, expected(&WATCHING), "{mode}");
    }
    Ok(())
}

#[test]
fn to_evict_takes_these_rights_more() -> Result<()> {
    assert_eq!(granted("evict")?, expected(&[&WATCHING[..], &EVICTING[..]].concat()));
    Ok(())
}

#[test]
fn every_verb_has_its_reason_beside_it() -> Result<()> {
    for file in [
        "deploy/kustomize/base/rbac.yaml",
        "deploy/kustomize/overlays/evict/rbac.yaml",
        "deploy/helm/egress-guard/templates/rbac.yaml",
        "deploy/helm/egress-guard/templates/rbac-evict.yaml",
    ] {
        let text = read(file)?;
        let mut seen = 0;
        let mut lines = text.lines().enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            let Some(verbs) = line.trim().strip_prefix("verbs:") else { continue };
            if !verbs.is_empty() {
                let (list, reason) = verbs.split_once('#').unwrap_or((verbs, ""));
                assert!(!reason.is_empty() && !list.contains(','), "{file}:{}: {line}", number + 1);
                seen += 1;
            }
            while let Some((number, verb)) =
                lines.next_if(|(_, line)| verbs.is_empty() && line.trim().starts_with("- "))
            {
                if verb.contains("apiGroups") {
                    break;
                }
                assert!(verb.contains(" # "), "{file}:{}: {verb}", number + 1);
                seen += 1;
            }
        }
        assert!(seen >= 4, "{file}: {seen} verbs were found");
    }
    Ok(())
}

#[test]
fn what_is_bound_is_the_agents_account_alone() -> Result<()> {
    let all = objects(&kustomize("evict", &[])?)?;
    let bindings: Vec<_> = all.iter().filter(|object| object["roleRef"].is_object()).collect();
    assert_eq!(bindings.len(), 4);
    for binding in bindings {
        let agent =
            serde_json::json!([{"kind": "ServiceAccount", "name": "egress-guard", "namespace": "egress-guard"}]);
        assert_eq!(binding["subjects"], agent, "{}", binding["metadata"]["name"]);
        let role = binding["kind"].as_str().and_then(|kind| kind.strip_suffix("Binding"));
        assert_eq!(binding["roleRef"]["kind"].as_str(), role);
        assert_eq!(binding["roleRef"]["name"], binding["metadata"]["name"]);
    }
    Ok(())
}
