"""Limits by cgroup v2 in a group that systemd hands over: one transient scope for each owner.

An ordinary user's session, and a service that did not ask for more, live in a group that is not theirs.  But
the user's own systemd (for root: the system's) makes a group for whoever asks, a *scope*, and with
``Delegate=yes`` leaves what is below it to us.  Then a container costs a mkdir, as everywhere.

    nsmagic-<owner's pid>-<random>.scope      from systemd; bounded like the group that the owner lives in
    ├── nsmagic-host                          the leaf: the holder, and the launcher
    └── nsmagic-<pid>-<start time>/c<N>       the containers

Who is in there, and why.  clone3 puts a process into a group only if its *caller* might move it there, which
takes the right to write to cgroup.procs of the closest group above both (cgroups(7), "Delegation
containment").  So the launcher, which clones, lives in the scope.  The owner does not: a notebook's kernel
stays in the group, and under the limits, that it was started with.  A scope needs a process to begin with and
ends with its last one; that is the *holder*, a shell that waits for its standard input to close, which only
the owner's end can do.  So a killed launcher's successor finds the same scope; and when the owner is killed,
holder, launcher and containers end, and systemd removes the scope with everything below it.

Must not know how containers are built.
See https://systemd.io/CONTROL_GROUP_INTERFACE, https://systemd.io/CGROUP_DELEGATION, systemd.scope(5).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pwd
import re
import secrets
import signal
import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple

from nsmagic.cgroups import Unavailable
from nsmagic.cgroups.directories import CONTROLLERS, REMEDY, Tree
from nsmagic.cgroups.rlimits import lines, pids_in, read
from nsmagic.cgroups.v2 import HOST_LEAF, V2, Prepared, prepare
from nsmagic.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsmagic.cgroups import Limits, Own
    from nsmagic.cgroups.bus import Properties
    from nsmagic.cgroups.directories import DirectoryGroup

NAME = "systemd scope"
_SECONDS = 10.0  # for one conversation; it takes some milliseconds where nothing is wrong
_STOP_MICROSECONDS = 2_000_000  # what is in there has nothing to save
_SYSTEM_BUS = "/run/dbus/system_bus_socket"
_SH = "/bin/sh"
_SCOPE = re.compile(r"nsmagic-\d{1,9}-[0-9a-f]{8}\.scope")
_BOUNDS = {
    "memory.max": "MemoryMax",
    "memory.high": "MemoryHigh",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
    "cpu.max": "CPUQuotaPerSecUSec",
}
"""What bounds a group, and the property of a unit that does the same; see systemd.resource-control(5)."""
_ROUNDING = 1.01  # systemd counts CPU time in whole milliseconds of a period
_FOR_USERS = (
    "An administrator hands it to users' managers: sudo systemctl edit user@.service, with the lines "
    "[Service] and Delegate=cpu cpuset io memory pids; then sudo systemctl daemon-reload, and a new login"
)
_FOR_ROOT = "Boot a kernel that has it: cgroup_enable=memory on its command line, and no cgroup_disable="
_OWN_UNIT = f"or: {REMEDY[0].lower()}{REMEDY[1:]}"


class _Place(NamedTuple):
    """Where systemd is asked, and what for.

    Attributes:
        socket: the bus.
        top: the directory of the hierarchy's root.
        own: this process' own group, as a path below ``top``.
    """

    socket: str
    top: str
    own: str


# ---- The scope ------------------------------------------------------------------------------------------


class _Holder:
    """A process that does nothing until this one, its owner, ends."""

    def __init__(self) -> None:
        theirs, self._end = os.pipe()
        try:
            actions = [
                (os.POSIX_SPAWN_DUP2, theirs, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ]
            argv = ["nsmagic-scope-holder", "-c", "read -r _"]
            self.pid = os.posix_spawn(_SH, argv, {}, file_actions=actions, setsid=True)
            self._pidfd = os.pidfd_open(self.pid)
        except BaseException:
            os.close(self._end)
            raise
        finally:
            os.close(theirs)
        _holders.add(self)

    def end(self) -> None:
        """End it; in a fork of the owner that is not ours to do."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # somebody waits for every child of this process
                os.waitpid(self.pid, 0)
            self.forget()

    def forget(self) -> None:
        """Let go of it; in a fork of the owner too, or it would not end with the owner."""
        if self.pid:
            self.pid = 0
            os.close(self._end)
            os.close(self._pidfd)


