"""From what was asked for to what will be done on this host: spec → plan.

Here a spec meets the host: which namespaces it takes, who the payload will be, what enforces the limits.
What cannot be enforced is an error here, before anything is started.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from nsmagic import cgroups, confinement, filesystem
from nsmagic.errors import HostError
from nsmagic.filesystem import Identity
from nsmagic.host import CAP_SYS_ADMIN, may
from nsmagic.launcher import frames
from nsmagic.native.kinds import CLONE_NEW
from nsmagic.spec import DEFAULT_HOSTNAME, NAMESPACES, hostname_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsmagic.cgroups import Choice
    from nsmagic.confinement import View
    from nsmagic.filesystem import Root
    from nsmagic.spec import ContainerSpec


class Reach(NamedTuple):
    """How much of a container can be made here, found by making one; see ``effort``.

    Attributes:
        refused: namespaces that cannot be made and can be done without, and why.
        confined: why no container can be made at all; empty where one can.
    """

    refused: Mapping[str, str]
    confined: str = ""


class Doors(NamedTuple):
    """Namespaces of others that a container is made in.  The descriptors stay the giver's.

    Attributes:
        steps: kind and descriptor of each, in the order in which they are entered: a user namespace before
            those that it owns.
        uid: who the payload is in the innermost user namespace among them; on the host where there is none.
        gid: likewise.
        proc_from: descriptor of a mount namespace whose /proc shows the joined PID namespace; -1 for none.
        workdir: where the payload starts if it has joined the mounts.
        hostname: the name of the host, if it has joined that.
        host: what ``uid`` and ``gid`` stand for on the host; None for what they stand for anyhow.
    """

    steps: tuple[tuple[str, int], ...]
    uid: int
    gid: int
    proc_from: int = -1
    workdir: str = ""
    hostname: str = ""
    host: tuple[int, int] | None = None

    @property
    def kinds(self) -> frozenset[str]:
        """What is entered."""
        return frozenset(kind for kind, _ in self.steps)

    @property
    def descriptors(self) -> list[int]:
        """What goes to the launcher, in this order."""
        return [each for _, each in self.steps] + ([self.proc_from] if self.proc_from >= 0 else [])


_HOST_UIDS: Final = 0x6E730000
"""Root's containers run under host uids from here on ("ns" in ASCII): within the range that systemd keeps
free for containers, see https://systemd.io/UIDS-GIDS/."""
_HOST_UID_COUNT: Final = 1 << 16
_DEFAULT_UID: Final = 1000
_CAPS_TO_GIVE_AWAY: Final = (0, 1, 3)  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER
_BLANK_MEMORY: Final = 64 << 20
_BLANK_ENTRIES: Final = 200  # each may have a descriptor, and 253 go with a packet
_MIN_KERNEL: Final = (5, 12)
_MACHINES: Final = ("x86_64", "aarch64")


def require_linux() -> None:
    """Refuse a system that has no namespaces.

    Raises:
        HostError: not Linux, an older kernel than 5.12, or a processor without a system-call table.
    """
    if sys.platform != "linux":
        raise HostError(
            "A container", f"it takes Linux, and this is {platform.system()}",
            "Use Docker, WSL2, Codespaces or Binder, where nsmagic runs in a Linux of its own.",
        )  # fmt: skip
    version = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if version < _MIN_KERNEL:
        raise HostError(
            "A container", f"Linux {os.uname().release} lacks mount_setattr(2)", "Use Linux 5.12 or newer."
        )
    if os.uname().machine not in _MACHINES:
        raise HostError(
            "The system-call filter", f"there is no table for {os.uname().machine}", "Use x86_64 or aarch64."
        )


