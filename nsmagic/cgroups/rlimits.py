"""Limits without any group, by resource limits and a watchdog; processes as /proc shows them.

The weakest mechanism. RLIMIT_AS bounds one process, not their sum; the watchdog sees the sum, but only
when it looks; nothing bounds CPU time. Used where nothing else is there, and only under ``--best-effort``.

One limit is exact even here. Since Linux 5.14 RLIMIT_NPROC counts the processes and threads of one user
*within one user namespace*, init included if it has the same user. It must be set inside, after
the namespace was made: what is set before becomes the namespace's cap on its creator's
count *outside*, and then two containers of one user disturb each other. Host root is exempt from it.

The modules for groups build on this one; it must not know them.
See getrlimit(2), user_namespaces(7), proc(5).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from nsmagic.cgroups import Limits, Missing, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

# RLIMIT_AS counts addresses, not memory: an interpreter with its libraries maps this much and touches little.
INTERPRETER_BYTES = 1 << 30
PIDS_MOST = 4_194_304  # PID_MAX_LIMIT: no kernel has more processes, and pids.max takes no more
_ONE_READ = 4096
_AT_ONCE = 256
_KILL_SECONDS = 0.5
_PROCESSES_MOST = 65_536
_PSS_SECONDS = 0.05
_REMEDY = (
    "Run as root, or on a host with cgroup v2 in a group that is handed over to this process (Delegate=yes)"
)
_REASONS = {
    "mem": "without a cgroup RLIMIT_AS bounds each process alone, and a watchdog sees their sum too late",
    "swap": "without a cgroup nothing bounds how much of a process is swapped out",
    "cpus": "without a cgroup nothing bounds CPU time to a share",
    "pids": "without a cgroup RLIMIT_NPROC needs a user namespace of the container's own, and Linux 5.14",
}


# Processes as /proc shows them


def read(path: str, most: int = _ONE_READ) -> str:
    """Return what the kernel's file holds, at most ``most`` bytes; files below a page come in one read.

    Raises:
        OSError: the kernel's answer.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, most)
        while most > _ONE_READ and len(text) < most and (more := os.read(descriptor, most - len(text))):
            text += more
    finally:
        os.close(descriptor)
    return text.decode("ascii", "replace").strip()


def lines(path: str) -> list[str]:
    """Return the lines of a file in /proc of any length; none where there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            return file.read().splitlines()
    except OSError:
        return []


def write(path: str, value: str) -> None:
    """Write ``value`` into a group's file, in one call. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode("ascii"))
    finally:
        os.close(descriptor)


def number(path: str) -> int | None:
    """Return the number in a group's file; None ("unknown") where there is none."""
    try:
        return int(read(path))
    except (OSError, ValueError):
        return None


def table(path: str) -> dict[str, int]:
    """Return the lines ``key N`` of a group's file; empty where there is no such file."""
    try:
        pairs = [line.partition(" ") for line in read(path).splitlines()]
    except OSError:
        return {}
    return {key: int(value) for key, _, value in pairs if value.isdecimal()}


def pids_in(directory: str) -> list[int]:
    """Return the processes in the group. Those of an outer PID namespace show as 0 and are left out."""
    try:
        lines = read(f"{directory}/cgroup.procs", 1 << 20).split("\n")
    except OSError:
        return []
    return [int(line) for line in lines if line.isdecimal() and line != "0"]


class Stat(NamedTuple):
    """Some fields of /proc/PID/stat; times in clock ticks, ``started`` since boot."""

    parent: int
    user: int
    system: int
    threads: int
    started: str
    dead: bool


def stat(pid: int) -> Stat | None:
    """Read /proc/PID/stat; None where there is no such process (or /proc hides it).

    Times include those of children that were waited for.
    """
    try:
        # The name in brackets is chosen by the process and may hold anything, brackets too.
        fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        parent, user, system, child_user, child_system, threads = (
            int(fields[n]) for n in (1, 11, 12, 13, 14, 17)
        )
        # The first thread of a living process may be a zombie; then there are others.
        dead = fields[0] in "ZX" and threads <= 1
        return Stat(parent, user + child_user, system + child_system, threads, fields[19], dead)
    except (OSError, IndexError, ValueError):
        return None


