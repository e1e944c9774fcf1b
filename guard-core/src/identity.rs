//! Which container a cgroup is, by its path.

use serde::{Deserialize, Serialize};

/// A container as its cgroup's path tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// The pod's UID, with dashes. Empty outside Kubernetes.
    pub pod_uid: String,
    /// The container's id, 64 hex digits. Empty for a cgroup that is no container.
    pub container_id: String,
    /// `cri-containerd`, `crio`, `docker`, ... Empty where the path does not say (cgroupfs driver).
    pub runtime: String,
}

/// Where a meter's figures appear. Two containers with the same labels, one after the other, are one series.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Labels {
    /// The pod's namespace. Empty while unknown.
    pub namespace: String,
    /// The pod's name; its UID while that is unknown. Empty outside Kubernetes.
    pub pod: String,
    /// The container's name; the first 12 digits of its id while that is unknown; outside Kubernetes the cgroup's path.
    pub container: String,
}

/// How many digits of a container's id are shown.
const SHORT_ID: usize = 12;

/// The container of a cgroup beneath the pods' root, from its path relative to that root (no leading slash).
///
/// Both of kubelet's layouts are known, in all classes of service: `[<qos>/]<..>pod<uid>[.slice]/<container>`. `None`:
/// a class of service, a pod, a cgroup within a container, conmon, or something else that is no container.
pub fn pod_container(path: &str) -> Option<Identity> {
    let mut above = path.rsplit('/').skip(2);
    let qos = above.next();
    if above.next().is_some() || qos.is_some_and(|qos| pod_uid(qos).is_some()) {
        return None;
    }
    container(path)
}

/// The container of a path that is known to be one's: its last two parts tell.
pub fn container(path: &str) -> Option<Identity> {
    let mut parts = path.rsplit('/');
    let (container, pod) = (parts.next()?, parts.next()?);
    let pod_uid = pod_uid(pod)?;
    let (runtime, container_id) = container_name(container)?;
    Some(Identity { pod_uid, container_id, runtime })
}

/// What is known of a cgroup outside the pods' root: a container of docker or podman says its id.
pub fn extra_container(path: &str) -> Identity {
    let name = path.rsplit('/').next().unwrap_or(path);
    let (runtime, container_id) = container_name(name).unwrap_or_default();
    Identity { pod_uid: String::new(), container_id, runtime }
}

/// `pod<uid>` (cgroupfs driver), `<..>-pod<uid_with_underscores>.slice` (systemd driver).
fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").map(|(_, uid)| uid)?.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let plausible = uid.len() >= 8 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    plausible.then_some(uid)
}

/// `<64 hex>`, `<runtime>-<64 hex>` or `<runtime>-<64 hex>.scope`, but not the monitor that CRI-O puts beside it.
fn container_name(name: &str) -> Option<(String, String)> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (runtime, id) = name.rsplit_once('-').unwrap_or(("", name));
    let hex = id.len() == 64 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (hex && !runtime.ends_with("conmon")).then(|| (runtime.to_owned(), id.to_owned()))
}

/// What is known of the names, with slashes between them.
impl std::fmt::Display for Labels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [&self.namespace, &self.pod, &self.container].map(String::as_str);
        let known: Vec<&str> = names.into_iter().filter(|name| !name.is_empty()).collect();
        f.write_str(&known.join("/"))
    }
}

impl Labels {
    /// The workload of a container of which no owner is known: its names. A fresh container of the same names is its
    /// replacement.
    #[must_use]
    pub fn workload(&self) -> String {
        let Self { namespace, pod, container } = self;
        format!("{namespace}/{pod}/{container}")
    }

