"""Limits by cgroup v2, in a group that is ours.

A group with processes cannot hand controllers to its children ("no internal processes"), the
hierarchy's root excepted. So where the own group was handed over to us, its processes, ourselves
among them, first move into a leaf beside the base, ``nsmagic-host``; where it was not, we say so.

``systemd`` builds on this module: it gets a group from systemd and hands it to ``prepare``.
See Documentation/admin-guide/cgroup-v2.rst and https://systemd.io/CGROUP_DELEGATION.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from nsmagic.cgroups import Missing, Unavailable, Usage
from nsmagic.cgroups.directories import (
    CONTROLLERS,
    PERIOD,
    READ_ONLY,
    REMEDY,
    DirectoryGroup,
    DirectoryMechanism,
    Setting,
    Tree,
)
from nsmagic.cgroups.rlimits import PIDS_MOST, number, read, table, write
from nsmagic.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nsmagic.cgroups import Limits, Own

HOST_LEAF = "nsmagic-host"
_MOVES = 20  # rounds of moving processes away, against those that are forked meanwhile
_NOT_DELEGATED = (
    "An administrator adds it for users' units: systemctl edit user@.service, with the lines "
    "[Service] and Delegate=cpu memory pids, and a new login"
)


class V2Group(DirectoryGroup):
    """A container's group in the one hierarchy of cgroup v2."""

    def settings(self, limits: Limits) -> Iterator[Setting]:
        """Yield what to write: a limit that is not asked for is "max"."""
        leaf = self.leaves[0]
        if "memory" in self.places:
            yield Setting("mem", f"{leaf}/memory.max", _or_max(limits.mem))
            yield Setting("swap", f"{leaf}/memory.swap.max", str(limits.swap))
        if "pids" in self.places:
            pids = None if limits.all_pids is None else min(limits.all_pids, PIDS_MOST)
            yield Setting("pids", f"{leaf}/pids.max", _or_max(pids))
        if "cpu" in self.places:
            quota = None if limits.cpus is None else round(limits.cpus * PERIOD)
            yield Setting("cpus", f"{leaf}/cpu.max", f"{_or_max(quota)} {PERIOD}")

    def share(self) -> None:
        """Have out of memory end one process; see ``Group.share``."""
        with contextlib.suppress(FileNotFoundError):
            write(f"{self.leaves[0]}/memory.oom.group", "0")

    def set_limits(self, limits: Limits) -> None:
        """Put ``limits`` in force; see ``Group.set_limits``."""
        super().set_limits(limits)
        if limits.snapshots:  # out of memory kills the payload, and its snapshot takes over
            self.share()

    def usage(self) -> Usage:
        """Read what was used; see ``Group.usage``."""
        leaf = self.leaves[0]
        cpu, memory = table(f"{leaf}/cpu.stat"), table(f"{leaf}/memory.events")
        return Usage(
            cpu_user=cpu["user_usec"] / 1e6 if "user_usec" in cpu else None,
            cpu_system=cpu["system_usec"] / 1e6 if "system_usec" in cpu else None,
            memory=number(f"{leaf}/memory.current"),
            memory_peak=number(f"{leaf}/memory.peak"),
            pids=number(f"{leaf}/pids.current"),
            pids_peak=number(f"{leaf}/pids.peak"),
            oom_kills=memory.get("oom_kill"),
            pids_refused=self.pids_refused(),
            memory_limit_hits=memory.get("max"),
        )


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(value)


class V2(DirectoryMechanism):
    """cgroup v2 in a directory that is ours."""

    name = interface = "cgroup v2"

    def group(self, name: str, places: Mapping[str, str]) -> V2Group:
        """Return the group; out of memory kills all that is in it, not one process that others wait for."""
        with contextlib.suppress(FileNotFoundError):  # before Linux 4.19, or without the memory controller
            write(f"{places['']}/memory.oom.group", "1")
        return V2Group(self, name, places)


def find(own: Mapping[str, Own]) -> V2 | Unavailable | None:
    """Return the mechanism in this process' own group, or why there is none; None where v1 does the work.

    Args:
        own: this process' own groups, as ``own_groups`` found them.
    """
    if "" not in own:
        reason = "no cgroup file system that shows the group of this process is mounted"
        return None if own else Unavailable("cgroup v2", reason, REMEDY)
    path, directory = own[""]
    if path.endswith(f"/{HOST_LEAF}"):  # we, or the process that started us, made room already
        path, directory = path.removesuffix(f"/{HOST_LEAF}") or "/", directory.removesuffix(f"/{HOST_LEAF}")
    if not _offered(directory) and own.keys() & CONTROLLERS.keys():
        return None
    return build(directory, ours=handed_over(directory, path))


