"""Best effort: how much of a container this host lets us make, found by making one.

Only for ``--best-effort``, and once in a process for each set of namespaces.  A namespace that nothing else
stands on is left out if the kernel refuses it; where anything else is refused there is no container, and
``confinement`` says what is left.  What is lost is named in the result.

This module must not know what a container is for; ``container`` asks it before it makes its plan.
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from nsmagic.errors import StartError
from nsmagic.plan import Reach
from nsmagic.spec import ContainerSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

_WITHOUT: Final = {
    "unshare(CLONE_NEWCGROUP)": "cgroup",
    "unshare(CLONE_NEWTIME)": "time",
    'open("/proc/self/timens_offsets", O_WRONLY)': "time",
}
"""Calls that make one namespace and nothing else; init makes them after it was cloned into the others."""

_REFUSALS: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.ENOSPC, errno.EUSERS}
)
"""What a host answers that will answer so again; a lack of memory or of processes may be over soon."""


def reach(spec: ContainerSpec) -> Reach:
    """How much of this spec's namespaces can be had.

    Raises:
        LauncherError: the launcher cannot be started, so nothing was found out.
        StartError: the container failed for a reason that may be gone the next time, such as EAGAIN.
    """
    net = "host" if "net" in spec.joined else spec.net  # what is joined is not tried
    return _find(os.getpid(), spec.namespaces, net)


@lru_cache(maxsize=16)
def _find(pid: int, namespaces: frozenset[str], net: str) -> Reach:
    del pid  # a fork may have gone to live elsewhere
    refused: dict[str, str] = {}
    if not namespaces:
        return Reach(refused)
    while True:
        error = _trial(namespaces, net, refused)
        if error is None:
            return Reach(refused)
        if error.errno not in _REFUSALS:
            raise error
        words = f"{error.call}: {os.strerror(error.errno)}"
        name = _WITHOUT.get(error.call)
        if name is None or name in refused:
            return Reach({}, words)
        refused[name] = words


def _trial(namespaces: frozenset[str], net: str, refused: Mapping[str, str]) -> StartError | None:
    """Make a container of these namespaces and nothing else asked for; why it failed, or None."""
    from nsmagic.container import Container  # noqa: PLC0415 - which asks us

    spec = ContainerSpec(namespaces=namespaces, net="host" if net == "host" else "none", best_effort=True)
    container = Container(spec, keep=False, reach=Reach(dict(refused)))
    try:
        container.start().wait_built()
    except StartError as error:
        return error
    finally:
        container.stop()
    return None