def alive(pid: int, started: str) -> bool:
    """Say whether the process that had this pid and start time still lives; in doubt it does."""
    found = stat(pid)
    if found is not None:
        return found.started == started and not found.dead
    try:
        os.kill(pid, 0)  # /proc may hide it from us (hidepid)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def kill_all(
    pids: Callable[[], Collection[int]], deadline: float, switch: Callable[[], object] | None = None
) -> None:
    """SIGKILL what ``pids`` lists, and again what was forked meanwhile, until none is left or ``deadline``.

    Args:
        pids: lists the processes, freshly at each call.
        deadline: in terms of ``time.monotonic()``, seconds.
        switch: kills all of them at once, where there is such a thing; may raise OSError.
    """
    while found := list(pids())[:_AT_ONCE]:
        handles = {}
        for pid in found:
            with contextlib.suppress(OSError):
                handles[pid] = os.pidfd_open(pid)
        # Between list and open a pid may have passed to a stranger; one that is listed again has not.
        still = set(pids())
        try:
            if switch is not None:
                with contextlib.suppress(OSError):
                    switch()
            for pid in still & handles.keys():
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(handles[pid], signal.SIGKILL)
            for pid in still & handles.keys():
                poll = select.poll()
                poll.register(handles[pid], select.POLLIN)
                poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        finally:
            for handle in handles.values():
                os.close(handle)
        if time.monotonic() >= deadline:
            return
        if not still & handles.keys():
            time.sleep(0.001)  # they are on their way out of the list: no event says when


def host_has_swap() -> bool:
    """Say whether there is swap now; where there is none, there is nothing to limit."""
    try:
        return len(read("/proc/swaps").splitlines()) > 1
    except OSError:
        return True


# Limits of a process


def nproc_is_exact() -> bool:
    """Say whether RLIMIT_NPROC counts per user namespace: since Linux 5.14."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return release is not None and (int(release[1]), int(release[2])) >= (5, 14)


def nproc_text(limits: Limits) -> str:
    """Say what RLIMIT_NPROC puts in force, in the words of ``Group.enforced``."""
    return f"RLIMIT_NPROC = {min(limits.all_pids or 1, PIDS_MOST)} in its own user namespace"


def rlimits(limits: Limits, *, mem: bool = True, pids: bool = True) -> dict[int, tuple[int, int]]:
    """Return resource limits for the payload, ``{resource: (soft, hard)}``.

    Args:
        limits: what was asked for.
        mem: bound the address space: a blunt stop for one huge allocation, where no group limits memory.
        pids: bound processes and threads by RLIMIT_NPROC, where no group does; one more for init.
    """
    import resource  # noqa: PLC0415  not on every system, and this module must import everywhere

    found: dict[int, tuple[int, int]] = {}
    if mem and limits.mem is not None:
        found[resource.RLIMIT_AS] = (limits.mem + INTERPRETER_BYTES,) * 2
    if pids and limits.pids is not None:
        found[resource.RLIMIT_NPROC] = (min(limits.all_pids or 1, PIDS_MOST),) * 2
    return found


# The watchdog, and the mechanism made of it


class Watchdog:
    """Samples what a container uses, from outside and without a group.

    Memory is the sum of the processes' proportional set sizes (resident sizes where those may not be
    read): pages that nobody maps, such as files on a tmpfs, are not in it. Peaks are the highest sample.

    Args:
        pid: the container's init as the host sees it; orphans in there become its children.
    """

    def __init__(self, pid: int) -> None:
        found = stat(pid)
        self._pid = pid
        self._started = found.started if found else ""
        self._memory_peak = self._pids_peak = 0

    def pids(self) -> list[int]:
        """Return init and its descendants; nothing once init is dead."""
        if not alive(self._pid, self._started):
            return []
        children = _children_by_file if os.path.exists("/proc/thread-self/children") else _children_by_scan()  # noqa: PTH110
        found = [self._pid]
        for pid in found:  # grows while it is read: breadth first
            found.extend(itertools.islice(children(pid), _PROCESSES_MOST - len(found)))
        return found

    def sample(self) -> Usage:
        """Return the usage now; all None once init is dead. Costs some milliseconds."""
        user = system = memory = count = 0
        patience = time.monotonic() + _PSS_SECONDS
        for pid in self.pids():
            found = stat(pid)
            if found is not None:
                user, system, count = user + found.user, system + found.system, count + found.threads
                memory += _memory(pid, exactly=time.monotonic() < patience)
        if not count:
            return Usage()
        self._memory_peak = max(self._memory_peak, memory)
        self._pids_peak = max(self._pids_peak, count)
        ticks = os.sysconf("SC_CLK_TCK")
        return Usage(user / ticks, system / ticks, memory, self._memory_peak, count, self._pids_peak)


def _memory(pid: int, *, exactly: bool) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        if exactly:  # this walks the page tables, which takes its time
            for line in read(f"/proc/{pid}/smaps_rollup").splitlines():
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(read(f"/proc/{pid}/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _children_by_file(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  paths are text throughout
            found += map(int, read(f"/proc/{pid}/task/{task}/children", 1 << 20).split())
    return found


def _children_by_scan() -> Callable[[int], list[int]]:
    """Look at every process once, on kernels without CONFIG_PROC_CHILDREN."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdecimal() and (found := stat(int(name))) is not None:
            children.setdefault(found.parent, []).append(int(name))
    return lambda pid: children.get(pid, [])


