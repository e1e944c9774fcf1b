#!/bin/bash
# control_plane.sh FOLDER: builds the programs of a control plane, kubectl, and those of a node (kubelet, kube-proxy) from
# Debian's source package of Kubernetes with Debian's Go, and puts them and Debian's etcd into FOLDER/bin. It installs nothing
# and needs neither root nor a C compiler: packages are unpacked, not installed, and apt gets lists and a cache of its own
# beneath FOLDER.
set -euo pipefail

suite=bookworm
# Of its name's two versions the second is true.
source_version=1.20.5+really1.20.2-1.1+deb12u1
version=1.20.2
commit=faecb196815e248d3ecfb03c680a4507229c2a56
tarball=kubernetes_1.20.5+really1.20.2.orig.tar.gz
tarball_sha256=b83c0780efb182d928dc63d46488a847f161f04e40a94b96bf5247dd671ecdfc
commands=(kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet kube-proxy)

out=$(cd "$1" && pwd)
work=$out/work
root=$work/root
kubernetes=$work/gopath/src/k8s.io/kubernetes

say() { echo "setup: control plane: $* (${SECONDS} s)"; }

# The mirror that this system uses, for the one release whose packages the recipe was proven with.
prepare_apt() {
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [[ -e $keyring ]] || { echo "$keyring is not there: is this Debian?" >&2; return 1; }
    mirror=$(apt-get indextargets --format '$(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "main" && $2 !~ /-/ { print $3; exit }')
    [[ $mirror ]] || { echo "apt knows no Debian mirror: see sources.list(5)" >&2; return 1; }
    mkdir -p "$work"/apt/{lists/partial,cache/archives/partial}
    printf '%s\n' {deb,deb-src}" [signed-by=$keyring] $mirror $suite main" >"$work/apt/sources.list"
    cat >"$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::Lists "$work/apt/lists";
Dir::Cache "$work/apt/cache";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root";
Debug::NoLocking "true";
CONF
    export APT_CONFIG=$work/apt.conf
    apt-get -qq update
}

download() {
    mkdir -p "$work/packages" "$root" "$kubernetes"
    cd "$work/packages"
    apt-get -qq source --download-only "kubernetes=$source_version"
    echo "$tarball_sha256  $tarball" | sha256sum --check --quiet
    apt-get -qq download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev etcd-server
    local package
    for package in *.deb; do dpkg --extract "$package" "$root"; done
    tar --extract --file "$tarball" --directory "$kubernetes" --strip-components=1
    cd "$kubernetes"
    rm -r "$work/packages"
}

# The source's own reflect2 does not work with Go 1.18 and later.
replace_reflect2() {
    local vendored=vendor/github.com/modern-go/reflect2
    rm $vendored/*.go
    cp "$root"/usr/share/gocode/src/github.com/modern-go/reflect2/*.go $vendored/
}

# The kubelet's look-ups of credentials at cloud vendors' registries; their libraries are not in Debian's tarball.
remove_vendors() {
    sed --in-place '/pkg\/credentialprovider\/\(aws\|azure\|gcp\)"/d' cmd/kubelet/app/plugins.go
}

use_go() {
    mkdir -p "$work/tmp"
    export GOROOT=$root/usr/lib/go-1.19 GOPATH=$work/gopath GOCACHE=$work/gocache GOTMPDIR=$work/tmp
    export GO111MODULE=off GOFLAGS='' GOPROXY=off CGO_ENABLED=0
    PATH=$GOROOT/bin:$PATH
}

# The one generated file that the tarball lacks: what server-side apply and `kubectl` know of the types' fields.
generate_openapi() {
    local vendor=k8s.io/kubernetes/vendor packages
    go build -o "$work/openapi-gen" $vendor/k8s.io/kube-openapi/cmd/openapi-gen
    packages=$(
        {
            grep -rl --include='*.go' '+k8s:openapi-gen=' pkg
            cd staging/src
            grep -rl --include='*.go' '^// *+k8s:openapi-gen=' k8s.io |
                grep -vE '/(code-generator|sample-apiserver)/' | sed 's,^,vendor/,'
        } | grep -v '/generated/' | xargs -n 1 dirname | LC_ALL=C sort -u | sed 's,^,k8s.io/kubernetes/,' | paste -sd ,
    )
    "$work/openapi-gen" --logtostderr --input-dirs "$packages" --output-package k8s.io/kubernetes/pkg/generated/openapi \
        --output-file-base zz_generated.openapi --report-filename "$work/violations" \
        --go-header-file vendor/k8s.io/code-generator/hack/boilerplate.go.txt
    # That all packages were found: the list of exceptions names fields of each.
    cmp "$work/violations" api/api-rules/violation_exceptions.list
}

build() {
    local flags='-s -w' package
    for package in component-base/version client-go/pkg/version; do
        package=k8s.io/kubernetes/vendor/k8s.io/$package
        flags+=" -X $package.gitVersion=v$version -X $package.gitMajor=1 -X $package.gitMinor=20"
        flags+=" -X $package.gitCommit=$commit -X $package.gitTreeState=archive"
    done
    go build -tags providerless -trimpath -ldflags "$flags" -o "$out/bin/" "${commands[@]/#/k8s.io/kubernetes/cmd/}"
    cp "$root/usr/bin/etcd" "$out/bin/"
}

mkdir -p "$out/bin" "$work"
prepare_apt
download
say "downloaded Kubernetes $version, Go and etcd"
replace_reflect2
remove_vendors
use_go
generate_openapi
say "compiling ${commands[*]}: minutes, once"
build
cd "$out"
rm -r "$work"
say "compiled"
