#!/bin/sh
# The first process of a guest: mounts what a system has, loads the modules, and serves commands on a virtio port. With
# guest.root=DEVICE it hands over to that disk's own init, which finds the server as a unit of systemd.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb

fail() {
    echo "guest: $*" >/dev/console
    poweroff -f
}

option() {
    sed -n "s/.*guest\.$1=\([^ ]*\).*/\1/p" /proc/cmdline
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/guest /run/lock /run/netns
while read -r module; do
    insmod "/lib/modules/$module" || fail "$module could not be loaded"
done </lib/modules/load
ip link set lo up

# What qemu's user network is on the guest's side.
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    ip addr add 10.0.2.15/24 dev eth0
    ip route add default via 10.0.2.2
fi

for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = guest.shell ] && port=${port##*/} && break
done
[ -e "/dev/$port" ] || fail "no port to serve commands on"
cp /serve /run/guest/serve
echo "/dev/$port" >/run/guest/port

root=$(option root)
if [ "$root" ]; then
    mkdir -p /newroot /run/job
    mount -t "$(option rootfstype)" -o "$(option rootflags)" "$root" /newroot || fail "$root could not be mounted"
    cp -a /job/. /run/job/
    mkdir -p /run/systemd/system/multi-user.target.wants
    cp /serve.service /run/systemd/system/guest-serve.service
    ln -s ../guest-serve.service /run/systemd/system/multi-user.target.wants/
    for folder in proc sys dev run; do mount --move "/$folder" "/newroot/$folder"; done
    exec switch_root /newroot /sbin/init
fi

mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /run/job
mount --bind /job /run/job
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t securityfs securityfs /sys/kernel/security
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
sh /run/guest/serve
poweroff -f
