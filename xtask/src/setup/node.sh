#!/bin/bash
# node.sh FOLDER BIN: makes FOLDER/root.ext4, the root filesystem of a node that is like those of Container-Optimized OS:
# systemd, cgroup v2 only, containerd with runc, CNI plugins, and the kubelet and kube-proxy that lie in BIN. It is meant to be
# mounted read-only. What a node writes goes to the second disk, /var, which is noexec but where containers have their files;
# what makes it a node of a certain cluster lies on the third, /run/node. It needs root, to make the files as their owners.
set -euo pipefail

suite=bookworm
# The least that boots, and what a kubelet and its pods call.
packages=(
    systemd systemd-sysv dbus
    containerd runc containernetworking-plugins
    iptables conntrack iproute2 ethtool kmod procps e2fsprogs
    busybox-static
)
# Nobody logs in, nothing is updated.
masked=(
    getty.target serial-getty@ttyS0.service console-getty.service systemd-logind.service
    proc-sys-fs-binfmt_misc.automount apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service
    systemd-networkd.service systemd-resolved.service systemd-timesyncd.service
)
size=900M

out=$(cd "$1" && pwd)
bin=$(cd "$2" && pwd)
root=$out/root

say() { echo "setup: node: $* (${SECONDS} s)"; }

# The mirror that this system uses, for the one release whose packages the recipe was proven with.
mirror() {
    apt-get indextargets --format '$(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "main" && $2 !~ /-/ { print $3; exit }'
}

