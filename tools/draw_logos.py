#!/usr/bin/env python3
"""Draw the logos of the two kernels: a prompt, or a slider, inside a box.

usage: tools/draw_logos.py [FOLDER]     rewrites the logos in nsmagic/kernel/data

A picture is a list of shapes on a grid of 64 by 64.  The SVG names them, the PNGs sample them, so that the
three files of a kernel show the same.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from pathlib import Path
from typing import Final, NamedTuple

GRID: Final = 64
SAMPLES: Final = 4  # along each side of a pixel
SIZES: Final = (32, 64)

Colour = tuple[int, int, int]
Point = tuple[float, float]
WHITE: Final = (255, 255, 255)


class Box(NamedTuple):
    """A filled square with round corners, this far from the picture's edge."""

    edge: float
    radius: float
    colour: Colour

    def covers(self, x: float, y: float) -> bool:
        """Whether a point lies in it."""
        half = GRID / 2 - self.edge - self.radius
        out = (max(abs(x - GRID / 2) - half, 0.0), max(abs(y - GRID / 2) - half, 0.0))
        return math.hypot(*out) <= self.radius

    def svg(self) -> str:
        """The same as an element."""
        side = GRID - 2 * self.edge
        return (
            f'<rect x="{self.edge:g}" y="{self.edge:g}" width="{side:g}" height="{side:g}" '
            f'rx="{self.radius:g}" fill="{_hex(self.colour)}"/>'
        )


class Line(NamedTuple):
    """A line with round ends; of one point only, a dot."""

    points: tuple[Point, ...]
    width: float
    colour: Colour

    def covers(self, x: float, y: float) -> bool:
        """Whether a point lies on it."""
        ends = self.points[1:] or self.points
        pairs = zip(self.points, ends, strict=False)
        return any(_distance(x, y, begin, end) <= self.width / 2 for begin, end in pairs)

    def svg(self) -> str:
        """The same as an element."""
        corners = " ".join(f"{x:g},{y:g}" for x, y in (*self.points, *self.points[-1:]))
        return (
            f'<polyline points="{corners}" fill="none" stroke="{_hex(self.colour)}" '
            f'stroke-width="{self.width:g}" stroke-linecap="round" stroke-linejoin="round"/>'
        )


Picture = tuple[Box | Line, ...]


def _boxes(colour: Colour) -> tuple[Box, ...]:
    """The container: a wall, a gap, and what it holds."""
    return Box(2, 13, colour), Box(6.5, 9, WHITE), Box(10, 6.5, colour)


BLUE: Final = (30, 76, 134)
GREEN: Final = (13, 118, 92)
AMBER: Final = (255, 196, 61)

PICTURES: Final[dict[str, Picture]] = {
    "isolated-python": (
        *_boxes(BLUE),
        Line(((20, 23), (29.5, 32), (20, 41)), 5.5, WHITE),
        Line(((34, 43), (45, 43)), 5.5, AMBER),
    ),
    "isolated-python-widgets": (
        *_boxes(GREEN),
        Line(((19, 25), (45, 25)), 4.5, WHITE),
        Line(((38, 25),), 11, AMBER),
        Line(((19, 41), (45, 41)), 4.5, WHITE),
        Line(((26, 41),), 11, AMBER),
    ),
}


def _hex(colour: Colour) -> str:
    return "#" + bytes(colour).hex()


def _distance(x: float, y: float, begin: Point, end: Point) -> float:
    """From a point to a stretch of line."""
    along = (end[0] - begin[0], end[1] - begin[1])
    length = along[0] ** 2 + along[1] ** 2
    share = ((x - begin[0]) * along[0] + (y - begin[1]) * along[1]) / length if length else 0.0
    share = min(max(share, 0.0), 1.0)
    return math.hypot(x - begin[0] - share * along[0], y - begin[1] - share * along[1])


def _pixel(picture: Picture, column: int, row: int, size: int) -> bytes:
    """Red, green, blue, opacity: what the samples of one pixel see, the topmost shape of each."""
    step = GRID / size / SAMPLES
    seen: list[Colour] = []
    for number in range(SAMPLES * SAMPLES):
        x = (column * SAMPLES + number % SAMPLES + 0.5) * step
        y = (row * SAMPLES + number // SAMPLES + 0.5) * step
        seen += [shape.colour for shape in reversed(picture) if shape.covers(x, y)][:1]
    if not seen:
        return bytes(4)
    mean = [round(sum(colour[part] for colour in seen) / len(seen)) for part in range(3)]
    return bytes((*mean, round(255 * len(seen) / SAMPLES**2)))


def png(picture: Picture, size: int) -> bytes:
    """The picture as a PNG file of so many pixels a side: 8 bits a channel, with opacity."""
    rows = [b"".join(_pixel(picture, column, row, size) for column in range(size)) for row in range(size)]
    header = struct.pack(">IIBBBBB", size, size, 8, 6, 0, 0, 0)
    # Each row begins with the number of its filter; 0 is none.
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(b"".join(b"\0" + row for row in rows), 9), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def svg(picture: Picture) -> str:
    """The picture as an SVG file."""
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {GRID} {GRID}">']
    return "\n".join([*lines, *(f"  {shape.svg()}" for shape in picture), "</svg>"]) + "\n"


def main(folder: Path) -> None:
    """Write the files of both kernels."""
    for name, picture in PICTURES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "logo-svg.svg").write_text(svg(picture), encoding="utf-8")
        for size in SIZES:
            (folder / name / f"logo-{size}x{size}.png").write_bytes(png(picture, size))


if __name__ == "__main__":
    ours = Path(__file__).resolve().parent.parent / "nsmagic" / "kernel" / "data"
    main(Path(sys.argv[1]) if sys.argv[1:] else ours)