_holders: weakref.WeakSet[_Holder] = weakref.WeakSet()


def _forget_in_fork() -> None:
    for holder in list(_holders):
        holder.forget()
    _holders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_fork)


class _Scope:
    """A scope of this process' own.

    Raises:
        BusError: systemd cannot be asked, or refuses.
        OSError: no process can be started.
    """

    def __init__(self, place: _Place) -> None:
        from nsmagic.cgroups.bus import BusError, Manager  # noqa: PLC0415 - jeepney takes 10 ms to import

        self._place = place
        self.owner = os.getpid()
        self.name = f"nsmagic-{self.owner}-{secrets.token_hex(4)}.scope"
        with Manager(place.socket, _SECONDS) as manager:
            self.manager_root = _manager_root(manager.pid())
            slice_name, roof = _slice_for(place.own, self.manager_root)
            bounds = _bounds(place.top, place.own, roof)
            properties: Properties = {
                "Description": ("s", f"Containers of process {self.owner} (nsmagic)"),
                "Delegate": ("b", True),
                "CollectMode": ("s", "inactive-or-failed"),
                "TimeoutStopUSec": ("t", _STOP_MICROSECONDS),
                **{_BOUNDS[file]: ("t", _as_property(file, value)) for file, value in bounds.items()},
            }
            if slice_name:
                properties["Slice"] = ("s", slice_name)
            self.holder = _Holder()
            try:
                manager.start_scope(self.name, self.holder.pid, properties)
                # The kernel says where it is; systemd may have escaped its name or put it elsewhere.
                path = _v2_path(self.holder.pid)
                self.directory = f"{place.top}{path}"
                if not path.endswith(f"/{self.name}") or self.holder.pid not in pids_in(self.directory):
                    raise BusError(f"systemd started {self.name}, but its process is in {path or 'no group'}")
                for file, value in bounds.items():
                    if _amount(f"{self.directory}/{file}") > value * _ROUNDING:
                        raise BusError(f"{file} of {place.own} would not hold in {self.name}")
            except BaseException:
                self.holder.end()
                raise

    def usable(self) -> bool:
        """Whether it still is, and ours: a fork of the owner has another launcher, and so another scope."""
        return self.owner == os.getpid() and os.path.isdir(self.directory)  # noqa: PTH112 - paths are text

    def attach(self, pid: int) -> None:
        """Have systemd move a process into the leaf. Raises BusError."""
        from nsmagic.cgroups.bus import BusError, Manager  # noqa: PLC0415 - likewise

        with Manager(self._place.socket, _SECONDS) as manager:
            manager.attach(self.name, f"/{HOST_LEAF}", pid)
        if pid not in pids_in(f"{self.directory}/{HOST_LEAF}"):
            raise BusError(f"systemd did not move process {pid} into {self.name}")

    def idle(self) -> bool:
        """Whether nothing but the holder is in there: no launcher, no base of any process."""
        if self.owner != os.getpid():
            return False
        leaf = f"{self.directory}/{HOST_LEAF}"
        try:
            below = [entry.path for entry in os.scandir(self.directory) if entry.is_dir()]
        except OSError:
            return True
        return below in ([], [leaf]) and set(pids_in(leaf)) <= {self.holder.pid}


def _v2_path(pid: int) -> str:
    """Return a process' group in the cgroup v2 hierarchy; empty where it has none that shows."""
    found = [line[3:] for line in lines(f"/proc/{pid}/cgroup") if line.startswith("0::/")]
    return found[0].rstrip("/") if found else ""


