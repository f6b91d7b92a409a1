"""How ``--watch`` looks: three curves that run into their limits, as a picture and as text.  Pure."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nsmagic import svg
from nsmagic.result import seconds_text, size_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsmagic.curve import Curve, Mark

_WIDTH: Final = 720
_LEFT: Final = 10
_RIGHT: Final = 710
_PANEL: Final = 66
_HEAD: Final = 22
_GAP: Final = 8
_EDGE: Final = 20
_ABOVE: Final = 1.12
"""How far a panel reaches above its limit, which is therefore a line in it and not its edge."""
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_PLAIN_BLOCKS: Final = "_.-=+*%#"
_COLUMNS: Final = 40
_MOST_WORDS: Final = 200
_SHORTEST: Final = 1e-3


@dataclass(frozen=True)
class Panel:
    """One of the curves, ready to be drawn.

    Attributes:
        name: of what.
        values: when (seconds), and how much.
        limit: what it runs against; None for none.
        limit_text: the limit in words.
        now: the state in words: now against the limit, or at the end the peak.
        mark: what happened at the limit, if something did.
        colour: of the curve.
    """

    name: str
    values: list[tuple[float, float]]
    limit: float | None
    limit_text: str
    now: str
    mark: Mark | None
    colour: str

    @property
    def top(self) -> float:
        """The value at its upper edge."""
        most = max((value for _, value in self.values), default=0.0)
        return max(self.limit or 0.0, most) * _ABOVE or 1.0

    def at(self, moment: float) -> float:
        """The curve's height at a moment."""
        heights = [value for when, value in self.values if when >= moment]
        return heights[0] if heights else self.values[-1][1]


def panels(curve: Curve) -> list[Panel]:
    """Memory, processor time and processes, once there are any; what nobody counts has no values."""
    if not curve.points and curve.ended is None:
        return []
    limits, now = curve.limits, curve.now
    memory = [(point.at, float(point.memory)) for point in curve.points if point.memory is not None]
    pids = [(point.at, float(point.pids)) for point in curve.points if point.pids is not None]
    shares = curve.cpu_shares()
    has_ended = curve.ended is not None
    in_use = None if now is None else now.memory
    running = None if now is None or now.pids is None else max(now.pids - 1, 0)
    cpus = limits.cpus if limits.cpus is not None else float(limits.processors)
    return [
        Panel(
            "memory",
            memory,
            limits.mem,
            f"{size_text(limits.mem)} (--mem)" if limits.mem else "no limit of its own",
            _state(in_use, curve.memory_peak, limits.mem, size_text, ended=has_ended),
            curve.killed,
            "#5e81ac",
        ),
        Panel(
            "CPU",
            shares,
            cpus,
            f"{cpus:g} (--cpus)" if limits.cpus is not None else f"{cpus:g} processors are there",
            _cpu_text(curve, shares[-1][1] if shares else 0.0, cpus),
            None,
            "#7a9c5f",
        ),
        Panel(
            "processes",
            pids,
            limits.pids,
            f"{limits.pids} (--pids)" if limits.pids else "no limit",
            _state(running, curve.pids_peak, limits.pids, str, ended=has_ended),
            curve.refused,
            "#d08770",
        ),
    ]


def _state(
    now: int | None, peak: int | None, limit: int | None, show: Callable[[int], str], *, ended: bool
) -> str:
    if now is None or peak is None:
        return "not counted here"
    of = f" of {show(limit)}" if limit is not None else ", no limit"
    return f"peak {show(peak)}{of}" if ended else f"{show(now)}{of}, peak {show(peak)}"


def _cpu_text(curve: Curve, now: float, allowed: float) -> str:
    used = curve.cpu_used
    if used is None:
        return "not counted here"
    if curve.ended is None:
        return f"{now / allowed:.0%} of {allowed:g}"
    mean = used / max(curve.lasted, _SHORTEST) / allowed
    return f"{seconds_text(used)} in all, on average {mean:.0%} of {allowed:g}"


def headline(curve: Curve) -> str:
    """Whether it runs, or how it ended: one line, nothing in it but letters."""
    if curve.ended is None:
        return f"running for {seconds_text(curve.lasted)}" if curve.points else "about to run"
    words = curve.ended.words[:_MOST_WORDS]
    shown = "".join(each if each.isprintable() else "?" for each in words)
    return f"ended after {seconds_text(curve.ended.at)}: {shown}"


# ---- As text -----------------------------------------------------------------------------------


