#!/usr/bin/env bash
# Installs what the tests need and is missing: Debian packages, a SIF tool of
# others (where Go is present), three unprivileged test users, and two real
# Debian root file systems; with the argument `bench`, also the one that only
# benchmarks need. Needs root. Running it again changes nothing.
set -euo pipefail

# Where the Debian root file system and the tools built here are kept.
state=${SCTL_TEST_STATE:-/var/cache/sctl-tests}
siftool_version=v2.22.0

[ "$(id -u)" = 0 ] || { echo "tests/install.sh: needs root (packages, test users, a root file system)" >&2; exit 1; }
mkdir -p "$state/bin"
chmod 755 "$state" "$state/bin"

packages=(
    docker-registry skopeo umoci                # a real registry, and clients to seed it and to compare with
    squashfs-tools squashfs-tools-ng squashfuse # unsquashfs, mksquashfs, tar2sqfs, squashfuse_ll
    debootstrap busybox-static                  # real root file systems
    bubblewrap fuse3 attr jq apache2-utils openssl
    isal pigz zstd hyperfine util-linux uidmap procps
    curl python3                                # peers of the benchmarks, and a foreign daemon
    systemd-container                           # boots a host with systemd
    build-essential pkg-config
)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing: ${missing[*]}"
    apt-get update -qq
    # The registry is started by the tests alone, never by the package.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; made_policy=1; fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    [ -z "${made_policy:-}" ] || rm -f $policy
fi

for user in sctl sctl-mount sctl-test-a sctl-test-b sctl-test-admin; do
    id "$user" >/dev/null 2>&1 && continue
    case $user in
    sctl-test-*) useradd --create-home --shell /bin/bash "$user" ;;
    *) useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user" ;;
    esac
done
getent group sctl-admin >/dev/null || groupadd --system sctl-admin
usermod --append --groups sctl-admin sctl-test-admin

# Distributions give everybody /dev/fuse; bare virtual machines may not.
if [ -e /dev/fuse ] && [ "$(stat -c %a /dev/fuse)" != 666 ]; then chmod 666 /dev/fuse; fi

if command -v go >/dev/null && [ ! -x "$state/bin/siftool" ]; then
    echo "building siftool $siftool_version"
    GOBIN="$state/bin" GOFLAGS=-trimpath go install "github.com/sylabs/sif/v2/cmd/siftool@$siftool_version" ||
        echo "WARNING: siftool could not be built; the tests that use it will be skipped" >&2
fi

# make_root NAME PACKAGES: a Debian root file system with these packages.
make_root() {
    [ -e "$state/$1.complete" ] && return
    echo "making a Debian root file system: $1"
    local mirror suite
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    rm -rf "${state:?}/$1"
    debootstrap --variant=minbase --include="$2" "$suite" "$state/$1" "${mirror:?no Debian mirror among the sources of apt}" >"$state/debootstrap.log" 2>&1 ||
        { tail -n 20 "$state/debootstrap.log" >&2; exit 1; }
    rm -rf "$state/$1/var/cache/apt/archives"/*.deb "$state/$1/var/lib/apt/lists"/*
    touch "$state/$1.complete"
}
# For images, and to be booted: a host with systemd, which man-db lets look at
# our manual.
make_root debian python3-minimal
[ "${1:-}" != bench ] || make_root numpy python3-numpy
make_root systemd systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,man-db,procps
