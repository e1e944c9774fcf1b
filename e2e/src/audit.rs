//! What the API server was asked, by its own account: its audit log at level `Metadata`.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde::Deserialize;

/// What the API server is to write down: every request, once it is answered. Watches as soon as they are asked for: their answer
/// begins, to this API server, with the first that they tell, or with their end.
pub(crate) const POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1",
  "kind": "Policy",
  "rules": [
    {"level": "Metadata", "verbs": ["watch"]},
    {"level": "Metadata", "omitStages": ["RequestReceived"]}
  ]
}"#;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// When the API server got it.
    pub at: Timestamp,
    /// Who asked: `system:serviceaccount:NAMESPACE:NAME`, `admin`, `system:kube-controller-manager`.
    pub user: String,
    /// What the program that asked calls itself.
    pub agent: String,
    /// The pod that the service account's token is bound to, if it is bound to one.
    pub pod: Option<String>,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for what is no resource the method in
    /// small letters.
    pub verb: String,
    /// The resource with its subresource: `pods`, `pods/eviction`; for what is no resource the path.
    pub resource: String,
    /// The namespace, empty for what has none.
    pub namespace: String,
    /// The object's name, empty for a list, for most watches and for what gets its name from the server.
    pub name: String,
    /// The whole path with its query.
    pub uri: String,
    /// The HTTP status; of a watch 0 until it tells something, or ends.
    pub code: u16,
}

/// How often each (user, verb, resource) occurs.
#[must_use]
pub fn uses(requests: &[Request]) -> BTreeMap<(&str, &str, &str), usize> {
    let mut uses = BTreeMap::new();
    for request in requests {
        *uses.entry((request.user.as_str(), request.verb.as_str(), request.resource.as_str())).or_default() += 1;
    }
    uses
}

/// Reads the log, in the order in which the requests came.
pub(crate) fn read(path: &Path) -> Result<Vec<Request>> {
    let log = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut requests = BTreeMap::new();
    // The last line may not be whole yet.
    for line in log.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let event: Event = serde_json::from_str(line).with_context(|| format!("not an audit event: {line}"))?;
        // A watch is written down up to three times: when it is asked for, when its answer begins, and when it ends.
        requests.insert(event.audit_id.clone(), event.into());
    }
    let mut requests: Vec<Request> = requests.into_values().collect();
    requests.sort_by_key(|request| request.at);
    Ok(requests)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    #[serde(rename = "auditID")]
    audit_id: String,
    verb: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    user: User,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: Option<ObjectRef>,
    #[serde(default)]
    response_status: Option<ResponseStatus>,
    request_received_timestamp: Timestamp,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct ObjectRef {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: u16,
}

impl From<Event> for Request {
    fn from(event: Event) -> Self {
        let path = event.request_uri.split('?').next().unwrap_or_default();
        let object = event.object_ref.unwrap_or_else(|| ObjectRef {
            resource: path.into(),
            subresource: String::new(),
            namespace: String::new(),
            name: String::new(),
        });
        let ObjectRef { resource, subresource, namespace, name } = object;
        Self {
            at: event.request_received_timestamp,
            pod: event.user.extra.get("authentication.kubernetes.io/pod-name").and_then(|names| names.first()).cloned(),
            user: event.user.username,
            agent: event.user_agent,
            verb: event.verb,
            resource: if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") },
            namespace,
            name,
            uri: event.request_uri,
            code: event.response_status.map_or(0, |status| status.code),
        }
    }
}
