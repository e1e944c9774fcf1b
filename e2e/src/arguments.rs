//! What the processes of a control plane are started with. Files are named as they lie in its folder, where they run.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Result, bail};

use crate::{control_plane::Options, credentials};

pub(crate) const AUDIT_LOG: &str = "audit.log";
pub(crate) const AUDIT_POLICY: &str = "audit-policy.json";

/// Whether pods are given tokens of service accounts.
pub(crate) fn has_tokens(controllers: &[&str]) -> bool {
    ["serviceaccount", "serviceaccount-token"].iter().all(|needed| controllers.contains(needed))
}

pub(crate) fn kubeconfig_file(name: &str) -> String {
    format!("kubeconfig-{name}")
}

fn arguments<const N: usize>(arguments: [&str; N]) -> Vec<String> {
    arguments.map(str::to_owned).to_vec()
}

pub(crate) fn etcd(port: u16, peer_port: u16) -> Vec<String> {
    let (url, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    arguments([
        "--data-dir=etcd",
        &format!("--listen-client-urls={url}"),
        &format!("--advertise-client-urls={url}"),
        &format!("--listen-peer-urls={peer}"),
        &format!("--initial-advertise-peer-urls={peer}"),
        &format!("--initial-cluster=default={peer}"),
    ])
}

pub(crate) fn api(port: u16, etcd_port: u16, options: &Options) -> Vec<String> {
    let (certificate, key) = credentials::SERVER;
    let (signing, public) = credentials::SERVICE_ACCOUNTS;
    let mut without = vec![];
    // New nodes would be tainted until a controller has looked at them.
    if !options.controllers.contains(&"nodelifecycle") {
        without.push("TaintNodesByCondition");
    }
    if !has_tokens(options.controllers) {
        without.push("ServiceAccount");
    }
    let (kubelets_client, kubelets_key) = credentials::KUBELETS_CLIENT;
    let mut all = arguments([
        &format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        &format!("--secure-port={port}"),
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--insecure-port=0",
        "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.96.0.0/16",
        &format!("--tls-cert-file={certificate}"),
        &format!("--tls-private-key-file={key}"),
        &format!("--token-auth-file={}", credentials::TOKENS),
        "--anonymous-auth=false",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc",
        &format!("--service-account-signing-key-file={signing}"),
        &format!("--service-account-key-file={public}"),
        &format!("--disable-admission-plugins={}", without.join(",")),
        &format!("--kubelet-client-certificate={kubelets_client}"),
        &format!("--kubelet-client-key={kubelets_key}"),
        &format!("--audit-policy-file={AUDIT_POLICY}"),
        &format!("--audit-log-path={AUDIT_LOG}"),
        // One file: it is read as a whole.
        "--audit-log-maxsize=2000",
    ]);
    all.extend(options.api_arguments.iter().cloned());
    all
}

pub(crate) fn controller_manager(controllers: &[&str]) -> Vec<String> {
    arguments([
        &format!("--kubeconfig={}", kubeconfig_file("controller-manager")),
        &format!("--controllers={}", controllers.join(",")),
        &format!("--service-account-private-key-file={}", credentials::SERVICE_ACCOUNTS.0),
        &format!("--root-ca-file={}", credentials::AUTHORITY),
        "--leader-elect=false",
        "--port=0",
        "--secure-port=0",
        // Many pods at once are the tests' business, not a cluster's.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ])
}

pub(crate) fn scheduler() -> Vec<String> {
    arguments([
        &format!("--kubeconfig={}", kubeconfig_file("scheduler")),
        "--leader-elect=false",
        "--port=0",
        "--secure-port=0",
    ])
}

/// Ports that nobody listens on. They lie below those that the kernel gives to outgoing connections, so they stay free also
/// while a server is restarted, and begin elsewhere for each process.
pub fn ports<const N: usize>() -> Result<[u16; N]> {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    let mut ports = [0; N];
    for port in &mut ports {
        *port = loop {
            let tried = TRIED.fetch_add(1, Ordering::Relaxed);
            if tried >= COUNT {
                bail!("no free port from {FIRST} to {}", FIRST + COUNT - 1);
            }
            let candidate = FIRST + (start.wrapping_mul(37) % COUNT + tried) % COUNT;
            if TcpListener::bind(("127.0.0.1", candidate)).is_ok() {
                break candidate;
            }
        };
    }
    Ok(ports)
}
