"""When each step of a container's building ran, and who did what at the same time: the picture and its text.

Three processes build a container, or four, partly at once: each has its own lanes over one axis of time.
Calls that only wait for another process are drawn hollow.  Where nobody does anything for long, because a
container waits to be used, the axis is cut, and says for how long.  Pure.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nsmagic import svg
from nsmagic.reasons import waits
from nsmagic.result import seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsmagic.result import Step

LANES: Final = ("launcher", "joiner", "init", "network", "payload")
"""Who makes the calls: the launcher outside; where namespaces are joined, the process that enters them; init
(PID 1 of a PID namespace of its own); where there is more network than a loopback, who builds it from
outside; and the process that will run the code."""
COLOURS: Final = {
    "launcher": "#5e81ac",
    "joiner": "#b48ead",
    "init": "#7a9c5f",
    "network": "#c9a227",
    "payload": "#d08770",
}

_LEAST_GAP: Final = 0.004
_CUT: Final = 0.15
"""What is left of a gap: this part of the time in which somebody works."""
_BARS: Final = 48
_WIDTH, _ROW, _LEFT, _RIGHT = 760, 18, 130, 650
_TOP: Final = 20
_LEAST_PIXELS: Final = 2.0
_LETTER: Final = 6.5
_MILLISECOND: Final = 1e-3


@dataclass
class Span:
    """A step of one process, without a break.

    Attributes:
        who: see ``LANES``.
        step: its subject.
        began: seconds since the first call of all.
        ended: likewise.
        waiting: whether it only waits for another process.
        failure: why its last call failed, in words; empty where it went well.
    """

    who: str
    step: str
    began: float
    ended: float
    waiting: bool = False
    failure: str = ""

    @property
    def took(self) -> float:
        """Seconds."""
        return self.ended - self.began


def time_text(seconds: float) -> str:
    """As people write so short a time."""
    return f"{seconds * 1e6:.3g} µs" if seconds < _MILLISECOND else seconds_text(seconds)


def spans(journal: Sequence[Step], failed: Step | None = None) -> list[Span]:
    """What each process did, one after the other: first by process, then by time.

    Args:
        journal: the calls.
        failed: the one for which it could not go on.
    """
    start = min((step.began for step in journal), default=0.0)
    found: dict[str, list[Span]] = {lane: [] for lane in LANES}
    for step in sorted(journal, key=lambda step: step.began):
        lane = found.setdefault(step.who, [])
        began, waiting = step.began - start, waits(step)
        last = lane[-1] if lane else None
        if last is not None and (last.step, last.waiting) == (step.step, waiting):
            last.ended = max(last.ended, began + step.took)
        else:
            last = Span(step.who, step.step, began, began + step.took, waiting)
            lane.append(last)
        if step == failed:
            last.failure = step.failure
    return [span for lane in found.values() for span in lane]


@dataclass
class Axis:
    """From a moment to a place between 0 and 1, with long gaps cut out.

    Attributes:
        total: seconds that are shown.
        cuts: where a gap was cut out (a place), and how long it was (seconds).
    """

    total: float
    cuts: list[tuple[float, float]] = field(default_factory=list)
    _moments: list[float] = field(default_factory=list)
    _shown: list[float] = field(default_factory=list)

    def place(self, moment: float) -> float:
        """Where it is."""
        number = max(bisect.bisect_right(self._moments, moment) - 1, 0)
        if number + 1 < len(self._moments):
            width = self._moments[number + 1] - self._moments[number]
            share = (moment - self._moments[number]) / width if width > 0 else 0.0
            shown = self._shown[number] + share * (self._shown[number + 1] - self._shown[number])
        else:
            shown = self._shown[number] + moment - self._moments[number]
        return min(max(shown / self.total, 0.0), 1.0)


def axis(all_spans: Sequence[Span]) -> Axis:
    """The axis of these spans: a gap in which nobody works for longer than all the work takes is cut out."""
    busy = sorted((span.began, span.ended) for span in all_spans if not span.waiting)
    gaps: list[tuple[float, float]] = []
    reached = 0.0
    for began, ended in busy:
        if began > reached:
            gaps.append((reached, began))
        reached = max(reached, ended)
    work = reached - sum(end - start for start, end in gaps)
    moments, shown, cuts = [0.0], [0.0], []
    for start, end in gaps:
        if end - start > max(_LEAST_GAP, work):
            at = shown[-1] + start - moments[-1]
            moments += [start, end]
            shown += [at, at + work * _CUT]
            cuts.append((at + work * _CUT / 2, end - start))
    total = (shown[-1] + reached - moments[-1]) or 1e-9
    return Axis(total, [(place / total, gap) for place, gap in cuts], moments, shown)


def _build_time(all_spans: Sequence[Span], along: Axis) -> str:
    """How long it took, without the time that it waited to be used."""
    whole = max((span.ended for span in all_spans), default=0.0)
    waited = sum(gap for _, gap in along.cuts)
    later = f", and {time_text(waited)} between in which it waited to be used" if along.cuts else ""
    return f"{time_text(max(whole - waited, 0.0))}{later}"


# ---- As text --------------------------------------------------------------------------------------


def text(journal: Sequence[Step], failed: Step | None = None) -> str:
    """The time line for a terminal: ``#`` works, ``.`` waits for another, ``X`` failed, ``~`` is a cut."""
    all_spans = spans(journal, failed)
    along = axis(all_spans)
    lines = [f"built in {_build_time(all_spans, along)}", _scale(along)]
    for span in all_spans:
        first = min(int(along.place(span.began) * _BARS), _BARS - 1)
        last = max(first + 1, round(along.place(span.ended) * _BARS))
        bar = " " * first + ("." if span.waiting else "#") * (last - first)
        if span.failure:
            bar = bar[:-1] + "X"
        shown = list(bar[:_BARS].ljust(_BARS))
        for place, _ in along.cuts:
            shown[min(int(place * _BARS), _BARS - 1)] = "~"
        what = f"{time_text(span.took)}{' waiting' if span.waiting else ''}"
        lines.append(f"{span.who:<9}{span.step:<13}|{''.join(shown)}| {what}")
    return "\n".join(lines)


