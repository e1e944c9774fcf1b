# Run in the guest, after lines that set
#   PODS   words NAME,NETNS,DEVICE: pods with an interface of their own
#   REST   yes: wait until nothing moves, and slots are those of the containers; no: as it is
#   TRIES  how often that is tried
# Prints what `reading.rs` reads.
set -u

agent() { pgrep -o -x guard-agent; }

scrape() { nsenter -t "$1" -n /run/node/load get 127.0.0.1:9469/metrics; }

figure() { printf '%s\n' "$2" | sed -n "s/^$1 //p"; }

counters() {
    for file in rx_bytes rx_packets tx_bytes tx_packets; do
        value=0
        read -r value <"/sys/class/net/$1/statistics/$file"
        printf ' %s' "$value"
    done 2>/dev/null
    echo
}

wires() {
    for pod in $PODS; do
        printf '%s' "$pod"
        counters "${pod##*,}"
    done
    printf world
    counters world0
}

containers() {
    find /sys/fs/cgroup/kubepods.slice -type d -path '*-pod*' -name 'cri-containerd-*.scope' -prune | wc -l
}

# One look: sets pid, metrics, wires, there; fails if it is no look at rest. `apart`: so often in succession nothing moved on the
# wires, and slots were not those of the containers.
look() {
    before=$apart apart=0
    wires=$(wires)
    pid=$(agent) && metrics=$(scrape "$pid") || return 1
    [ "$REST" = yes ] || return 0
    # The sample that is being taken may have begun before; the one after it has not.
    samples=$(($(figure egress_guard_sample_seconds_count "$metrics") + 2))
    waited=0
    while [ "$(figure egress_guard_sample_seconds_count "$metrics")" -lt "$samples" ]; do
        waited=$((waited + 1))
        [ $waited -lt 60 ] || return 1
        sleep 0.3
        metrics=$(scrape "$pid") || return 1
    done
    there=$(containers)
    [ "$(wires)" = "$wires" ] || return 1
    [ "$(figure egress_guard_meters "$metrics")" = "$there" ] || { apart=$((before + 1)); return 1; }
}

rested=no
apart=0 there=0 metrics='' wires='' pid=0
try=0
while [ $try -lt "$TRIES" ]; do
    try=$((try + 1))
    look 2>/dev/null && { rested=yes; break; }
    sleep 1
done
echo "rested $rested"
if [ "$REST$rested" = yesno ]; then
    wires | while read -r now; do
        printf '%s\n' "$wires" | grep -qxF "$now" || echo "moved ${now%%[, ]*}"
    done
    # A sample that did not come, or a container that begins.
    [ "$apart" -ge 2 ] || echo "moved metrics"
fi
echo "containers $there"
if [ "$pid" != 0 ] && [ -n "$metrics" ]; then
    # Page by page: what /proc/PID/status has is behind by some pages on each CPU.
    memory() { sed -n "s/^$1:[^0-9]*\([0-9]*\) kB/\1/p" "/proc/$pid/smaps_rollup"; }
    # The 22nd field; the name in parentheses has no blanks.
    # Files come and go while they are looked at.
    files() { find "/proc/$pid/fd" -type l "$@" 2>/dev/null | wc -l; }
    echo "agent $pid $(cut -d ' ' -f 22 "/proc/$pid/stat") $(memory Rss) $(memory Anonymous) \
$(files ! -lname '*bpf[-_]link*') $(files -lname '*bpf-prog*')"
fi
pins=/sys/fs/bpf/egress-guard
echo "pins $(find $pins -path '*/links/*' | wc -l) $(find $pins | wc -l)"
if [ "$REST" = yes ]; then
    # The second column of each CPU, in hexadecimal: packets that the backlog had no room for.
    lost=0
    while read -r _ dropped _; do lost=$((lost + 0x$dropped)); done </proc/net/softnet_stat
    echo "lost $lost"
    printf '%s\n' "$wires" | while read -r name counters; do
        netns=world
        [ "$name" = world ] || netns=$(echo "$name" | cut -d , -f 2)
        echo "wire ${name%%,*} $counters"
        ip netns exec "$netns" grep -E '^(Tcp|Icmp):' /proc/net/snmp
    done
fi
echo metrics
printf '%s\n' "$metrics"
