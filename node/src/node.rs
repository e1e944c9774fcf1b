//! The node.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use guard_e2e::{
    ControlPlane, Options, Proxy, Space, arguments, control_plane::NODE_CONTROLLERS, credentials::NODE, eventually,
};
use guard_vm::{Drive, Guest, Kernel, Modules, Output, Running};
use k8s_openapi::api::core::v1;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::{
    SOON,
    join::{self, API, Artifacts, GUEST, HOST, Ports},
};

/// The kernel of the nodes in use today.
const KERNEL: &str = "6.12";

/// How long the guest may take until it serves commands, and the kubelet until its node is Ready.
const BOOT: Duration = Duration::from_mins(5);

/// MiB.
const MEMORY: u32 = 2048;
const VAR: u32 = 4096;

/// A control plane, and a node that has joined it. Everything is gone when it is dropped, or when its process ends.
#[derive(Debug)]
pub struct Node {
    guest: Running,
    /// Between the pods of the node and the API server: what the agent asks passes here.
    pub pods_api: Proxy,
    /// Between kubelet, kube-proxy and the API server.
    pub kubelet_api: Proxy,
    /// The control plane.
    pub plane: ControlPlane,
    timing: Timing,
    folder: PathBuf,
}

/// How long it took.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From qemu's start to the first command.
    pub boot: Duration,
    /// From then until the node is Ready.
    pub ready: Duration,
}

/// The one node of a test process, for one test at a time.
#[derive(Debug)]
pub struct Shared {
    node: Arc<Node>,
    _turn: MutexGuard<'static, ()>,
}

impl std::ops::Deref for Shared {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

fn file_in(variable: &str) -> Result<PathBuf> {
    let path = env::var_os(variable)
        .with_context(|| format!("{variable} is not set: run it through `cargo xtask node` or `cargo xtask soak`"))?;
    let path = PathBuf::from(path);
    ensure!(
        path.exists(),
        "{variable}: {} is not there: run it through `cargo xtask node` or `cargo xtask soak`",
        path.display()
    );
    Ok(path)
}

impl Node {
    /// The node that all tests of this process share; it is started by the first that asks. Others wait until what this
    /// returns is dropped.
    pub async fn shared() -> Result<Shared> {
        static TURN: Mutex<()> = Mutex::new(());
        static NODE: Mutex<Option<Arc<Node>>> = Mutex::new(None);
        let shared = block_in_place(|| {
            // A test that fails leaves the node to the next.
            let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            let mut node = NODE.lock().unwrap_or_else(PoisonError::into_inner);
            let node = match &*node {
                Some(node) => node,
                None => node.insert(outliving()?),
            };
            anyhow::Ok(Shared { node: Arc::clone(node), _turn: turn })
        })?;
        shared.clear().await?;
        Ok(shared)
    }

