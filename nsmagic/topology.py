"""How a network looks: a picture of its cables, and the same as text; for ``%network show``.  Pure.

Names, addresses and counts are the owner's and the kernel's, not the containers' own words; they are escaped
all the same.
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nsmagic.result import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsmagic.launcher.lab_frames import View
    from nsmagic.ports import Publish

_DRAWN: Final = 24
"""Members in the picture; the text has all."""
_ROW: Final = 78
_TOP: Final = 14
_HUB_LEFT, _HUB_WIDTH = 166, 128
_BOX_LEFT, _BOX_WIDTH, _BOX_HEIGHT = 480, 272, 66
_WIDTH: Final = 760
_UP, _DOWN, _INK, _MUTED = "#2e8b57", "#b0b0b0", "#222222", "#666666"


@dataclass(frozen=True)
class Member:
    """A container and its cable.

    Attributes:
        name: what it is called.
        number: as ``%containers`` shows it.
        port: the other end of its cable.
        device: its own end.
        up: whether both ends are.
        facts: lines about it: its address, what it serves.
        traffic: what went through the cable; empty where nobody counts.
    """

    name: str
    number: int
    port: str
    device: str
    up: bool
    facts: tuple[str, ...]
    traffic: str = ""


@dataclass(frozen=True)
class Topology:
    """A network.

    Attributes:
        title: one line about it.
        hub: what the cables lead to: its name, then facts.
        outside: lines about the host's side of the hub.
        open: whether there is a way between host and hub.
        members: the containers.
    """

    title: str
    hub: tuple[str, ...]
    outside: tuple[str, ...]
    open: bool
    members: tuple[Member, ...]


def of_lab(name: str, view: View) -> Topology:
    """A lab, as its holder sees it."""
    members = tuple(
        Member(
            each.name,
            each.number,
            each.port,
            "eth0",
            each.up,
            (
                each.address,
                each.mac,
                f"serves {', '.join(each.listens) or 'nothing'}",
            ),
            f"in {size_text(each.received)}, out {size_text(each.sent)}",
        )
        for each in view.members
    )
    count = f"{len(members)} container" + ("" if len(members) == 1 else "s")
    return Topology(
        f"network {name}, {view.subnet}, {count}",
        (f"bridge {view.bridge}", view.subnet, view.mac),
        ("the host", "no cable:", "no way in or out"),
        open=False,
        members=members,
    )


def of_outbound(containers: Sequence[tuple[str, int, Sequence[Publish]]]) -> Topology:
    """The containers that have a way out.

    Args:
        containers: of each the name, the number, and the ports published.
    """
    members = tuple(
        Member(
            name,
            number,
            "a pasta of its own",
            "eth0",
            True,  # noqa: FBT003 - a built one has its network
            tuple(each.shown for each in publish) or ("no port published",),
        )
        for name, number, publish in containers
    )
    count = f"{len(members)} container" + ("" if len(members) == 1 else "s")
    return Topology(
        f"network outbound, {count}",
        ("pasta", "one for each", "not to each other"),
        ("the host", "its sockets,", "not its 127.0.0.1"),
        open=True,
        members=members,
    )


# ---- text --------------------------------------------------------------------------------------


def text(network: Topology) -> str:
    """For a terminal."""
    host = f"{network.outside[0]} ({' '.join(network.outside[1:])})"
    lines = [network.title, "", host, "  │" if network.open else "  ✕", " · ".join(network.hub)]
    rows = [
        (
            f"{each.port} ── {each.device}",
            each.name,
            f"container {each.number}",
            "up" if each.up else "down",
            *each.facts[:3],
            each.traffic,
        )
        for each in network.members
    ]
    count = max((len(row) for row in rows), default=0)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(count)]
    for number, row in enumerate(rows):
        branch = "└─" if number == len(rows) - 1 else "├─"
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        lines.append(f"{branch} {'  '.join(cells)}".rstrip())
    return "\n".join(lines if rows else [*lines, "└─ nobody"])


# ---- the picture -------------------------------------------------------------------------------


def _text(x: float, y: float, words: str, *, size: int = 12, colour: str = _INK, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{more}>{html.escape(words)}</text>'


def _box(x: float, y: float, width: float, height: float, *, fill: str, edge: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" '
        f'stroke="{edge}" stroke-width="1.5"/>'
    )


def svg(network: Topology) -> str:
    """The picture: the host on the left, the hub, and a cable to each container."""
    drawn = network.members[:_DRAWN]
    rows = max(1, len(drawn))
    height = _TOP * 2 + rows * _ROW + (18 if len(network.members) > _DRAWN else 0)
    middle = _TOP + rows * _ROW / 2
    parts = [
        _box(8, middle - 34, 122, 68, fill="#f3f3f3", edge=_MUTED),
        *(_text(18, middle - 14 + 18 * i, line) for i, line in enumerate(network.outside)),
        _line(130, middle, _HUB_LEFT, up=network.open),
        _box(_HUB_LEFT, _TOP, _HUB_WIDTH, rows * _ROW - 8, fill="#e5edf7", edge="#5e81ac"),
    ]
    for i, line in enumerate(network.hub):
        bold = ' font-weight="bold"' if i == 0 else ""
        parts.append(_text(_HUB_LEFT + 10, middle - 14 + 18 * i, line, more=bold))
    if not network.open:
        parts.append(_text(141, middle + 5, "✕", size=15, colour="#d9363e"))
    for number, member in enumerate(drawn):
        parts += _member(member, _TOP + number * _ROW)
    if not drawn:
        parts.append(_text(_BOX_LEFT, middle + 4, "no containers", colour=_MUTED))
    if len(network.members) > _DRAWN:
        more = f"and {len(network.members) - _DRAWN} more, in the text form"
        parts.append(_text(_BOX_LEFT, height - 10, more, colour=_MUTED))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>'
    )


def _line(x: float, y: float, end: float, *, up: bool) -> str:
    look = f'stroke="{_UP}"' if up else f'stroke="{_DOWN}" stroke-dasharray="6 5"'
    return f'<line x1="{x:g}" y1="{y:g}" x2="{end:g}" y2="{y:g}" stroke-width="3" {look}/>'


def _member(member: Member, y: float) -> list[str]:
    """One container's box and cable, from this height down."""
    cable = y + 33
    right = _HUB_LEFT + _HUB_WIDTH
    colour = _UP if member.up else _MUTED
    lines = member.facts[:2] if len(member.facts) < 3 else (" · ".join(member.facts[:2]), member.facts[2])  # noqa: PLR2004
    return [
        _line(right, cable, _BOX_LEFT, up=member.up),
        _text(right + 6, cable - 7, member.port, size=11, colour=_MUTED),
        _text(_BOX_LEFT - 6, cable - 7, member.device, size=11, colour=_MUTED, more=' text-anchor="end"'),
        _text(right + 6, cable + 16, member.traffic, size=10, colour=_MUTED),
        _box(_BOX_LEFT, y, _BOX_WIDTH, _BOX_HEIGHT, fill="#eef6ee" if member.up else "#f6f6f6", edge=colour),
        _text(_BOX_LEFT + 10, y + 20, member.name[:24], size=14, more=' font-weight="bold"'),
        _text(
            _BOX_LEFT + _BOX_WIDTH - 10, y + 20, "up" if member.up else "down", colour=colour,
            more=' text-anchor="end"',
        ),
        *(_text(_BOX_LEFT + 10, y + 39 + 17 * i, line[:44]) for i, line in enumerate(lines)),
    ]  # fmt: skip


def bundle(network: Topology) -> dict[str, str]:
    """For ``display``: text, and the picture with the title over it."""
    picture = base64.b64encode(svg(network).encode()).decode()
    words = text(network)
    return {
        "text/plain": words,
        "text/html": (
            f"<div><b>{html.escape(network.title)}</b></div>"
            f'<img alt="{html.escape(words)}" src="data:image/svg+xml;base64,{picture}"/>'
        ),
    }