@dataclass(frozen=True)
class Plan:
    """What will be built.

    Attributes:
        spec: what was asked for.
        namespaces: those that will be made.
        added: those of them that were not asked for, but without which the others cannot be made.
        identity: who the payload is.
        root: what it sees.
        choice: what enforces its limits.
        missing: what else of it cannot be had here, and why; only under ``best_effort``.
        view: where no namespace can be made, what the payload is kept from all the same.
        doors: what it is made inside of, if not of the host's own namespaces.
    """

    spec: ContainerSpec
    namespaces: tuple[str, ...]
    added: tuple[str, ...]
    identity: Identity
    root: Root
    choice: Choice
    missing: Mapping[str, str] = field(default_factory=dict)
    view: View | None = None
    doors: Doors | None = None

    def request(
        self,
        number: int,
        directories: tuple[str, ...],
        *,
        tasks: int,
        into_cgroup: bool,
        blank: bool = False,
        network: bool = False,
    ) -> frames.Spawn:
        """The request to the launcher.

        Args:
            number: the container's own.
            directories: of its group, to be removed at its end.
            tasks: how many v1 ``tasks`` descriptors go with it.
            into_cgroup: whether a cgroup v2 directory's descriptor does; then those of ``doors`` follow.
            blank: leave open what ``finish`` will tell.
            network: whether the socket of whoever builds its network does.
        """
        rest = self.finish(number)
        doors = self.doors or Doors((), 0, 0)
        parent = (self.identity.host_uid, self.identity.host_gid)
        if "user" in doors.kinds:
            parent = (doors.uid, doors.gid)
        return frames.Spawn(
            id=number,
            namespaces=sum(CLONE_NEW[name] for name in self.namespaces),
            uid=self.identity.uid,
            gid=self.identity.gid,
            host_uid=self.identity.host_uid,
            host_gid=self.identity.host_gid,
            parent_uid=parent[0],
            parent_gid=parent[1],
            joins=[CLONE_NEW[kind] for kind, _ in doors.steps],
            proc_from=doors.proc_from >= 0,
            hostname=None if blank else rest.hostname,
            workdir=b"" if blank else rest.workdir,
            disk_bytes=rest.disk_bytes,
            disk_inodes=rest.disk_inodes,
            entries=[] if blank else rest.entries,
            rlimits=[] if blank else rest.rlimits,
            tasks=tasks,
            into_cgroup=into_cgroup,
            directories=list(directories),
            blank=blank,
            hold=bool(self.spec.name),
            network=network,
            hostname_wished=rest.hostname_wished,
            confine=self.view.confine if self.view is not None else 0,
            snapshots=self.spec.snapshots,
            private=self.view.private if self.view is not None else "",
        )

    def finish(self, number: int) -> frames.Finish:
        """What a blank is told when it is taken: all of this plan that ``kind`` says nothing of."""
        wanted = {_core(): 0, **{kind: hard for kind, (_, hard) in self.choice.rlimits.items()}}
        if self.view is not None:
            wanted |= self.view.limits
        rlimits = {kind: _at_most(kind, value) for kind, value in wanted.items()}
        return frames.Finish(
            id=number,
            hostname=self.spec.hostname if "uts" in self.namespaces else None,
            hostname_wished=self.spec.hostname in {DEFAULT_HOSTNAME, hostname_of(self.spec.name)},
            workdir=os.fsencode(self.root.workdir),
            disk_bytes=self.spec.disk,
            disk_inodes=self.root.disk_inodes,
            entries=self.root.entries,
            rlimits=list(rlimits.items()),
        )

    @property
    def kind(self) -> tuple[object, ...] | None:
        """What is decided when a container is made, so that a blank can become any other of its kind.

        None for those that have to be made on purpose: with fewer namespaces, with less than was asked for,
        with hardly more memory than a warm Python has already touched, with a network that is built for it
        alone, or where sources can be opened only before the clone.
        """
        alone = set(NAMESPACES) - {"net"} <= set(self.namespaces) and not self.choice.missing
        room = self.spec.mem is None or self.spec.mem >= _BLANK_MEMORY
        few = len(self.root.entries) <= _BLANK_ENTRIES
        as_root = self.identity.as_root and not may(CAP_SYS_ADMIN)
        plain = self.spec.net in {"none", "host"} and not self.doors
        if not (alone and room and few and plain) or self.spec.snapshots or as_root:
            return None
        return (self.namespaces, self.identity, self.choice.mechanism.name)


def _at_most(kind: int, value: int) -> int:
    """A limit, or the owner's own where that is lower already: nobody may raise it again (EPERM)."""
    import resource  # noqa: PLC0415 - likewise

    own = resource.getrlimit(kind)[1]
    return value if own == resource.RLIM_INFINITY else min(value, own)


def _nproc() -> int:
    import resource  # noqa: PLC0415 - not on every system, and this module must import everywhere

    return resource.RLIMIT_NPROC


def _core() -> int:
    import resource  # noqa: PLC0415 - not on every system, and this module must import everywhere

    return resource.RLIMIT_CORE


