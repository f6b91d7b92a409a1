"""Networks, from the owner's side: labs, and the way out.

A *lab* is a network of containers and of nothing else: a bridge in a namespace of its own (``launcher.lab``
is its holder), addresses from a private range, names in the members' /etc/hosts.  It belongs to the process
that created it and ends with it.  *Outbound* is no network of ours: each container gets a pasta of its own,
which carries its connections out through the host's sockets (``outbound``).

A container that has one of them is built afresh, never taken from a standby: that would hold an address, or a
process.  Any thread may use this module.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from nsmagic import labs, spec
from nsmagic.errors import NetworkError
from nsmagic.filesystem import Names
from nsmagic.plan import Doors

if TYPE_CHECKING:
    from typing_extensions import Self

    from nsmagic.attachment import Attachment
    from nsmagic.launcher import lab_frames
    from nsmagic.spec import ContainerSpec


class Network:
    """A lab network; with the same name as a living one of this process it is that.

    Use it in a ``with`` statement, or ``remove`` it; else it ends with this process.

    >>> with nsmagic.Network("lab"):
    ...     web = nsmagic.Container(net="lab", hostname="web").start()
    ...     nsmagic.run("...", net="lab").check()

    Args:
        name: 1 to 30 letters, digits, hyphens and underscores, a letter first.

    Raises:
        SpecError: no name for a lab.
        HostError: this host has no such networks.
        NetworkError: it could not be made.
    """

    def __init__(self, name: str) -> None:
        self.name = spec.parse_lab("network", name)
        self._lab = labs.find_or_create(self.name)

    def remove(self) -> None:
        """Remove it.

        Raises:
            NetworkError: it has members; the text says which.
        """
        self._lab.remove()

    def view(self) -> lab_frames.View:
        """What is there now, as the kernel shows it.

        Raises:
            NetworkError: it is gone.
        """
        return self._lab.view()

    @property
    def subnet(self) -> str:
        """Its range of addresses, such as ``10.77.0.0/24``."""
        return self._lab.subnet

    def __enter__(self) -> Self:
        """It is there already."""
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        """Remove it.

        Raises:
            NetworkError: it has members, and nothing else was raised.
        """
        with contextlib.suppress(*([] if kind is None else [NetworkError])):
            self.remove()

    def __repr__(self) -> str:
        """Name and state."""
        return f"<lab network {self.name}: {self.subnet if self._lab.alive else 'gone'}>"


def names(spec: ContainerSpec) -> Names:
    """What a container of this spec is to know of others; here a wish for what is not there ends.

    Raises:
        HostError: ``outbound``, and there is no pasta.
        SpecError: there is no lab of that name.
    """
    if spec.net == "outbound":
        from nsmagic import outbound  # noqa: PLC0415 - which builds on us

        outbound.program()
        return Names(resolv_conf=outbound.resolv_conf())
    return Names(hosts_folder=labs.find("--net", spec.net).hosts_folder)


def named(wanted: ContainerSpec, number: int) -> ContainerSpec:
    """A member of a lab has a name that others call it by: the given one, or one of its own."""
    if wanted.net in spec.NETWORKS or wanted.hostname != spec.DEFAULT_HOSTNAME:
        return wanted
    return replace(wanted, hostname=f"box{number}")


def doors(wanted: ContainerSpec) -> Doors | None:
    """The user namespace that a member's own is made in, so that the lab's holder has rights over it.

    Raises:
        SpecError: there is no lab of that name.
    """
    userns = labs.find("--net", wanted.net).userns
    return Doors((("user", userns),), os.geteuid(), os.getegid()) if userns >= 0 else None


def attach(wanted: ContainerSpec, number: int) -> Attachment:
    """Have somebody wait for a container that is about to be made, to build its network.

    Raises:
        HostError, NetworkError, SpecError: it cannot have it; see ``Lab.attach``, ``outbound.attach``.
    """
    if wanted.net == "outbound":
        from nsmagic import outbound  # noqa: PLC0415 - as above

        return outbound.attach(wanted.publish)
    return labs.find("--net", wanted.net).attach(wanted.hostname, number)
