"""Every limit: that it holds, that it is said, and that the host's side survives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nsmagic
from nsmagic import HostError, cgroups
from nsmagic.cgroups import Limits, v2
from nsmagic.result import seconds_text

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = [pytest.mark.hosts, pytest.mark.container, pytest.mark.usefixtures("quiet")]

SOCKETS = """
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
keep = []
for _ in range(1500):
    keep.append(socket.socketpair())
    keep[-1][0].setblocking(False)
    try:
        while True: keep[-1][0].send(bytes(1 << 16))
    except BlockingIOError: pass
"""
HOG = "hog = bytearray({size})\nfor at in range(0, len(hog), 4096): hog[at] = 1\nprint('survived')"


def host_lacks(**limits: Any) -> tuple[cgroups.Missing, ...]:
    """What of these limits no mechanism of this host can enforce."""
    return min((mechanism.missing(Limits(**limits)) for mechanism in cgroups.mechanisms()), key=len)


def need(**limits: Any) -> None:
    """Skip where the host cannot enforce these limits."""
    if missing := host_lacks(**limits):
        pytest.skip("host: " + "; ".join(f"no {each.what} limit: {each.reason}" for each in missing))


def test_memory_limit_ends_a_hog_and_says_why() -> None:
    need(mem=64 << 20)
    result = nsmagic.run(HOG.format(size=256 << 20), mem="64M")
    assert result.outcome == "out-of-memory"
    assert result.exit_status is None
    assert "64 MiB" in result.detail
    assert "peak" in result.detail
    assert result.usage.oom_kills
    assert result.usage.memory_peak is not None
    assert (48 << 20) < result.usage.memory_peak <= (64 << 20)
    assert "survived" not in result.stdout


def test_memory_below_the_limit_is_no_failure_and_is_measured() -> None:
    need(mem=128 << 20)
    result = nsmagic.run(HOG.format(size=40 << 20), mem="128M").check()
    assert result.stdout == "survived\n"
    assert result.usage.memory_peak is not None
    assert (40 << 20) <= result.usage.memory_peak <= (128 << 20)


def test_what_was_printed_before_running_out_of_memory_is_kept() -> None:
    need(mem=64 << 20)
    result = nsmagic.run("print('first', flush=True)\n" + HOG.format(size=256 << 20), mem="64M")
    assert (result.outcome, result.stdout) == ("out-of-memory", "first\n")


def test_a_grandchild_that_runs_out_of_memory_is_told_apart() -> None:
    need(mem=64 << 20)
    code = f"""
import subprocess, sys
done = subprocess.run([sys.executable, "-Ic", {HOG.format(size=256 << 20)!r}])
print(done.returncode)
"""
    result = nsmagic.run(code, mem="64M")
    # The cell itself may have been spared or not, but nobody may call that a plain success without a word.
    assert result.usage.oom_kills
    assert result.outcome in {"out-of-memory", "exited"}
    if result.outcome == "exited":
        assert result.stdout == "-9\n"


@pytest.mark.parametrize(
    "place", ["/tmp/f", "/dev/shm/f", pytest.param("f", marks=pytest.mark.works("copy-on-write"))]
)
def test_files_count_against_memory(place: str) -> None:
    need(mem=64 << 20)
    code = f"with open({place!r}, 'wb') as f:\n for _ in range(256): f.write(bytes(1 << 20)); f.flush()"
    result = nsmagic.run(code, mem="64M", disk="1G")
    assert result.outcome == "out-of-memory", result.describe()


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfd = os.memfd_create('x')\nwhile True: os.write(fd, bytes(1 << 20))",
        "import mmap\nm = mmap.mmap(-1, 512 << 20)\nfor at in range(0, len(m), 4096): m[at] = 1",
        SOCKETS,
    ],
    ids=["memfd", "shared-anonymous", "socket-buffers"],
)
def test_other_kinds_of_memory_count_too(code: str) -> None:
    need(mem=64 << 20)
    assert nsmagic.run(code, mem="64M").outcome == "out-of-memory"


def test_a_fork_bomb_with_a_memory_limit_only_ends() -> None:
    need(mem=64 << 20, pids=4000)
    code = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    result = nsmagic.run(code, mem="64M", pids=4000, timeout=3)
    assert result.outcome in {"out-of-memory", "timeout"}
    assert nsmagic.run("print('next')").stdout == "next\n"


def test_swap_is_limited_with_memory() -> None:
    need(mem=64 << 20)
    result = nsmagic.run("pass", mem="64M").check()
    assert {"mem", "swap"} <= set(result.isolation.limits)


def cpu_used(result: nsmagic.Result) -> float:
    """Seconds of CPU time, both kinds."""
    assert result.usage.cpu_user is not None
    assert result.usage.cpu_system is not None
    return result.usage.cpu_user + result.usage.cpu_system


def most_cpu(share: float, result: nsmagic.Result) -> float:
    """What a container with such a share may have used: two periods more, and what it takes to be built."""
    return share * result.usage.wall + 0.2 + cpu_used(nsmagic.run("pass").check())


def test_cpus_hold_a_spinning_cell_near_its_share() -> None:
    need(cpus=0.2)
    code = "import time\nend = time.monotonic() + 0.8\nwhile time.monotonic() < end: pass"
    result = nsmagic.run(code, cpus=0.2).check()
    # A share of 0.2 for 0.8 s is 0.16 s; one period more may be used before the first throttling.
    assert cpu_used(result) < most_cpu(0.2, result), result.usage
    assert result.isolation.limits["cpus"]


def test_cpus_hold_several_processes_together() -> None:
    need(cpus=0.2)
    code = (
        "import os, time\nend = time.monotonic() + 0.8\nos.fork(); os.fork()\n"
        "while time.monotonic() < end: pass\nos._exit(0)"
    )
    result = nsmagic.run(code, cpus=0.2)
    assert cpu_used(result) < most_cpu(0.2, result), result.usage


FORKS = """
import os, signal
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            signal.pause()
        made += 1