def _scale(along: Axis) -> str:
    """Moments above the bars; behind a cut the axis goes on, so only up to the first."""
    end = along.cuts[0][0] if along.cuts else 1.0
    shown = [" "] * (_BARS + 8)
    for tick in svg.ticks(along.total, 4):
        place = tick / along.total
        words = time_text(tick) if tick else "0"
        at = int(place * _BARS)
        if place <= end and "".join(shown[at : at + len(words) + 1]).strip() == "":
            shown[at : at + len(words)] = words
    return f"{'':<22}|{''.join(shown)}".rstrip()


# ---- As a picture -----------------------------------------------------------------------------------


def drawing(journal: Sequence[Step], failed: Step | None = None) -> str:
    """The time line as an SVG document."""
    all_spans = spans(journal, failed)
    along = axis(all_spans)
    lanes = list(dict.fromkeys(span.who for span in all_spans))
    bottom = _TOP + _ROW * (len(all_spans) + len(lanes)) + 4
    parts = _grid(along, bottom)
    y = float(_TOP)
    for lane in lanes:
        parts.append(svg.box(0, y, _WIDTH, _ROW, "#eee"))
        parts.append(svg.label(4, y + 13, _who(lane), bold=True, colour=COLOURS.get(lane, svg.INK)))
        y += _ROW
        for span in (each for each in all_spans if each.who == lane):
            parts += _bar(span, along, y)
            y += _ROW
    return svg.picture(_WIDTH, bottom + 4, parts)


def _who(lane: str) -> str:
    meaning = {
        "launcher": "outside, with the owner's rights",
        "joiner": "enters the namespaces of others, makes init there",
        "init": "PID 1 of the container, builds its surroundings",
        "network": "outside, builds the network",
        "payload": "will run the code, gives up every right",
    }.get(lane)
    return f"{lane}: {meaning}" if meaning else lane


def _across(place: float) -> float:
    return _LEFT + place * (_RIGHT - _LEFT)


def _grid(along: Axis, bottom: float) -> list[str]:
    parts = []
    end = along.cuts[0][0] if along.cuts else 1.0
    for tick in svg.ticks(along.total):
        place = tick / along.total
        if place > end:
            break
        parts.append(svg.line(_across(place), _TOP - 4, _across(place), bottom, "#ccc"))
        parts.append(
            svg.label(_across(place), 11, time_text(tick) if tick else "0", colour=svg.FAINT, anchor="middle")
        )
    for place, gap in along.cuts:
        parts.append(svg.line(_across(place), _TOP - 4, _across(place), bottom, svg.FAINT, dashed=True))
        parts.append(
            svg.label(_across(place), 11, f"waited {time_text(gap)}", colour=svg.FAINT, anchor="start")
        )
    return parts


def _bar(span: Span, along: Axis, y: float) -> list[str]:
    colour = svg.RED if span.failure else COLOURS.get(span.who, svg.INK)
    x, end = _across(along.place(span.began)), _across(along.place(span.ended))
    width = max(end - x, _LEAST_PIXELS)
    shape = svg.frame if span.waiting else svg.box
    words = f"failed: {span.failure}" if span.failure else time_text(span.took)
    if span.waiting:
        words += " waiting"
    ink = svg.RED if span.failure else svg.FAINT
    beside = svg.label(x + width + 4, y + 13, words, colour=ink)
    if x + width + len(words) * _LETTER > _WIDTH:
        beside = svg.label(x - 4, y + 13, words, colour=ink, anchor="end")
    return [svg.label(4, y + 13, span.step), shape(x, y + 3, width, 12, colour), beside]
