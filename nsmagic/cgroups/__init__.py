"""What a container may use, and what it did use: one interface, several mechanisms.

A host process asks ``choose`` for the strongest mechanism that can enforce its limits here, lets it
create one group a container, hands the group's descriptors to the launcher, reads ``usage`` and
removes the group at the end. Each mechanism is one module: ``v2``, ``systemd``, ``v1``, ``rlimits``.

Promises: nobody leaves the limits of their owner, because a container's group lies below the group that
this process lives in, or systemd bounds it by the same limits; each limit written is read back; what cannot
be enforced is named.
This room must not know how a container is built or what runs in it.
See cgroups(7), Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import functools
import math
import os
import re
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nsmagic.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Mapping

OPTIONS = {"mem": "--mem", "swap": "--swap", "cpus": "--cpus", "pids": "--pids"}
_SWEEP_SECONDS = 0.5


@dataclass(frozen=True)
class Limits:
    """What a container may use at most. ``None`` means no limit of its own.

    Attributes:
        mem: bytes of memory, page cache and tmpfs included.
        swap: bytes of swap on top of ``mem``; enforced together with ``mem``.
        cpus: cores' worth of CPU time, such as 0.5.
        pids: processes and threads of the user's code; our own come on top, see ``all_pids``.
        snapshots: whether a snapshot of the payload sleeps beside it: that is not the user's process, and it
            must outlive the payload when memory runs out.

    Raises:
        ValueError: a limit is negative, zero (``swap`` may be) or not a number.
    """

    mem: int | None = None
    swap: int = 0
    cpus: float | None = None
    pids: int | None = None
    snapshots: bool = False

    @property
    def all_pids(self) -> int | None:
        """The user's processes and threads, and ours: init, and where there are snapshots three more.

        Those are the old one, the new one, and who makes it.
        """
        return None if self.pids is None else self.pids + (4 if self.snapshots else 1)

    def __post_init__(self) -> None:
        """Refuse what no kernel could enforce."""
        if self.mem is not None and self.mem <= 0:
            raise ValueError(f"mem must be more than 0 bytes, not {self.mem}")
        if self.swap < 0:
            raise ValueError(f"swap must be 0 bytes or more, not {self.swap}")
        if self.cpus is not None and not 0 < self.cpus < math.inf:
            raise ValueError(f"cpus must be more than 0 cores, not {self.cpus}")
        if self.pids is not None and self.pids <= 0:
            raise ValueError(f"pids must be more than 0, not {self.pids}")

    def asked(self) -> tuple[str, ...]:
        """Return which limits were asked for; a memory limit implies one for swap.

        Without the latter the memory limit would only move the container's pages to disk.
        """
        asked = {
            "mem": self.mem is not None,
            "swap": self.mem is not None or self.swap > 0,
            "cpus": self.cpus is not None,
            "pids": self.pids is not None,
        }
        return tuple(what for what, yes in asked.items() if yes)


@dataclass(frozen=True)
class Missing:
    """A limit that a mechanism cannot enforce here.

    Attributes:
        what: ``mem``, ``swap``, ``cpus`` or ``pids``.
        reason: what the kernel or the system answered.
        remedy: what to do about it, a whole sentence without its full stop.
    """

    what: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Unavailable:
    """A mechanism that this host has, but that this process may not or cannot use; for the doctor."""

    mechanism: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Usage:
    """What a container used so far. ``None`` means unknown, which is not 0.

    Attributes:
        cpu_user: seconds of CPU time in user mode.
        cpu_system: seconds of CPU time in the kernel.
        memory: bytes charged now.
        memory_peak: the most bytes ever charged.
        pids: processes and threads now, init included.
        pids_peak: the most processes and threads ever, init included.
        oom_kills: processes that the kernel killed because memory ran out; some kernels count one twice.
        pids_refused: how often fork or clone was refused because of the limit.
        memory_limit_hits: how often memory ran into the limit, whether or not somebody was killed.
    """

    cpu_user: float | None = None
    cpu_system: float | None = None
    memory: int | None = None
    memory_peak: int | None = None
    pids: int | None = None
    pids_peak: int | None = None
    oom_kills: int | None = None
    pids_refused: int | None = None
    memory_limit_hits: int | None = None


class Group(Protocol):
    """One container's group. Any thread may use it; only one at a time may call ``set_limits``."""

    @property
    def name(self) -> str:
        """Return its name, ``c<N>``: unique within this process."""

    @property
    def directories(self) -> tuple[str, ...]:
        """Return what to rmdir, in order, once this process is dead: its directories, then the bases.

        Other containers' groups may lie in a base; then its rmdir fails with EBUSY, which is fine.
        """

    @property
    def enforced(self) -> Mapping[str, str]:
        """Return what is in force, read back: ``{"mem": "cgroup v2 memory.max = 134217728"}``."""

    def open_joins(self) -> list[int]:
        """Open what init writes "0" to, to join: the v1 ``tasks`` files; the caller closes them.

        ``tasks`` moves one thread, which for a process that has only one is the same as ``cgroup.procs``,
        but spares it a grace period of RCU: ten milliseconds.

        Raises:
            OSError: the group is gone.
        """

    def open_directory(self) -> int | None:
        """Open the cgroup v2 directory for CLONE_INTO_CGROUP; None where v2 has no part in it."""

    def usage(self) -> Usage:
        """Read what was used so far; all None once the group is gone."""

    def pids(self) -> list[int]:
        """Return the host's process ids of what is in the group; at most some 100,000."""

    def set_limits(self, limits: Limits) -> None:
        """Change the limits of the running container; each is read back.

        Raises:
            HostError: the kernel refused one; those before it are in force.
        """

    def share(self) -> None:
        """Several jobs are going to live in it: out of memory shall end one process, not all of them."""

    def kill(self) -> None:
        """SIGKILL everything in the group, for good: nothing can be started in it afterwards.

        Takes 0.5 seconds at most and does not wait for the last exit.
        """

    def exists(self) -> bool:
        """Return whether anything of it is left to remove."""

    def remove(self) -> bool:
        """Remove the group. Return False while something in it still lives."""