    /// The labels of a container of which only the cgroup is known.
    pub fn of(identity: &Identity, extra: bool, path: &str) -> Self {
        if extra {
            return Self { container: path.to_owned(), ..Self::default() };
        }
        let short = identity.container_id.get(..SHORT_ID).unwrap_or(&identity.container_id);
        Self { namespace: String::new(), pod: identity.pod_uid.clone(), container: short.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0e3b1a1c-5b6f-4b8e-9d62-8f2f6c1a7e55";
    const ID: &str = "3f1d2c4b5a69788796a5b4c3d2e1f0ff3f1d2c4b5a69788796a5b4c3d2e1f0ff";

    fn systemd(qos: &str, container: &str) -> String {
        let uid = UID.replace('-', "_");
        match qos {
            "" => format!("kubepods-pod{uid}.slice/{container}"),
            qos => format!("kubepods-{qos}.slice/kubepods-{qos}-pod{uid}.slice/{container}"),
        }
    }

    #[test]
    fn containers_of_both_drivers_in_all_classes_are_found() {
        let cases = [
            (systemd("", &format!("cri-containerd-{ID}.scope")), "cri-containerd"),
            (systemd("burstable", &format!("cri-containerd-{ID}.scope")), "cri-containerd"),
            (systemd("besteffort", &format!("crio-{ID}.scope")), "crio"),
            (systemd("besteffort", &format!("docker-{ID}.scope")), "docker"),
            (format!("pod{UID}/{ID}"), ""),
            (format!("burstable/pod{UID}/{ID}"), ""),
            (format!("besteffort/pod{UID}/crio-{ID}"), "crio"),
            (
                format!(
                    "kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{}.slice/cri-containerd-{ID}.scope",
                    UID.replace('-', "_")
                ),
                "cri-containerd",
            ),
        ];
        for (path, runtime) in cases {
            let expected = Identity { pod_uid: UID.into(), container_id: ID.into(), runtime: runtime.into() };
            assert_eq!(pod_container(&path), Some(expected), "{path}");
        }
    }

    #[test]
    fn a_static_pod_has_a_hash_for_its_uid() {
        let found = pod_container(&format!(
            "kubepods-burstable.slice/kubepods-burstable-pod7d8a9f0b1c2d3e4f5a6b7c8d9e0f1a2b.slice/cri-containerd-{ID}.scope"
        ));
        assert_eq!(found.map(|f| f.pod_uid), Some("7d8a9f0b1c2d3e4f5a6b7c8d9e0f1a2b".into()));
    }

    #[test]
    fn everything_else_is_no_container() {
        let uid = UID.replace('-', "_");
        let cases = [
            String::new(),
            "besteffort".into(),
            format!("pod{UID}"),
            format!("besteffort/pod{UID}"),
            format!("kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice"),
            systemd("burstable", &format!("crio-conmon-{ID}.scope")),
            format!("besteffort/pod{UID}/crio-conmon-{ID}"),
            systemd("burstable", &format!("cri-containerd-{ID}.scope/nested")),
            format!("pod{UID}/{ID}/{ID}"),
            format!("pod{UID}/{ID}/pod{UID}/{ID}"),
            format!("pod{UID}/{}", &ID[1..]),
            format!("pod{UID}/{}", ID.to_uppercase()),
            format!("a/b/pod{UID}/{ID}"),
            format!("podium/{ID}"),
            format!("system.slice/docker-{ID}.scope"),
        ];
        for path in cases {
            assert_eq!(pod_container(&path), None, "{path}");
        }
    }

    #[test]
    fn an_extra_meter_is_named_by_its_path() {
        let path = format!("system.slice/docker-{ID}.scope");
        let identity = extra_container(&path);
        assert_eq!((identity.runtime.as_str(), identity.container_id.as_str()), ("docker", ID));
        assert_eq!(Labels::of(&identity, true, &path).container, path);
        assert_eq!(extra_container("system.slice/ssh.service"), Identity::default());
        assert_eq!(extra_container(&format!("machine.slice/libpod-{ID}.scope")).runtime, "libpod");
    }

    #[test]
    fn without_a_cluster_a_container_has_its_uid_and_twelve_digits() {
        let identity = pod_container(&format!("pod{UID}/{ID}")).expect("a container");
        let labels = Labels::of(&identity, false, "");
        assert_eq!((labels.namespace.as_str(), labels.pod.as_str(), labels.container.as_str()), ("", UID, &ID[..12]));
    }
}
