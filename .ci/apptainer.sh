#!/bin/bash
# apptainer on Debian 12, which has none: unpacked from a newer suite, with that suite's libc beside it. For CI's tests only.
set -euo pipefail
command -v apptainer >/dev/null && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends squashfs-tools patchelf uidmap >/dev/null
work=$(mktemp -d)
libc=/opt/fl-glibc
mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)

fetch() { # SUITE PACKAGE
  mkdir -p "$work/$1/lists/partial" "$work/$1/debs"
  printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
    "$mirror" "$1" > "$work/$1/x.sources"
  local options=(-o "Dir::Etc::sourcelist=$work/$1/x.sources" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$work/$1/lists"
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
  apt-get "${options[@]}" -qq update
  (cd "$work/$1/debs" && apt-get "${options[@]}" -qq download "$2")
}

fetch trixie libc6
fetch sid apptainer
dpkg -x "$work"/trixie/debs/libc6_*.deb "$work/libc"
mkdir -p "$libc"
cp -a "$work"/libc/usr/lib/x86_64-linux-gnu/{ld-linux-x86-64.so.2,libc.so.6,libm.so.6,libdl.so.2,libpthread.so.0,libresolv.so.2,libnss_files.so.2,libnss_dns.so.2} "$libc/"
dpkg -x "$work"/sid/debs/apptainer_*.deb /
for program in /usr/bin/apptainer /usr/lib/x86_64-linux-gnu/apptainer/bin/starter; do
  patchelf --set-interpreter "$libc/ld-linux-x86-64.so.2" --set-rpath "$libc:/usr/lib/x86_64-linux-gnu" "$program"
done
# a root without all capabilities cannot hand all of them on
sed -i 's/^root default capabilities = full/root default capabilities = no/' /etc/apptainer/apptainer.conf
rm -rf "$work"
apptainer --version
