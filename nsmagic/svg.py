"""The few shapes that our pictures are made of, and the picture as an image for HTML.  Pure.

A picture is shown as an image (``<img>`` with the SVG in its address), not as SVG within the page: so no
front end has to trust it, nothing in it can run, and it shows in a notebook that is read as a file.  Every
text in it is escaped.
"""

from __future__ import annotations

import base64
import html
import math
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

INK: Final = "#333"
FAINT: Final = "#888"
RED: Final = "#c62828"

Anchor = Literal["start", "middle", "end"]
_STEPS: Final = (1.0, 2.0, 5.0, 10.0)


def label(
    x: float, y: float, text: str, *, colour: str = INK, anchor: Anchor = "start", bold: bool = False
) -> str:
    """A line of text whose baseline is at ``y``; a bold one is readable on top of anything."""
    weight = ' font-weight="bold" stroke="#fff" stroke-width="3" paint-order="stroke"' if bold else ""
    escaped = html.escape("".join(each if each.isprintable() else "?" for each in text))
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{weight}>{escaped}</text>'


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A filled rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def frame(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A hollow rectangle."""
    return (
        f'<rect x="{x:.1f}" y="{y + 0.5:.1f}" width="{width:.1f}" height="{height - 1:.1f}" fill="none" '
        f'stroke="{colour}" stroke-dasharray="3 2"/>'
    )


def line(x: float, y: float, to_x: float, to_y: float, colour: str, *, dashed: bool = False) -> str:
    """A thin line."""
    dashes = ' stroke-dasharray="5 3"' if dashed else ""
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}"'
        f' stroke-width="1"{dashes}/>'
    )


def area(points: Sequence[tuple[float, float]], bottom: float, colour: str) -> str:
    """A curve, and a shade of its colour between it and ``bottom``."""
    along = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    under = f"{points[0][0]:.1f},{bottom:.1f} {along} {points[-1][0]:.1f},{bottom:.1f}"
    return (
        f'<polygon points="{under}" fill="{colour}" fill-opacity="0.25"/>'
        f'<polyline points="{along}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    )


def dot(x: float, y: float, colour: str) -> str:
    """A mark at one point."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'


def picture(width: float, height: float, parts: Iterable[str]) -> str:
    """Shapes as a whole SVG document, on white: the front end's own background may be dark."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
    )


def image(document: str, words: str) -> str:
    """A picture for HTML.

    Args:
        document: as ``picture`` gives it.
        words: what it shows, for those who do not see it.
    """
    data = base64.b64encode(document.encode(errors="replace")).decode()
    return (
        f'<img alt="{html.escape(words)}" style="max-width:100%;height:auto" '
        f'src="data:image/svg+xml;base64,{data}"/>'
    )


def ticks(total: float, most: int = 6) -> list[float]:
    """Round numbers from 0 to ``total``, about as many as ``most``: 1, 2 or 5 of a power of ten apart."""
    if total <= 0:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(total / most))
    step = next((power * each for each in _STEPS if power * each * most >= total), power * _STEPS[-1])
    return [step * number for number in range(math.floor(total / step * (1 + 1e-9)) + 1)]
