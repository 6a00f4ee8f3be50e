#!/usr/bin/env bash
# Set up a fresh machine: virtual environment, pinned packages, LIBERO, software GL. Usage: setup.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2
fail() { echo "setup: $*" >&2; exit 1; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "Python 3.11 or newer is needed; '$python' is $("$python" --version 2>&1 || true) (make PYTHON=python3.12 ...)"

# Rendering needs an OpenGL that works without a screen; opencv, which robosuite imports, needs libGL and glib.
packages="libegl1 libgl1 libgles2 libegl-mesa0 libglib2.0-0"
missing=""
for library in libEGL.so.1 libGL.so.1 libEGL_mesa.so.0 libglib-2.0.so.0; do
    PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep -qF "$library" || missing="$missing $library"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "setup: installing software GL ($packages)"
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages >/dev/null
    else
        fail "missing libraries:$missing. Install them, e.g.: sudo apt-get install $packages"
    fi
fi

"$python" -m venv "$venv" || fail "no virtual environment could be made; on Debian: sudo apt-get install python3-venv"
pip() { "$venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }
echo "setup: installing packages into $venv (some minutes the first time)"
pip install --no-compile --constraint constraints.txt --editable ".[dev]"
pip install --no-compile --constraint constraints.txt --no-deps hf-libero openpi-client
# pip would compile 20,000 modules on one core, which takes a minute. A third of them hardly any run imports; a few are
# written for another Python.
"$venv/bin/python" -W ignore -m compileall -qq -j 0 -x '/(tests|transformers/models|OpenGL/raw)/' "$venv/lib" || true
"$venv/bin/python" -c 'import torch, lightning, mujoco, robosuite' ||
    fail "the packages are installed but do not import (see above)"
echo "setup: done"
