"""Where a process's control group is, and what stands in it, for both versions; see cgroups(7).

>>> folder(os.getpid(), "memory")
PosixPath('/sys/fs/cgroup/user.slice/…')
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

UNLIMITED: Final = 1 << 62
"""Version 1 has no word for no limit: it shows the largest number of pages that it can count."""
_MOST: Final = 1 << 16


class _Hierarchy(NamedTuple):
    root: str
    point: str
    controllers: frozenset[str]
    version: int


def folder(pid: int, controller: str) -> Path:
    """The folder of a process's group.

    Args:
        pid: the process.
        controller: ``memory``, ``cpu`` or ``pids``.

    Raises:
        FileNotFoundError: no hierarchy with this controller is mounted so that the group is in it.
    """
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
        _, controllers, path = line.split(":", 2)
        for each in _hierarchies():
            named = controller in controllers.split(",") if each.version == 1 else not controllers
            if named and controller in each.controllers and f"{path}/".startswith(f"{each.root}/"):
                return Path(each.point + path[len(each.root) :])
    raise FileNotFoundError(errno.ENOENT, f"no mounted group for {controller}", f"/proc/{pid}/cgroup")


def _hierarchies() -> Iterator[_Hierarchy]:
    """What is mounted of control groups: proc_pid_mountinfo(5)."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split(" ")[3:5]
        fstype, _, options = after.split(" ", 2)
        if fstype == "cgroup":
            yield _Hierarchy(root.rstrip("/"), point, frozenset(options.split(",")), 1)
        elif fstype == "cgroup2":
            try:
                words = Path(point, "cgroup.controllers").read_text(encoding="ascii").split()
            except OSError:
                continue
            yield _Hierarchy(root.rstrip("/"), point, frozenset(words), 2)


def read(place: Path, *names: str) -> str:
    """The first of these files that there is: version 2 and version 1 have other names.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in names:
        if (place / name).exists():
            return (place / name).read_text(encoding="utf-8", errors="replace")[:_MOST].strip()
    raise FileNotFoundError(errno.ENOENT, "no such file of a control group", str(place / names[0]))


def number(text: str) -> int | None:
    """A limit as the kernel writes it; None for no limit."""
    value = -1 if text == "max" else int(text)
    return None if value < 0 or value >= UNLIMITED else value


def table(text: str) -> dict[str, int]:
    """Lines of a name and a number: cpu.stat, pids.events."""
    pairs = (line.split(" ") for line in text.splitlines())
    return {name: int(value) for name, value in pairs}


def members(place: Path) -> list[int]:
    """The processes in a group."""
    return [int(each) for each in read(place, "cgroup.procs").split()]


def memory_limit(pid: int) -> int | None:
    """Bytes that a process's group may use; None for no limit of its own."""
    return number(read(folder(pid, "memory"), "memory.max", "memory.limit_in_bytes"))


def pids_limit(pid: int) -> int | None:
    """Processes and threads that may be in a process's group; None for no limit of its own."""
    return number(read(folder(pid, "pids"), "pids.max"))


def cpu_share(pid: int) -> float | None:
    """Processors' worth of time that a process's group may use; None for no limit of its own."""
    place = folder(pid, "cpu")
    if (place / "cpu.max").exists():
        quota, period = read(place, "cpu.max").split(" ")
    else:
        quota, period = read(place, "cpu.cfs_quota_us"), read(place, "cpu.cfs_period_us")
    most = number(quota)
    return None if most is None else most / int(period)
