"""Where no namespace can be made: what the code is kept from all the same, and what it is not.

Only under ``--best-effort``.  Landlock keeps it from files, the filter of system calls from sockets and
from what it would share with the user's other processes, resource limits and a watchdog stand for the limits.
All of it is taken on by the payload itself, without any privilege; see landlock.c and seccomp.c.

Nothing is copy-on-write here, and nothing has a place of its own: files are where they are, the working
directory is read-only, and one private folder, gone at the end, may be written to.  ``plan`` asks this
module; what it grants is a list of entries like a root's, of which only the sources count.
See landlock(7), getrlimit(2).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from nsmagic import filesystem
from nsmagic.cgroups import rlimits
from nsmagic.errors import HostError
from nsmagic.launcher.frames import Entry
from nsmagic.native import kinds

if TYPE_CHECKING:
    from nsmagic.filesystem import Identity
    from nsmagic.spec import ContainerSpec

TRUNCATE_ABI: Final = 3
NETWORK_ABI: Final = 4
SCOPE_ABI: Final = 6

_PROC: Final = ("cpuinfo", "filesystems", "loadavg", "meminfo", "stat", "uptime", "version")
"""What tells of the machine and of no process; procfs.c has the same list."""
_ETC: Final = ("group", "hostname", "hosts", "nsswitch.conf", "passwd")
_PRIVATE: Final = re.compile(r"nsmagic-(\d+)-(\d+)-(\d+)-\w+")
_LANDLOCK: Final = (
    "Use Linux 5.13 or newer with landlock among the modules that /sys/kernel/security/lsm lists (the "
    "kernel's lsm= parameter), or a host where containers can be made: nsmagic doctor says what is missing"
)


class View(NamedTuple):
    """What confined code may reach.

    Attributes:
        entries: whose sources it may reach, each as its flags say.
        workdir: where it starts.
        private: the folder that it may write to, removed at the end.
        confine: ``CONFINE_…`` of ``kinds``.
        limits: the resource limits that come on top, ``{resource: value}``.
        enforced: what is in force, by subject.
        missing: what is not, and why.
        notes: what else one should know.
    """

    entries: list[Entry]
    workdir: str
    private: str
    confine: int
    limits: dict[int, int]
    enforced: dict[str, str]
    missing: dict[str, str]
    notes: list[str]


def landlock_abi() -> int:
    """The version of the kernel's Landlock, or a negative errno: ENOSYS, EOPNOTSUPP (switched off), EPERM."""
    from nsmagic.native._runtime import lib  # noqa: PLC0415 - this module must import where there is none

    return int(lib.nsm_landlock_abi())


def confine(spec: ContainerSpec, identity: Identity, python_path: tuple[str, ...], refused: str) -> View:
    """What can be kept from the code without any namespace.

    Args:
        spec: what was asked for.
        identity: who the payload is: under root another uid, else the user's own.
        python_path: the owner's ``sys.path``.
        refused: why there is no namespace.

    Raises:
        HostError: it would run under the user's own uid and nothing would keep it from the user's files.
    """
    abi = landlock_abi()
    if abi <= 0 and not identity.as_root:
        raise HostError(
            "Even --best-effort", f"no namespace can be made ({refused}) and there is no Landlock: "
            f"{os.strerror(-abi)}, so nothing would keep the code from your files", f"{_LANDLOCK}.",
        )  # fmt: skip
    private = private_folder()
    flags = kinds.CONFINE_OTHERS | (kinds.CONFINE_FILES if abi > 0 else 0)
    if spec.net == "none":
        flags |= kinds.CONFINE_NETWORK
    if not identity.as_root:
        flags |= kinds.CONFINE_METADATA
    if abi < TRUNCATE_ABI:
        flags |= kinds.CONFINE_TRUNCATE
    workdir, notes = _workdir(spec, private)
    view = View(
        [*_programs(spec, python_path), *_users(spec, workdir, notes), _grant(private, kinds.WRITABLE)],
        workdir, private, flags, {}, {}, {}, notes,
    )  # fmt: skip
    _judge(view, spec, identity, abi, refused)
    _unreachable(view, identity, python_path)
    return view


def _grant(path: str, flags: int = 0) -> Entry:
    return Entry(kinds.BIND, os.fsencode(path), os.fsencode(path), flags | kinds.OPTIONAL)


def _programs(spec: ContainerSpec, python_path: tuple[str, ...]) -> list[Entry]:
    """What every container shows of the host, at its own place."""
    shown = [os.fsdecode(entry.source) for entry in filesystem.programs() if entry.kind == kinds.BIND]
    shown += [os.fsdecode(entry.source) for entry in filesystem.host_etc()]
    shown += [f"/etc/{name}" for name in (*_ETC, *(("resolv.conf",) if spec.net == "host" else ()))]
    shown += [os.path.realpath(folder) for folder in filesystem.interpreter_folders(python_path)]
    shown += [f"/proc/{name}" for name in _PROC]
    return [*map(_grant, shown), *(_grant(f"/dev/{name}", kinds.DEVICE) for name in filesystem.DEVICES)]