    /// Puts right what a test has left that failed: faults, a kubelet that is stopped, a full disk, another time, namespaces.
    async fn clear(&self) -> Result<()> {
        self.pods_api.heal();
        self.kubelet_api.heal();
        let version = async || self.client().await?.apiserver_version().await.map_err(anyhow::Error::from);
        if version().await.is_err() {
            self.plane.restart_api().await?;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        self.run(&format!(
            "rm -f /var/fill*
ahead=$(($(date +%s) - {now})); [ ${{ahead#-}} -lt 60 ] || date --set=@{now}
systemctl is-active --quiet kubelet || systemctl start kubelet"
        ))?;
        let namespaces: Api<v1::Namespace> = Api::all(self.client().await?);
        for left in namespaces.list(&ListParams::default()).await? {
            if left.name_any().starts_with("e2e-") {
                self.remove_namespace(&left.name_any()).await?;
            }
        }
        Ok(())
    }

    /// Starts one and waits until it is Ready: minutes. It belongs to the runtime that calls, which must have several
    /// threads.
    pub async fn start() -> Result<Self> {
        let cache = file_in("EGRESS_GUARD_KERNELS")?;
        let root = file_in("EGRESS_GUARD_NODE")?.join("root.ext4");
        let images = env::split_paths(&file_in("EGRESS_GUARD_IMAGES")?).collect();
        let artifacts =
            Artifacts { load: file_in("EGRESS_GUARD_LOAD")?, older: file_in("EGRESS_GUARD_OLDER")?, images };
        let plane = ControlPlane::start(Options {
            controllers: NODE_CONTROLLERS,
            api_arguments: vec!["--kubelet-preferred-address-types=ExternalIP".into()],
            scheduler: true,
            addresses: [HOST, API].map(IpAddr::from).to_vec(),
        })
        .await?;
        let (pods_api, kubelet_api) = (Proxy::of(&plane).await?, Proxy::of(&plane).await?);
        let [kubelet] = arguments::ports()?;
        let ports = Ports { api: kubelet_api.port(), kubelet };
        announce(&plane.admin().await?, pods_api.port()).await?;
        let folder = plane.folder().join("node");
        fs::create_dir(&folder)?;
        let started = Instant::now();
        let guest = block_in_place(|| {
            let join = join::disk(&plane, ports, &artifacts, &folder)?;
            boot(&cache, &root, join, ports, &folder)
        })?;
        let timing = Timing { boot: guest.boot_time(), ready: Duration::ZERO };
        let mut node = Self { guest, pods_api, kubelet_api, plane, timing, folder };
        node.joined().await.with_context(|| node.why())?;
        node.timing.ready = started.elapsed().saturating_sub(timing.boot);
        Ok(node)
    }

    /// How long it took to come up.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// A client that may do everything. It belongs to the runtime that calls.
    pub async fn client(&self) -> Result<Client> {
        self.plane.admin().await
    }

    /// A namespace of a test's own, deleted and waited for by [`Self::leave`].
    pub async fn space(&self) -> Result<Space> {
        Space::new(&self.client().await?).await
    }

    /// Removes a namespace with all that runs in it, and waits until it is gone.
    pub async fn leave(&self, space: Space) -> Result<()> {
        self.remove_namespace(&space.name).await
    }

    pub(crate) async fn remove_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<v1::Namespace> = Api::all(self.client().await?);
        if namespaces.get_opt(name).await?.is_none() {
            return Ok(());
        }
        namespaces.delete(name, &kube::api::DeleteParams::default()).await?;
        eventually(&format!("the namespace {name} is gone"), SOON, async || {
            ensure!(namespaces.get_opt(name).await?.is_none(), "it is there");
            Ok(())
        })
        .await
    }

    /// Runs `kubectl` as the administrator and returns what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        block_in_place(|| self.plane.kubectl(arguments, ""))
    }

    /// `kubectl apply` of some YAML or JSON.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        block_in_place(|| self.plane.kubectl(&["apply", "-f", "-"], manifests))
    }

    /// Runs a shell script as root in the guest and returns what it prints; it must succeed, within [`SOON`].
    pub fn run(&self, script: &str) -> Result<String> {
        let Output { status, text } = self.shell(script, SOON)?;
        ensure!(status == 0, "`{script}` ended with {status}: {text}");
        Ok(text)
    }

    /// Runs a shell script as root in the guest and returns what it comes to. One at a time: another waits.
    pub fn shell(&self, script: &str, limit: Duration) -> Result<Output> {
        Ok(block_in_place(|| self.guest.shell(script, limit))?)
    }

    /// Waits until an Event with this reason is about a pod, and returns what it says.
    pub async fn event(&self, pod: &v1::Pod, reason: &str) -> Result<String> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let events: Api<v1::Event> = Api::namespaced(self.client().await?, &namespace);
        let about = ListParams::default().fields(&format!("involvedObject.name={name}"));
        eventually(&format!("an Event {reason} is about {name}"), SOON, async || {
            let events = events.list(&about).await?.items;
            let found = events.iter().find(|event| event.reason.as_deref() == Some(reason));
            let seen = || events.iter().map(|event| (&event.reason, &event.message)).collect::<Vec<_>>();
            let found = found.with_context(|| format!("there are {:?}", seen()))?;
            Ok(found.message.clone().unwrap_or_default())
        })
        .await
    }

    /// The end of the logs that tell why a node is not Ready.
    pub fn why(&self) -> String {
        let units = "systemctl --no-pager --failed; journalctl --no-pager -n 40 -u node-images -u kubelet -u kube-proxy; \
                     journalctl --no-pager -n 15 -u containerd -u node-disks -u node-network -u world";
        let journal = self.shell(units, SOON).map_or_else(|error| format!("{error:#}"), |output| output.text);
        format!("the node does not work:\n{journal}\n{}", self.guest.last_words())
    }

