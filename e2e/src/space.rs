//! A namespace of a test's own.

use std::{fmt::Debug, time::Duration};

use anyhow::{Context as _, Result, ensure};
use http::{Method, Request};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Namespace, Pod, ServiceAccount},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ListParams, PostParams},
    client::Body,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{control_plane, eventually, objects};

/// How long controllers and [`crate::Kubelet`] may take to bring something about.
pub const SOON: Duration = Duration::from_secs(30);

/// A namespace, and a client that may do everything in it.
#[derive(Clone)]
pub struct Space {
    /// Its name.
    pub name: String,
    /// The client.
    pub client: Client,
}

impl Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An answer of the API server, whatever it is.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub code: u16,
    /// The body: an object, or a `Status`.
    pub body: Value,
}

impl Answer {
    /// The reasons of a `Status`' causes.
    pub fn causes(&self) -> Vec<&str> {
        let causes = self.body["details"]["causes"].as_array();
        causes.into_iter().flatten().filter_map(|cause| cause["reason"].as_str()).collect()
    }

    /// What a `Status` says.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

impl Space {
    /// Makes a namespace in which pods can be made. Its control plane needs the controllers of service accounts.
    pub async fn new(client: &Client) -> Result<Self> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = json!({"metadata": {"generateName": "e2e-"}});
        let namespace = namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
        let space = Self { name: namespace.name_any(), client: client.clone() };
        control_plane::service_account(client, &space.name, "default").await?;
        Ok(space)
    }

    /// One that is there already, `kube-system` for example.
    pub fn existing(client: &Client, name: &str) -> Self {
        Self { name: name.into(), client: client.clone() }
    }

    /// The objects of a kind in it.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Makes an object.
    pub async fn create<K>(&self, object: Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
    {
        let what = format!("make the {} {} in {}", object["kind"], object["metadata"]["name"], self.name);
        let object = serde_json::from_value(object).with_context(|| what.clone())?;
        self.api().create(&PostParams::default(), &object).await.with_context(|| what)
    }

    /// Makes a service account that pods can have at once.
    pub async fn account(&self, name: &str) -> Result<()> {
        self.create::<ServiceAccount>(json!({"metadata": {"name": name}})).await?;
        control_plane::service_account(&self.client, &self.name, name).await
    }

    /// Makes a [`objects::budget`] and waits until the disruption controller has looked at it.
    pub async fn budget(&self, name: &str, app: &str, min_available: u32) -> Result<()> {
        let path = format!("/apis/policy/v1beta1/namespaces/{}/poddisruptionbudgets", self.name);
        let answer = self.ask(Method::POST, &path, Some(&objects::budget(name, app, min_available))).await?;
        ensure!(answer.code == 201, "make the budget {name}: {answer:?}");
        eventually(&format!("the budget {name} has figures"), SOON, async || {
            let answer = self.ask(Method::GET, &format!("{path}/{name}"), None).await?;
            ensure!(answer.body["status"]["observedGeneration"].as_i64() >= Some(1), "{answer:?}");
            Ok(())
        })
        .await
    }

    /// Waits until a budget allows this many disruptions.
    pub async fn budget_allows(&self, name: &str, disruptions: u64) -> Result<()> {
        self.budget_allows_within(name, disruptions, SOON).await
    }

    /// As [`Self::budget_allows`], for pods that take their time.
    pub async fn budget_allows_within(&self, name: &str, disruptions: u64, limit: Duration) -> Result<()> {
        let path = format!("/apis/policy/v1beta1/namespaces/{}/poddisruptionbudgets/{name}", self.name);
        eventually(&format!("the budget {name} allows {disruptions} disruptions"), limit, async || {
            let status = self.ask(Method::GET, &path, None).await?.body["status"].take();
            ensure!(status["disruptionsAllowed"].as_u64() == Some(disruptions), "{status}");
            Ok(())
        })
        .await
    }

    /// The pods with the label `app: <app>` that are not being deleted, by name.
    pub async fn pods(&self, app: &str) -> Result<Vec<Pod>> {
        let mut pods = self.api::<Pod>().list(&ListParams::default().labels(&format!("app={app}"))).await?.items;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        pods.sort_by_key(Pod::name_any);
        Ok(pods)
    }

    /// Waits until there are exactly so many of [`Self::pods`], all of them Ready.
    pub async fn ready(&self, app: &str, count: usize) -> Result<Vec<Pod>> {
        eventually(&format!("{count} pods of {app} are ready"), SOON, async || {
            let pods = self.pods(app).await?;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            ensure!(pods.len() == count && ready == count, "{ready} of {} are", pods.len());
            Ok(pods)
        })
        .await
    }

    /// Waits until a pod is gone, for good or replaced by another of its name.
    pub async fn gone(&self, pod: &Pod) -> Result<()> {
        let name = pod.name_any();
        eventually(&format!("the pod {name} is gone"), SOON, async || {
            let found = self.api::<Pod>().get_opt(&name).await?;
            ensure!(found.is_none_or(|found| found.uid() != pod.uid()), "it is there");
            Ok(())
        })
        .await
    }

    /// Posts an Eviction of the pod of this name as the administrator; see [`objects::eviction`].
    pub async fn evict(&self, pod: &str, eviction: &Value) -> Result<Answer> {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", self.name);
        self.ask(Method::POST, &path, Some(eviction)).await
    }

    /// Asks the API server for anything, and returns whatever it answers.
    pub async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header("Content-Type", "application/json");
        let response = self.client.send(request.body(Body::from(bytes))?).await?;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect_bytes().await?;
        let body = serde_json::from_slice(&bytes)
            .with_context(|| format!("{path} answers {code} and no JSON: {}", String::from_utf8_lossy(&bytes)))?;
        Ok(Answer { code, body })
    }
}

/// Whether a pod's condition Ready holds.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}
