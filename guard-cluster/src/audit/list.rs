//! Lists, page by page.

use kube::{
    Client, Error,
    api::ListParams,
    core::{Request, Status},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time;

use super::{AuditError, PATIENCE};
use crate::convert::chain;

/// How many objects are asked for at once: kubectl's own.
const PAGE: u32 = 500;

/// What is listed.
pub(super) struct Resource {
    /// Empty: the core's.
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    namespaced: bool,
}

/// Lists objects of one namespace or of all.
pub(super) struct Lister<'a> {
    client: Client,
    namespace: Option<&'a str>,
}

/// Part of a list, of any version.
#[derive(Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    r#continue: Option<String>,
}

impl Resource {
    pub(super) const fn of(group: &'static str, version: &'static str, plural: &'static str) -> Self {
        Self { group, version, plural, namespaced: true }
    }

    pub(super) const fn core(plural: &'static str) -> Self {
        Self::of("", "v1", plural)
    }

    pub(super) const fn without_namespace(plural: &'static str) -> Self {
        Self { namespaced: false, ..Self::core(plural) }
    }

    /// As a role's rule and `kubectl auth can-i` name it.
    fn name(&self) -> String {
        if self.group.is_empty() { self.plural.into() } else { format!("{}.{}", self.plural, self.group) }
    }

    fn path(&self, namespace: Option<&str>) -> String {
        let Self { group, version, plural, namespaced } = self;
        let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        match namespace.filter(|_| *namespaced) {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
            None => format!("{root}/{plural}"),
        }
    }
}

impl<'a> Lister<'a> {
    pub(super) const fn new(client: Client, namespace: Option<&'a str>) -> Self {
        Self { client, namespace }
    }

    /// What `keep` makes of all objects, each page as it comes in: a cluster may have more than should be kept whole.
    /// `None`: this version of it is not served.
    pub(super) async fn all<T: DeserializeOwned, U>(
        &self,
        resource: &Resource,
        keep: impl Fn(T) -> Option<U>,
    ) -> Result<Option<Vec<U>>, AuditError> {
        let mut kept = vec![];
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = match self.page::<T>(resource, &params).await {
                Ok(page) => page,
                Err(Error::Api(status)) if status.code == 404 => return Ok(None),
                Err(error) => return Err(self.refused(resource, error)),
            };
            kept.extend(page.items.into_iter().filter_map(&keep));
            match page.metadata.r#continue.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(Some(kept)),
            }
        }
    }

    /// As [`Lister::all`], of what every API server serves.
    pub(super) async fn must<T: DeserializeOwned, U>(
        &self,
        resource: &Resource,
        keep: impl Fn(T) -> Option<U>,
    ) -> Result<Vec<U>, AuditError> {
        self.all(resource, keep).await?.ok_or_else(|| AuditError::NotServed(resource.name()))
    }

    /// An error if there is no such namespace. Who may not look at it is not told.
    pub(super) async fn expect(&self, namespace: &str) -> Result<(), AuditError> {
        let request = Request::new("/api/v1/namespaces").get(namespace, &kube::api::GetParams::default());
        let request = request.map_err(Error::BuildRequest);
        let found = async { self.client.request::<Value>(request?).await };
        match time::timeout(PATIENCE, found).await {
            Ok(Err(Error::Api(status))) if status.code == 404 => Err(AuditError::NoNamespace(namespace.to_owned())),
            _ => Ok(()),
        }
    }

    async fn page<T: DeserializeOwned>(&self, resource: &Resource, params: &ListParams) -> Result<Page<T>, Error> {
        let request = Request::new(resource.path(self.namespace)).list(params).map_err(Error::BuildRequest)?;
        match time::timeout(PATIENCE, self.client.request(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Service(format!("no answer within {PATIENCE:?}").into())),
        }
    }

    fn refused(&self, resource: &Resource, error: Error) -> AuditError {
        let namespaced = self.namespace.filter(|_| resource.namespaced);
        let resource_name = resource.name();
        let Error::Api(status) = error else {
            return AuditError::Unanswered { resource: resource_name, error: chain(&error) };
        };
        let Status { code, message, .. } = *status;
        match code {
            401 => AuditError::Unauthorized { resource: resource_name, message },
            403 => {
                let scope = match namespaced {
                    Some(namespace) => format!("in the namespace {namespace}"),
                    None if resource.namespaced => "in all namespaces".into(),
                    None => "of the cluster".into(),
                };
                AuditError::Forbidden { resource: resource_name, scope, message }
            }
            status => AuditError::Refused { resource: resource_name, status, message },
        }
    }
}
