#!/bin/bash
# kernel.sh SERIES OUT APT SETS: fetches the newest of Debian's cloud kernels of a series (6.12, or `newest`) and leaves
# vmlinuz, config, release, and modules/ in OUT. Each line of the file SETS is a set of modules: its name, and theirs; what
# is to be loaded for it, in order, is in OUT/modules/NAME.list. Nothing is installed: apt has lists and a cache of its own
# in APT, and packages are unpacked.
set -euo pipefail

series=$1 out=$2 apt=$3 sets=$4
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# Where the series are: 5.10 in the first, 6.1 and 6.12 in the second, later ones in the third.
suites=(security:bullseye-security security:bookworm-security main:trixie-backports)
work=$out/work

die() { echo "kernel $series: $*" >&2; exit 1; }

# The mirrors that this system uses: of a release, and of its security updates.
mirrors() {
    apt-get indextargets --format '$(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "main" && $3 ~ /debian/ { kind = $2 ~ /-security$/ ? "security" : "main"; if (!seen[kind]++) print kind, $3 }'
}

prepare_apt() {
    local main security suite mirror found
    [[ -e $keyring ]] || die "$keyring is not there: is this Debian?"
    found=$(mirrors)
    main=$(awk '$1 == "main" { print $2 }' <<<"$found")
    [[ $main ]] || die "apt knows no Debian mirror: see sources.list(5)"
    security=$(awk '$1 == "security" { print $2 }' <<<"$found")
    [[ $security ]] || security=${main%/debian*}/debian-security
    mkdir -p "$apt"/{lists/partial,cache/archives/partial}
    for suite in "${suites[@]}"; do
        mirror=$main
        [[ $suite == security:* ]] && mirror=$security
        echo "deb [signed-by=$keyring] $mirror ${suite#*:} main"
    done >"$apt/sources.list"
    cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::Lists "$apt/lists";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root";
Debug::NoLocking "true";
CONF
    export APT_CONFIG=$apt/apt.conf
    # Lists of an hour ago will do: the series are fetched one after the other.
    [[ $(find "$apt/updated" -mmin -60 2>/dev/null) ]] && return
    apt-get -qq update
    touch "$apt/updated"
}

# The newest version of the series: `VERSION PACKAGE`.
newest() {
    local prefix=$series.
    [[ $series == newest ]] && prefix=
    apt-cache pkgnames linux-image- | grep -E '^linux-image-[0-9].*-cloud-amd64$' | xargs apt-cache madison |
        awk -F' *[|] *' -v prefix="$prefix" '{ gsub(/ /, "", $1) } index($2, prefix) == 1 { print $2, $1 }' |
        sort -V | tail -n 1
}

download() {
    local version=$1 package=$2 release=${2#linux-image-} packages shown file
    packages=("$package=$version")
    # Not piped into a grep that ends at the first match: whoever still writes to it fails then.
    shown=$(apt-cache show "$package=$version")
    # One package became three with 7.0.
    if grep -q '^Depends:.*linux-binary-' <<<"$shown"; then
        packages=("linux-binary-$release=$version" "linux-modules-$release=$version" "linux-base-$release=$version")
    fi
    mkdir -p "$work/root"
    cd "$work"
    apt-get -qq download "${packages[@]}"
    for file in *.deb; do
        dpkg-deb --fsys-tarfile "$file" | tar --extract --directory root --exclude='./usr/share/*'
        rm "$file"
    done
}

# The first file that lies at one of these places.
take() {
    local name=$1 path
    shift
    for path; do
        [[ -f $path ]] && { cp "$path" "$out/$name"; return; }
    done
    die "no $name in the package"
}

modules() {
    local release=$1 root=$work/root set names module file
    [[ -d $root/usr/lib/modules/$release ]] && root=$root/usr
    /sbin/depmod -b "$root" "$release"
    mkdir -p "$out/modules"
    while read -r set names; do
        for module in $names; do
            # What is built in or unknown to this kernel has no file; what is needed and not there will be missed.
            /sbin/modprobe -d "$root" -S "$release" -D "$module" 2>/dev/null || true
        done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/$set"
        while read -r file; do
            module=$(basename "$file")
            module=${module%%.ko*}.ko
            case $file in
            *.xz) xz -dc "$file" ;;
            *.zst) zstd -qdc "$file" ;;
            *) cat "$file" ;;
            esac >"$out/modules/$module"
            echo "$module"
        done <"$work/$set" >"$out/modules/$set.list"
    done <"$sets"
}

mkdir -p "$work"
prepare_apt
read -r version package < <(newest) || die "no cloud kernel of this series in ${suites[*]}"
release=${package#linux-image-}
download "$version" "$package"
take vmlinuz "$work/root/boot/vmlinuz-$release" "$work/root/usr/lib/modules/$release/vmlinuz" "$work/root/lib/modules/$release/vmlinuz"
take config "$work/root/boot/config-$release" "$work/root/usr/lib/modules/$release/config" "$work/root/lib/modules/$release/config"
modules "$release"
echo "$release" >"$out/release"
cd "$out"
rm -r "$work"
