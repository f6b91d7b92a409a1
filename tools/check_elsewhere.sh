#!/usr/bin/env bash
# Build the wheel as macOS and Windows would, without the runtime and without a compiler, and import what is in it.
# usage: check_elsewhere.sh VENV
set -euo pipefail
venv=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

CC=/nonexistent "$venv/bin/python" -I -m pip wheel --quiet --no-deps --wheel-dir "$folder" \
    -C cmake.define.CMAKE_SYSTEM_NAME=Darwin -C build-dir="$folder/build" .
"$venv/bin/python" -I -m zipfile -e "$folder"/*.whl "$folder/content"
if find "$folder/content" -name '*.so' | grep .; then
    echo "check_elsewhere.sh: a wheel for a system without namespaces holds a compiled runtime" >&2
    exit 1
fi
python=$(realpath -s "$venv/bin/python")
cd "$folder/content"
"$python" - <<'PYTHON'
import platform
import sys

sys.platform = "darwin"
platform.system = lambda: "Darwin"
import nsmagic

assert "/content/" in nsmagic.__file__, nsmagic.__file__
try:
    nsmagic.run("pass")
except nsmagic.HostError as error:
    assert all(place in str(error) for place in ("Darwin", "Docker", "WSL2", "Codespaces", "Binder")), error
    print(f"without the runtime, {nsmagic.__name__} imports, and its use says: {error}")
else:
    raise SystemExit("it ran")
PYTHON
