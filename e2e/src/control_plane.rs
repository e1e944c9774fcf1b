//! etcd, kube-apiserver and kube-controller-manager on loopback, with RBAC, an audit log and an authority of their own.

use std::{
    env, fs,
    io::Write as _,
    net::IpAddr,
    ops::Range,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::sync::OnceCell;

use crate::{
    arguments::{self, AUDIT_LOG, AUDIT_POLICY},
    audit::{self, Request},
    component::{Component, Folder},
    credentials, eventually,
};

/// Where the programs are; `cargo xtask e2e` says it.
const PROGRAMS: &str = "EGRESS_GUARD_CONTROL_PLANE";

/// What starts may take on a machine that is busy with other things.
const START: Duration = Duration::from_mins(2);

/// What makes workloads' pods and budgets' figures. Those that look after nodes are left out: here nodes have no kubelet
/// that reports, and are to be there all the same.
pub const CONTROLLERS: &[&str] = &[
    "cronjob",
    "daemonset",
    "deployment",
    "disruption",
    "endpoint",
    "garbagecollector",
    "job",
    "namespace",
    "replicaset",
    "replicationcontroller",
    "root-ca-cert-publisher",
    "serviceaccount",
    "serviceaccount-token",
    "statefulset",
];

/// Those of [`CONTROLLERS`], and those that a node with a kubelet takes.
pub const NODE_CONTROLLERS: &[&str] = &[
    "cronjob",
    "daemonset",
    "deployment",
    "disruption",
    "endpoint",
    "endpointslice",
    "endpointslicemirroring",
    "garbagecollector",
    "job",
    "namespace",
    "nodelifecycle",
    "podgc",
    "replicaset",
    "replicationcontroller",
    "resourcequota",
    "root-ca-cert-publisher",
    "serviceaccount",
    "serviceaccount-token",
    "statefulset",
];

/// What a control plane consists of.
#[derive(Clone, Debug)]
pub struct Options {
    /// The controllers of the controller manager; with none of them there is no controller manager.
    pub controllers: &'static [&'static str],
    /// More arguments of the API server.
    pub api_arguments: Vec<String>,
    /// Whether there is a scheduler.
    pub scheduler: bool,
    /// Under which addresses the API server is known, besides its own.
    pub addresses: Vec<IpAddr>,
}

impl Default for Options {
    /// All of [`CONTROLLERS`].
    fn default() -> Self {
        Self { controllers: CONTROLLERS, api_arguments: vec![], scheduler: false, addresses: vec![] }
    }
}

/// A running control plane; killed and removed when dropped, or when its process ends.
#[derive(Debug)]
pub struct ControlPlane {
    // Before the folder: what runs in it ends first.
    components: Mutex<Components>,
    folder: Folder,
    programs: PathBuf,
    url: String,
}

#[derive(Debug)]
struct Components {
    scheduler: Option<Component>,
    controller_manager: Option<Component>,
    api: Component,
    etcd: Component,
}

impl Components {
    /// Fails if one has ended that an API server takes.
    fn check(&mut self) -> Result<()> {
        self.etcd.check()?;
        self.api.check()
    }
}

impl ControlPlane {
    /// Starts one and waits until it works: some seconds.
    pub async fn start(options: Options) -> Result<Self> {
        let programs = PathBuf::from(
            env::var_os(PROGRAMS)
                .with_context(|| format!("{PROGRAMS} is not set: run it through `cargo xtask e2e`"))?,
        );
        let folder = Folder::make()?;
        let path = folder.path();
        credentials::write(path, &options.addresses)?;
        fs::write(path.join(AUDIT_POLICY), audit::POLICY)?;
        let [etcd_port, peer_port, api_port] = arguments::ports()?;
        let new = |name, arguments: Vec<String>| Component::new(path, &programs.join(name), name, arguments);
        let components = Components {
            etcd: new("etcd", arguments::etcd(etcd_port, peer_port)),
            api: new("kube-apiserver", arguments::api(api_port, etcd_port, &options)),
            controller_manager: (!options.controllers.is_empty())
                .then(|| new("kube-controller-manager", arguments::controller_manager(options.controllers))),
            scheduler: options.scheduler.then(|| new("kube-scheduler", arguments::scheduler())),
        };
        let url = format!("https://127.0.0.1:{api_port}");
        let plane = Self { components: Mutex::new(components), folder, programs, url };
        plane.kubeconfig("controller-manager", &credentials::token(credentials::CONTROLLER_MANAGER))?;
        plane.kubeconfig("scheduler", &credentials::token(credentials::SCHEDULER))?;
        plane.kubeconfig("admin", &credentials::token(credentials::ADMIN))?;
        plane.components().etcd.start()?;
        plane.components().api.start()?;
        plane.api_ready().await?;
        if plane.components().controller_manager.is_some() {
            plane.start_controller_manager()?;
        }
        if let Some(scheduler) = &mut plane.components().scheduler {
            scheduler.start()?;
        }
        if arguments::has_tokens(options.controllers) {
            service_account(&plane.admin().await?, "default", "default").await?;
        }
        Ok(plane)
    }