    /// The folder of the node's disks.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until the node is Ready.
    pub async fn ready(&self) -> Result<()> {
        let nodes: Api<v1::Node> = Api::all(self.client().await?);
        eventually(&format!("the node {NODE} is Ready"), BOOT, async || {
            let node = nodes.get(NODE).await?;
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
            ensure!(ready.is_some_and(|ready| ready.status == "True"), "{ready:?}");
            Ok(())
        })
        .await
    }

    /// What a cloud's controller does with a new node: tells how it is reached, and lets pods come.
    async fn joined(&self) -> Result<()> {
        let nodes: Api<v1::Node> = Api::all(self.client().await?);
        eventually(&format!("the kubelet makes the node {NODE}"), BOOT, async || {
            let node = nodes.get(NODE).await?;
            let addresses = node.status.and_then(|status| status.addresses).unwrap_or_default();
            ensure!(!addresses.is_empty(), "it has no address yet");
            Ok(())
        })
        .await?;
        let addresses =
            [("InternalIP", GUEST.to_string()), ("ExternalIP", "127.0.0.1".into()), ("Hostname", NODE.into())];
        let addresses = addresses.map(|(kind, address)| json!({"type": kind, "address": address}));
        let status = Patch::Strategic(json!({"status": {"addresses": addresses}}));
        nodes.patch_status(NODE, &PatchParams::default(), &status).await.context("patch the node's addresses")?;
        self.ready().await?;
        // Admission and the kubelet have it tainted until somebody has looked at it; the controller does the rest.
        let uninitialized = "node.cloudprovider.kubernetes.io/uninitialized";
        eventually("the node has no taints", BOOT, async || {
            let node = nodes.get(NODE).await?;
            let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
            if taints.iter().any(|taint| taint.key == uninitialized) {
                let kept: Vec<_> = taints.iter().filter(|taint| taint.key != uninitialized).collect();
                let spec = Patch::Merge(json!({"spec": {"taints": kept}}));
                nodes.patch(NODE, &PatchParams::default(), &spec).await?;
            }
            ensure!(taints.is_empty(), "it has {taints:?}");
            Ok(())
        })
        .await
    }
}

/// The service `kubernetes` leads to this port of the host.
async fn announce(client: &Client, port: u16) -> Result<()> {
    let endpoints: Value = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default"},
        "subsets": [{"addresses": [{"ip": HOST}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    let resource = kube::core::ApiResource::from_gvk_with_plural(
        &kube::core::GroupVersionKind::gvk("", "v1", "Endpoints"),
        "endpoints",
    );
    let api: Api<kube::api::DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource);
    let patch = Patch::Apply(&endpoints);
    api.patch("kubernetes", &PatchParams::apply("e2e"), &patch).await.context("the endpoints of `kubernetes`")?;
    Ok(())
}

fn boot(cache: &Path, root: &Path, join: PathBuf, ports: Ports, folder: &Path) -> Result<Running> {
    let kernel = Kernel::get(KERNEL, cache)?;
    let var = folder.join("var.ext4");
    join::filesystem(&var, VAR, None)?;
    let kubelet = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.kubelet));
    let guest = Guest::new(&kernel)
        .modules(Modules::Node)
        .memory(MEMORY)
        .append("systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all systemd.show_status=0")
        // Every two seconds the kubelet lists the pods' cgroups once for each controller: two fifths of its CPU time with
        // nine pods that rest (its own profile). Without these three there are five controllers, and fewer files in each.
        .append("cgroup_disable=hugetlb,misc,rdma psi=0")
        .root("/dev/vda", "ext4", "ro")
        .drive(Drive::ReadOnly(root.to_owned()))
        .drive(Drive::Writable(var))
        .drive(Drive::ReadOnly(join))
        .forward(kubelet, ports.kubelet)
        .boot_limit(BOOT);
    Ok(guest.boot()?)
}

/// Starts a node in a runtime of its own: the proxies outlive the test that starts it.
fn outliving() -> Result<Arc<Node>> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        match runtime.context("a runtime for the node") {
            Ok(runtime) => runtime.block_on(async {
                let _waited_for = tell.send(Node::start().await.map(Arc::new));
                std::future::pending::<()>().await;
            }),
            Err(error) => drop(tell.send(Err(error))),
        }
    });
    told.recv().context("the thread of the node's runtime ended")?
}
