"""Limits by cgroup v1: one hierarchy for each controller, so one directory in each for a container.

Used: memory, pids and cpuacct always (they measure, too), cpu only where a share of it was asked for. On a
hybrid host the container also gets a group in the v2 hierarchy, which has no controllers there, for
its cgroup.kill. Out of memory kills one process here, not the whole group.

Must not know how containers are built. See Documentation/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from nsmagic.cgroups import Limits, Missing, Unavailable, Usage
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
from nsmagic.cgroups.rlimits import PIDS_MOST, lines, number, read, table
from nsmagic.cgroups.v2 import handed_over, is_real_root
from nsmagic.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nsmagic.cgroups import Own

_MEASURING = "cpuacct"
_NOT_MOUNTED = "Mount it, or boot with cgroup_enable=memory where it is memory that is missing"


class V1Group(DirectoryGroup):
    """A container's group in the hierarchies of cgroup v1."""

    _memory_and_swap: int | None = None  # what is in force now, bytes

    def settings(self, limits: Limits) -> Iterator[Setting]:
        """Yield what to write. A new group has no limits, so that only a live change writes -1 or max."""
        new = not self.limited
        if "memory" in self.places and not (new and limits.mem is None):
            yield from self._memory(limits)
        if "pids" in self.places and not (new and limits.pids is None):
            most = "max" if limits.all_pids is None else str(min(limits.all_pids, PIDS_MOST))
            yield Setting("pids", f"{self.places['pids']}/pids.max", most)
        if "cpu" in self.places and not (new and limits.cpus is None):
            quota = -1 if limits.cpus is None else round(limits.cpus * PERIOD)
            yield Setting("cpus", f"{self.places['cpu']}/cpu.cfs_quota_us", str(quota))
        elif limits.cpus is not None and "cpu" not in self.places and "cpus" not in self.mechanism.lost:
            # Moving what already runs could miss a process that forks at this moment.
            reason = "with cgroup v1 a container that was started without a CPU limit is in no group for it"
            raise HostError("--cpus", reason, "Start the container with --cpus, then change it.")

    def _memory(self, limits: Limits) -> Iterator[Setting]:
        """Yield the limits of memory and of memory + swap: at no time may the first exceed the second."""
        place = self.places["memory"]
        both = None if limits.mem is None else limits.mem + limits.swap
        memory = Setting("mem", f"{place}/memory.limit_in_bytes", _or_minus_one(limits.mem))
        with_swap = Setting("swap", f"{place}/memory.memsw.limit_in_bytes", _or_minus_one(both))
        now = self._memory_and_swap
        raises = now is not None and (limits.mem is None or limits.mem > now)
        yield from (with_swap, memory) if raises else (memory, with_swap)
        self._memory_and_swap = both

    def usage(self) -> Usage:
        """Read what was used; see ``Group.usage``."""
        memory, pids, cpu = (self.places.get(name, "/nowhere") for name in ("memory", "pids", _MEASURING))
        user, system = number(f"{cpu}/cpuacct.usage_user"), number(f"{cpu}/cpuacct.usage_sys")
        # Where both limits are the same, as without swap, it is the one with swap that is hit. Linux 6.18 has
        # stopped counting without taking the files away, so that 0 may be untrue: unknown.
        hits = sum(number(f"{memory}/{file}") or 0 for file in ("memory.failcnt", "memory.memsw.failcnt"))
        return Usage(
            cpu_user=None if user is None else user / 1e9,
            cpu_system=None if system is None else system / 1e9,
            memory=number(f"{memory}/memory.usage_in_bytes"),
            memory_peak=number(f"{memory}/memory.max_usage_in_bytes"),
            pids=number(f"{pids}/pids.current"),
            pids_peak=number(f"{pids}/pids.peak"),
            oom_kills=table(f"{memory}/memory.oom_control").get("oom_kill"),
            pids_refused=self.pids_refused(),
            memory_limit_hits=hits or None,
        )


def _or_minus_one(value: int | None) -> str:
    return "-1" if value is None else str(value)


class V1(DirectoryMechanism):
    """cgroup v1 in this process' own groups."""

    name = interface = "cgroup v1"
    counters: Mapping[str, str] = {**DirectoryMechanism.counters, _MEASURING: "cpus"}

    def group(self, name: str, places: Mapping[str, str]) -> V1Group:
        """Return the group."""
        return V1Group(self, name, places)

    def wanted(self, limits: Limits) -> Iterable[str]:
        """Return the controllers; one directory less where no share of CPU time is asked for."""
        cpu, measuring = self.trees.get("cpu"), self.trees.get(_MEASURING)
        shared = cpu is not None and measuring is not None and cpu.own == measuring.own
        return [name for name in self.trees if name != "cpu" or shared or limits.cpus is not None]


def find(own: Mapping[str, Own]) -> V1 | Unavailable | None:
    """Return the mechanism in this process' own groups, or why there is none; None on a host without v1.

    Args:
        own: this process' own groups, as ``own_groups`` found them.
    """
    there = {name for line in lines("/proc/self/cgroup") for name in line.split(":", 2)[1].split(",")}
    if not there & {*CONTROLLERS, _MEASURING}:
        return None
    trees: dict[str, Tree] = {}
    lost: dict[str, Missing] = {}
    for controller in (*CONTROLLERS, _MEASURING):
        missing = _try(controller, own, trees)
        lost |= {what: Missing(what, *missing) for what in CONTROLLERS.get(controller, ()) if missing}
    if not trees:
        first = next(iter(lost.values()))
        return Unavailable("cgroup v1", first.reason, first.remedy)
    if "" in own and (is_real_root(own[""].directory) or handed_over(own[""].directory, own[""].path)):
        _try("", own, trees)
    try:
        return V1(trees, lost)
    except HostError as error:
        for tree in trees.values():
            tree.close()
        return Unavailable("cgroup v1", error.reason, error.remedy.rstrip("."))


def _try(controller: str, own: Mapping[str, Own], trees: dict[str, Tree]) -> tuple[str, str] | None:
    """Make a base where it can be made; return reason and remedy where not."""
    if controller not in own:
        return (
            f"the {controller} controller is not mounted so that the group of this process shows",
            _NOT_MOUNTED,
        )
    directory = own[controller].directory
    try:
        # Without it a group's processes do not count for the group above: they would leave its limit.
        if controller == "memory" and read(f"{directory}/memory.use_hierarchy") == "0":
            remedy = "Write 1 to the root's memory.use_hierarchy before groups are made, as systemd does"
            return f"{directory}/memory.use_hierarchy is 0", remedy
    except FileNotFoundError:
        pass
    tree = Tree(directory)
    try:
        tree.make_base()
    except OSError as error:
        remedy = REMEDY if error.errno != errno.EROFS else READ_ONLY
        return f"a group cannot be made in {directory}: {error.strerror}", remedy
    trees[controller] = tree
    return None