finally:
    print(made, flush=True)
"""


def test_pids_are_limited_to_what_was_asked() -> None:
    result = nsmagic.run(FORKS, pids=16)
    assert not result.ok
    made = int(result.stdout)
    # The cell itself is one of them.
    assert made == 15, made
    assert "BlockingIOError" in result.stderr


@pytest.mark.parametrize("marked", [pytest.param(None, marks=pytest.mark.cgroup_v1)])
def test_a_refused_fork_is_the_outcome(marked: None) -> None:
    result = nsmagic.run(FORKS, pids=16)
    assert result.outcome == "pids-limit"
    assert "16" in result.detail
    assert "--pids" in result.detail
    assert result.usage.pids_refused
    assert result.usage.pids_peak == 17  # init is one more


def test_a_cell_that_ends_at_its_limit_of_processes_is_told_where_nobody_counts() -> None:
    if not host_lacks(pids=16):
        pytest.skip("host: can enforce --pids by a group")
    result = nsmagic.run(FORKS, pids=16)
    assert result.outcome == "pids-limit"
    assert "16" in result.detail
    assert "--pids" in result.detail
    assert result.exit_status == 1
    program = nsmagic.run(["/bin/sh", "-c", "for i in $(seq 40); do sleep 60 & done"], pids=16)
    assert program.outcome == "pids-limit"
    # One that fails with room to spare fails for its own reasons, and one that goes well is no failure.
    assert nsmagic.run("1 / 0", pids=16).outcome == "exited"
    full = "import os, signal\nfor _ in range(15):\n if os.fork() == 0: signal.pause()"
    assert nsmagic.run(full, pids=16).check().outcome == "exited"


def test_threads_count_as_pids() -> None:
    code = """
import threading
stop = threading.Event()
made = 0
try:
    for _ in range(100):
        threading.Thread(target=stop.wait, daemon=True).start()
        made += 1
except RuntimeError:
    pass