class Prepared(NamedTuple):
    """A group in which containers' groups can be made: what a mechanism takes."""

    trees: dict[str, Tree]
    lost: dict[str, Missing]


def build(own: str, *, ours: bool) -> V2 | Unavailable:
    """Return a mechanism whose groups lie below ``own``; see ``prepare``."""
    prepared = prepare(own, ours=ours)
    if isinstance(prepared, Unavailable):
        return prepared
    try:
        return V2(*prepared)
    except HostError as error:
        prepared.trees[""].close()
        return Unavailable("cgroup v2", error.reason, error.remedy.rstrip("."))


def prepare(own: str, *, ours: bool, whom: str = "", remedy: str = _NOT_DELEGATED) -> Prepared | Unavailable:
    """Make room in ``own``, and have it hand down its controllers.

    Args:
        own: the directory of a group.
        ours: the group was handed over to us, so that the processes in there may be moved into a leaf.
        whom: to whom the controllers that ``own`` lacks are not delegated; ``own`` itself if empty.
        remedy: what to do about that.
    """
    offered = _offered(own)
    if not offered:
        return Unavailable("cgroup v2", f"no controller is delegated to {whom or own}", REMEDY)
    tree = Tree(own)
    try:
        tree.make_base()
        # Asked, not tried: "+cpu" works beside processes, but makes the group the root of a threaded subtree.
        if not is_real_root(own) and read(f"{own}/cgroup.procs"):
            if not ours:
                tree.close()
                reason = f"{own} holds processes and is not handed over to them"
                # A user's own systemd (252 and 257) marks no units: delegated ones look like the others.
                mark = f", and mark it: setfattr -n user.delegate -v 1 {own}" if os.getuid() else ""
                return Unavailable("cgroup v2", reason, REMEDY + mark)
            _make_room(own)
    except OSError as error:
        tree.close()
        advice = REMEDY if error.errno != errno.EROFS else READ_ONLY
        return Unavailable("cgroup v2", f"no groups can be made in {own}: {error.strerror}", advice)
    lost = {
        what: Missing(what, f"{controller} is not delegated to {whom or own}", remedy)
        for controller in CONTROLLERS.keys() - offered
        for what in CONTROLLERS[controller]
    }
    for controller in sorted(offered):
        try:
            if controller not in read(f"{own}/cgroup.subtree_control").split():
                write(f"{own}/cgroup.subtree_control", f"+{controller}")
            write(f"{tree.base}/cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            reason = f"{controller} cannot be enabled in {own}: {error.strerror}"
            lost |= {what: Missing(what, reason, REMEDY) for what in CONTROLLERS[controller]}
            offered = offered - {controller}
    tree.controllers = tuple(sorted(offered))
    return Prepared(dict.fromkeys(("", *tree.controllers), tree), lost)


def _offered(own: str) -> set[str]:
    try:
        return set(read(f"{own}/cgroup.controllers").split()) & CONTROLLERS.keys()
    except OSError:
        return set()


def is_real_root(directory: str) -> bool:
    """Say whether this is the hierarchy's root, where processes and controllers may go together."""
    return not os.path.exists(f"{directory}/cgroup.type")  # noqa: PTH110


def handed_over(directory: str, path: str) -> bool:
    """Say whether this group is ours to rearrange.

    It is when we may write there, and it is our cgroup namespace's root or systemd marked it as delegated.

    Args:
        directory: the group.
        path: its name in /proc/self/cgroup.
    """
    if not all(os.access(f"{directory}/cgroup.{file}", os.W_OK) for file in ("procs", "subtree_control")):
        return False
    if path == "/":
        return not is_real_root(directory)
    for attribute in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(directory, attribute) == b"1":
                return True
    return False


def _make_room(own: str) -> None:
    """Move the processes in ``own``, this one among them, into a leaf. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{own}/{HOST_LEAF}")  # noqa: PTH102
    for _ in range(_MOVES):
        pids = read(f"{own}/cgroup.procs").split()  # a page of them; more in the next round
        if not pids:
            return
        if "0" in pids:
            raise OSError(errno.EPERM, "it holds processes of an outer PID namespace, which cannot be moved")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                write(f"{own}/{HOST_LEAF}/cgroup.procs", pid)
    raise OSError(errno.EBUSY, f"processes appear faster than they can be moved to {HOST_LEAF}")
