#!/bin/sh
# Say in one line, before anything is built, what this machine lacks and which package brings it.
# usage: check_machine.sh PYTHON    exit status: 0 nothing is missing, 1 something is
set -u
python=$1

fail() {
    echo "nsmagic: $*" >&2
    exit 1
}

as_root=$([ "$(id -u)" = 0 ] || echo "sudo ")
lacks= packages=
lack() { # WHAT PACKAGE…
    lacks="$lacks${lacks:+, }$1"
    shift
    packages="$packages $*"
}

[ "$(uname -s)" = Linux ] ||
    fail "containers are made of Linux namespaces, and this is $(uname -s); use a Linux machine, a virtual one or .devcontainer/"

if ! command -v "$python" >/dev/null; then
    case $python in python3.*) name=$python ;; *) name=python3 ;; esac
    lack "Python ($python)" "$name" "$name-venv" "$name-dev"
else
    # Debian's own python3 has packages without a version in their names; any other says its version.
    facts=$("$python" -I - <<'PYTHON'
import os, sys, sysconfig
try:
    import ensurepip, venv
    able = bool(ensurepip.version())
except Exception:
    able = False
name = "python%d.%d" % sys.version_info[:2]
debian = os.path.realpath(getattr(sys, "_base_executable", sys.executable)) == os.path.realpath("/usr/bin/python3")
print(name)
print("python3" if debian else name)
print("new" if sys.version_info >= (3, 10) else "old")
print("venv" if able else "no-venv")
print("dev" if os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")) else "no-dev")
PYTHON
    ) || fail "$python does not start; choose another with: make PYTHON=…"
    # shellcheck disable=SC2086 # five words, none with a space
    set -- $facts
    [ "$3" = new ] ||
        fail "$python is $1, and nsmagic needs Python 3.10 or newer; install one, such as: ${as_root}apt install python3.11 python3.11-venv python3.11-dev, then: make PYTHON=python3.11"
    [ "$4" = venv ] || lack "Python's venv module" "$2-venv"
    [ "$5" = dev ] || lack "Python's C headers" "$2-dev"
fi

compiler=
for candidate in "${CC:-cc}" gcc clang; do
    if command -v "${candidate%% *}" >/dev/null; then
        compiler=${candidate%% *}
        break
    fi
done
if [ -z "$compiler" ]; then
    lack "a C compiler" gcc libc6-dev
elif ! printf '#include <stdlib.h>\n#include <linux/types.h>\n' | "$compiler" -E - >/dev/null 2>&1; then
    lack "the C library's headers" libc6-dev
fi

[ -z "$lacks" ] || fail "this machine lacks $lacks; on Debian and Ubuntu: ${as_root}apt install$packages"