def _users(spec: ContainerSpec, workdir: str, notes: list[str]) -> list[Entry]:
    entries = [_grant(workdir)] if spec.workdir == workdir else []
    for bind in spec.binds:
        if bind.target != bind.source:
            notes.append(f"{bind.source} is at its own place, not at {bind.target}: nothing can be mounted")
        if bind.mode == "cow":
            notes.append(f"{bind.source} is read-only: there is no copy-on-write")
        entries.append(_grant(bind.source, kinds.WRITABLE if bind.mode == "rw" else 0))
    return entries


def _workdir(spec: ContainerSpec, private: str) -> tuple[str, list[str]]:
    own = f"the private folder {private}, which is $HOME and $TMPDIR too and is removed at the end"
    if spec.workdir and not filesystem.shows_home(spec.workdir):
        return spec.workdir, [f"the working directory is read-only; what may be written to is {own}"]
    return private, [f"the working directory is {own}"]


def _judge(view: View, spec: ContainerSpec, identity: Identity, abi: int, refused: str) -> None:
    """Say of each subject what holds it, or why nothing does."""
    import resource  # noqa: PLC0415 - not on every system, and this module must import everywhere

    enforced, missing = view.enforced, view.missing
    missing["namespaces"] = f"none can be made here: {refused}"
    missing["disk"] = f"RLIMIT_FSIZE = {spec.disk} bounds each file alone, not their sum"
    view.limits[resource.RLIMIT_FSIZE] = spec.disk
    if abi > 0:
        enforced["files"] = f"Landlock ABI {abi}: programs and libraries read-only, one private folder"
    else:
        missing["files"] = f"there is no Landlock ({os.strerror(-abi)}): what others may read, it may read"
    if spec.net == "none":
        tcp = ", Landlock: no TCP" if abi >= NETWORK_ABI else ""
        enforced["network"] = f"system-call filter: no sockets but connected pairs{tcp}"
    else:
        missing["sockets"] = "without namespaces UNIX sockets of the host that let it in can be reached"
    if identity.as_root:
        enforced["processes"] = f"another uid ({identity.host_uid}) than anybody's"
    elif abi >= SCOPE_ABI:
        enforced["processes"] = f"Landlock ABI {abi}: no signals and no tracing outside of it"
    else:
        missing["processes"] = f"Landlock ABI {max(abi, 0)} does not stop signals to your other processes"
    if spec.user is not None:
        missing["user"] = f"without a user namespace it is uid {identity.uid}"
    if not identity.as_root:
        view.notes.append("modes, owners and times of files cannot be changed by the code")


def blunt_pids(pids: int, uid: int) -> int:
    """RLIMIT_NPROC where it counts all of a user's processes and threads: those now, and so many more.

    It stops a fork bomb, but is no limit of this container's own.
    """
    count = 0
    for name in os.listdir("/proc"):  # noqa: PTH208 - names only
        with contextlib.suppress(OSError):
            if name.isdecimal() and os.stat(f"/proc/{name}").st_uid == uid:  # noqa: PTH116 - many
                found = rlimits.stat(int(name))
                count += found.threads if found else 0
    return min(count + pids + 1, rlimits.PIDS_MOST)


def _unreachable(view: View, identity: Identity, python_path: tuple[str, ...]) -> None:
    """Under root the payload is somebody else, who may not pass through every folder."""
    if not identity.as_root:
        return
    for path in {*filesystem.interpreter_folders(python_path), view.workdir} - {view.private}:
        closed = [each for each in (Path(path), *Path(path).parents) if not each.stat().st_mode & 0o001]
        if closed:
            view.notes.append(f"{path} cannot be read by uid {identity.host_uid}: chmod o+x {closed[-1]}")


# ---- The private folder ------------------------------------------------------------------------------


def _here() -> str:
    """The PID namespace: another one's process ids mean nothing to us."""
    return re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - no path, a name


def private_folder() -> str:
    """The name for a new temporary folder, which says whose it will be; see ``sweep``."""
    own = rlimits.stat(os.getpid())
    name = f"nsmagic-{_here()}-{os.getpid()}-{own.started if own else 0}-{secrets.token_hex(4)}"
    return os.path.join(os.path.realpath(tempfile.gettempdir()), name)  # noqa: PTH118 - as text


def make_private(path: str, identity: Identity) -> None:
    """Make the private folder: only the payload's user may enter it.

    Raises:
        OSError: the kernel's answer.
    """
    os.mkdir(path, 0o700)  # noqa: PTH102 - as text
    if identity.as_root:
        os.chown(path, identity.host_uid, identity.host_gid)


def sweep() -> None:
    """Remove the private folders of owners that were killed together with their launchers."""
    for path in Path(tempfile.gettempdir()).glob("nsmagic-*"):
        named = _PRIVATE.fullmatch(path.name)
        if named and named[1] == _here() and not rlimits.alive(int(named[2]), named[3]):
            shutil.rmtree(path, ignore_errors=True)
