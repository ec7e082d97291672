#!/usr/bin/env bash
# Makes a Debian package of this checkout and prints its path.
#
#   systemd/deb/build.sh [--binaries DIR] [--output DIR] [--compression NAME]
#
# --binaries     a folder with sctl and sctld, built already; without it they
#                are built for release
# --output       where the package goes (target/debian)
# --compression  of the package, as dpkg-deb knows it (xz)
#
# Needs dpkg-dev and binutils (build-essential has both). The maintainer is
# DEBFULLNAME and DEBEMAIL, as for Debian's own tools.
set -euo pipefail
# Whatever the caller's is: modes below are what the package holds.
umask 022
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)

binaries='' output=$top/target/debian compression=xz
while [ $# -gt 0 ]; do
    case $1 in
    --binaries) binaries=${2:?}; shift 2 ;;
    --output) output=${2:?}; shift 2 ;;
    --compression) compression=${2:?}; shift 2 ;;
    *) sed -n '2,/^set -/{/^set -/!s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
    esac
done
if [ -z "$binaries" ]; then
    (cd "$top" && cargo build --release --locked -p sctl -p sctld >&2)
    binaries=$top/target/release
fi
version=$("$binaries/sctl" version)
architecture=$(dpkg --print-architecture)
# The same sources and programs give the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
put() { # MODE SOURCE TARGET
    install -D -m "$1" "$2" "$root/$3"
}

put 755 "$binaries/sctl" usr/bin/sctl
# Jobs cannot read it, so nobody can trace them.
put 711 "$binaries/sctld" usr/bin/sctld
strip --strip-unneeded --remove-section=.comment --remove-section=.note "$root/usr/bin/sctl" "$root/usr/bin/sctld"
for name in singularity apptainer run-singularity; do
    ln -s sctl "$root/usr/bin/$name"
done

for unit in "$top"/systemd/system/*; do put 644 "$unit" "usr/lib/systemd/system/${unit##*/}"; done
for unit in "$top"/systemd/user/*; do put 644 "$unit" "usr/lib/systemd/user/${unit##*/}"; done
put 644 "$top/systemd/sysusers.d/sctl.conf" usr/lib/sysusers.d/sctl.conf
put 644 "$top/systemd/tmpfiles.d/sctl.conf" usr/lib/tmpfiles.d/sctl.conf
put 644 "$top/systemd/apparmor/sctl" usr/share/sctl/apparmor/sctl
put 644 "$top/systemd/config/sctld.toml" etc/sctl/sctld.toml
put 644 "$top/systemd/config/sctl.toml" etc/sctl/sctl.toml

man=$root/usr/share/man
mkdir -p "$man"/man{1,5,8}
"$root/usr/bin/sctl" man | gzip -9n >"$man/man1/sctl.1.gz"
"$root/usr/bin/sctl" man sctl.toml | gzip -9n >"$man/man5/sctl.toml.5.gz"
"$root/usr/bin/sctld" man | gzip -9n >"$man/man8/sctld.8.gz"
"$root/usr/bin/sctld" man sctld.toml | gzip -9n >"$man/man5/sctld.toml.5.gz"
for name in singularity apptainer run-singularity; do
    ln -s sctl.1.gz "$man/man1/$name.1.gz"
done

bash=$root/usr/share/bash-completion/completions zsh=$root/usr/share/zsh/vendor-completions
fish=$root/usr/share/fish/vendor_completions.d
mkdir -p "$bash" "$zsh" "$fish"
for name in sctl singularity apptainer; do
    "$root/usr/bin/$name" completion bash >"$bash/$name"
    "$root/usr/bin/$name" completion zsh >"$zsh/_$name"
    "$root/usr/bin/$name" completion fish >"$fish/$name.fish"
done

doc=$root/usr/share/doc/sctl
put 644 "$top/README.md" usr/share/doc/sctl/README.md
for file in "$top"/daemon/docs/*.md; do put 644 "$file" "usr/share/doc/sctl/${file##*/}"; done
put 644 "$here/copyright" usr/share/doc/sctl/copyright
maintainer="${DEBFULLNAME:-sctl packagers} <${DEBEMAIL:-packagers@sctl.invalid}>"
printf 'sctl (%s) unstable; urgency=medium\n\n  * Built from the sources of this version.\n\n -- %s  %s\n' \
    "$version" "$maintainer" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"
put 644 "$here/lintian-overrides" usr/share/lintian/overrides/sctl

# What the programs need of the C library, in the words of the archive.
mkdir -p "$work/debian"
printf 'Source: sctl\n\nPackage: sctl\nArchitecture: any\n' >"$work/debian/control"
shlibs=$(cd "$work" && dpkg-shlibdeps -O root/usr/bin/sctl root/usr/bin/sctld 2>/dev/null | sed -n 's/^shlibs:Depends=//p')

install -d "$root/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@MAINTAINER@/$maintainer/" \
    -e "s/@SHLIBS@/${shlibs:?dpkg-shlibdeps found nothing}/" \
    -e "s/@INSTALLED_SIZE@/$(du -sk --exclude=DEBIAN "$root" | cut -f 1)/" "$here/control" >"$root/DEBIAN/control"
for file in conffiles triggers; do install -m 644 "$here/$file" "$root/DEBIAN/$file"; done
for script in postinst prerm postrm; do install -m 755 "$here/$script" "$root/DEBIAN/$script"; done
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
chmod 644 "$root/DEBIAN/md5sums"

mkdir -p "$output"
package=$output/sctl_${version}_${architecture}.deb
dpkg-deb --root-owner-group -Z"$compression" --build "$root" "$package" >&2
echo "$package"