    /// One with the default options for all tests of this process.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED.get_or_try_init(|| Self::start(Options::default())).await
    }

    /// A client that may do everything and repeats nothing by itself. It belongs to the runtime that calls.
    pub async fn admin(&self) -> Result<Client> {
        client(&self.kubeconfig_admin()).await
    }

    /// The kubeconfig of the user `admin`.
    pub fn kubeconfig_admin(&self) -> PathBuf {
        self.kubeconfig_path("admin")
    }

    /// Writes a kubeconfig for a token; `name` is the test's choice and stands in the file's name.
    pub fn kubeconfig_for_token(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.kubeconfig(&format!("token-{name}"), token)
    }

    /// A token of a service account, by the `TokenRequest` API, good for an hour; bound to a pod if there is one.
    pub async fn token(&self, namespace: &str, service_account: &str, pod: Option<&Pod>) -> Result<String> {
        let bound = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(pod.name_any()),
            uid: pod.uid(),
        });
        let spec = TokenRequestSpec { audiences: vec![], bound_object_ref: bound, expiration_seconds: Some(3600) };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin().await?, namespace);
        let answer = accounts.create_token_request(service_account, &PostParams::default(), &request).await;
        let answer = answer.with_context(|| format!("a token of {namespace}/{service_account}"))?;
        Ok(answer.status.context("the API server answers without a token")?.token)
    }

    /// A kubeconfig of a service account, with a [`Self::token`].
    pub async fn kubeconfig_for_account(
        &self,
        namespace: &str,
        service_account: &str,
        pod: Option<&Pod>,
    ) -> Result<PathBuf> {
        let token = self.token(namespace, service_account, pod).await?;
        let suffix = pod.map(|pod| format!("-{}", pod.name_any())).unwrap_or_default();
        self.kubeconfig_for_token(&format!("{namespace}-{service_account}{suffix}"), &token)
    }

    /// Where the API server is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder of the programs: those of the control plane, kubectl, and those of a node.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The token of one of the users that the API server knows without asking anybody.
    pub fn user(&self, user: &str) -> String {
        credentials::token(user)
    }

    /// Runs `kubectl` as the administrator and returns what it prints; `input` is what it reads for `-f -`.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig_admin());
        // It would take what it learned of another server on this port for this one's.
        command.arg("--cache-dir").arg(self.folder.path().join("kubectl")).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that reads nothing may have ended.
            let _unread = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A folder that is removed with the control plane, for the test's own files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Freezes the API server: connections stay, nothing is answered.
    pub fn stop_api(&self) -> Result<()> {
        self.components().api.freeze()
    }

    /// Lets it go on.
    pub fn continue_api(&self) -> Result<()> {
        self.components().api.signal(libc::SIGCONT)
    }

    /// Kills the API server: connections are reset, new ones refused.
    pub fn kill_api(&self) {
        self.components().api.kill();
    }

    /// Starts it again on the same port and waits until it is ready.
    pub async fn restart_api(&self) -> Result<()> {
        self.components().api.kill();
        self.components().api.start()?;
        self.api_ready().await
    }

    /// Kills the controller manager: nothing is replaced, and no budget's figures change.
    pub fn kill_controller_manager(&self) {
        if let Some(manager) = &mut self.components().controller_manager {
            manager.kill();
        }
    }

    /// Starts it again.
    pub fn start_controller_manager(&self) -> Result<()> {
        self.components().controller_manager.as_mut().context("this control plane has no controllers")?.start()
    }

    /// The end of the API server's log, for messages.
    pub fn api_log(&self) -> String {
        self.components().api.tail()
    }

    /// Every request that was answered so far, and every watch that was asked for, in the order in which they came.
    pub fn requests(&self) -> Result<Vec<Request>> {
        audit::read(&self.folder.path().join(AUDIT_LOG))
    }

    /// Those that came within a span of time.
    pub fn requests_in(&self, span: &Range<Timestamp>) -> Result<Vec<Request>> {
        let mut requests = self.requests()?;
        requests.retain(|request| span.contains(&request.at));
        Ok(requests)
    }

    async fn api_ready(&self) -> Result<()> {
        let client = self.admin().await?;
        let end = Instant::now() + START;
        loop {
            let request = http::Request::get("/readyz").body(vec![])?;
            let Err(error) = client.request_text(request).await else { return Ok(()) };
            self.components().check()?;
            if Instant::now() > end {
                bail!("the API server is not ready within {START:?}: {error:#}: {}", self.api_log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A test that panicked while it held them left them as they are.
    fn components(&self) -> MutexGuard<'_, Components> {
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kubeconfig_path(&self, name: &str) -> PathBuf {
        self.folder.path().join(arguments::kubeconfig_file(name))
    }

    fn kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        let authority = self.folder.path().join(credentials::AUTHORITY);
        let content = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": {"server": self.url, "certificate-authority": authority}}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
            "current-context": "e2e",
        });
        let path = self.kubeconfig_path(name);
        fs::write(&path, content.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// A client by a kubeconfig that repeats nothing by itself.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// Waits until pods can have a service account.
pub(crate) async fn service_account(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    eventually(&format!("the service account {namespace}/{name} has a token"), START, async || {
        let account = accounts.get(name).await?;
        account.secrets.filter(|secrets| !secrets.is_empty()).map(drop).context("it has none")
    })
    .await
}
