"""``%network``: labs are created, removed, listed and drawn; thin, as the magics of ``magics`` are."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.display import display

from nsmagic import container, topology, views
from nsmagic.errors import NetworkError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from IPython.core.interactiveshell import InteractiveShell

    from nsmagic.container import Container

_USAGE = "takes create NAME, remove NAME, show NAME, or nothing, which lists them; see %network?"


@magics_class
class NetworkMagics(Magics):  # type: ignore[misc]
    """The magic."""

    @line_magic  # type: ignore[untyped-decorator]
    def network(self, line: str) -> None:
        """Create, remove, draw and list networks of containers.

            %network                list them
            %network create lab     a bridge of this notebook's own, with no way in or out
            %network show lab       draw it: containers, addresses, what they serve, which are up
            %network show outbound  the containers that have a way out, and their published ports
            %network remove lab     it must have no containers any more

        Containers join with ``%%contain --net lab --hostname web``, and reach each other by these names.  A
        network ends with this notebook's kernel.  See bridge(8), veth(4).
        """
        actions: dict[str, Callable[[str], None]] = {"create": _create, "remove": _remove, "show": _show}
        match _words(line):
            case []:
                display(views.bundle(_rows(), head=True), raw=True)
            case [action, name] if action in actions:
                actions[action](name)
            case _:
                raise SpecError("%network", _USAGE)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise SpecError("%network", f"the line cannot be read: {error}") from None


def _create(name: str) -> None:
    from nsmagic import labs, spec  # noqa: PLC0415 - a notebook without networks needs none of it

    lab = labs.create(spec.parse_lab("%network create", name))
    text = f"Network {name}: {lab.subnet}. Containers join it with %%contain --net {name} --hostname …"
    display(views.note(text), raw=True)


def _remove(name: str) -> None:
    from nsmagic import labs  # noqa: PLC0415 - likewise

    labs.find("%network remove", name).remove()
    display(views.note(f"Network {name} is gone."), raw=True)


def _show(name: str) -> None:
    if name == "outbound":
        found = [(each.spec.hostname, each.number, each.spec.publish) for each in _outbound()]
        display(topology.bundle(topology.of_outbound(found)), raw=True)
        return
    from nsmagic import labs  # noqa: PLC0415 - likewise

    lab = labs.find("%network show", name)
    display(topology.bundle(topology.of_lab(name, lab.view())), raw=True)


def _outbound() -> list[Container]:
    return [each for each in list(container.live.values()) if each.spec.net == "outbound"]


def _rows() -> list[tuple[str, ...]]:
    """Labs, and outbound where a container has it."""
    rows: list[tuple[str, ...]] = [("network", "what it is", "addresses", "containers")]
    labs = sys.modules.get("nsmagic.labs")
    for lab in labs.living() if labs is not None else []:
        try:
            members = [each.name for each in lab.view().members]
            rows.append((lab.name, "a lab: a bridge, no way out", lab.subnet, ", ".join(members) or "none"))
        except NetworkError:
            rows.append((lab.name, "gone: its holder died", lab.subnet, f"%network create {lab.name}"))
    names = [each.spec.hostname for each in _outbound()]
    rows.append(("outbound", "out through the host, by pasta", "the host's", ", ".join(names) or "none"))
    rows.append(("none", "a loopback of its own", "127.0.0.1", "any"))
    rows.append(("host", "the host's own", "the host's", "any"))
    return rows


def load(shell: InteractiveShell) -> None:
    """Add the magic; nothing is started."""
    shell.register_magics(NetworkMagics(shell))


def unload() -> None:
    """End the labs of this process."""
    labs = sys.modules.get("nsmagic.labs")
    if labs is not None:
        labs.close_all()
