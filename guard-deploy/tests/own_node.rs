//! The admission policies that bind an agent to its own node, evaluated as the API server does it: match conditions
//! first, then every validation, once for each parameter, and all must agree. (Kubernetes' own words for it are in the
//! reference of `ValidatingAdmissionPolicyBinding`, `paramRef`.) No server that knows these policies is to be had here.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use cel::{Context, Program, Value as Cel};
use guard_deploy::{objects, read};
use serde_json::{Value, json};

const AGENT: &str = "system:serviceaccount:egress-guard:egress-guard";
const FLAG: &str = "egress-guard.dev/flagged";

struct Policy {
    conditions: Vec<String>,
    variables: Vec<(String, String)>,
    validations: Vec<(String, String)>,
    has_params: bool,
}

impl Policy {
    fn read(file: &str) -> Result<Self> {
        let all = objects(&read(&format!("deploy/kustomize/components/own-node/{file}"))?)?;
        let (policy, binding) = (&all[0], &all[1]);
        assert_eq!(policy["metadata"]["name"], binding["spec"]["policyName"]);
        assert_eq!(binding["spec"]["validationActions"], json!(["Deny"]));
        assert_eq!(policy["spec"]["failurePolicy"], "Fail");
        let text = |value: &Value| value.as_str().map(str::to_owned).context("not a text");
        let each = |list: &str, first: &str, second: &str| -> Result<Vec<(String, String)>> {
            let items = policy["spec"][list].as_array().with_context(|| format!("no {list}"))?;
            items.iter().map(|item| Ok((text(&item[first])?, text(&item[second])?))).collect()
        };
        let conditions = each("matchConditions", "name", "expression")?.into_iter().map(|(_, condition)| condition);
        Ok(Self {
            conditions: conditions.collect(),
            variables: each("variables", "name", "expression")?,
            validations: each("validations", "expression", "message")?,
            has_params: policy["spec"]["paramKind"].is_object(),
        })
    }

    /// Why it denies, or nothing. An expression that fails denies (`failurePolicy: Fail`).
    fn denies(&self, request: &Asked, params: &[Value]) -> Option<String> {
        let none = [Value::Null];
        let params = if self.has_params { params } else { &none };
        params.iter().find_map(|params| self.denies_by(request, params))
    }

    fn denies_by(&self, request: &Asked, params: &Value) -> Option<String> {
        let mut context = Context::default();
        for (name, value) in [
            ("request", &request.request),
            ("object", &request.object),
            ("oldObject", &request.old),
            ("params", params),
        ] {
            context.add_variable(name, value).expect("JSON is CEL");
        }
        for condition in &self.conditions {
            match truth(condition, &context) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(error),
            }
        }
        let mut variables = HashMap::new();
        for (name, expression) in &self.variables {
            // As in the API server, one that fails fails where it is used.
            if let Ok(value) = evaluate(expression, &context) {
                variables.insert(name.clone(), value);
            }
            context.add_variable_from_value("variables", variables.clone());
        }
        self.validations.iter().find_map(|(expression, message)| match truth(expression, &context) {
            Ok(true) => None,
            Ok(false) => Some(message.clone()),
            Err(error) => Some(error),
        })
    }
}

fn evaluate(expression: &str, context: &Context) -> Result<Cel, String> {
    let program = Program::compile(expression).map_err(|error| format!("{expression}: {error}"))?;
    program.execute(context).map_err(|error| format!("{expression}: {error}"))
}

fn truth(expression: &str, context: &Context) -> Result<bool, String> {
    match evaluate(expression, context)? {
        Cel::Bool(truth) => Ok(truth),
        other => Err(format!("{expression} is {other:?}")),
    }
}

struct Asked {
    request: Value,
    object: Value,
    old: Value,
}

fn request(user: &str, node: Option<&str>, operation: &str, name: &str) -> Value {
    let mut info = json!({"username": user, "groups": ["system:authenticated"]});
    if let Some(node) = node {
        info["extra"] = json!({
            "authentication.kubernetes.io/node-name": [node],
            "authentication.kubernetes.io/pod-name": ["egress-guard-x"],
        });
    }
    json!({"operation": operation, "namespace": "shop", "name": name, "userInfo": info})
}

fn eviction(user: &str, node: Option<&str>, name: &str) -> Asked {
    let object =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "shop"}});
    Asked { request: request(user, node, "CREATE", name), object, old: Value::Null }
}

