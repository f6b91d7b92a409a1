#!/usr/bin/env python3
"""Draw how a kernel's snapshot brings a dead cell's variables back, for docs/snapshots.md.

usage: tools/draw_snapshots.py [FILE]     rewrites docs/snapshots.svg

Four moments side by side.  Each shows two processes, and between them the pages of memory that they map: a
page that both map is drawn once, with a line from each.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

PAGES: Final = 6
WIDTH, HEIGHT, GAP = 236, 330, 12
SIDE: Final = 30
TABLE_Y: Final = (88, 244)
MEMORY_Y: Final = (166, 196)
INK, PALE, SHARED, COPIED, DEAD = "#24292f", "#8c959f", "#b6e3ff", "#ffd8a8", "#ffcecb"


class Moment(NamedTuple):
    """One picture.

    Attributes:
        title: what happens.
        text: the same in two short lines.
        payload: what stands on the running process; empty where there is none.
        snapshot: what stands on the sleeping one.
        copied: pages that the cell has written to, and so has of its own.
        dead: whether the running one is.
    """

    title: str
    text: tuple[str, str]
    payload: str
    snapshot: str
    copied: frozenset[int] = frozenset()
    dead: bool = False


MOMENTS: Final = (
    Moment(
        "1  fork", ("Before the cell: a copy of the", "page table, and of no page"),
        "kernel, pid 2", "snapshot, asleep",
    ),
    Moment(
        "2  copy-on-write", ("The cell writes: only pages", "that it writes to are copied"),
        "kernel runs the cell", "snapshot, asleep", frozenset({1, 4}),
    ),
    Moment(
        "3  death", ("Its own pages are free again;", "init wakes the snapshot"),
        "killed by SIGKILL", "woken by init", frozenset({1, 4}), dead=True,
    ),
    Moment(
        "4  revival", ("New sockets, the same variables", "as before the cell"),
        "", "kernel, pid 17",
    ),
)  # fmt: skip


def text(x: float, y: float, words: str, *, size: int = 12, colour: str = INK, anchor: str = "middle") -> str:
    """One line of text."""
    look = f'font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" {look}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, *, dashed: bool = False) -> str:
    """A box with round corners."""
    dashes = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{fill}" '
        f'stroke="{PALE if dashed else INK}"{dashes}/>'
    )


def line(x: float, top: float, bottom: float, *, dashed: bool = False) -> str:
    """From a page table's entry to its page."""
    dashes = ' stroke-dasharray="3 3"' if dashed else ""
    return f'<line x1="{x:g}" y1="{top:g}" x2="{x:g}" y2="{bottom:g}" stroke="{PALE}"{dashes}/>'


def draw(moment: Moment, left: float) -> list[str]:
    """One moment's shapes."""
    middle = left + WIDTH / 2
    shapes = [text(middle, 24, moment.title, size=15)]
    shapes += [text(middle, 44 + 16 * row, words, colour=PALE) for row, words in enumerate(moment.text)]
    first = left + (WIDTH - PAGES * SIDE) / 2
    for owner, top, alive in (
        (moment.payload, TABLE_Y[0], not moment.dead),
        (moment.snapshot, TABLE_Y[1], True),
    ):
        if owner:
            fill = DEAD if not alive else "#ffffff"
            shapes.append(box(first - 6, top, PAGES * SIDE + 12, 46, fill, dashed=not alive))
            shapes.append(text(middle, top + 28, owner))
    for page in range(PAGES):
        x = first + page * SIDE
        own = page in moment.copied
        if moment.payload and not (moment.dead and not own):
            bottom = MEMORY_Y[0] - 14 if own else MEMORY_Y[1] - 14
            shapes.append(line(x + SIDE / 2, TABLE_Y[0] + 46, bottom, dashed=moment.dead))
        if own:
            fill = "#ffffff" if moment.dead else COPIED
            shapes.append(box(x + 3, MEMORY_Y[0] - 14, SIDE - 6, SIDE - 8, fill, dashed=moment.dead))
        shapes.append(line(x + SIDE / 2, MEMORY_Y[1] + SIDE - 22, TABLE_Y[1]))
        shapes.append(box(x + 3, MEMORY_Y[1] - 14, SIDE - 6, SIDE - 8, SHARED))
    return shapes


def picture() -> str:
    """The whole, as SVG."""
    width = len(MOMENTS) * (WIDTH + GAP) - GAP
    shapes = [
        shape for number, moment in enumerate(MOMENTS) for shape in draw(moment, number * (WIDTH + GAP))
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" '
        f'height="{HEIGHT}" font-family="sans-serif">'
    )
    legend = {
        6: "blue: pages of memory as they were before the cell",
        width / 2: "orange: copies that the cell has made by writing",
    }
    parts = [
        head,
        "<title>fork, copy-on-write, death and revival of a kernel</title>",
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>',
        *shapes,
        *(text(x, HEIGHT - 10, words, anchor="start", colour=PALE) for x, words in legend.items()),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Write the file."""
    default = Path(__file__).parent.parent / "docs" / "snapshots.svg"
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    target.write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