def _manager_root(pid: int) -> str:
    """Return the group that a manager has its units below. Raises BusError where it is no systemd of ours.

    It could be another machine's: a container may be shown the bus of its host, and process ids of the one
    mean something else in the other.
    """
    from nsmagic.cgroups.bus import BusError  # noqa: PLC0415 - likewise

    path = _v2_path(pid)
    if lines(f"/proc/{pid}/comm") != ["systemd"] or not path.endswith("/init.scope"):
        raise BusError(f"process {pid}, which answers there, is no systemd of this machine")
    return path.removesuffix("/init.scope")


def _slice_for(own: str, manager_root: str) -> tuple[str, str]:
    """Choose the slice for a scope, as near to our own group as can be.

    Returns:
        The slice's name, empty for the manager's own choice; and the group that bounds both, our own and it.
    """
    if not f"{own}/".startswith(f"{manager_root}/"):  # a login session, beside the user's manager
        return "", os.path.commonpath([own or "/", manager_root or "/"]).rstrip("/")
    path = own
    while path not in (manager_root, ""):
        if path.endswith(".slice"):
            return path.rpartition("/")[2], path
        path = path.rpartition("/")[0]
    return "", manager_root


# ---- The limits of the owner ----------------------------------------------------------------------------


def _bounds(top: str, own: str, roof: str) -> dict[str, float]:
    """Return the limits that we would leave: those of the groups from our own up to ``roof``, which stays.

    Returns:
        By file, the tightest: bytes, processes, or seconds of CPU time a second.
    """
    found: dict[str, float] = {}
    while own not in (roof, ""):
        for file in _BOUNDS:
            amount = _amount(f"{top}{own}/{file}")
            if amount < found.get(file, math.inf):
                found[file] = amount
        own = own.rpartition("/")[0]
    return found


def _amount(path: str) -> float:
    """Return what a group's file allows; infinity where there is no such file or no limit."""
    try:
        first, *period = read(path).split()
    except (OSError, ValueError):
        return math.inf
    if first == "max":
        return math.inf
    return int(first) / int(period[0]) if period else int(first)


def _as_property(file: str, amount: float) -> int:
    return round(amount * 1e6) if file == "cpu.max" else int(amount)


# ---- The mechanism --------------------------------------------------------------------------------------


class Systemd(V2):
    """cgroup v2 in a scope of our own."""

    name = NAME

    def __init__(self, place: _Place, scope: _Scope, prepared: Prepared) -> None:
        self._place = place
        self._scope: _Scope | None = scope
        self._lock = threading.RLock()
        super().__init__(*prepared)

    def make(self, limits: Limits) -> DirectoryGroup:
        """Make a group; see ``DirectoryMechanism.make``. If the scope has gone meanwhile, in a new one."""
        with self._lock:
            self._there()
            return super().make(limits)

    def admit(self, pid: int) -> None:
        """Move the launcher into the leaf; see ``Mechanism.admit``."""
        from nsmagic.cgroups.bus import BusError  # noqa: PLC0415 - likewise

        with self._lock:
            scope = self._there()
            if pid in pids_in(f"{scope.directory}/{HOST_LEAF}"):
                return
            try:
                scope.attach(pid)
            except BusError as error:
                raise HostError("A group for the launcher", str(error), f"{REMEDY}.") from error

    def sweep(self, deadline: float) -> int:
        """Remove what dead owners left in their scopes; see ``Mechanism.sweep``.

        A scope goes with its last process.  A process without a PID namespace of its own may outlive even
        init and the launcher, if both are killed, and would keep it.
        """
        slice_directory = os.path.dirname(self.trees[""].own)  # noqa: PTH120 - paths are text throughout
        swept = 0
        with contextlib.suppress(OSError):
            for entry in os.listdir(slice_directory):  # noqa: PTH208 - likewise
                if _SCOPE.fullmatch(entry):
                    swept += Tree(f"{slice_directory}/{entry}").sweep(deadline)
        return swept

    def close(self) -> None:
        """Remove the base, and end the scope unless the launcher or containers are in there."""
        with self._lock:
            self.remove_bases()
            if self._scope is not None and self._scope.idle():
                self._scope.holder.end()
                self._scope = None

    def _there(self) -> _Scope:
        """Return the scope, a new one where it has gone (somebody stopped it, or ``close`` did)."""
        if self._scope is None or not self._scope.usable():
            if self._scope is not None:
                self._scope.holder.end()
                self._scope = None
            started = _start(self._place)
            if isinstance(started, Unavailable):
                raise HostError("A group for the containers", started.reason, f"{started.remedy}.")
            self._scope, (self.trees, self.lost) = started
        return self._scope


