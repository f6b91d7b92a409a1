"""Joining: which namespaces of a kept container another one is made inside of, and in which order.

A kept container's init has handed its namespaces' descriptors to the owner (``nsm_join_offer`` in join.c), so
nothing here looks anything up by a process id.  A namespace is entered from the user namespace that owns it.
Therefore every user namespace that the kept container lies in is entered on the way, the outermost first, and
what is new is made inside the innermost.  See setns(2), user_namespaces(7).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from nsmagic import names
from nsmagic.errors import SpecError
from nsmagic.launcher import client
from nsmagic.plan import Doors, identity_for
from nsmagic.spec import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from nsmagic.channels import Channels
    from nsmagic.container import Container
    from nsmagic.report import Report
    from nsmagic.spec import ContainerSpec

KILLED_FROM_INSIDE: Final = "a process in it killed the one that ends what a job has left behind"
_END_SECONDS: Final = 2.0
_ORDER: Final = ("user", "ipc", "uts", "net", "time", "cgroup", "pid", "mount")
"""The user namespace first, since it gives the right to enter the others; the mounts last."""


def joined_by(spec: ContainerSpec) -> Container | None:
    """The container that a new one of this spec joins.

    Raises:
        SpecError: there is none of that name, or it is to be joined as a whole, which takes no new one.
        StoppedError: it has ended.
    """
    if spec.join is None:
        return None
    name = spec.join.name
    if spec.join.kinds is None:
        raise SpecError(
            "--join",
            f"{name} is to be joined as it is, which makes no other container; run in it by "
            f"nsmagic.run(…, join={name!r}), or say what a new one shares with it, as in {name}:net",
        )
    joined = names.find("--join", name)
    joined.wait_built()
    return joined


def doors_for(spec: ContainerSpec, joined: Container | None, given: Doors | None) -> Doors | None:
    """What a new container is made inside of, if not of the host's own namespaces; the caller closes them.

    Args:
        spec: of the new one.
        joined: the container that it joins, as ``joined_by`` finds it.
        given: others' namespaces; where its network is somebody's own, else that one's user namespace.

    Raises:
        SpecError: something is to be shared that is not there.
        StoppedError: the one that it joins has ended.
    """
    if joined is not None:
        return open_doors(joined, spec)
    doors = given or _of_network(spec)
    return None if doors is None else again(doors)


def _of_network(spec: ContainerSpec) -> Doors | None:
    if spec.net in NETWORKS:
        return None
    from nsmagic import networks  # noqa: PLC0415 - few containers are on a lab

    return networks.doors(spec)


def open_doors(joined: Container, spec: ContainerSpec) -> Doors:
    """What a new container is made inside of; the caller closes the descriptors.

    Args:
        joined: the kept container.
        spec: of the new one.

    Raises:
        SpecError: something is to be shared that the kept one has not got.
        StoppedError: it has ended.
    """
    kinds = spec.joined
    lacks = sorted(kinds - joined.offered.keys(), key=_ORDER.index)
    if lacks:
        has = ", ".join(kind for kind in _ORDER if kind in joined.offered) or "none"
        raise SpecError(
            "--join", f"{joined.spec.name} has no {lacks[0]} namespace of its own to share; it has {has}"
        )
    wants_proc = "pid" in kinds and "mount" in spec.namespaces
    if wants_proc and "mount" not in joined.offered:
        raise SpecError(
            "--join",
            f"{joined.spec.name} has no mount namespace, and so no /proc of its processes; leave pid out",
        )
    wanted = {"user", *kinds}
    own, theirs = identity_for(spec, userns=True), joined.plan.identity
    if own.as_root and (own.host_uid, own.host_gid) != (theirs.host_uid, theirs.host_gid):
        # The one user of their user namespace is another one on the host, and root need not go there.
        wanted = set(kinds)
    return _open(joined, wanted, joined.offered["mount"] if wants_proc else -1)


def all_doors(joined: Container) -> Doors:
    """The way into a kept container as it is; the caller closes the descriptors."""
    return _open(joined, joined.offered, -1)


def again(doors: Doors) -> Doors:
    """The same doors, with descriptors of one's own; the caller closes them."""
    return _own(doors.steps, doors.proc_from, doors)


def _open(joined: Container, wanted: Collection[str], proc_from: int) -> Doors:
    outer = joined.doors.steps if joined.doors is not None else ()
    theirs = {kind for kind, _ in outer}
    own = [kind for kind in _ORDER if kind in joined.offered and kind not in theirs]
    if "user" in joined.namespaces:  # it has one of its own inside the one that it joined
        own = ["user", *(kind for kind in own if kind != "user")]
    steps = [step for step in outer if step[0] in wanted]
    steps += [(kind, joined.offered[kind]) for kind in own if kind in wanted]
    identity = joined.plan.identity
    host = (identity.host_uid, identity.host_gid)
    rest = Doors((), identity.uid, identity.gid, -1, joined.plan.root.workdir, joined.hostname, host)
    return _own(steps, proc_from, rest)


def _own(steps: Sequence[tuple[str, int]], proc_from: int, rest: Doors) -> Doors:
    """Doors with duplicates of these descriptors."""
    made: list[int] = []
    try:
        made = [os.dup(descriptor) for _, descriptor in steps]
        proc = os.dup(proc_from) if proc_from >= 0 else -1
    except OSError:
        close(made)
        raise
    kinds = [kind for kind, _ in steps]
    found = rest._replace(steps=tuple(zip(kinds, made, strict=True)), proc_from=proc)
    client.owned.update(found.descriptors)
    return found


def has_ended(channels: Channels, report: Report) -> bool:
    """End what is in another's PID namespace; whether all of it has ended, by its init's own word.

    Its init is no PID 1: it looks for what the job has left, and it can be killed by others in there.
    """
    if report.exit is None and not report.failed:
        channels.close_lifeline()
        report.wait_for_end(channels.report, _END_SECONDS)
    never_made = report.closed and report.pid is None
    return report.exit is not None or report.failed or never_made


def close(descriptors: Iterable[int]) -> None:
    """Let namespaces go; they end with their last process and their last descriptor."""
    for descriptor in descriptors:
        client.owned.discard(descriptor)
        os.close(descriptor)
