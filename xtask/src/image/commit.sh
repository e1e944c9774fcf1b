#!/bin/sh
# commit.sh WORK NAME ARCHITECTURE SECONDS LABEL=VALUE...
#
# Makes WORK/layout, an OCI image, of the root filesystem in WORK/root. All that buildah keeps is in WORK; it must be
# called in a mount namespace of its own, for of what buildah would keep elsewhere nothing is to stay.
set -eu
work=$1 name=$2 architecture=$3 seconds=$4
shift 4

# Its cache of blobs lies in /var/lib/containers, whatever the settings are.
mount -t tmpfs tmpfs /var/lib

mkdir "$work/tmp"
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$work/storage" "$work/run" >"$work/storage.conf"
printf '[network]\nnetwork_config_dir = "%s"\n' "$work/networks" >"$work/containers.conf"
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$work/policy.json"
# Nothing is fetched, so no registry and no signature is asked for; a user's own settings are for their own images.
export CONTAINERS_CONF="$work/containers.conf" CONTAINERS_STORAGE_CONF="$work/storage.conf" \
    CONTAINERS_REGISTRIES_CONF=/dev/null TMPDIR="$work/tmp"
unset BUILDAH_FORMAT BUILDAH_ISOLATION STORAGE_DRIVER STORAGE_OPTS

container=$(buildah from scratch)
buildah copy --quiet --chown 0:0 "$container" "$work/root" / >/dev/null
for label; do
    buildah config --label "$label" "$container"
done
# It loads programs into the kernel. The PATH is for `exec`: there is nothing else to be found.
buildah config --os linux --arch "$architecture" --user 0:0 --workingdir / --env PATH=/ --port 9469/tcp \
    --entrypoint '["/guard-agent"]' --cmd run "$container"
# Without a base these would stand there empty.
buildah config --annotation org.opencontainers.image.base.name- --annotation org.opencontainers.image.base.digest- \
    "$container"
buildah commit --quiet --rm --format oci --timestamp "$seconds" --disable-compression=false --identity-label=false \
    --omit-history --signature-policy "$work/policy.json" "$container" "oci:$work/layout:$name"
