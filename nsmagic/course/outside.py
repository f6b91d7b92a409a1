"""A process as it is seen from outside: what /proc shows of it, typed.

Nothing is asked of the process itself, so nothing that it prints or returns can change what is seen.  What
/proc does not show (a host name, clocks) is asked of a child of ours that enters its namespaces: ``inside``.
See proc(5), namespaces(7).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from nsmagic import namespaces
from nsmagic.course import inside

if TYPE_CHECKING:
    from typing_extensions import Self

    from nsmagic.course.inside import Facts

_MOST_MOUNTS: Final = 4000
_NS_GET_USERNS: Final = 0xB701
_NS_GET_PARENT: Final = 0xB702


class MountPoint(NamedTuple):
    """One line of /proc/PID/mountinfo; see proc_pid_mountinfo(5).

    Attributes:
        number: the mount's.
        parent: the number of the mount that it hangs in.
        device: major:minor, which names the file system.
        root: which folder of that file system is mounted.
        target: where, as the process sees it.
        options: of this mount: ``ro``, ``nosuid`` …
        propagation: ``shared:7``, ``master:7``; none of it is private.
        fstype: kind of file system.
        source: what was given as the source.
        super_options: of the file system: ``size=1024k`` …
    """

    number: int
    parent: int
    device: str
    root: str
    target: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


class Process:
    """One process of the host.

    Args:
        pid: the host's number of it.
        name: what the course calls it.
    """

    def __init__(self, pid: int, name: str = "") -> None:
        self.pid = pid
        self.name = name or f"process {pid}"

    @classmethod
    def here(cls) -> Self:
        """The notebook's own."""
        return cls(os.getpid(), "the notebook")

    def _path(self, *parts: str) -> Path:
        return Path("/proc", str(self.pid), *parts)

    def text(self, *parts: str) -> str:
        """A file of its folder in /proc, as text.

        Raises:
            OSError: it has ended, or it is not ours to look at.
        """
        return self._path(*parts).read_text(encoding="utf-8", errors="replace")

    # ---- namespaces --------------------------------------------------------------------------

    def ns(self, kind: str) -> int | None:
        """The inode of its namespace of a kind, by the names of ``spec.NAMESPACES``; None if unreadable."""
        return namespaces.inode(self.pid, kind)

    def ns_for_children(self, kind: str) -> int | None:
        """The namespace that its next child is born in: ``pid`` or ``time``; None where there is none yet."""
        try:
            return os.stat(self._path("ns", f"{kind}_for_children")).st_ino  # noqa: PTH116 - follows the link
        except FileNotFoundError:
            return None

    def ns_above(self, kind: str) -> int | None:
        """The inode of the parent of its ``user`` or ``pid`` namespace; None where it is not to be seen.

        See ioctl_nsfs(2).
        """
        return _related(str(self._path("ns", namespaces.FILES[kind])), _NS_GET_PARENT)

    def ns_owner(self, kind: str) -> int | None:
        """The inode of the user namespace that owns one of its namespaces; None where we may not see it."""
        return _related(str(self._path("ns", namespaces.FILES[kind])), _NS_GET_USERNS)

    def id_map(self, kind: str) -> list[tuple[int, int, int]]:
        """Its ``uid`` or ``gid`` map: (inside, outside, count) each; see user_namespaces(7)."""
        lines = [line.split() for line in self.text(f"{kind}_map").splitlines()]
        return [(int(first), int(second), int(count)) for first, second, count in lines]

    def timens_offsets(self) -> dict[str, int]:
        """What the clocks of its children are ahead by, in whole seconds; see time_namespaces(7)."""
        lines = [line.split() for line in self.text("timens_offsets").splitlines()]
        return {clock: int(seconds) for clock, seconds, _ in lines}

    def inside(self, *kinds: str) -> Facts:
        """What a process would see that enters its namespaces of these kinds; see ``inside.Facts``.

        Raises:
            OSError: one cannot be entered.
        """
        return inside.ask(self.pid, kinds)

    # ---- the process itself ----------------------------------------------------------------------

    def status(self) -> dict[str, str]:
        """/proc/PID/status, by field; see proc_pid_status(5)."""
        fields = (line.partition(":") for line in self.text("status").splitlines())
        return {name: value.strip() for name, _, value in fields}

    @property
    def state(self) -> str:
        """``R`` running, ``S`` sleeping, ``T`` stopped, ``Z`` zombie."""
        return self.status()["State"][:1]

    def ids(self, kind: str) -> tuple[int, ...]:
        """Its real, effective, saved and file-system ids as the host sees them: ``uid`` or ``gid``."""
        return tuple(int(each) for each in self.status()[kind.capitalize()].split())

    def pids(self) -> list[int]:
        """Its process ids: the host's, then one for each PID namespace inward; see pid_namespaces(7)."""
        return [int(each) for each in self.status()["NSpid"].split()]

    def capabilities(self, which: str = "Eff") -> int:
        """One of its capability sets as bits: ``Eff``, ``Prm``, ``Inh``, ``Bnd`` or ``Amb``.

        See proc_pid_status(5).
        """
        return int(self.status()[f"Cap{which}"], 16)

    def command(self) -> list[str]:
        """Its command line."""
        return [each for each in self.text("cmdline").split("\0") if each]

    def children(self) -> list[Process]:
        """Its living children, zombies among them, of all its threads."""
        found = []
        for thread in self._path("task").iterdir():
            found += [int(each) for each in (thread / "children").read_text(encoding="ascii").split()]
        return [Process(pid, f"child {pid} of {self.name}") for pid in found]

    def descendants(self) -> list[Process]:
        """Its children, their children and so on; who ends meanwhile is not in it."""
        found = []
        try:
            children = self.children()
        except OSError:
            return []
        for each in children:
            found += [each, *each.descendants()]
        return found

    # ---- files ---------------------------------------------------------------------------------------

    def root(self) -> str:
        """What its paths begin at, as a path of the notebook's; see chroot(2)."""
        return os.readlink(self._path("root"))  # noqa: PTH115 - a link of /proc

    def cwd(self) -> str:
        """Its working directory, likewise."""
        return os.readlink(self._path("cwd"))  # noqa: PTH115 - a link of /proc

    def at(self, path: str) -> Path:
        """A path as the process sees it, as one that we can look at, below /proc/PID/root."""
        return self._path("root", path.lstrip("/"))

    def mounts(self) -> list[MountPoint]:
        """The mounts that it sees; see proc_pid_mountinfo(5)."""
        found = []
        for line in self.text("mountinfo").splitlines()[:_MOST_MOUNTS]:
            fields = line.split()
            dash = fields.index("-")
            found.append(
                MountPoint(
                    int(fields[0]), int(fields[1]), fields[2], _unescape(fields[3]), _unescape(fields[4]),
                    tuple(fields[5].split(",")), tuple(fields[6:dash]),
                    fields[dash + 1], _unescape(fields[dash + 2]), tuple(fields[dash + 3].split(",")),
                )
            )  # fmt: skip
        return found

    def mount_at(self, target: str) -> MountPoint | None:
        """The mount on a path of the process's, the uppermost one; None where nothing is mounted there."""
        return next((each for each in reversed(self.mounts()) if each.target == target), None)

    def groups(self) -> dict[str, str]:
        """Its control groups: the path by controllers, an empty text for version 2; see cgroups(7)."""
        lines = [line.split(":", 2) for line in self.text("cgroup").splitlines()]
        return {controllers: path for _, controllers, path in lines}


def _related(path: str, request: int) -> int | None:
    """The inode of the namespace that another one names by an ioctl."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = fcntl.ioctl(descriptor, request)
    except PermissionError:
        return None
    finally:
        os.close(descriptor)
    try:
        return os.fstat(other).st_ino
    finally:
        os.close(other)


def _unescape(text: str) -> str:
    r"""A field of mountinfo: blanks and the like are written as octal numbers, ``\040``."""
    for code in ("\\040", "\\011", "\\012", "\\134"):
        text = text.replace(code, chr(int(code[1:], 8)))
    return text
