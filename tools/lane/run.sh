#!/usr/bin/env bash
# Run a command in a fresh machine, as one of its users; its output and its exit status are the command's own.
#
# usage: run.sh [OPTION VALUE]… -- COMMAND…
#   --init systemd|mini   which PID 1 (systemd)
#   --as WHO              see users.sh (user-session)
#   --append WORDS        for the kernel's command line; such a machine is booted, not thawed
#   --src FOLDER          is /src there, a copy that belongs to the user
#   --site IMAGE          an ext4 image of 1 GiB, mounted read-only on /site
#   --out FOLDER          receives what the command leaves in /out
#   --env NAME=VALUE      may be given several times
#   --timeout SECONDS     for all of it (600)
# environment: LANE_SUITE, LANE_CACHE. Exit status 252: the machine gave none, and why stands on standard error.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/qemu.sh"
init=systemd who=user-session source= site= out= append= timeout=600 environment=()
while (($#)); do
    case $1 in
    --init) init=$2 ;;
    --as) who=$2 ;;
    --append) append=$2 ;;
    --src) source=$2 ;;
    --site) site=$2 ;;
    --out) out=$2 ;;
    --env) environment+=("$2") ;;
    --timeout) timeout=$2 ;;
    --)
        shift
        break
        ;;
    *)
        echo "run.sh: what is $1?" >&2
        exit 2
        ;;
    esac
    shift 2
done
(($#)) || { echo "run.sh: no command" >&2; exit 2; }
images=$LANE_CACHE/${LANE_SUITE:-bookworm}
[[ -f $images/stamp ]] || { echo "run.sh: build the image first: build.sh" >&2; exit 2; }
words=$(kernel_words "$init") || exit 2

work=$(mktemp -d /var/tmp/nsmagic-lane.XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tar/job" "$work/tar/src"
echo "$who" >"$work/tar/job/as"
cp "$here/users.sh" "$work/tar/job/users"
{
    echo '#!/bin/bash'
    for each in "${environment[@]}"; do printf 'export %s=%q\n' "${each%%=*}" "${each#*=}"; done
    printf 'exec'
    printf ' %q' "$@"
    echo
} >"$work/tar/job/command"
if [[ $source ]]; then
    cp -a "$source/." "$work/tar/src/"
fi
head -c 64 /dev/urandom >"$work/tar/job/seed"
date +%s.%N >"$work/tar/job/now"
tar -C "$work/tar" -cf "$work/job" job src
(($(stat -c %s "$work/job") <= disk_bytes)) || { echo "run.sh: $source is too large" >&2; exit 2; }
truncate --size "$disk_bytes" "$work/job" "$work/out"
touch "$work/status" "$work/console"
if [[ ! $site ]]; then
    site=$work/site
    truncate --size 1G "$site"
fi

root=$images/root.ext4 thaw=()
frozen=$images/frozen-$init
if [[ -f $frozen.stamp && ! $append ]]; then
    root=$frozen.ext4 thaw=(-incoming "exec:cat $frozen.state")
fi
qemu_arguments "$root,snapshot=on" "$work/job" "$work/out" "$site,readonly=on" "$work/console" "$work/status" \
    "$words $append"
TMPDIR=$work timeout --foreground --kill-after 5 "$timeout" qemu-system-x86_64 "${arguments[@]}" \
    -chardev stdio,id=output,signal=off -device isa-serial,chardev=output,index=1 -monitor none "${thaw[@]}" </dev/null
ended=$?
if [[ $out ]]; then
    mkdir -p "$out"
    tar -C "$out" --no-same-owner -xf "$work/out" 2>/dev/null || true
fi
status=$(sed -n 's/^\([0-9][0-9]*\)$/\1/p' "$work/status" | tail -1)
if [[ ! $status ]]; then
    why="qemu ended with $ended"
    ((ended != 124)) || why="it ran longer than $timeout s"
    echo "run.sh: no status from the machine: $why; its console ends with:" >&2
    tail -c 3000 "$work/console" >&2
    exit 252
fi
exit "$status"