class Mechanism(Protocol):
    """One way to limit and to measure containers."""

    @property
    def name(self) -> str:
        """Return ``cgroup v2``, ``systemd scope``, ``cgroup v1`` or ``rlimits``."""

    def missing(self, limits: Limits) -> tuple[Missing, ...]:
        """Return what of ``limits`` it cannot enforce here, as a trial in a throwaway group has shown."""

    def uncounted(self) -> tuple[Missing, ...]:
        """Return what of ``mem``, ``cpus`` and ``pids`` its groups do not count, and why."""

    def create(self, limits: Limits) -> Group:
        """Make a group and put ``limits`` in force, except for those in ``missing(limits)``.

        Raises:
            HostError: the kernel refused the group or a limit; nothing is left behind.
        """

    def admit(self, pid: int) -> None:
        """Take in the process that containers are cloned from, before it makes one in a group of ours.

        A process may only be cloned into a group that its parent could have moved it to, see clone(2); where
        groups lie elsewhere than this process, the parent must be put beside them first.

        Raises:
            HostError: it cannot be moved.
        """

    def sweep(self, deadline: float) -> int:
        """Remove what dead owners left, until ``time.monotonic()`` is ``deadline``; return how many."""

    def close(self) -> None:
        """Let go of what was made for this process, if no container is left. ``create`` makes it anew."""


@dataclass(frozen=True)
class Choice:
    """How a container's limits are going to be enforced.

    Attributes:
        mechanism: what makes the group.
        limits: what was asked for.
        missing: what is not enforced, and was accepted as such.
        rlimits: resource limits for the payload, ``{resource: (soft, hard)}``; set them *inside* the
            container's user namespace (see the ``rlimits`` module).
        enforced: what ``rlimits`` puts in force, in the words of ``Group.enforced``.
    """

    mechanism: Mechanism
    limits: Limits
    missing: tuple[Missing, ...] = ()
    rlimits: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    enforced: Mapping[str, str] = field(default_factory=dict)

    def create(self) -> Group:
        """Make the group; see ``Mechanism.create``."""
        return self.mechanism.create(self.limits)


class Own(NamedTuple):
    """The group that this process lives in: its name in /proc/self/cgroup, and its directory."""

    path: str
    directory: str


def own_groups() -> dict[str, Own]:
    """Return this process' own group by controller; cgroup v2 has the key ``""``.

    A mount may show only a part of the hierarchy (a bind mount, a cgroup namespace), and names in it
    may mean something else, so a directory counts only if this process is in it. See cgroups(7), proc(5).
    """
    from nsmagic.cgroups.rlimits import lines, pids_in  # noqa: PLC0415

    mounts = []
    for line in lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        if kind in {"cgroup", "cgroup2"}:
            root, point = (
                re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), name)
                for name in before.split(" ")[3:5]
            )
            mounts.append((kind, root.rstrip("/"), point, options.split(",")))
    own: dict[str, Own] = {}
    for line in lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        names = set(controllers.split(","))
        for kind, root, point, has in mounts:
            wanted = kind == "cgroup" and names.issubset(has) if controllers else kind == "cgroup2"
            if not wanted or not f"{path}/".startswith(f"{root}/"):
                continue
            directory = (point + path[len(root) :]).rstrip("/")
            if ".." not in directory.split("/") and os.getpid() in pids_in(directory):
                own |= dict.fromkeys(names, Own(path, directory))
                break
    return own


