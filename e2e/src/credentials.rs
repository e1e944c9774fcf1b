//! Certificates and tokens of one control plane.

use std::{fs, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// The file of the authority that signs the API server's certificate.
pub(crate) const AUTHORITY: &str = "ca.crt";
/// The API server's certificate and its key.
pub(crate) const SERVER: (&str, &str) = ("server.crt", "server.key");
/// With which tokens of service accounts are signed, and what proves them.
pub(crate) const SERVICE_ACCOUNTS: (&str, &str) = ("service-accounts.key", "service-accounts.pub");
/// The API server's list of fixed tokens.
pub(crate) const TOKENS: &str = "tokens.csv";

/// Who may do everything: the tests, and the controller manager under a name of its own in the audit log.
pub(crate) const ADMIN: &str = "admin";
pub(crate) const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";

/// Writes all of them into `folder`. The key of each user in the list of tokens is its name: only this machine's root and the
/// test reach the server.
pub(crate) fn write(folder: &Path) -> Result<()> {
    let authority = authority()?;
    secret(folder, AUTHORITY, &authority.pem())?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    secret(folder, SERVER.0, &params.signed_by(&key, &authority)?.pem())?;
    secret(folder, SERVER.1, &key.serialize_pem())?;
    let key = KeyPair::generate()?;
    secret(folder, SERVICE_ACCOUNTS.0, &key.serialize_pem())?;
    secret(folder, SERVICE_ACCOUNTS.1, &key.public_key_pem())?;
    let users = [ADMIN, CONTROLLER_MANAGER].map(|user| format!("{},{user},{user},system:masters\n", token(user)));
    secret(folder, TOKENS, &users.concat())
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