print(made)
stop.set()
"""
    assert int(nsmagic.run(code, pids=16).stdout) == 15


def test_a_fork_bomb_leaves_the_next_run_alone() -> None:
    code = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    result = nsmagic.run(code, pids=32, timeout=0.5)
    assert result.outcome == "timeout"
    assert nsmagic.run("print('next')").stdout == "next\n"


def test_two_containers_do_not_share_a_pids_limit(keep: Any) -> None:
    """Nor do two jobs of one container: what a job left running ends with it."""
    twelve = FORKS.replace("made < 100", "made < 12")
    first, second = keep(pids=16), keep(pids=16)
    assert [container.run(twelve).stdout for container in (first, second, first)] == ["12\n"] * 3


@pytest.mark.works("fresh /proc")
def test_what_a_job_left_running_is_gone_before_the_next_begins(keep: Any) -> None:
    """Not only killed: a process that is still on its way out counts for the limit, and so for the next job."""
    container = keep(pids=16)
    for _ in range(20):
        container.run("import os, signal\nfor _ in range(12):\n if os.fork() == 0: signal.pause()").check()
        found = container.run("import os; print(len([p for p in os.listdir('/proc') if p.isdigit()]))")
        assert found.stdout == "3\n"


def test_two_live_containers_do_not_share_a_pids_limit(keep: Any) -> None:
    from nsmagic.spec import JobSpec

    twelve = FORKS.replace("made < 100", "made < 12")
    outs: list[str] = []

    class RunAnother:
        """When the first job has made its processes, and they live, a second container makes as many."""

        def stream(self, name: str, data: bytes) -> None:
            outs.append(nsmagic.run(twelve, pids=16).stdout)

    assert keep(pids=16).run_job(JobSpec("cell", twelve), sink=RunAnother()).ok
    assert outs == ["12\n"]


@pytest.mark.parametrize(
    "code", ["import time; time.sleep(60)", "while True: pass", "import signal; signal.pause()"]
)
def test_timeout(code: str, pace: float) -> None:
    seconds = round(0.2 * pace, 1)
    began = time.monotonic()
    result = nsmagic.run(f"print('begun', flush=True)\n{code}", timeout=seconds)
    assert time.monotonic() - began < 2 * pace
    assert (result.outcome, result.stdout) == ("timeout", "begun\n")
    assert seconds_text(seconds) in result.detail
    assert "--timeout" in result.detail
    assert seconds <= result.usage.wall < 1 * pace


def test_a_job_that_ends_in_time_is_not_touched_by_its_timeout() -> None:
    assert nsmagic.run("print(1)", timeout=30).check().stdout == "1\n"


def test_timeout_ends_what_the_job_started() -> None:
    code = "import subprocess\nsubprocess.run(['sleep', '60'])"
    assert nsmagic.run(code, timeout=0.2).outcome == "timeout"


def test_a_timeout_is_of_one_job_not_of_the_container_that_runs_on(keep: Any, pace: float) -> None:
    container = keep()
    assert container.run("print(1)", timeout=0.3 * pace).stdout == "1\n"
    slow = container.run(f"import time; time.sleep({0.6 * pace}); print(2)")
    assert (slow.outcome, slow.stdout) == ("exited", "2\n")


def test_output_limit_stops() -> None:
    result = nsmagic.run("while True: print('x' * 99)", output_limit="10K")
    assert result.outcome == "output-limit"
    assert len(result.stdout_bytes) == 10 << 10
    assert result.dropped > 0
    assert "--output-limit" in result.detail


def test_output_limit_drops() -> None:
    result = nsmagic.run(
        "for _ in range(1000): print('x' * 99)\nend = 1", output_limit="10K:drop", outputs=["end"]
    )
    assert result.ok
    assert result.values == {"end": 1}
    assert len(result.stdout_bytes) == 10 << 10
    assert result.dropped == 100_000 - (10 << 10)


def test_output_limit_counts_both_streams() -> None:
    code = (
        "import sys\nprint('a' * 6000, flush=True)\nprint('b' * 6000, file=sys.stderr, flush=True)\nend = 1"
    )
    result = nsmagic.run(code, output_limit="10K")
    assert result.outcome == "output-limit"
    assert len(result.stdout_bytes) + len(result.stderr_bytes) == 10 << 10


def test_output_just_at_the_limit_is_no_failure() -> None:
    result = nsmagic.run("print('x' * (10 * 1024 - 1))", output_limit="10K").check()
    assert len(result.stdout_bytes) == 10 << 10
    assert result.dropped == 0


def test_the_default_output_limit_holds() -> None:
    result = nsmagic.run(["sh", "-c", "yes"])
    assert result.outcome == "output-limit"
    assert len(result.stdout_bytes) == 16 << 20


@pytest.mark.works("copy-on-write")
def test_disk_limit_is_an_error_inside() -> None:
    code = """
import errno
try:
    with open('f', 'wb') as f:
        while True: f.write(bytes(1 << 16))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    result = nsmagic.run(code, disk="2M").check()
    assert result.stdout == "ENOSPC\n"
    assert result.usage.written is not None
    assert result.usage.written <= 2 << 20


def test_the_disk_limit_is_one_for_all_folders() -> None:
    code = """
import os
written = 0
for folder in ('.', '/tmp', '/dev/shm', os.environ['HOME']):
    try:
        with open(folder + '/f', 'wb', buffering=0) as f:
            while True: written += f.write(bytes(1 << 16))
    except OSError:
        pass
print(written)
"""
    assert 1 << 20 < int(nsmagic.run(code, disk="2M").check().stdout) <= 2 << 20


def test_files_are_limited_in_number() -> None:
    code = """
import errno
made = 0
try:
    while made < 20000:
        open(f'/tmp/{made}', 'w').close()
        made += 1
except OSError as error:
    print(errno.errorcode[error.errno], made)
"""
    word, made = nsmagic.run(code, disk="2M").check().stdout.split()
    assert word == "ENOSPC"
    assert int(made) < 4100


