"""What every mechanism with real groups must do, tried on real processes, whichever version this host has."""

from __future__ import annotations

import functools
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from nsmagic import cgroups
from nsmagic.cgroups import Limits, Usage, directories, rlimits
from nsmagic.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.hosts

MEBIBYTE = 1 << 20


def strongest() -> cgroups.Mechanism:
    """Return the mechanism under test, or skip."""
    best = cgroups.mechanisms()[0]
    if best.name == "rlimits":
        pytest.skip("host: no cgroup that may be written to")
    return best


@pytest.fixture
def mechanism() -> Iterator[cgroups.Mechanism]:
    """Give the mechanism, and see that nothing is left behind."""
    best = strongest()
    yield best
    assert isinstance(best, directories.DirectoryMechanism)
    paths = [pathlib.Path(tree.base) for tree in best.trees.values()]
    left = {str(group) for base in paths for group in base.glob("c[0-9]*")}
    for group in left:
        # A test that failed should not make the next ones fail.
        rlimits.kill_all(functools.partial(rlimits.pids_in, group), time.monotonic() + 5)
        directories.rmdir(group)
    best.close()
    assert left == set()
    assert not any(base.exists() for base in paths)


def need(mechanism: cgroups.Mechanism, limits: Limits) -> None:
    """Skip where the host lacks a controller."""
    if missing := mechanism.missing(limits):
        pytest.skip(f"host: no {missing[0].what} limit: {missing[0].reason[:80]}")


