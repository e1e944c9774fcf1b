//! Certificates and tokens of one control plane.

use std::{fs, net::IpAddr, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// The file of the authority that signs the API server's certificate.
pub const AUTHORITY: &str = "ca.crt";
/// The API server's certificate and its key.
pub const SERVER: (&str, &str) = ("server.crt", "server.key");
/// The certificate with which the API server asks kubelets, and its key: whose logs are read and who runs commands is its
/// business.
pub(crate) const KUBELETS_CLIENT: (&str, &str) = ("kubelets-client.crt", "kubelets-client.key");
/// With which tokens of service accounts are signed, and what proves them.
pub(crate) const SERVICE_ACCOUNTS: (&str, &str) = ("service-accounts.key", "service-accounts.pub");
/// The API server's list of fixed tokens.
pub(crate) const TOKENS: &str = "tokens.csv";

/// Who may do everything: the tests, and the controller manager under a name of its own in the audit log.
pub(crate) const ADMIN: &str = "admin";
pub(crate) const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
/// Who may do what the API server's own roles give them.
pub(crate) const SCHEDULER: &str = "system:kube-scheduler";
/// See [`SCHEDULER`].
pub const PROXY: &str = "system:kube-proxy";
/// The one node with a kubelet that there may be, and its kubelet.
pub const NODE: &str = "node-1";
/// See [`NODE`].
pub const KUBELET: &str = "system:node:node-1";

/// Writes all of them into `folder`; the server's certificate is good for these addresses too. The key of each user in the
/// list of tokens is its name: only this machine's root and the test reach the server.
pub(crate) fn write(folder: &Path, addresses: &[IpAddr]) -> Result<()> {
    let authority = authority()?;
    secret(folder, AUTHORITY, &authority.pem())?;
    let names = ["127.0.0.1", "localhost"].map(str::to_owned).into_iter();
    let names = names.chain(addresses.iter().map(IpAddr::to_string)).collect();
    let server = certificate("kube-apiserver", "", names, ExtendedKeyUsagePurpose::ServerAuth)?;
    let client = certificate("kube-apiserver", "system:masters", vec![], ExtendedKeyUsagePurpose::ClientAuth)?;
    for (params, (file, key_file)) in [(server, SERVER), (client, KUBELETS_CLIENT)] {
        let key = KeyPair::generate()?;
        secret(folder, file, &params.signed_by(&key, &authority)?.pem())?;
        secret(folder, key_file, &key.serialize_pem())?;
    }
    let key = KeyPair::generate()?;
    secret(folder, SERVICE_ACCOUNTS.0, &key.serialize_pem())?;
    secret(folder, SERVICE_ACCOUNTS.1, &key.public_key_pem())?;
    let users = [
        (ADMIN, "system:masters"),
        (CONTROLLER_MANAGER, "system:masters"),
        (SCHEDULER, ""),
        (PROXY, ""),
        (KUBELET, "system:nodes"),
    ];
    secret(folder, TOKENS, &users.map(|(user, group)| format!("{},{user},{user},{group}\n", token(user))).concat())
}

fn certificate(
    name: &str,
    organization: &str,
    names: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    if !organization.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    Ok(params)
}

/// The fixed token of a user.
pub(crate) fn token(user: &str) -> String {
    format!("token-of-{}", user.replace(':', "-"))
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(vec![])?;
    params.distinguished_name.push(DnType::CommonName, "egress-guard-e2e");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn secret(folder: &Path, name: &str, content: &str) -> Result<()> {
    use std::io::Write as _;
    let path = folder.join(name);
    let file = fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(content.as_bytes())).with_context(|| format!("write {}", path.display()))
}
