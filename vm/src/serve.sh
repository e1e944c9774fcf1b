# Runs commands that come through a virtio port as `MARK LENGTH SECONDS` and a line feed, then a script of that length. Its
# output goes back as it comes, then a line feed and a line of MARK and its exit status.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd /run/job || exit 1
exec 3<>"$(cat /run/guest/port)"
read -r uptime _ </proc/uptime
printf 'up %s %s\n' "$(uname -r)" "$uptime" >&3
while read -r mark length seconds <&3; do
    head -c "$length" <&3 >/run/guest/script
    timeout -s KILL "$seconds" sh /run/guest/script </dev/null >&3 2>&1 3>&-
    printf '\n%s %s\n' "$mark" "$?" >&3
done
