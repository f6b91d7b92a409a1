#!/usr/bin/env bash
# Run the tests marked `hosts` in containers of Docker and Podman of several kinds, and ask the doctor in each.
#
# usage: docker.sh [CONFIGURATION…]     as root, with dockerd, docker and runc installed; none: all that are listed below
#
# A Docker daemon of our own is started and stopped: its data, sockets and control groups are its own, it touches no
# firewall and makes no bridge, and every container has no network. The image is almost empty; programs are the
# machine's own /usr, bound read-only, which costs nothing and changes nothing of what is tested.
# What comes of it lies in build/docker/: NAME.xml (JUnit), NAME.txt (the doctor's words), and the table, printed.
set -euo pipefail
cd "$(dirname "$0")/../.."

[[ $(id -u) == 0 ]] || { echo "docker.sh: a Docker daemon takes root: sudo make test-docker" >&2; exit 1; }
# In a mount namespace of our own: what is mounted here shows nowhere else, and goes with us.
[[ ${OWN_MOUNTS:-} ]] || OWN_MOUNTS=1 exec unshare --mount --propagation private bash "tools/lane/docker.sh" "$@"

declare -A kinds=(
    [default]=""
    [seccomp-unconfined]="--security-opt seccomp=unconfined"
    [sys-admin]="--cap-add SYS_ADMIN"
    [privileged]="--privileged"
    [read-only-cgroup]="--cap-add ALL --security-opt seccomp=unconfined --security-opt systempaths=unconfined"
    [user]="--user 1000"
    [user-open]="--user 1000 --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
    [podman]=""
    [podman-user]="--user 1000"
    [podman-user-open]="--user 1000 --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt unmask=ALL"
)
names=("$@")
if ((${#names[@]} == 0)); then
    names=(default seccomp-unconfined sys-admin privileged read-only-cgroup user user-open)
    if command -v podman >/dev/null; then names+=(podman podman-user podman-user-open); fi
fi

python=${DOCKER_PYTHON:-/usr/bin/python3} # what is below /usr is there inside too
results=$PWD/build/docker
venv=$results/venv
most_seconds=200 # of one configuration

fail() { echo "docker.sh: $*" >&2; exit 1; }

for program in dockerd docker runc; do
    command -v "$program" >/dev/null || fail "no program $program: sudo apt install --no-install-recommends docker.io"
done
mkdir -p "$results"
rm -f "$results"/*.xml "$results"/*.txt
for folder in /run /dev/shm; do mount -t tmpfs tmpfs "$folder"; done # state of Docker's and Podman's, wherever they keep it
work=$(mktemp -d /var/tmp/nsmagic-docker.XXXXXX)
group=nsmagic-docker-$$ # below which the containers' control groups lie
daemon=
export DOCKER_HOST=unix://$work/docker.sock

# Everything that was made goes, whatever happened; nothing is ended but what was started here.
clean() {
    if [[ $daemon ]]; then
        docker ps --quiet | xargs --no-run-if-empty docker kill >/dev/null 2>&1 || true
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    if [[ -d $work/podman ]]; then podman_here rm --all --force >/dev/null 2>&1 || true; fi
    awk -v below="$work/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs --no-run-if-empty umount --lazy
    find /sys/fs/cgroup -depth -type d -path "*/$group*" -exec rmdir {} + 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

start_daemon() {
    echo "{}" >"$work/none.json" # not the machine's own settings
    dockerd --config-file "$work/none.json" --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" \
        --host "$DOCKER_HOST" --bridge=none --iptables=false --ip6tables=false --cgroup-parent="/$group" \
        --add-runtime here="$PWD/tools/lane/runc_here.py" --default-runtime here >"$work/log" 2>&1 &
    daemon=$!
    for _ in {1..150}; do
        docker version >/dev/null 2>&1 && return
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.2
    done
    tail -n 20 "$work/log" >&2
    fail "the daemon did not start"
}

# Podman has no daemon; without systemd it is told to keep groups and events by itself.
podman_here() {
    podman --root "$work/podman" --runroot "$work/podman-run" --cgroup-manager cgroupfs --events-backend file \
        --runtime "$PWD/tools/lane/runc_here.py" "$@"
}

# The skeleton of a root: what is below /usr is bound, the rest of what programs look for is copied.
make_image() {
    local root=$work/image
    mkdir -p "$root"/{etc,usr,proc,sys,dev,run,root,home,venv,stage,report,tmp,var/tmp}
    chmod 1777 "$root/tmp" "$root/var/tmp"
    for name in bin sbin lib lib32 lib64 libx32; do
        if [[ -L /$name ]]; then cp -P "/$name" "$root/"; elif [[ -d /$name ]]; then mkdir "$root/$name"; fi
    done
    for name in ld.so.cache ld.so.conf ld.so.conf.d alternatives nsswitch.conf os-release ssl; do
        [[ ! -e /etc/$name ]] || cp -a "/etc/$name" "$root/etc/"
    done
    printf 'root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\nuser:x:1000:\n' >"$root/etc/group"
    tar -C "$root" -c . | docker import - nsmagic-lane >/dev/null
    if command -v podman >/dev/null; then tar -C "$root" -c . | podman_here import - nsmagic-lane >/dev/null 2>&1; fi
}

# The wheel and what its tests need, for a Python that is there inside.
make_venv() {
    local pip=("$venv/bin/python" -I -m pip --disable-pip-version-check --quiet)
    if [[ ! -e $venv/.made ]]; then
        rm -rf "$venv"
        (umask 022 && "$python" -m venv "$venv" && "${pip[@]}" install pytest pytest-timeout hypothesis)
        touch "$venv/.made"
    fi
    if [[ ! $venv/.wheel -nt build/wheel/.built ]]; then
        (umask 022 && "${pip[@]}" install --force-reinstall --no-deps build/wheel/*.whl && "${pip[@]}" install "$(ls build/wheel/*.whl)[kernel]")
        touch "$venv/.wheel"
    fi
}

# run_inside NAME COMMAND…    in a new container of that kind, under a shell that reaps what is orphaned there
run_inside() {
    local name=$1 options engine=(docker run)
    read -ra options <<<"${kinds[$name]}"
    # Its own limits are higher than those of a root that may not raise any.
    [[ $name != podman* ]] || engine=(podman_here run --cgroup-parent "/$group" --ulimit nofile=1024:1024 --ulimit nproc=4096:4096)
    shift
    "${engine[@]}" --rm --network none --volume /usr:/usr:ro --volume "$venv:/venv:ro" --volume "$work/stage:/stage" \
        --volume "$work/report:/report" --workdir /stage --env NSMAGIC_LANE="$name" "${options[@]}" nsmagic-lane \
        sh -c '"$@"; exit $?' sh timeout --kill-after 5 "$most_seconds" "$@"
}

# Only these are collected: others import what only they need.
mapfile -t tests < <(grep -rl --include='test_*.py' 'mark\.hosts' tests)

make_venv
start_daemon
make_image
failed=0
for name in "${names[@]}"; do
    [[ -v kinds[$name] ]] || fail "no configuration $name; there are ${!kinds[*]}"
    began=$SECONDS
    rm -rf "$work/stage" "$work/report"
    mkdir -p "$work/stage" "$work/report"
    cp -r --no-preserve=ownership tests tools notebooks pyproject.toml "$work/stage/"
    chmod -R a+rwX "$work/stage" "$work/report"
    echo "── $name: ${kinds[$name]}"
    # In the background, so that a signal to us is not kept waiting.
    run_inside "$name" /venv/bin/python -I -m nsmagic.cli doctor >"$results/$name.txt" 2>&1 </dev/null &
    wait "$!" || failed=1
    run_inside "$name" /venv/bin/python -m pytest -q -p no:cacheprovider -m hosts --junit-xml "/report/$name.xml" "${tests[@]}" \
        </dev/null &
    wait "$!" || failed=1
    cp "$work/report/$name.xml" "$results/" || failed=1
    echo "── $name: $((SECONDS - began)) s"
done

reports=() words=()
for name in "${names[@]}"; do
    [[ ! -e $results/$name.xml ]] || reports+=("$results/$name.xml")
    words+=("$results/$name.txt")
done
tools/lane/table.py "${reports[@]}" >"$results/table" || failed=1
cat "$results/table"
if [[ ${WRITE_PAGE:-} ]]; then tools/lane/page.py docs/hosts/docker.md "$results/table" "${words[@]}"; fi
exit "$failed"