bootstrap() {
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(mirror)
    [[ $mirror ]] || { echo "apt knows no Debian mirror: see sources.list(5)" >&2; return 1; }
    mkdir "$root"
    mmdebstrap --quiet --variant=minbase --include="${packages[*]}" --aptopt='Apt::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/zoneinfo/*' \
        "$suite" - "deb [signed-by=$keyring] $mirror $suite main" | tar --extract --directory "$root"
    rm -rf "$root"/var/{cache,lib}/apt "$root"/var/lib/dpkg/info/*.md5sums
}

# write PATH [MODE]: a file of the root filesystem, from stdin.
write() {
    mkdir -p "$(dirname "$root$1")"
    cat >"$root$1"
    chmod "${2:-644}" "$root$1"
}

unit() {
    write "/etc/systemd/system/$1"
    mkdir -p "$root/etc/systemd/system/$2.wants"
    ln -sf "../$1" "$root/etc/systemd/system/$2.wants/$1"
}

files() {
    local name
    for name in kubelet kube-proxy; do install -m 755 "$bin/$name" "$root/usr/local/bin/"; done
    for name in "${masked[@]}"; do ln -sf /dev/null "$root/etc/systemd/system/$name"; done
    # systemd lays one that it makes up over it.
    : >"$root/etc/machine-id"
    echo node >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 node\n' >"$root/etc/hosts"
    # There is no name to ask for but those in images' own files.
    : >"$root/etc/resolv.conf"
    ln -sf ../proc/self/mounts "$root/etc/mtab"
    mkdir -p "$root/mnt" "$root/opt"
    write /etc/systemd/journald.conf.d/node.conf <<'CONF'
[Journal]
Storage=volatile
RuntimeMaxUse=64M
RateLimitBurst=0
CONF
    write /etc/sysctl.d/99-node.conf <<'CONF'
net.ipv4.ip_forward = 1
net.bridge.bridge-nf-call-iptables = 1
# What a pod's interface carries is what its containers send: new network namespaces give themselves no IPv6 address, so they
# announce none.
net.core.devconf_inherit_init_net = 1
net.ipv6.conf.all.addr_gen_mode = 1
net.ipv6.conf.default.addr_gen_mode = 1
net.ipv6.conf.default.router_solicitations = 0
CONF
    disks
    network
    containerd
    kubernetes
}

disks() {
    write /usr/local/sbin/node-disks 755 <<'SH'
#!/bin/sh
# There is no udev that would name the disks; they come in this order.
set -eu
mount -t ext4 -o nosuid,nodev,noexec /dev/vdb /var
mkdir -p /run/node
mount -t ext4 -o ro /dev/vdc /run/node
cd /var
mkdir -p cache lib/containerd lib/kubelet lib/cni lib/systemd log/pods log/containers spool tmp
chmod 1777 tmp
ln -sfn /run run
ln -sfn /run/lock lock
# Where containers and their volumes have files, programs among them: as on Container-Optimized OS.
for folder in lib/containerd lib/kubelet; do
    mount --bind $folder $folder
    mount -o remount,bind,exec,suid,dev $folder
done
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
SH
    unit node-disks.service sysinit.target <<'UNIT'
[Unit]
Description=The disks of the node
DefaultDependencies=no
Conflicts=shutdown.target
Before=local-fs.target systemd-tmpfiles-setup.service systemd-journal-flush.service systemd-random-seed.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/node-disks
[Install]
WantedBy=sysinit.target
UNIT
}

network() {
    write /usr/local/sbin/node-network 755 <<'SH'
#!/bin/sh
set -eu
# The world outside of the cluster: a namespace that has every address of 198.51.100.0/24 (TEST-NET-2).
ip netns add world
ip link add world0 type veth peer name eth0 netns world
ip address add 198.51.100.1/32 dev world0
ip link set world0 up
ip route add 198.51.100.0/24 via inet 198.51.100.2 dev world0 onlink
ip -n world link set lo up
ip -n world link set eth0 up
ip -n world address add 198.51.100.2/32 dev eth0
ip -n world route add local 198.51.100.0/24 dev lo
ip -n world route add 198.51.100.1/32 dev eth0
ip -n world route add default via 198.51.100.1 dev eth0 onlink
# The pods' bridge, with an address that does not change when pods come and go.
ip link add cni0 address 02:00:00:00:00:01 type bridge
ip link set cni0 up
# qemu's user network answers nobody but the guest.
iptables -t nat -A POSTROUTING -s 10.88.0.0/16 -o eth0 -j MASQUERADE
SH
    unit node-network.service multi-user.target <<'UNIT'
[Unit]
Description=The network of the node
After=systemd-sysctl.service
Before=containerd.service kubelet.service kube-proxy.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/node-network
UNIT
    unit world.service multi-user.target <<'UNIT'
[Unit]
Description=What answers in the world outside
After=node-network.service
Requires=node-network.service
[Service]
ExecStart=/usr/sbin/ip netns exec world /run/node/load world
Restart=on-failure
UNIT
}

containerd() {
    write /etc/containerd/config.toml <<'CONF'
version = 2
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/load:1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = true
CONF
    write /etc/cni/net.d/10-node.conflist <<'CONF'
{
    "cniVersion": "0.4.0",
    "name": "node",
    "plugins": [
        {
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/cni/networks",
                "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}]
            }
        }
    ]
}
CONF
    write /usr/local/sbin/node-images 755 <<'SH'
#!/bin/sh
set -eu
for archive in /run/node/images/*.tar; do
    ctr --namespace k8s.io images import --digests --base-name localhost/imported "$archive"
done
SH
    unit node-images.service multi-user.target <<'UNIT'
[Unit]
Description=The images of the node
After=containerd.service
Requires=containerd.service
Before=kubelet.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/node-images
UNIT
}

kubernetes() {
    unit kubelet.service multi-user.target <<'UNIT'
[Unit]
Description=kubelet
After=containerd.service node-network.service node-images.service
Requires=node-images.service
[Service]
EnvironmentFile=/run/node/kubelet.env
ExecStart=/usr/local/bin/kubelet $ARGUMENTS
Restart=always
RestartSec=1
KillMode=process
CPUAccounting=true
MemoryAccounting=true
UNIT
    unit kube-proxy.service multi-user.target <<'UNIT'
[Unit]
Description=kube-proxy
After=node-network.service
[Service]
EnvironmentFile=/run/node/kube-proxy.env
ExecStart=/usr/local/bin/kube-proxy $ARGUMENTS
Restart=always
RestartSec=1
UNIT
}

bootstrap
say "packages unpacked and configured"
files
mkfs.ext4 -q -F -O ^has_journal -m 0 -d "$root" "$out/root.ext4" "$size"
rm -rf "$root"
say "root filesystem made"