def text(curve: Curve, *, plain: bool = False) -> str:
    """Three lines of blocks, each as high as its share of the limit, with a head and the notes.

    Args:
        curve: the curves.
        plain: with letters of ASCII only.
    """
    lines = [headline(curve)]
    for panel in panels(curve):
        happened = f"  {'x' if plain else '✗'} {panel.mark.words}" if panel.mark else ""
        blocks = _blocks(panel, curve.lasted, _PLAIN_BLOCKS if plain else _BLOCKS)
        lines.append(f"{panel.name:<10}|{blocks}| {panel.now}{happened}")
    lines += curve.notes
    return "\n".join(lines)


def _blocks(panel: Panel, lasted: float, blocks: str) -> str:
    """The curve in columns: of each the highest value, and where none is the one before."""
    if not panel.values:
        return " " * _COLUMNS
    columns: list[float | None] = [None] * _COLUMNS
    for when, value in panel.values:
        number = min(int(when / max(lasted, _SHORTEST) * _COLUMNS), _COLUMNS - 1)
        columns[number] = max(value, columns[number] or 0.0)
    full = panel.limit or panel.top / _ABOVE
    shown, height = "", 0.0
    for highest in columns:
        if highest is not None:
            height = highest
        # Only what has reached the limit is as high as it can be.
        level = int(height / full * (len(blocks) - 1) + 1e-6) if full else 0
        shown += blocks[min(level, len(blocks) - 1)]
    return shown


# ---- As a picture -------------------------------------------------------------------------------


def drawing(curve: Curve) -> str:
    """The curves as an SVG document: three panels over one time axis."""
    total = max(curve.lasted, _SHORTEST)

    def across(moment: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * min(moment / total, 1.0)

    parts: list[str] = []
    y = 0.0
    for panel in panels(curve):
        parts += _panel(panel, y, across)
        y += _HEAD + _PANEL + _GAP
    bottom = max(y - _GAP, 0)
    for tick in svg.ticks(total):
        x = across(tick)
        anchor: svg.Anchor = "start" if x < _LEFT + _EDGE else "end" if x > _RIGHT - _EDGE else "middle"
        parts.append(svg.line(x, bottom, x, bottom + 4, svg.FAINT))
        parts.append(
            svg.label(x, bottom + 15, seconds_text(tick) if tick else "0", colour=svg.FAINT, anchor=anchor)
        )
    return svg.picture(_WIDTH, bottom + 22, parts)


def _panel(panel: Panel, y: float, across: Callable[[float], float]) -> list[str]:
    bottom, top = y + _HEAD + _PANEL, y + _HEAD

    def height(value: float) -> float:
        return bottom - _PANEL * min(value / panel.top, 1.0)

    parts = [
        svg.label(_LEFT, y + 15, panel.name, bold=True),
        svg.label(_LEFT + 80, y + 15, panel.now),
        svg.box(_LEFT, top, _RIGHT - _LEFT, _PANEL, "#f6f6f6"),
        svg.line(_LEFT, bottom, _RIGHT, bottom, svg.FAINT),
    ]
    if panel.values:
        points = [(across(when), height(value)) for when, value in panel.values]
        parts.append(svg.area([(points[0][0], points[0][1]), *points], bottom, panel.colour))
    if panel.limit is not None:
        parts.append(svg.line(_LEFT, height(panel.limit), _RIGHT, height(panel.limit), svg.RED, dashed=True))
    words = f"limit {panel.limit_text}" if "(" in panel.limit_text else panel.limit_text
    parts.append(svg.label(_RIGHT, y + 15, words, colour=svg.RED, anchor="end"))
    if panel.mark is not None and panel.values:
        x, reached = across(panel.mark.at), height(panel.at(panel.mark.at))
        left = x > (_LEFT + _RIGHT) / 2
        parts.append(svg.dot(x, reached, svg.RED))
        beside = svg.label(
            x - 8 if left else x + 8, reached + 16, panel.mark.words,
            colour=svg.RED, anchor="end" if left else "start", bold=True,
        )  # fmt: skip
        parts.append(beside)
    return parts


def bundle(curve: Curve) -> dict[str, str]:
    """For ``display``: text, and HTML with the picture and how it ended."""
    words = text(curve)
    said = "".join(f"<br/>{html.escape(note)}" for note in curve.notes)
    line = f'<div style="font-size:90%"><b>{html.escape(headline(curve))}</b>{said}</div>'
    return {"text/plain": words, "text/html": svg.image(drawing(curve), words) + line}
