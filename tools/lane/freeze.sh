#!/usr/bin/env bash
# Boot the image once and freeze it when it waits for a job, so that run.sh need not boot.
#
# usage: freeze.sh systemd|mini    environment: LANE_SUITE, LANE_CACHE
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/qemu.sh"
images=$LANE_CACHE/${LANE_SUITE:-bookworm}
frozen=$images/frozen-$1
words=$(kernel_words "$1")
stamp="$(cat "$images/stamp") $(qemu-system-x86_64 --version | head -1) $LANE_MEMORY"
if [[ -f $frozen.stamp && $(cat "$frozen.stamp") == "$stamp" ]]; then exit 0; fi

echo "booting $1 once …"
rm -f "$frozen".*
work=$(mktemp -d /var/tmp/nsmagic-lane.XXXXXX)
trap 'rm -rf "$work"' EXIT
cp --sparse=always "$images/root.ext4" "$work/root"
truncate --size "$disk_bytes" "$work/job" "$work/out"
truncate --size 1G "$work/site" # as large as what run.sh will put in its place
touch "$work/status"
qemu_arguments "$work/root" "$work/job" "$work/out" "$work/site,readonly=on" "$work/console" "$work/status" "$words"
qemu-system-x86_64 "${arguments[@]}" -chardev null,id=output -device isa-serial,chardev=output,index=1 \
    -qmp "unix:$work/qmp,server=on,wait=off" </dev/null &
machine=$!
trap 'kill "$machine" 2>/dev/null || true; rm -rf "$work"' EXIT
for ((tries = 0; tries < 900; tries++)); do
    grep -q READY "$work/status" && break
    kill -0 "$machine" || break
    sleep 0.2
done
grep -q READY "$work/status" || {
    echo "the machine did not get ready; its console ends with:" >&2
    tail -c 3000 "$work/console" >&2
    exit 1
}
python3 "$here/freeze.py" "$work/qmp" "$work/state"
wait "$machine" || true
mv "$work/root" "$frozen.ext4"
mv "$work/state" "$frozen.state"
echo "$stamp" >"$frozen.stamp"