def _unprivileged_uid() -> int | None:
    """A uid that root may give the payload: one of our own range, or the last one that root has here.

    None where root has no other uid than its own: then it is root of a user namespace, and nobody outside.
    """
    return _mapped_uid(_HOST_UIDS + os.getpid() % _HOST_UID_COUNT)


def layers_owner() -> int | None:
    """For root: the host's uid that unpacked layers belong to, and containers of images run under.

    One for all of them, since layers are unpacked once.  So the image's files are the payload's own, on any
    file system.  None for others, whose files are their own anyhow, and for a root that may not give files
    away.
    """
    if os.geteuid() != 0 or not may(*_CAPS_TO_GIVE_AWAY):
        return None
    return _mapped_uid(_HOST_UIDS)


def _mapped_uid(wanted: int) -> int | None:
    """A uid, or the last one that there is, if our user namespace has not that one; None if there is none."""
    ranges = _uid_ranges()
    if any(first <= wanted < first + count for first, count in ranges):
        return wanted
    last = max(first + count - 1 for first, count in ranges)
    return last or None


@cache
def _uid_ranges() -> list[tuple[int, int]]:
    """Our user namespace's uids, as (first, count): they never change once there are some."""
    with open("/proc/self/uid_map", encoding="ascii") as file:  # noqa: PTH123 - no path to speak of
        return [(int(line.split()[0]), int(line.split()[2])) for line in file]


def identity_for(spec: ContainerSpec, *, userns: bool) -> Identity:
    """Who the payload is: never the host's root."""
    host = _unprivileged_uid() if os.geteuid() == 0 else None
    shared = layers_owner() if spec.image else None
    if shared is not None and spec.image and filesystem.owners(spec.image.layers) == {shared}:
        host = shared
    if host is not None:
        inside = (_DEFAULT_UID if spec.user is None else spec.user) if userns else host
        return Identity(inside, inside, host, host, as_root=True)
    uid, gid = os.geteuid(), os.getegid()
    if not userns or spec.user is None:
        return Identity(uid, gid, uid, gid, as_root=False)
    return Identity(spec.user, spec.user, uid, gid, as_root=False)


def make_plan(
    spec: ContainerSpec, python_path: tuple[str, ...], reach: Reach | None = None, doors: Doors | None = None
) -> Plan:
    """What has to be done here for this spec.

    Args:
        spec: what was asked for.
        python_path: the owner's ``sys.path``.
        reach: how much of it can be had here, if not all.
        doors: what it is to be made inside of.

    Raises:
        HostError: this host cannot enforce it (and not ``best_effort``).
        SpecError: the spec is at odds with itself.
    """
    require_linux()
    if reach is not None and reach.confined:
        return _confined_plan(spec, python_path, reach.confined, doors)
    if reach is not None:
        spec = replace(spec, namespaces=spec.namespaces - set(reach.refused))
    wanted = set(spec.namespaces)
    added: tuple[str, ...] = ()
    # Each namespace but the user namespace takes CAP_SYS_ADMIN, and making a user namespace gives it.
    joined = doors.kinds if doors is not None else frozenset()
    if wanted and "user" not in wanted | joined and os.geteuid() != 0:
        wanted.add("user")
        added = ("user",)
    limits = cgroups.Limits(
        mem=spec.mem, swap=spec.swap, cpus=spec.cpus, pids=spec.pids, snapshots=spec.snapshots
    )
    try:
        choice = cgroups.choose(limits, userns="user" in wanted | joined, best_effort=spec.best_effort)
    except HostError:
        if not wanted or "user" in wanted | joined:
            raise
        # Root without a group of its own: in a user namespace RLIMIT_NPROC is a limit all the same.
        choice = cgroups.choose(limits, userns=True, best_effort=False)
        wanted.add("user")
        added = ("user",)
    namespaces = tuple(name for name in NAMESPACES if name in wanted)
    if spec.image and "mount" not in wanted:
        raise _no_root(reach.refused.get("mount", "") if reach is not None else "")
    identity = identity_for(spec, userns="user" in wanted)
    choice = _counting_pasta(choice, spec, identity)
    if doors is not None and "user" in joined - wanted:
        identity, choice = _in_shared_userns(identity, choice, doors)
    root = filesystem.build_root(spec, identity, python_path, _shared_hostname(doors), _names(spec))
    if doors is not None and "mount" in joined:
        root.workdir = doors.workdir
    if wanted and "pid" not in wanted | joined and not identity.as_root:
        root.notes.append("without a PID namespace the code can send signals to all of your processes")
    if wanted and "mount" not in wanted | joined and not identity.as_root:
        root.notes.append("without a mount namespace the code can read and write all of your files")
    missing = {f"{name} namespace": why for name, why in reach.refused.items()} if reach is not None else {}
    return Plan(spec, namespaces, added, identity, root, choice, missing, doors=doors)