fn pod(name: &str, node: Option<&str>) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}, "annotations": {"a": "b"}},
        "spec": {"containers": [{"name": "main", "image": "r.example/web:1"}]},
    });
    if let Some(node) = node {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

#[test]
fn an_agent_evicts_pods_of_its_own_node_alone() -> Result<()> {
    let policy = Policy::read("evictions.yaml")?;
    assert!(policy.has_params);
    let pods = [pod("mine", Some("n1")), pod("theirs", Some("n2")), pod("pending", None)];
    let denies = |request: &Asked| policy.denies(request, &pods);
    assert_eq!(denies(&eviction(AGENT, Some("n1"), "mine")), None);
    assert_eq!(denies(&eviction(AGENT, Some("n2"), "theirs")), None);
    for (node, name) in [("n1", "theirs"), ("n2", "mine"), ("n3", "mine"), ("n1", "pending")] {
        let why = denies(&eviction(AGENT, Some(node), name)).with_context(|| format!("{node} evicts {name}"))?;
        assert!(why.contains("own node"), "{why}");
    }
    Ok(())
}

#[test]
fn a_token_without_a_node_evicts_nothing() -> Result<()> {
    let policy = Policy::read("evictions.yaml")?;
    let mut other_claim = eviction(AGENT, Some("n1"), "mine");
    other_claim.request["userInfo"]["extra"] = json!({"authentication.kubernetes.io/pod-name": ["x"]});
    for request in [eviction(AGENT, None, "mine"), other_claim] {
        let why = policy.denies(&request, &[pod("mine", Some("n1"))]).context("it may")?;
        assert!(why.contains("names no node"), "{why}");
    }
    // Nor does it pass for the node of a pod that has none.
    assert!(policy.denies(&eviction(AGENT, None, "pending"), &[pod("pending", None)]).is_some());
    Ok(())
}

#[test]
fn nobody_elses_evictions_are_touched() -> Result<()> {
    let policy = Policy::read("evictions.yaml")?;
    for user in ["ann", "system:serviceaccount:egress-guard:other", "system:serviceaccount:other:egress-guard"] {
        assert_eq!(policy.denies(&eviction(user, None, "mine"), &[pod("mine", Some("n1"))]), None, "{user}");
    }
    Ok(())
}

#[test]
fn what_the_policys_text_admits_it_cannot_know_is_so() -> Result<()> {
    // A pod that the API server's cache does not have yet.
    let policy = Policy::read("evictions.yaml")?;
    assert_eq!(policy.denies(&eviction(AGENT, Some("n1"), "new"), &[pod("other", Some("n2"))]), None);
    assert_eq!(policy.denies(&eviction(AGENT, Some("n1"), "new"), &[]), None);
    let text = read("deploy/kustomize/components/own-node/evictions.yaml")?;
    assert!(text.contains("A pod that is not in it yet"));
    Ok(())
}

fn patch(node: Option<&str>, change: impl FnOnce(&mut Value)) -> Asked {
    let old = pod("web", Some("n1"));
    let mut object = old.clone();
    change(&mut object);
    Asked { request: request(AGENT, node, "UPDATE", "web"), object, old }
}

#[test]
fn an_agent_may_change_its_one_annotation() -> Result<()> {
    let policy = Policy::read("patches.yaml")?;
    let flag = |pod: &mut Value| pod["metadata"]["annotations"][FLAG] = "2026-01-31T03:00:00Z rate".into();
    assert_eq!(policy.denies(&patch(Some("n1"), flag), &[]), None);
    assert_eq!(policy.denies(&patch(Some("n1"), |_| {}), &[]), None);
    // The first annotation of all, and the last.
    let mut first = patch(Some("n1"), |pod| pod["metadata"]["annotations"] = json!({FLAG: "x"}));
    first.old["metadata"].as_object_mut().context("metadata")?.remove("annotations");
    assert_eq!(policy.denies(&first, &[]), None);
    let last = Asked { object: first.old.clone(), old: first.object.clone(), request: first.request.clone() };
    assert_eq!(policy.denies(&last, &[]), None);
    Ok(())
}

#[test]
fn an_agent_may_change_nothing_else() -> Result<()> {
    type Change = (&'static str, fn(&mut Value));
    let policy = Policy::read("patches.yaml")?;
    let changes: [Change; 9] = [
        ("image", |pod| pod["spec"]["containers"][0]["image"] = "r.example/evil:1".into()),
        ("another annotation", |pod| pod["metadata"]["annotations"]["x"] = "y".into()),
        ("a changed annotation", |pod| pod["metadata"]["annotations"]["a"] = "c".into()),
        ("a removed annotation", |pod| pod["metadata"]["annotations"] = json!({})),
        ("no annotations", |pod| drop(pod["metadata"].as_object_mut().expect("a map").remove("annotations"))),
        ("a label", |pod| pod["metadata"]["labels"]["app"] = "other".into()),
        ("no labels", |pod| drop(pod["metadata"].as_object_mut().expect("a map").remove("labels"))),
        ("a finalizer", |pod| pod["metadata"]["finalizers"] = json!(["x/y"])),
        ("an owner", |pod| pod["metadata"]["ownerReferences"] = json!([{"uid": "x"}])),
    ];
    for (what, change) in changes {
        assert!(policy.denies(&patch(Some("n1"), change), &[]).is_some(), "{what} may be changed");
    }
    Ok(())
}

#[test]
fn an_agent_may_not_flag_pods_of_another_node() -> Result<()> {
    let policy = Policy::read("patches.yaml")?;
    let flag = |pod: &mut Value| pod["metadata"]["annotations"][FLAG] = "x".into();
    for node in [Some("n2"), None] {
        let why = policy.denies(&patch(node, flag), &[]).with_context(|| format!("{node:?} may"))?;
        assert!(why.contains("own node"), "{why}");
    }
    let mut creation = patch(Some("n1"), flag);
    creation.request["operation"] = "CREATE".into();
    creation.old = Value::Null;
    assert!(policy.denies(&creation, &[]).is_some());
    let mut other = patch(None, |pod| pod["spec"] = json!({}));
    other.request["userInfo"]["username"] = "system:node:n1".into();
    assert_eq!(policy.denies(&other, &[]), None, "others are bound as well");
    Ok(())
}