class RlimitGroup:
    """No group at all: a container that is only watched, from ``attach`` on."""

    directories: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self.enforced: Mapping[str, str] = {}
        self._watchdog: Watchdog | None = None

    def attach(self, pid: int) -> None:
        """Watch the container whose init has this pid on the host."""
        self._watchdog = Watchdog(pid)

    def open_joins(self) -> list[int]:
        """Return nothing: there is no group to move into."""
        return []

    def open_directory(self) -> int | None:
        """Return None: there is no group to be cloned into."""
        return None

    def usage(self) -> Usage:
        """Sample the usage; see ``Watchdog.sample``."""
        return self._watchdog.sample() if self._watchdog else Usage()

    def pids(self) -> list[int]:
        """Return init and its descendants."""
        return self._watchdog.pids() if self._watchdog else []

    def set_limits(self, limits: Limits) -> None:
        """Take note of nothing: whoever samples compares."""

    def share(self) -> None:
        """Do nothing: nobody ends all of it."""

    def kill(self) -> None:
        """SIGKILL init and its descendants."""
        kill_all(self.pids, time.monotonic() + _KILL_SECONDS)

    def exists(self) -> bool:
        """Return False: nothing of it is to be found anywhere."""
        return False

    def remove(self) -> bool:
        """Return whether init is dead."""
        return not self.pids()


class Rlimits:
    """The mechanism that is always there, and enforces next to nothing."""

    name = "rlimits"

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def missing(self, limits: Limits) -> tuple[Missing, ...]:
        """Name every limit asked for; ``choose`` knows when RLIMIT_NPROC stands in for ``pids``."""
        return tuple(
            Missing(what, _REASONS[what], _REMEDY)
            for what in limits.asked()
            if what != "swap" or host_has_swap()
        )

    def uncounted(self) -> tuple[Missing, ...]:
        """Name everything: there is no group."""
        reason = "without a cgroup nobody counts what a container uses"
        return tuple(Missing(what, reason, _REMEDY) for what in ("mem", "cpus", "pids"))

    def create(self, limits: Limits) -> RlimitGroup:
        """Return a group that watches, once it is told whom."""
        del limits
        return RlimitGroup(f"c{next(self._numbers)}")

    def admit(self, pid: int) -> None:
        """Do nothing: there is no group to be in."""

    def sweep(self, deadline: float) -> int:
        """Return 0: it leaves nothing behind."""
        del deadline
        return 0

    def close(self) -> None:
        """Do nothing: it leaves nothing behind."""
