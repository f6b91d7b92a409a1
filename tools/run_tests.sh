#!/usr/bin/env bash
# Run the tests, and when started by root run them a second time as an ordinary user.
#
# usage: run_tests.sh VENV WHEELS [PYTEST ARGUMENT]…
#
# Each user has two passes: tests that may run side by side on every processor, then those marked `serial`.
# They run in a copy of the tests, away from the package's sources, so that the installed package is tested,
# and in a folder that the user may read and write. The reports go to build/junit/USER-PASS.xml.
# A shell starts what it sends to the background with Ctrl-C ignored, and the tests would inherit that.
[[ ${SIGNALS_ARE_DEFAULT:-} ]] || SIGNALS_ARE_DEFAULT=1 exec env --default-signal=INT,QUIT,TSTP bash "$0" "$@"
set -euo pipefail

user=nsmagic-test
venv=$PWD/$1 wheels=$PWD/$2
arguments=("${@:3}")
reports=$PWD/build/junit
workers=${WORKERS:-$(nproc)}
ordinary_venv=${ORDINARY_VENV:-/var/cache/nsmagic-test/venv}
ordinary_python=${ORDINARY_PYTHON:-/usr/bin/python3}
staged=(tests pyproject.toml README.md CONTRIBUTING.md CHANGELOG.md LICENSE notebooks bench docs tools nsmagic/native)

rm -rf "$reports"
mkdir -p "$reports"
stage=$(mktemp -d /var/tmp/nsmagic-test.XXXXXX)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"

# setpriv still has root's right to pass through closed folders when it starts the command; env has not.
as_user() { setpriv --reuid "$user" --regid "$user" --init-groups --reset-env -- env LANG=C.UTF-8 ${CI:+CI="$CI"} "$@"; }

# Both passes of one user; COMMAND…, put before pytest, becomes that user. `set -e` does not hold in here.
# run_passes NAME PYTHON [COMMAND…]
run_passes() {
    local name=$1 python=$2 folder=$stage/$1 status=0
    shift 2
    mkdir -p "$folder/junit"
    for item in "${staged[@]}"; do
        [[ ! -e $item ]] || cp -R --no-preserve=ownership "$item" "$folder/" || return 1
    done
    find "$folder" -name __pycache__ -prune -exec rm -rf {} +
    if (($#)); then chown -R "$user:" "$folder" || return 1; fi
    echo "── tests as $name, side by side ($workers at a time)"
    pytest_pass "$folder" "$folder/junit/$name-parallel.xml" "$@" "$python" -m pytest \
        -m "not serial" -n "$workers" --dist loadgroup || status=1
    echo "── tests as $name, one at a time"
    pytest_pass "$folder" "$folder/junit/$name-serial.xml" "$@" "$python" -m pytest -m serial -n 0 || status=1
    cp "$folder"/junit/*.xml "$reports/" || status=1
    return $status
}

# A test that fails once and then passes (a machine that others use too) is printed as a rerun.
# Exit status 5 says that no test was selected: right for one pass, and for all of them the sum below fails.
pytest_pass() {
    local folder=$1 report=$2 status=0
    shift 2
    (cd "$folder" && PYTHONDONTWRITEBYTECODE=1 "$@" -q -p no:cacheprovider --reruns 1 --junit-xml "$report" "${arguments[@]}") \
        </dev/null || status=$?
    ((status == 0 || status == 5))
}

# The ordinary user's interpreter: ours if that user can run it, else one of its own from the machine's Python.
choose_ordinary_python() {
    if as_user "$venv/bin/python" -I -c 'import nsmagic, pytest' 2>/dev/null; then
        python=$venv/bin/python
        return
    fi
    echo "── $user cannot read $venv or its interpreter: it gets a venv of $ordinary_python in $ordinary_venv"
    tools/check_machine.sh "$ordinary_python"
    python=$ordinary_venv/bin/python
    local pip=("$python" -I -m pip --disable-pip-version-check --quiet)
    if [[ ! -e $ordinary_venv/.made ]]; then
        rm -rf "$ordinary_venv"
        # Root owns the folder above, so nobody else can put something in its place.
        install -d -m 755 "$(dirname "$ordinary_venv")"
        (umask 022 && "$ordinary_python" -m venv "$ordinary_venv" && "${pip[@]}" install --upgrade 'pip>=25.1')
        touch "$ordinary_venv/.made"
    fi
    if [[ ! $ordinary_venv/.test -nt $wheels/.built ]]; then
        # What the first venv fetched is in pip's cache.
        (umask 022 && "${pip[@]}" install --force-reinstall --no-deps "$wheels"/*.whl &&
            "${pip[@]}" install "$wheels"/*.whl --group test)
        touch "$ordinary_venv/.test"
    fi
    as_user "$python" -I -c 'import nsmagic, pytest'
}

failed=0
if [[ $(id -u) == 0 ]]; then
    id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$user"
    choose_ordinary_python
    run_passes root "$venv/bin/python" || failed=1
    run_passes ordinary "$python" as_user || failed=1
else
    run_passes ordinary "$venv/bin/python" || failed=1
fi
# When all tests are asked for, the runtime's run once more, with the sanitizers.
if ((${#arguments[@]} == 0)); then
    tools/run_sanitized.sh "$1" tests/native --junit-xml "$reports/sanitized.xml" || failed=1
fi
tools/junit.py "$reports"/*.xml || failed=1
exit $failed
