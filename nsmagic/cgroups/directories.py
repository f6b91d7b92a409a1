"""Groups made of directories: what the groups of both cgroup versions have in common.

The base of this process is ``<own group>/nsmagic-<pid>-<start time>``; containers are ``c<N>`` below.
A mechanism knows one ``Tree`` for each controller, makes a directory in each that a container needs, writes
the limits there and reads them back.

The mechanisms (``v1``, ``v2``, ``systemd``) build on this module; it must not know them.
See cgroups(7).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from nsmagic.cgroups import OPTIONS, Limits, Missing
from nsmagic.cgroups.rlimits import (
    alive,
    host_has_swap,
    kill_all,
    pids_in,
    read,
    stat,
    table,
    write,
)
from nsmagic.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nsmagic.cgroups import Usage

CONTROLLERS = {"memory": ("mem", "swap"), "pids": ("pids",), "cpu": ("cpus",)}
PERIOD = 100_000  # microseconds: the kernel's default period for CPU quotas
_TRIAL = Limits(mem=64 << 20, cpus=0.01, pids=8)
_BASE = re.compile(r"nsmagic-(\d{1,9})-(\d{1,20})((?:-\d{1,10})?)")
_FIRST_PID_NAMESPACE = 4026531836  # PROC_PID_INIT_INO
_LARGEST_PAGE = 1 << 16
_UNLIMITED = 1 << 62  # v1 shows -1 as the largest number of pages that it can count
_KILL_SECONDS = 0.5
_NAMES_TRIED = 1000
_BASES_TRIED = 10
_DEEPEST = 8
_GONE = (errno.ENOENT, errno.ENODEV)  # the second from a file that was opened before its group was removed
REMEDY = (
    "Run Jupyter as root, or in a unit of its own that is handed over to it: "
    "systemd-run --user --scope -p Delegate=yes jupyter lab (as root without --user)"
)
READ_ONLY = (
    "Start the surrounding container with a writable cgroup file system of its own: "
    "docker run --privileged --cgroupns=private"
)


class Setting(NamedTuple):
    """One limit: what it is, the file, and what to write there."""

    what: str
    path: str
    value: str

    def put(self) -> None:
        """Write it, read it back and compare: a limit that is taken and ignored is none.

        Raises:
            OSError: the kernel refused it, or shows something else than was written.
        """
        write(self.path, self.value)
        got = read(self.path)
        if got == self.value:
            return
        if got.isdecimal() and self.value == "-1" and int(got) >= _UNLIMITED:
            return
        # Memory limits are rounded down to whole pages.
        if got.isdecimal() and self.value.isdecimal() and 0 <= int(self.value) - int(got) < _LARGEST_PAGE:
            return
        raise OSError(errno.EIO, f"it was taken, but reads back as {got[:80]!r}")

    def missing(self, error: OSError) -> Missing:
        """Say that the kernel did not take it."""
        remedy = "Ask for another value, or use a newer kernel"
        if self.what == "cpus" and error.errno == errno.EINVAL:
            remedy = "Ask for 0.01 cores or more, and for no more than the group of this process may use"
        elif error.errno == errno.EBUSY:
            remedy = "Ask for more: the container uses more than that already"
        return Missing(self.what, f"{self.path} does not take {self.value}: {error.strerror}", remedy)


@functools.lru_cache(maxsize=1)
def _names(pid: int) -> tuple[str, str]:
    """Return the name of the base of ``pid``, which is us, and the ending that marks its PID namespace.

    A pid means nothing in another PID namespace, so outside the first one that one's number is in the name.
    """
    namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116  paths are text throughout
    ending = "" if namespace == _FIRST_PID_NAMESPACE else f"-{namespace}"
    us = stat(pid)
    return f"nsmagic-{pid}-{us.started if us else 0}{ending}", ending


class Tree:
    """The base of this process in one hierarchy, and the containers' directories below it."""

    def __init__(self, own: str, controllers: Iterable[str] = ()) -> None:
        self.own = own
        self.controllers = tuple(controllers)  # v2: what the base hands down

    @property
    def base(self) -> str:
        """The base's directory. A fork has another one."""
        return f"{self.own}/{_names(os.getpid())[0]}"

    def close(self) -> None:
        """Remove the base if it is empty."""
        rmdir(self.base)

    def make_base(self) -> None:
        """Make the base where it is not there, and have it hand down the controllers. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.base)  # noqa: PTH102
        if self.controllers:
            handed_down = " ".join(f"+{controller}" for controller in self.controllers)
            write(f"{self.base}/cgroup.subtree_control", handed_down)

    def make(self, name: str) -> str:
        """Make the directory ``name`` in the base. Raises OSError."""
        directory = f"{self.base}/{name}"
        for _ in range(_BASES_TRIED):  # others remove a base that is empty
            with contextlib.suppress(FileNotFoundError):
                os.mkdir(directory)  # noqa: PTH102
                break
            try:
                self.make_base()
            except OSError as error:
                if error.errno not in _GONE:
                    raise
        else:
            raise FileNotFoundError(errno.ENOENT, "the base is removed as fast as it is made")
        try:
            # Another thread may have made the base a moment ago, and be about to write the controllers.
            if self.controllers and not read(f"{directory}/cgroup.controllers"):
                self.make_base()
        except OSError:
            rmdir(directory)
            raise
        return directory

    def sweep(self, deadline: float) -> int:
        """Remove the bases of dead owners with what is in them; see ``Mechanism.sweep``."""
        swept = 0
        with contextlib.suppress(OSError):
            if os.readlink("/proc/self") != str(os.getpid()):  # noqa: PTH115
                return 0  # the /proc of another PID namespace cannot say who lives
            for entry in os.listdir(self.own):  # noqa: PTH208
                base = _BASE.fullmatch(entry)
                if base and base[3] == _names(os.getpid())[1] and not alive(int(base[1]), base[2]):
                    swept += _destroy(f"{self.own}/{entry}", deadline)
        return swept


def _destroy(base: str, deadline: float) -> bool:
    found = []
    for directory, below, _ in os.walk(base):
        found.append(directory)
        if directory.count("/") - base.count("/") >= _DEEPEST:
            below.clear()
    found.reverse()  # rmdir goes bottom up

    def switch() -> None:
        _forbid_forks(found)
        write(f"{base}/cgroup.kill", "1")

    kill_all(lambda: [pid for directory in found for pid in pids_in(directory)], deadline, switch)
    for directory in found:
        while not rmdir(directory):
            if time.monotonic() > deadline or pids_in(directory):
                return False
            time.sleep(0.001)  # the last process is off the list, but not quite out: no event says when it is
    return True


def _forbid_forks(directories: Iterable[str]) -> None:
    """Keep a fork bomb from growing back while its processes are killed one by one."""
    for directory in directories:
        with contextlib.suppress(OSError):
            write(f"{directory}/pids.max", "0")


def rmdir(directory: str) -> bool:
    """Remove the group; return whether it is gone."""
    try:
        os.rmdir(directory)  # noqa: PTH106
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


class DirectoryGroup:
    """A container's group: one directory in each hierarchy that counts, one file for each limit.

    Args:
        mechanism: what made it, and knows what cannot be enforced.
        name: ``c<N>``.
        places: directory by controller; those of one hierarchy share one, "" is where cgroup.kill is.
    """

    def __init__(self, mechanism: DirectoryMechanism, name: str, places: Mapping[str, str]) -> None:
        self.name = name
        self.mechanism = mechanism
        self.places = places
        self.leaves = tuple(dict.fromkeys(places.values()))
        self.directories = (*self.leaves, *(os.path.dirname(leaf) for leaf in self.leaves))  # noqa: PTH120
        self.enforced: dict[str, str] = {}
        self.limited = False  # set_limits was through once
        self._accepted: set[str] = set()
        self._refused: int | None = None

    def settings(self, limits: Limits) -> Iterator[Setting]:
        """Yield what to write, in order, for ``limits`` after what is in force now."""
        raise NotImplementedError

    def usage(self) -> Usage:
        """Read what was used; see ``Group.usage``."""
        raise NotImplementedError

    def set_limits(self, limits: Limits) -> None:
        """Put ``limits`` in force; see ``Group.set_limits``. The first call may lack what was accepted."""
        missing = self.mechanism.missing(limits)
        if not self.limited:
            self._accepted = {lost.what for lost in missing}
        for lost in missing:
            if lost.what not in self._accepted:
                raise _error(lost)
        for setting in self.settings(limits):
            if setting.what in self.mechanism.lost:
                continue
            try:
                setting.put()
            except OSError as error:
                raise _error(setting.missing(error)) from error
            file = setting.path.rpartition("/")[2]
            self.enforced[setting.what] = f"{self.mechanism.interface} {file} = {setting.value}"
            if setting.value.split()[0] in ("max", "-1"):
                del self.enforced[setting.what]
        self.limited = True

    def open_joins(self) -> list[int]:
        """Open what a process writes "0" to; see ``Group.open_joins``."""
        opened: list[int] = []
        try:
            for leaf in self.leaves:
                if leaf != self.places.get(""):
                    opened.append(os.open(f"{leaf}/tasks", os.O_WRONLY | os.O_CLOEXEC))  # noqa: PERF401 - see except
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return opened

    def open_directory(self) -> int | None:
        """Open the directory for CLONE_INTO_CGROUP: of the v2 hierarchy, where there is one."""
        if "" not in self.places:
            return None
        return os.open(self.places[""], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def share(self) -> None:
        """Do nothing: that is how v1 is."""

    def pids(self) -> list[int]:
        """Return the processes in the group."""
        return pids_in(self.leaves[0])

    def kill(self) -> None:
        """SIGKILL all in the group, by cgroup.kill (v2, Linux 5.14) where there is one."""
        with contextlib.suppress(OSError, KeyError):
            write(f"{self.places['']}/cgroup.kill", "1")
            if self.leaves == (self.places[""],):
                return  # one hierarchy: nothing can be in another group and be missed
        self._refused = self.pids_refused()
        deadline = time.monotonic() + _KILL_SECONDS
        kill_all(self.pids, deadline, lambda: _forbid_forks(self.places.values()))

    def pids_refused(self) -> int | None:
        """Return how often fork was refused, except for what ``kill`` itself forbade."""
        if self._refused is None and "pids" in self.places:
            return table(f"{self.places['pids']}/pids.events").get("max")
        return self._refused

    def exists(self) -> bool:
        """Return whether any of its directories is there: whoever removes them may be interrupted."""
        return any(map(os.path.exists, self.leaves))

    def remove(self) -> bool:
        """Remove its directories; return False while something in them lives."""
        gone = [rmdir(leaf) for leaf in self.leaves]  # all of them: one that is busy must not keep the others
        return all(gone)


def _error(missing: Missing) -> HostError:
    return HostError(OPTIONS[missing.what], missing.reason, f"{missing.remedy}.")


class DirectoryMechanism:
    """Makes groups of directories, and knows by trial what they can enforce."""

    name = ""
    interface = ""  # whose files they are: "cgroup v1" or "cgroup v2", whoever made the group around them
    counters: Mapping[str, str] = {
        "memory": "mem",
        "pids": "pids",
    }  # of v2: every group counts processor time

    def __init__(self, trees: Mapping[str, Tree], lost: dict[str, Missing]) -> None:
        self.trees = trees
        self.lost = lost
        self._numbers = itertools.count(1)  # each next() is one step, whichever thread makes it
        trial = self.make(_TRIAL)
        for setting in trial.settings(_TRIAL):
            try:
                setting.put()
            except OSError as error:
                lost.setdefault(setting.what, setting.missing(error))
        trial.remove()
        self.remove_bases()  # one that no container ever uses would be in nobody's list of what to remove

    def group(self, name: str, places: Mapping[str, str]) -> DirectoryGroup:
        """Return the object for a group whose directories are made."""
        raise NotImplementedError

    def wanted(self, limits: Limits) -> Iterable[str]:
        """Return the controllers that a group with these limits needs."""
        del limits
        return self.trees

    def make(self, limits: Limits) -> DirectoryGroup:
        """Make a group without limits.

        Raises:
            HostError: the kernel refused; nothing is left behind.
        """
        tree = None
        for serial in itertools.islice(self._numbers, _NAMES_TRIED):
            places: dict[str, str] = {}
            made: dict[str, str] = {}  # by own group: some controllers share one hierarchy
            try:
                for controller in self.wanted(limits):
                    tree = self.trees[controller]
                    made[tree.own] = places[controller] = made.get(tree.own) or tree.make(f"c{serial}")
            except OSError as error:
                for directory in made.values():
                    rmdir(directory)
                if error.errno == errno.EEXIST:
                    continue
                where = tree.base if tree else ""
                raise HostError(
                    "a group for the container", f"{where}: {error.strerror}", f"{REMEDY}."
                ) from error
            return self.group(f"c{serial}", places)
        raise HostError("a group for the container", "all the names tried are taken", "Remove old groups.")

    def create(self, limits: Limits) -> DirectoryGroup:
        """Make a group and put ``limits`` in force; see ``Mechanism.create``."""
        group = self.make(limits)
        try:
            group.set_limits(limits)
        except BaseException:
            group.remove()
            raise
        return group

    def missing(self, limits: Limits) -> tuple[Missing, ...]:
        """Return what the trial could not enforce; see ``Mechanism.missing``."""
        lost = (self.lost[what] for what in limits.asked() if what in self.lost)
        return tuple(each for each in lost if each.what != "swap" or host_has_swap())

    def uncounted(self) -> tuple[Missing, ...]:
        """Return what no controller of its groups counts; see ``Mechanism.uncounted``."""
        absent = {what: name for name, what in self.counters.items() if name not in self.trees}
        return tuple(
            self.lost.get(what) or Missing(what, f"the {name} controller is not there", REMEDY)
            for what, name in absent.items()
        )

    def sweep(self, deadline: float) -> int:
        """Remove what dead owners left; see ``Mechanism.sweep``."""
        return max((tree.sweep(deadline) for tree in self._distinct()), default=0)

    def admit(self, pid: int) -> None:
        """Take in who makes containers: it lives in this process' own group, as the containers will."""

    def remove_bases(self) -> None:
        """Remove the bases that are empty."""
        for tree in self._distinct():
            tree.close()

    def close(self) -> None:
        """Remove what is left of this process; see ``Mechanism.close``."""
        self.remove_bases()

    def _distinct(self) -> Iterable[Tree]:
        return {tree.own: tree for tree in self.trees.values()}.values()
