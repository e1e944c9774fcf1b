//! Debian's kernels.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    process::Command,
};

/// Every series that Debian has a cloud kernel of, the oldest first. There is no 5.15 and no 6.6.
pub const SERIES: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "newest"];

/// Fetches one; it is part of its recipe.
const SCRIPT: &str = include_str!("kernel.sh");

/// Which modules a guest loads when it boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Modules {
    /// What network namespaces, shaped links and disks take.
    #[default]
    Small,
    /// What a Kubernetes node takes besides: overlayfs, bridges, both kinds of iptables.
    Node,
}

/// What every guest has.
const SMALL: &str = "virtio_pci virtio_console virtio_blk virtio_net veth dummy bridge tun ifb sch_ingress sch_fq sch_htb \
                     sch_netem sch_tbf cls_bpf act_bpf ext4 overlay";

/// What a node has besides.
const NODE: &str = "squashfs loop br_netfilter vxlan ipip nf_conntrack nf_conntrack_netlink nf_nat nfnetlink nf_tables \
                    nft_compat nft_chain_nat nft_ct nft_masq nft_nat nft_redir nft_reject nft_reject_inet nft_limit \
                    nft_log nft_fib_inet nft_numgen nft_hash nft_counter x_tables ip_tables ip6_tables iptable_nat \
                    iptable_filter iptable_mangle iptable_raw ip6table_nat ip6table_filter ip6table_mangle xt_conntrack \
                    xt_MASQUERADE xt_comment xt_mark xt_connmark xt_addrtype xt_statistic xt_nat xt_tcpudp xt_multiport \
                    xt_limit xt_physdev xt_REDIRECT xt_LOG xt_recent xt_set xt_TCPMSS xt_cgroup ipt_REJECT ip6t_REJECT \
                    ip_set ip_set_hash_ip ip_set_hash_net ip_vs ip_vs_rr";

impl Modules {
    pub(crate) fn list(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Node => "node",
        }
    }
}

/// A kernel, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As asked for: `6.12`, or `newest`.
    pub series: String,
    /// What `uname -r` will say.
    pub release: String,
    /// Its image.
    pub vmlinuz: PathBuf,
    /// What it was configured with.
    pub config: PathBuf,
    /// The folder of the modules of all sets.
    pub modules: PathBuf,
}

/// A kernel could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Something with the cache.
    #[error("the kernels' cache {path}: {source}; is it writable, and is the disk full?")]
    Cache {
        /// Where.
        path: PathBuf,
        /// What.
        source: io::Error,
    },
    /// The script said why.
    #[error(
        "kernel {series} could not be fetched from Debian's mirror (bash, apt, dpkg, kmod and xz-utils are needed): {complaint}"
    )]
    Fetch {
        /// Which.
        series: String,
        /// Its last words.
        complaint: String,
    },
}

impl Kernel {
    /// The newest kernel of a series that Debian has, or `newest` of all. Once fetched it stays in `cache` until it is
    /// removed from there, or the recipe changes.
    ///
    /// # Errors
    ///
    /// If the mirror does not answer or has no such kernel, or the cache cannot be written.
    pub fn get(series: &str, cache: &Path) -> Result<Self, KernelError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| KernelError::Cache { path, source }
        };
        fs::create_dir_all(cache).map_err(at(cache))?;
        let cache = fs::canonicalize(cache).map_err(at(cache))?;
        let sets = format!("{} {SMALL}\n{} {SMALL} {NODE}\n", Modules::Small.list(), Modules::Node.list());
        let place = cache.join(format!("kernel-{series}-{:016x}", recipe(&sets)));
        let lock = place.with_added_extension("lock");
        let locked = File::create(&lock).and_then(|file| file.lock().map(|()| file)).map_err(at(&lock))?;
        if !place.exists() {
            fetch(series, &cache, &place, &sets)?;
        }
        drop(locked);
        let release = fs::read_to_string(place.join("release")).map_err(at(&place))?;
        Ok(Self {
            series: series.to_owned(),
            release: release.trim().to_owned(),
            vmlinuz: place.join("vmlinuz"),
            config: place.join("config"),
            modules: place.join("modules"),
        })
    }

    /// The files of a set, in the order in which they have to be loaded.
    pub(crate) fn load_order(&self, modules: Modules) -> io::Result<Vec<String>> {
        let list = fs::read_to_string(self.modules.join(modules.list()).with_added_extension("list"))?;
        Ok(list.lines().map(str::to_owned).collect())
    }
}

fn recipe(sets: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (SCRIPT, sets).hash(&mut hasher);
    hasher.finish()
}

/// Beside its place, and moved there when it is whole.
fn fetch(series: &str, cache: &Path, place: &Path, sets: &str) -> Result<(), KernelError> {
    let staging = place.with_added_extension("partial");
    let apt = cache.join("kernel-apt");
    let at = |source| KernelError::Cache { path: staging.clone(), source };
    if staging.exists() {
        fs::remove_dir_all(&staging).map_err(at)?;
    }
    fs::create_dir_all(&staging).map_err(at)?;
    let (script, list) = (staging.join("fetch.sh"), staging.join("sets"));
    fs::write(&script, SCRIPT).and_then(|()| fs::write(&list, sets)).map_err(at)?;
    // Kernels share apt's lists, so they are fetched one at a time.
    let lock = apt.with_added_extension("lock");
    let locked = File::create(&lock).and_then(|file| file.lock().map(|()| file)).map_err(at)?;
    let output = Command::new("bash").arg(&script).arg(series).args([&staging, &apt, &list]).output().map_err(at)?;
    drop(locked);
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(KernelError::Fetch { series: series.to_owned(), complaint });
    }
    fs::rename(&staging, place).map_err(at)
}