@pytest.mark.works("copy-on-write")
def test_a_sparse_file_costs_nothing_and_harms_nobody() -> None:
    code = (
        "import os\nos.truncate(os.open('f', os.O_CREAT | os.O_RDWR), 1 << 40)\nprint(os.stat('f').st_blocks)"
    )
    assert nsmagic.run(code, disk="2M").check().stdout == "0\n"


def test_no_core_dumps_and_no_way_to_raise_a_limit() -> None:
    code = """
import resource
print(resource.getrlimit(resource.RLIMIT_CORE))
try:
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
except (OSError, ValueError) as error:
    print('refused')
"""
    assert nsmagic.run(code).check().stdout == "(0, 0)\nrefused\n"


# ---- hosts that cannot ----------------------------------------------------------


@pytest.mark.parametrize(("option", "value"), [("mem", "64M"), ("cpus", 0.5), ("swap", "1M")])
def test_a_limit_that_cannot_be_enforced_starts_nothing(
    option: str, value: object, children_of: Callable[[int], set[int]]
) -> None:
    limit = {"mem": 64 << 20} if option == "mem" else {option: 0.5 if option == "cpus" else 1 << 20}
    if not host_lacks(**limit):
        pytest.skip(f"host: can enforce --{option}")
    with pytest.raises(HostError) as error:
        nsmagic.run("print(1)", **{option: value})  # type: ignore[arg-type]
    assert f"--{option}" in error.value.feature
    assert error.value.remedy
    assert "--best-effort" in error.value.remedy
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("option", "value"), [("mem", "256M"), ("cpus", 0.5)])
def test_best_effort_runs_and_says_what_is_missing(option: str, value: object) -> None:
    if not host_lacks(**{option: 256 << 20 if option == "mem" else 0.5}):
        pytest.skip(f"host: can enforce --{option}")
    result = nsmagic.run("print(1)", best_effort=True, **{option: value}).check()  # type: ignore[arg-type]
    assert result.stdout == "1\n"
    assert result.isolation.missing[option]
    assert option not in result.isolation.limits or "watchdog" in result.isolation.limits[option]


def test_best_effort_memory_still_ends_a_hog() -> None:
    if not host_lacks(mem=64 << 20):
        pytest.skip("host: can enforce --mem")
    result = nsmagic.run(HOG.format(size=1 << 30), mem="128M", best_effort=True, timeout=20)
    assert not result.ok
    assert "survived" not in result.stdout


def test_best_effort_misses_nothing_where_all_can_be_enforced() -> None:
    need(mem=64 << 20, cpus=0.5)
    assert not nsmagic.run("pass", mem="64M", cpus=0.5, best_effort=True).check().isolation.missing


def test_limits_in_force_are_said() -> None:
    result = nsmagic.run("pass", pids=77).check()
    assert "78" in result.isolation.limits["pids"]  # and one for init
    assert set(result.isolation.limits) >= {"pids", "disk"}


def test_a_container_is_below_the_group_of_its_owner(keep: Any) -> None:
    """Or, in a scope of its own, bounded as its owner is: nobody leaves a limit that their owner lives under."""
    own = cgroups.own_groups()
    kept = keep()
    kept.run("pass").check()
    lines = Path(f"/proc/{kept.init_pid}/cgroup").read_text().splitlines()
    groups = {line.split(":")[1]: line.split(":", 2)[2] for line in lines}
    for names, path in groups.items():
        for name in names.split(","):
            if name in own and cgroups.mechanisms()[0].name == "systemd scope":
                top = own[name].directory.removesuffix(own[name].path)
                for file in ("memory.max", "memory.high", "memory.swap.max", "pids.max", "cpu.max"):
                    assert allowed(top, path, file) <= allowed(top, own[name].path, file), file
            elif name in own:
                # A leaf of ours that its owner was moved into has no limits: what counts is the group above it.
                home = own[name].path.removesuffix(f"/{v2.HOST_LEAF}").rstrip("/")
                assert f"{path}/".startswith(f"{home}/"), (name, path)


def allowed(top: str, path: str, file: str) -> float:
    """The tightest limit on a cgroup v2 group, of its own or of one above it."""
    tightest = float("inf")
    while path.strip("/"):
        place = Path(f"{top}{path}/{file}")
        words = place.read_text().split() if place.exists() else ["max"]
        if words[0] != "max":
            tightest = min(tightest, int(words[0]) / int([*words, "1"][1]))
        path = path.rpartition("/")[0]
    return tightest