@functools.lru_cache(maxsize=1)
def _found(pid: int) -> tuple[tuple[Mechanism, ...], tuple[Unavailable, ...]]:
    """Try each mechanism once for the process ``pid``: a fork has its own groups and tries again."""
    # Imported here because they import the interface from above.
    from nsmagic.cgroups import rlimits, systemd, v1, v2  # noqa: PLC0415

    del pid
    own = own_groups()
    found: list[Mechanism | Unavailable | None] = [v2.find(own), v1.find(own)]
    ours = found[0]
    # A scope costs a talk with systemd and a process: only where our own group does not do it all.
    if not isinstance(ours, v2.V2) or ours.lost:
        scope = systemd.find(own)
        if isinstance(ours, v2.V2) and isinstance(scope, v2.V2):
            # One of the two: the launcher can live beside the groups of one only.
            found[0], other = (scope, ours) if len(scope.lost) < len(ours.lost) else (ours, scope)
            other.close()
        else:
            # Where neither works, the remedy of a scope is the easier one to follow.
            found.insert(1 if isinstance(ours, v2.V2) else 0, scope)
    unavailable = tuple(each for each in found if isinstance(each, Unavailable))
    works = (each for each in found if each is not None and not isinstance(each, Unavailable))
    return (*works, rlimits.Rlimits()), unavailable


def mechanisms() -> list[Mechanism]:
    """Return the mechanisms that really work here, strongest first; the last is always ``rlimits``.

    The first call of a process tries each in a throwaway group (some milliseconds). Where this process'
    own v2 group was handed over to it, that moves the processes in there into a leaf, ``nsmagic-host``;
    where it was not, and systemd runs, that starts a scope.
    """
    return list(_found(os.getpid())[0])


def unavailable() -> list[Unavailable]:
    """Return the mechanisms that this host has and this process cannot use, with the remedy."""
    return list(_found(os.getpid())[1])


def choose(limits: Limits, *, userns: bool, best_effort: bool) -> Choice:
    """Find the mechanism that puts ``limits`` in force.

    Args:
        limits: what was asked for.
        userns: the container gets a user namespace of its own, where RLIMIT_NPROC is an exact limit.
        best_effort: take the mechanism that lacks least, if none can do it all.

    Raises:
        HostError: something asked for cannot be enforced, and not ``best_effort``.
    """
    from nsmagic.cgroups import rlimits  # noqa: PLC0415

    candidates = []
    for mechanism in mechanisms():
        missing = mechanism.missing(limits)
        by_rlimit = userns and rlimits.nproc_is_exact() and any(lost.what == "pids" for lost in missing)
        if by_rlimit:
            missing = tuple(lost for lost in missing if lost.what != "pids")
        bounds = rlimits.rlimits(limits, mem=any(lost.what == "mem" for lost in missing), pids=by_rlimit)
        enforced = {"pids": rlimits.nproc_text(limits)} if by_rlimit else {}
        candidates.append(Choice(mechanism, limits, missing, bounds, enforced))
        if not missing:
            break
    best = min(candidates, key=lambda choice: len(choice.missing))  # the first of equals: the strongest
    if best.missing and not best_effort:
        raise _refusal(best)
    return best


def _refusal(best: Choice) -> HostError:
    """Say why a limit cannot be enforced: best with the reason that the stronger mechanism gave."""
    first = best.missing[0]
    reason, remedy = first.reason, first.remedy
    options = [OPTIONS[each.what] for each in best.missing if (each.reason, each.remedy) == (reason, remedy)]
    if best.mechanism.name == "rlimits" and unavailable():
        reason, remedy = unavailable()[0].reason, unavailable()[0].remedy
        options = [OPTIONS[each.what] for each in best.missing]
    return HostError(", ".join(options), reason, f"{remedy}; or accept a weaker run with --best-effort.")


def uncounted(mechanism: Mechanism) -> tuple[Missing, ...]:
    """Return what of ``mem``, ``cpus`` and ``pids`` nobody counts where this mechanism is at work, and why.

    Where there is no group at all, that is because none could be made: the reason of the strongest.
    """
    lost = mechanism.uncounted()
    if mechanism.name != "rlimits" or not unavailable():
        return lost
    first = unavailable()[0]
    return tuple(Missing(each.what, first.reason, first.remedy) for each in lost)


def first_of(counted: Usage, other: Usage) -> Usage:
    """What the first knows, and of what it does not know what the second does."""
    known = {name: value for name, value in vars(counted).items() if value is not None}
    return replace(other, **known)


def sweep() -> int:
    """Kill and remove what dead owners left in this process' own groups; return how many bases went.

    Takes 0.5 seconds at most; never touches the groups of a living owner or of another PID namespace.
    """
    deadline = time.monotonic() + _SWEEP_SECONDS
    return sum(mechanism.sweep(deadline) for mechanism in mechanisms())


def close() -> None:
    """Remove this process' base directories where they are empty; for the end of a host process."""
    for mechanism in mechanisms():
        mechanism.close()