def find(own: Mapping[str, Own]) -> Systemd | Unavailable | None:
    """Return the mechanism in a new scope, or why there is none; None on a host where systemd has no part.

    Args:
        own: this process' own groups, as ``own_groups`` found them.
    """
    place = _look(own)
    if place is None or isinstance(place, Unavailable):
        return place
    started = _start(place)
    if isinstance(started, Unavailable):
        return started
    scope, prepared = started
    try:
        return Systemd(place, scope, prepared)
    except HostError as error:
        scope.holder.end()
        return Unavailable(NAME, error.reason, error.remedy.rstrip("."))


def _look(own: Mapping[str, Own]) -> _Place | Unavailable | None:
    """Find out whom to ask. None where systemd does not run, or controllers are not in cgroup v2."""
    if "" not in own or not os.path.isdir("/run/systemd/system") or lines("/proc/1/comm") != ["systemd"]:  # noqa: PTH112
        return None
    path, directory = own[""].path.rstrip("/"), own[""].directory
    if not directory.endswith(path):
        return None  # only a part of the hierarchy is mounted: that of a container around us
    top = directory.removesuffix(path)
    try:
        if not CONTROLLERS.keys() & set(read(f"{top}/cgroup.controllers").split()):
            return None
    except OSError:
        return None
    if os.geteuid() == 0:
        return _Place(_SYSTEM_BUS, top, path)
    # pam_systemd(8) sets the variable; who came by su, cron or a hub's spawner has the same folder.
    folder = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    bus = f"{folder}/bus"
    if os.path.exists(bus):  # noqa: PTH110 - paths are text throughout
        return _Place(bus, top, path)
    if os.path.isdir(f"{folder}/systemd"):  # noqa: PTH112 - likewise
        reason = f"the systemd of this user is on no bus: there is no {bus}"
        return Unavailable(
            NAME, reason, f"Install the package dbus-user-session and log in again, {_OWN_UNIT}"
        )
    reason = f"no systemd runs for this user: there is no {bus}"
    return Unavailable(NAME, reason, f"Have one started: sudo loginctl enable-linger {_user()}, {_OWN_UNIT}")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _start(place: _Place) -> tuple[_Scope, Prepared] | Unavailable:
    """Start a scope and make room in it."""
    from nsmagic.cgroups.bus import BusError  # noqa: PLC0415 - likewise

    try:
        scope = _Scope(place)
    except (BusError, OSError) as error:
        return Unavailable(NAME, f"no scope from systemd: {error}", REMEDY)
    users = os.geteuid() != 0
    given = " ".join(lines(f"{place.top}{scope.manager_root}/cgroup.controllers"))
    unit = scope.manager_root.rpartition("/")[2]
    whom = f"users: {unit} has only {given or 'no controller'}" if users else ""
    remedy = _FOR_USERS if users else _FOR_ROOT
    prepared = prepare(scope.directory, ours=True, whom=whom, remedy=remedy)
    if isinstance(prepared, Unavailable):
        scope.holder.end()
        return dataclasses.replace(prepared, mechanism=NAME)
    return scope, prepared