def _in_shared_userns(identity: Identity, choice: Choice, doors: Doors) -> tuple[Identity, Choice]:
    """In a user namespace of others the ids are theirs, and RLIMIT_NPROC counts all that are in it."""
    if doors.host is not None:
        identity = replace(identity, host_uid=doors.host[0], host_gid=doors.host[1])
    if "pids" in choice.enforced:
        counted = f"{choice.enforced['pids']}, which others share and count in"
        choice = replace(choice, enforced={**choice.enforced, "pids": counted})
    return replace(identity, uid=doors.uid, gid=doors.gid), choice


def _shared_hostname(doors: Doors | None) -> str:
    return doors.hostname if doors is not None and "uts" in doors.kinds else ""


def _no_root(refused: str) -> HostError:
    """Best effort ends here: an image's program in the host's root would be another program."""
    remedy = "Run without --image and --rootfs, or where namespaces can be made; see nsmagic doctor."
    return HostError("--image", f"a root file system takes a mount namespace ({refused})", remedy)


def _counting_pasta(choice: Choice, spec: ContainerSpec, identity: Identity) -> Choice:
    """RLIMIT_NPROC counts pasta too: one more process of the same user in the same user namespace."""
    if spec.net != "outbound" or identity.as_root or _nproc() not in choice.rlimits:
        return choice
    from nsmagic.cgroups import rlimits  # noqa: PLC0415 - for the words

    soft, hard = choice.rlimits[_nproc()]
    limits = replace(choice.limits, pids=(choice.limits.pids or 0) + 1)
    return replace(
        choice,
        rlimits={**choice.rlimits, _nproc(): (soft + 1, hard + 1)},
        enforced={**choice.enforced, "pids": rlimits.nproc_text(limits)},
    )


def _names(spec: ContainerSpec) -> filesystem.Names | None:
    """What its network brings along.

    Raises:
        HostError: this host has no such network.
        SpecError: there is none of that name.
    """
    if spec.net in {"none", "host"}:
        return None
    from nsmagic import networks  # noqa: PLC0415 - most containers need none of it

    return networks.names(spec)


def _confined_plan(
    spec: ContainerSpec, python_path: tuple[str, ...], refused: str, doors: Doors | None
) -> Plan:
    """The weakest there is: no namespace at all, and what ``confinement`` can do."""
    if spec.image:
        raise _no_root(refused)
    if spec.net not in {"none", "host"}:
        raise HostError(
            f"--net {spec.net}", f"no container can be made here ({refused})", "Say --net none or --net host."
        )
    if spec.name or doors is not None:
        option = "--join" if doors is not None else "--name"
        raise HostError(option, f"no namespace can be made here: {refused}", "Leave it out.")
    identity = identity_for(spec, userns=False)
    limits = cgroups.Limits(
        mem=spec.mem, swap=spec.swap, cpus=spec.cpus, pids=spec.pids, snapshots=spec.snapshots
    )
    choice = cgroups.choose(limits, userns=False, best_effort=True)
    view = confinement.confine(spec, identity, python_path, refused)
    root = filesystem.Root(view.entries, workdir=view.workdir, notes=view.notes)
    if any(each.what == "pids" for each in choice.missing):
        bound = confinement.blunt_pids(spec.pids, identity.host_uid)
        choice = replace(
            choice,
            rlimits={**choice.rlimits, _nproc(): (bound, bound)},
            missing=tuple(each for each in choice.missing if each.what != "pids"),
        )
        view.missing["pids"] = (
            f"RLIMIT_NPROC = {bound} bounds all that uid {identity.host_uid} runs, not it alone"
        )
    choice = replace(choice, enforced={**choice.enforced, **view.enforced})
    return Plan(spec, (), (), identity, root, choice, view.missing, view)