def run(group: cgroups.Group, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in the group: it moves in before it runs."""
    with Started(group, code) as process:
        output = process.communicate(timeout=60)[0]
    return subprocess.CompletedProcess(code, process.returncode, output)


def join(group: cgroups.Group, pid: int) -> None:
    """Put a process of one thread into the group, from outside and without clone3."""
    cgroups.mechanisms()[0].admit(pid)
    joins = group.open_joins()
    directory = group.open_directory()
    if directory is not None:
        joins.append(os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory))
        os.close(directory)
    for descriptor in joins:
        os.write(descriptor, str(pid).encode())
        os.close(descriptor)


class Started:
    """Python code that runs in the group; ended and reaped at the end."""

    def __init__(self, group: cgroups.Group, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", f"import sys; sys.stdin.readline()\n{code}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            join(group, self.process.pid)
            assert self.process.stdin is not None
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> subprocess.Popen[str]:
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()  # not read to its end: children may hold it open


def removed(group: cgroups.Group) -> bool:
    """Remove the group; its last process may be on its way out still."""
    deadline = time.monotonic() + 5
    while not group.remove():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], 0.005)
    return True


def wait_until(true: object, seconds: float = 20) -> None:
    """Wait until ``true()`` holds."""
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        select.select([], [], [], 0.005)


def test_limits_are_written_and_read_back(mechanism: cgroups.Mechanism) -> None:
    limits = Limits(mem=64 * MEBIBYTE, swap=MEBIBYTE, cpus=0.5, pids=9)
    need(mechanism, limits)
    group = mechanism.create(limits)
    assert isinstance(group, directories.DirectoryGroup)
    assert set(group.enforced) == {"mem", "swap", "cpus", "pids"}
    assert group.enforced["pids"].endswith("pids.max = 10")  # init comes on top
    written = {setting.path: setting.value for setting in group.settings(limits)}
    for path, value in written.items():
        assert pathlib.Path(path).read_text().strip() == value
    assert group.remove()


def test_a_page_is_rounded_and_nothing_more(tmp_path: pathlib.Path, mechanism: cgroups.Mechanism) -> None:
    need(mechanism, Limits(mem=1))
    group = mechanism.create(Limits(mem=64 * MEBIBYTE + 1))
    assert "mem" in group.enforced
    assert group.remove()
    # A file system that takes everything and shows nothing stands for a kernel that ignores a limit.
    ignores = tmp_path / "limit"
    ignores.symlink_to("/dev/null")
    with pytest.raises(OSError, match="reads back"):
        directories.Setting("mem", str(ignores), "4096").put()


def test_too_much_memory_is_killed_and_counted(mechanism: cgroups.Mechanism) -> None:
    limits = Limits(mem=32 * MEBIBYTE, pids=4)
    need(mechanism, limits)
    group = mechanism.create(limits)
    ended = run(group, "x = []\nwhile True: x.append(bytearray(b'x') * 1_000_000)")
    usage = group.usage()
    assert ended.returncode == -signal.SIGKILL
    assert usage.oom_kills in {1, 2}  # with memory.oom.group Linux 6.1 counts the victim twice
    if mechanism.name != "cgroup v1":
        assert usage.memory_limit_hits is not None
        assert usage.memory_limit_hits >= 1
    else:
        assert usage.memory_limit_hits != 0  # some kernels stopped counting: then it is unknown
    assert usage.memory_peak is None or 16 * MEBIBYTE < usage.memory_peak <= 32 * MEBIBYTE
    assert removed(group)


def test_a_tmpfs_file_counts_as_memory(mechanism: cgroups.Mechanism) -> None:
    need(mechanism, Limits(mem=MEBIBYTE))
    group = mechanism.create(Limits(mem=32 * MEBIBYTE))
    ended = run(group, "import os; f = os.memfd_create('x')\nwhile True: os.write(f, b'x' * 1_000_000)")
    assert ended.returncode == -signal.SIGKILL
    assert removed(group)


def test_forks_are_refused_and_counted(mechanism: cgroups.Mechanism) -> None:
    need(mechanism, Limits(pids=1))
    group = mechanism.create(Limits(pids=5))
    code = """
import os, signal
children = []
try:
    while len(children) < 50:
        if (pid := os.fork()) == 0: signal.pause()
        children.append(pid)
except BlockingIOError: pass
for pid in children: os.kill(pid, 9)
print(len(children))
"""
    assert run(group, code).stdout == "5\n"  # the process itself stands for init
    usage = group.usage()
    assert usage.pids_refused == 1
    assert usage.pids_peak in (None, 6, 7)  # some kernels count the refused one, too
    assert removed(group)


def test_a_share_of_cpu_time_is_kept(mechanism: cgroups.Mechanism) -> None:
    need(mechanism, Limits(cpus=1))
    group = mechanism.create(Limits(cpus=0.1))
    usages = []
    with Started(group, "print('ready', flush=True)\nwhile True: pass") as process:
        assert process.stdout is not None
        process.stdout.readline()
        usages.append(group.usage())
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1)
        usages.append(group.usage())
        took = time.monotonic() - began
    assert removed(group)
    used = cpu_seconds(usages[1]) - cpu_seconds(usages[0])
    assert 0 < used < 0.4 * took, "a busy loop gets a tenth of a core, not a whole one"


def cpu_seconds(usage: Usage) -> float:
    """Return the CPU time of both kinds, or skip."""
    if usage.cpu_user is None and "cpuacct" not in cgroups.own_groups() and "" not in cgroups.own_groups():
        pytest.skip("host: no account of CPU time")
    assert usage.cpu_user is not None
    assert usage.cpu_system is not None
    return usage.cpu_user + usage.cpu_system


def test_usage_of_a_group_without_limits(mechanism: cgroups.Mechanism) -> None:
    group = mechanism.create(Limits())
    with Started(group, "x = b'x' * 20_000_000; print('ready', flush=True); sys.stdin.readline()") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        usage = group.usage()
        assert group.pids() == [process.pid]
        assert not group.remove()
    assert removed(group)
    assert group.usage() == Usage()  # unknown, not 0
    assert group.remove()
    assert usage.memory is None or usage.memory > 10 * MEBIBYTE
    assert usage.pids in (None, 1)
    assert cpu_seconds(usage) > 0


def test_limits_change_while_it_runs(mechanism: cgroups.Mechanism) -> None:
    need(mechanism, Limits(mem=MEBIBYTE, pids=1))
    group = mechanism.create(Limits(mem=64 * MEBIBYTE, pids=5))
    for limits in (
        Limits(mem=128 * MEBIBYTE, swap=MEBIBYTE, pids=50),
        Limits(mem=32 * MEBIBYTE, pids=3),
        Limits(mem=256 * MEBIBYTE, pids=3),
    ):
        group.set_limits(limits)
        assert str(limits.mem) in group.enforced["mem"]
        assert group.enforced["pids"].endswith(f" {limits.pids + 1 if limits.pids else 0}")
    group.set_limits(Limits())
    assert "mem" not in group.enforced
    assert "pids" not in group.enforced
    assert group.remove()


def test_a_refused_limit_names_the_option_and_leaves_nothing(mechanism: cgroups.Mechanism) -> None:
    need(mechanism, Limits(cpus=1))
    with pytest.raises(HostError) as caught:
        mechanism.create(Limits(cpus=0.000001))
    assert caught.value.feature == "--cpus"
    assert caught.value.remedy


BOMB = """
import os
print('ready', flush=True)
while True:
    try: os.fork()
    except BlockingIOError: pass
"""


def test_kill_ends_a_group_that_forks(mechanism: cgroups.Mechanism) -> None:
    need(mechanism, Limits(pids=1))
    group = mechanism.create(Limits(pids=20))
    with Started(group, BOMB) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_until(lambda: len(group.pids()) > 10)
        group.kill()
        wait_until(lambda: not group.pids())
        assert process.wait(10) == -signal.SIGKILL
    assert removed(group)


def test_kill_without_a_switch_ends_a_group_that_forks(mechanism: cgroups.Mechanism) -> None:
    """The way for kernels without cgroup.kill, and for cgroup v1 alone."""
    need(mechanism, Limits(pids=1))
    group = mechanism.create(Limits(pids=20))
    assert isinstance(group, directories.DirectoryGroup)
    with Started(group, BOMB) as process:
        group.places = {name: place for name, place in group.places.items() if name == "pids"}
        wait_until(lambda: len(group.pids()) > 10)
        before = group.usage().pids_refused
        group.kill()
        wait_until(lambda: not group.pids())
        assert process.wait(10) == -signal.SIGKILL
    after = group.usage().pids_refused
    assert before is not None
    assert after is not None
    refused = int((pathlib.Path(group.places["pids"], "pids.events").read_text()).split()[1])
    assert before <= after <= refused
    assert removed(group)


def test_an_open_directory_takes_a_new_process(mechanism: cgroups.Mechanism) -> None:
    group = mechanism.create(Limits())
    descriptor = group.open_directory()
    assert isinstance(group, directories.DirectoryGroup)
    if "" in group.places:
        assert descriptor is not None
        assert str(pathlib.Path(f"/proc/self/fd/{descriptor}").readlink()) == group.places[""]
        assert group.places[""] in group.directories
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
    else:
        assert descriptor is None  # cgroup v1 alone
    assert group.remove()


def test_directories_can_be_removed_in_their_order(mechanism: cgroups.Mechanism) -> None:
    group = mechanism.create(Limits())
    for directory in group.directories:
        pathlib.Path(directory).rmdir()
    again = mechanism.create(Limits(pids=1))  # the base comes back
    assert mechanism.missing(Limits(pids=1)) or "pids" in again.enforced
    assert again.remove()


def test_threads_get_groups_of_their_own(mechanism: cgroups.Mechanism) -> None:
    """Also at the moment when there is no base yet, or no longer."""
    limits = Limits() if mechanism.missing(Limits(pids=1)) else Limits(pids=1)
    rounds, threads_count = 5, 4
    step = threading.Barrier(threads_count, timeout=30)
    groups: list[cgroups.Group] = []
    gone: list[bool] = []

    def work() -> None:
        for _ in range(rounds):
            step.wait()
            group = mechanism.create(limits)
            groups.append(group)
            step.wait()
            gone.append(group.remove())
            mechanism.close()

    threads = [threading.Thread(target=work) for _ in range(threads_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gone == [True] * rounds * threads_count
    assert (
        len({group.directories[0] for group in groups}) == len({group.name for group in groups}) == len(gone)
    )


def test_a_fork_has_a_base_of_its_own(mechanism: cgroups.Mechanism) -> None:
    ours = mechanism.create(Limits())
    before = bases()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            theirs = mechanism.create(Limits())  # the object from before the fork
            apart = set(theirs.directories).isdisjoint(ours.directories)
            fresh = cgroups.mechanisms()[0] is not mechanism
            status = 0 if apart and fresh and theirs.remove() else 2
            cgroups.close()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert not [base for base in bases() - before if f"/nsmagic-{pid}-" in base], "the fork cleans up, too"
    assert ours.remove()


def bases() -> set[str]:
    """Return all the bases in this process' own groups, other owners' too."""
    best = strongest()
    assert isinstance(best, directories.DirectoryMechanism)
    owns = [pathlib.Path(tree.own) for tree in best.trees.values()]
    return {str(base) for own in owns for base in own.glob("nsmagic-[0-9]*")}


OWNER = """
import os, subprocess, sys
from nsmagic import cgroups
choice = cgroups.choose(cgroups.Limits(), userns=False, best_effort=False)
group = choice.create()
child = subprocess.Popen(["sleep", "1000"])
choice.mechanism.admit(child.pid)
joins, directory = group.open_joins(), group.open_directory()
if directory is not None: joins.append(os.open("cgroup.procs", os.O_WRONLY, dir_fd=directory))
for descriptor in joins: os.write(descriptor, str(child.pid).encode())
print(child.pid, *group.directories, flush=True)
sys.stdin.readline()
"""


def test_sweep_removes_what_a_dead_owner_left_and_nothing_else(mechanism: cgroups.Mechanism) -> None:
    ours = mechanism.create(Limits())
    root = str(pathlib.Path(cgroups.__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    ) as owner:
        assert owner.stdout is not None
        pid, *directories = owner.stdout.readline().split()
        child = os.pidfd_open(int(pid))
        try:
            cgroups.sweep()
            assert all(pathlib.Path(each).exists() for each in directories), "its owner lives"
            owner.kill()
            owner.wait()
            began = time.monotonic()
            assert cgroups.sweep() >= 1
            assert time.monotonic() - began < 2
            assert select.select([child], [], [], 5)[0], "what was left in there must die"
        finally:
            os.close(child)
    assert not any(pathlib.Path(each).exists() for each in directories)
    assert pathlib.Path(ours.directories[0]).exists()
    assert ours.remove()


def test_sweep_leaves_other_pid_namespaces_alone(mechanism: cgroups.Mechanism) -> None:
    assert isinstance(mechanism, directories.DirectoryMechanism)
    ours = mechanism.create(Limits())
    tree = next(iter(mechanism.trees.values()))
    foreign = pathlib.Path(tree.own, "nsmagic-999999999-1-1")  # dead, as far as our PID namespace knows
    dead = pathlib.Path(tree.own, "nsmagic-999999999-1")
    try:
        foreign.mkdir()
        if pathlib.Path("/proc/self/ns/pid").stat().st_ino == 4026531836:  # the first PID namespace
            dead.mkdir()
        cgroups.sweep()
        assert foreign.exists()
        assert not dead.exists()
    finally:
        foreign.rmdir()
    assert ours.remove()
