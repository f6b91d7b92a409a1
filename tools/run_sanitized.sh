#!/usr/bin/env bash
# Build the runtime with gcc's address and undefined-behaviour sanitizers, and run its tests with it.
#
# usage: run_sanitized.sh VENV [PYTEST ARGUMENT]…    without arguments: tests/native
#
# The address sanitizer must be loaded before everything else in a process, and the launcher starts with an
# emptied environment. So this venv's `python` is a script that sets what is needed and goes on as the real
# interpreter under its own name: whatever starts `sys.executable` starts the script again.
# Not looked for: leaks, which the interpreter itself is full of.
set -euo pipefail

venv=$PWD/$1
shift
home=$PWD/build/sanitized
mine=$home/venv
(($#)) || set -- tests/native

mkdir -p "$home"
rm -f "$home/log"
truncate --size 64K "$home/log" # more than sanitizer_log.c maps
chmod 666 "$home/log"           # root's containers run as another user
[[ $home/.made -nt tools/run_sanitized.sh && $home/.made -nt tools/sanitizer_log.c ]] || {
    rm -rf "$mine"
    "$venv/bin/python" -m venv --without-pip "$mine"
    site=$("$mine/bin/python" -I -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    real=$(readlink -f "$mine/bin/python")
    # Everything but nsmagic itself comes from the venv that there is.
    "$venv/bin/python" -I -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' >"$site/tests.pth"
    rm "$mine"/bin/python*
    library=$(realpath "$("${CC:-cc}" -print-file-name=libasan.so)")
    [[ -e $library ]] || { echo "this compiler has no address sanitizer ($library)" >&2; exit 1; }
    undefined=$(realpath "$("${CC:-cc}" -print-file-name=libubsan.so)")
    "${CC:-cc}" -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Werror -O1 -shared -fPIC \
        -o "$home/sanitizer_log.so" tools/sanitizer_log.c
    cat >"$mine/bin/python" <<WRAPPER
#!/bin/bash
# Our hooks come before the sanitizer's own empty ones, so it is told not to insist on being first.
export LD_PRELOAD='$home/sanitizer_log.so:$library:$undefined'
export NSMAGIC_SANITIZER_LOG='$home/log'
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:handle_segv=0:verify_asan_link_order=0
export UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1
exec -a "\$0" '$real' "\$@"
WRAPPER
    chmod +x "$mine/bin/python"
    touch "$home/.made"
}

echo "── building with the sanitizers"
rm -rf "$home/wheel"
"$venv/bin/python" -I -m pip --disable-pip-version-check --quiet wheel --no-deps --wheel-dir "$home/wheel" \
    -C build-dir="$home/cmake" -C cmake.define.NSMAGIC_SANITIZE=ON -C cmake.build-type=Debug .
"$venv/bin/python" -I -m pip --disable-pip-version-check --quiet --python "$mine/bin/python" \
    install --force-reinstall --no-deps "$home"/wheel/*.whl
grep -q __asan_init "$mine"/lib/python*/site-packages/nsmagic/native/_runtime*.so ||
    { echo "the runtime was built without the sanitizers" >&2; exit 1; }

stage=$(mktemp -d /var/tmp/nsmagic-test.XXXXXX)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"
cp -R --no-preserve=ownership tests pyproject.toml nsmagic/native "$stage/"

echo "── tests with the sanitizers"
status=0
(cd "$stage" && PYTHONDONTWRITEBYTECODE=1 "$mine/bin/python" -m pytest -q -p no:cacheprovider "$@") </dev/null || status=$?
found=$(tr -d '\0' <"$home/log" | grep --text '^pid ' || true)
if [[ $found ]]; then
    printf '── the sanitizers found:\n%s\n' "$found"
    status=1
fi
exit $status
