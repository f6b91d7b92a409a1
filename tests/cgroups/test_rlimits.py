"""Limits without groups: RLIMIT_NPROC in a user namespace, the watchdog, and what /proc shows."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from nsmagic.cgroups import Limits, Usage, rlimits

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

pytestmark = pytest.mark.hosts

USER = 54321  # nobody else's
HOLDER = """
import ctypes, os, resource, signal, sys
order, user, limit, most = sys.argv[1], *map(int, sys.argv[2:])
if os.getuid() == 0:
    os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
uid = os.getuid()
if order == "before": resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: setuid took it, and with it /proc/self/uid_map
if libc.unshare(0x10000000) != 0:
    print("refused", os.strerror(ctypes.get_errno()), flush=True); sys.exit()
with open("/proc/self/uid_map", "w") as file: file.write(f"0 {uid} 1")
if order == "inside": resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
children = []
try:
    while len(children) < most:
        if (pid := os.fork()) == 0: signal.pause()
        children.append(pid)
except BlockingIOError: pass
print(len(children), flush=True)
sys.stdin.readline()
for pid in children: os.kill(pid, 9)
"""


@contextlib.contextmanager
def holder(order: str, limit: int, most: int = 50) -> Iterator[str]:
    """Hold processes in a user namespace of one's own, as many as the limit admits; give their number."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", HOLDER, order, str(USER), str(limit), str(most)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if said.startswith("refused"):
            pytest.skip(f"host: no user namespaces: {said[:80]}")
        try:
            yield said
        finally:
            process.communicate("end\n")


def test_nproc_is_exact_in_a_user_namespace_of_its_own() -> None:
    if not rlimits.nproc_is_exact():
        pytest.skip("host: Linux older than 5.14")
    limit = rlimits.rlimits(Limits(pids=5))[resource.RLIMIT_NPROC][0]
    with holder("inside", limit) as first, holder("inside", limit) as second:
        assert (first, second) == ("5", "5"), "the process that forks stands for init"


def test_nproc_set_before_the_namespace_disturbs_others() -> None:
    """This is why it must be set inside: the fact that the module's docstring states."""
    if not rlimits.nproc_is_exact():
        pytest.skip("host: Linux older than 5.14")
    if os.getuid() != 0:
        pytest.skip("host: not root")
    with holder("inside", 50, 10) as first, holder("before", 12) as second:
        assert first == "10"
        assert int(second) < 11, "the other container's processes count, too"


def test_limits_become_resource_limits() -> None:
    assert rlimits.rlimits(Limits()) == {}
    mem = 100 << 20
    assert rlimits.rlimits(Limits(mem=mem, pids=3), pids=False) == {
        resource.RLIMIT_AS: (mem + rlimits.INTERPRETER_BYTES,) * 2
    }
    assert rlimits.rlimits(Limits(mem=mem, pids=3), mem=False) == {resource.RLIMIT_NPROC: (4, 4)}
    assert rlimits.rlimits(Limits(pids=1 << 40)) == {resource.RLIMIT_NPROC: (rlimits.PIDS_MOST,) * 2}


def test_everything_asked_for_is_missing() -> None:
    missing = rlimits.Rlimits().missing(Limits(mem=1, cpus=1, pids=1))
    swap = ["swap"] if rlimits.host_has_swap() else []
    assert [each.what for each in missing] == ["mem", *swap, "cpus", "pids"]
    assert all(each.reason and each.remedy for each in missing)
    assert rlimits.Rlimits().missing(Limits()) == ()


FAMILY = """
import os, signal, sys
def child(size):
    if os.fork() == 0:
        held = bytearray(b"x") * size
        if size == 30_000_000: child(20_000_000)
        else: print("ready", flush=True)
        signal.pause()
child(30_000_000)
sum(range(3_000_000))
print("ready", flush=True)
sys.stdin.readline()
"""


def test_the_watchdog_sees_the_sum() -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as init:
        assert init.stdout is not None
        group = rlimits.Rlimits().create(Limits(mem=1 << 20))
        assert group.usage() == Usage()
        group.attach(init.pid)
        init.stdout.readline()
        init.stdout.readline()
        usage = group.usage()
        pids = group.pids()
        assert not group.remove()
        handles = [os.pidfd_open(pid) for pid in pids]
        group.kill()
        ended = [bool(select.select([handle], [], [], 10)[0]) for handle in handles]
        for handle in handles:
            os.close(handle)
        assert init.wait(10) == -signal.SIGKILL
    assert len(pids) == 3
    assert pids[0] == init.pid
    assert ended == [True] * 3
    assert usage.memory is not None
    assert 50_000_000 < usage.memory < 300_000_000
    assert usage.memory_peak == usage.memory
    assert usage.pids == usage.pids_peak == 3
    assert usage.cpu_user is not None
    assert usage.cpu_user > 0
    assert usage.oom_kills is None, "unknown, not 0"
    assert group.usage() == Usage()
    assert group.remove()


def test_stat_is_not_fooled_by_a_name(tmp_path: pathlib.Path) -> None:
    program = tmp_path / ") Z 1 (x"
    program.symlink_to("/bin/cat")
    with subprocess.Popen([str(program)], stdin=subprocess.PIPE) as process:
        found = rlimits.stat(process.pid)
        assert found is not None
        assert found.parent == os.getpid()
        assert not found.dead
        assert rlimits.alive(process.pid, found.started)
        assert not rlimits.alive(process.pid, "1"), "another process had this pid"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not rlimits.alive(process.pid, found.started), "a zombie is dead"
    assert rlimits.stat(process.pid) is None


def test_kill_all_spares_who_is_no_longer_listed() -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as stranger:
        listings = iter([[stranger.pid], [], []])
        rlimits.kill_all(lambda: next(listings), time.monotonic() + 5)
        assert stranger.poll() is None
        stranger.communicate(b"")
        assert stranger.returncode == 0


def test_kill_all_ends_at_its_deadline() -> None:
    began = time.monotonic()
    rlimits.kill_all(lambda: [999_999_999], began + 0.05)  # always listed, never there
    assert 0.05 <= time.monotonic() - began < 5
