"""Pictures made of a few kinds of marks: boxes, texts, arrows.  Knows nothing of what they mean."""

from __future__ import annotations

import base64
import html
from typing import Final, Literal, NamedTuple

INK: Final = "#222"
GREY: Final = "#777"
HOST: Final = "#dfe7f1"
"""What belongs to the host."""
OWN: Final = "#e3f2e1"
"""What a process or a container has of its own."""
KERNEL: Final = "#fbe9d3"
"""What belongs to the kernel."""
DANGER: Final = "#f8d9d9"
PAPER: Final = "#fff"
BLUE: Final = "#3f6ea3"
GREEN: Final = "#2e7d32"
RED: Final = "#b3261e"

_MARGIN: Final = 8
_LINE: Final = 16


class Picture(NamedTuple):
    """A picture and the same in words.

    Attributes:
        svg: the drawing.
        text: what it shows, for a terminal and for who cannot see it.
    """

    svg: str
    text: str

    def bundle(self) -> dict[str, str]:
        """For ``display``: an image, which runs no script and is styled by nobody, and the text."""
        data = base64.b64encode(self.svg.encode()).decode()
        source = f"data:image/svg+xml;base64,{data}"
        image = f'<img alt="{html.escape(self.text)}" style="max-width:100%" src="{source}"/>'
        return {"text/plain": self.text, "text/html": image}


class Drawing:
    """A sheet to draw on; all numbers are pixels, y grows downward, and every text is escaped.

    Args:
        width: of the sheet.
        height: of the sheet.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, label: str = "", *,
        fill: str = PAPER, edge: str = GREY, dashed: bool = False, bold: bool = False,
    ) -> None:  # fmt: skip
        """A rectangle, with a label in its upper left corner, of several lines if need be."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" '
            f'stroke="{edge}"{dash}/>'
        )
        if label:
            self.text(x + _MARGIN, y + _LINE, label, bold=bold)

    def text(
        self, x: float, y: float, text: str, *,
        size: int = 12, colour: str = INK, bold: bool = False, mono: bool = False, halo: bool = False,
        anchor: Literal["start", "middle", "end"] = "start",
    ) -> None:  # fmt: skip
        """Text whose first line stands on y; lines are parted by a line feed.

        Args:
            x: where it begins, or its middle or end by ``anchor``.
            y: of the first line's foot.
            text: what it says.
            size: of its letters.
            colour: of its letters.
            bold: whether they are.
            mono: whether all letters are of one width.
            halo: whether it stands out from a line behind it.
            anchor: ``start``, ``middle`` or ``end``.
        """
        weight = ' font-weight="bold"' if bold else ""
        weight += f' paint-order="stroke" stroke="{PAPER}" stroke-width="4"' if halo else ""
        family = ' font-family="monospace"' if mono else ""
        for number, line in enumerate(text.split("\n")):
            self._parts.append(
                f'<text x="{x}" y="{y + number * (size + 4)}" font-size="{size}" fill="{colour}" '
                f'text-anchor="{anchor}"{weight}{family}>{html.escape(_printable(line))}</text>'
            )

    def arrow(
        self, x1: float, y1: float, x2: float, y2: float, label: str = "", *,
        colour: str = INK, dashed: bool = False, both: bool = False,
    ) -> None:  # fmt: skip
        """A straight arrow, with a label at its middle."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        start = f' marker-start="url(#head{colour[1:]})"' if both else ""
        self._parts.append(
            f'<defs><marker id="head{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            f'markerHeight="8" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
            "</defs>"
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="1.5" '
            f'marker-end="url(#head{colour[1:]})"{start}{dash}/>'
        )
        if label:
            middle, height = (x1 + x2) / 2, (y1 + y2) / 2 + (-4 if y1 == y2 else 4)
            self.text(middle, height, label, size=11, colour=colour, anchor="middle", halo=True)

    def line(
        self, x1: float, y1: float, x2: float, y2: float, *, colour: str = GREY, dashed: bool = False
    ) -> None:
        """A straight line."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"{dash}/>')

    def svg(self) -> str:
        """All of it, on white: front ends have dark themes."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="sans-serif">'
            f'<rect width="100%" height="100%" fill="{PAPER}"/>{"".join(self._parts)}</svg>'
        )


def _printable(text: str) -> str:
    """Names of processes, hosts and files may be anything."""
    return "".join(each if each.isprintable() else "?" for each in text[:200])
