//! What makes a guest the node of a certain control plane: its third disk.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use guard_e2e::{ControlPlane, credentials};
use serde_json::{Value, json};

use crate::{
    agent,
    image::{self, Image},
};

/// The host, as the guest sees it.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The guest, as it is known to itself and to its cluster.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The service `kubernetes`.
pub(crate) const API: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The ports of the host that the node uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    /// The API server, for kubelet and kube-proxy.
    pub(crate) api: u16,
    /// The kubelet, here and there.
    pub(crate) kubelet: u16,
}

/// Programs and archives of the host that go onto the disk.
#[derive(Debug)]
pub(crate) struct Artifacts {
    /// The static program of the tests' pods.
    pub(crate) load: PathBuf,
    /// A static agent with another layout.
    pub(crate) older: PathBuf,
    /// Archives of images.
    pub(crate) images: Vec<PathBuf>,
}

/// Makes the disk.
pub(crate) fn disk(plane: &ControlPlane, ports: Ports, artifacts: &Artifacts, folder: &Path) -> Result<PathBuf> {
    let content = folder.join("join");
    let images = content.join("images");
    fs::create_dir_all(&images)?;
    for (user, name) in [(credentials::KUBELET, "kubelet"), (credentials::PROXY, "kube-proxy")] {
        let kubeconfig = kubeconfig(&plane.user(user), user, ports.api);
        fs::write(content.join(format!("{name}.kubeconfig")), kubeconfig.to_string())?;
    }
    for name in [credentials::AUTHORITY, credentials::SERVER.0, credentials::SERVER.1] {
        fs::copy(plane.folder().join(name), content.join(name)).with_context(|| format!("copy {name}"))?;
    }
    fs::write(content.join("kubelet.yaml"), kubelet(ports.kubelet).to_string())?;
    for (name, arguments) in [("kubelet", kubelet_arguments()), ("kube-proxy", proxy_arguments())] {
        fs::write(content.join(format!("{name}.env")), format!("ARGUMENTS={arguments}\n"))?;
    }
    fs::copy(&artifacts.load, content.join("load")).context("copy the load program")?;
    let load =
        Image { name: image::NAME, program: &artifacts.load, entrypoint: "load", command: "pause", folders: &[] };
    image::write(&load, &folder.join("load"), &images.join("load.tar"))?;
    let older = Image {
        name: agent::OLDER,
        program: &artifacts.older,
        entrypoint: "guard-agent",
        command: "run",
        folders: &["etc/egress-guard", "run/egress-guard", "var/lib/egress-guard"],
    };
    image::write(&older, &folder.join("older"), &images.join("older.tar"))?;
    for archive in &artifacts.images {
        let name = archive.file_name().context("an archive has a name")?;
        fs::copy(archive, images.join(name)).with_context(|| format!("copy {}", archive.display()))?;
    }
    let disk = folder.join("join.ext4");
    filesystem(&disk, 256, Some(&content))?;
    Ok(disk)
}

/// Makes a file with a filesystem of so many MiB.
pub(crate) fn filesystem(disk: &Path, mib: u32, content: Option<&Path>) -> Result<()> {
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-m", "0", "-E", "root_owner=0:0"]);
    if let Some(content) = content {
        mkfs.args(["-O", "^has_journal", "-d"]).arg(content);
    }
    let output = mkfs.arg(disk).arg(format!("{mib}M")).output().context("start mkfs.ext4")?;
    ensure!(output.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn kubeconfig(token: &str, user: &str, port: u16) -> Value {
    let server = format!("https://{HOST}:{port}");
    let authority = format!("/run/node/{}", credentials::AUTHORITY);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "node", "cluster": {"server": server, "certificate-authority": authority}}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "node", "context": {"cluster": "node", "user": user}}],
        "current-context": "node",
    })
}

fn kubelet(port: u16) -> Value {
    let file = |name: &str| format!("/run/node/{name}");
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "port": port,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": file(credentials::AUTHORITY)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": file(credentials::SERVER.0),
        "tlsPrivateKeyFile": file(credentials::SERVER.1),
        "cgroupDriver": "systemd",
        "failSwapOn": false,
        "resolvConf": "",
        "volumePluginDir": "/var/lib/kubelet/plugins",
        // Nothing is there to pull an image from again.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "64Mi", "nodefs.available": "5%", "imagefs.available": "5%"},
    })
}

/// As on a cloud's node, whose addresses the cloud's controller tells of: here it is the test that adds one by which the API
/// server reaches the kubelet.
fn kubelet_arguments() -> String {
    format!(
        "--config=/run/node/kubelet.yaml --kubeconfig=/run/node/kubelet.kubeconfig --root-dir=/var/lib/kubelet \
         --cert-dir=/var/lib/kubelet/pki --container-runtime=remote \
         --container-runtime-endpoint=unix:///run/containerd/containerd.sock --hostname-override={} --node-ip={GUEST} \
         --housekeeping-interval=30s --cloud-provider=external",
        credentials::NODE
    )
}

fn proxy_arguments() -> String {
    format!(
        "--kubeconfig=/run/node/kube-proxy.kubeconfig --proxy-mode=iptables --cluster-cidr=10.88.0.0/16 \
         --hostname-override={} --conntrack-max-per-core=0",
        credentials::NODE
    )
}
