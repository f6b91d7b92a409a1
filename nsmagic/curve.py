"""What a container uses while it runs, as curves against its limits; ``curve_views`` draws them.

A curve has a bounded number of points, however long the run: when they become too many, each two are made
one, which keeps the higher value.  The kernel's own peaks are part of it: where a peak has risen between two
readings, the point between them has the peak's height, so that nothing is missed for having been short.
Pure: who reads the kernel's figures is ``watch``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from nsmagic.cgroups import Usage

MOST_POINTS: Final = 240
CPU_WINDOW: Final = 0.1
"""Seconds over which processor time is counted: the kernel's own period for a share of it, see sched-bwc."""


class Limits(NamedTuple):
    """What the curves run against; None for none.

    Attributes:
        mem: bytes.
        cpus: processors' worth of time.
        pids: processes and threads of the user's code.
        processors: how many there are to run on.
    """

    mem: int | None
    cpus: float | None
    pids: int | None
    processors: int


class Point(NamedTuple):
    """A moment.

    Attributes:
        at: seconds since the beginning.
        memory: bytes, the most since the point before; None where nobody counts.
        cpu: seconds of processor time so far; None likewise.
        pids: processes and threads without init, the most since the point before; None likewise.
    """

    at: float
    memory: int | None
    cpu: float | None
    pids: int | None


class Mark(NamedTuple):
    """Something that happened: when, and in words."""

    at: float
    words: str


@dataclass
class Curve:
    """The curves of one run.

    Attributes:
        limits: what they run against.
        points: in the order of time, at most ``MOST_POINTS``.
        now: the figures read last.
        killed: when the kernel first killed for memory.
        refused: when it first refused a process.
        ended: when the run ended, and how; None while it runs.
        notes: what else must be said.
    """

    limits: Limits
    points: list[Point] = field(default_factory=list)
    now: Usage | None = None
    killed: Mark | None = None
    refused: Mark | None = None
    ended: Mark | None = None
    notes: tuple[str, ...] = ()
    _first: Usage | None = None
    _width: float = 0.0

    @property
    def lasted(self) -> float:
        """Seconds from the first point to the last."""
        return self.points[-1].at if self.points else 0.0

    @property
    def memory_peak(self) -> int | None:
        """The most bytes, as far as it is known."""
        return _most([point.memory for point in self.points])

    @property
    def pids_peak(self) -> int | None:
        """The most processes and threads without init, as far as it is known."""
        return _most([point.pids for point in self.points])

    def add(self, at: float, usage: Usage) -> None:
        """Take a reading: ``at`` in seconds since the beginning.  One without any figure tells nothing."""
        if usage.memory is None and usage.cpu_user is None and usage.pids is None:
            return
        before = self.now or usage
        self._first = self._first or usage
        self._note(at, usage)
        self.now = usage
        cpu = None if usage.cpu_user is None else usage.cpu_user + (usage.cpu_system or 0.0)
        memory = _risen(before.memory_peak, usage.memory_peak, usage.memory)
        pids = _without_init(_risen(before.pids_peak, usage.pids_peak, usage.pids))
        self._put(Point(at, memory, cpu, pids))

    def end(self, at: float, usage: Usage, words: str) -> None:
        """Take the last reading, and how the run ended."""
        self.add(at, usage)
        if self.killed is not None:
            self._raise_to_peak(self.killed.at)
        self.ended = Mark(max(at, self.lasted), words)

    def _note(self, at: float, usage: Usage) -> None:
        assert self._first is not None  # noqa: S101 - add() has seen to it
        if self.killed is None and (usage.oom_kills or 0) > (self._first.oom_kills or 0):
            self.killed = Mark(at, "out of memory")
        if self.refused is None and (usage.pids_refused or 0) > (self._first.pids_refused or 0):
            self.refused = Mark(at, "a new process was refused")

    def _put(self, point: Point) -> None:
        """Behind the others, or into the last one where that is of the same moment; fewer where too many."""
        if len(self.points) > 1 and point.at - self.points[-2].at < self._width:
            self.points[-1] = _joined(self.points[-1], point)
        else:
            self.points.append(point)
        if len(self.points) > MOST_POINTS:
            # The first is the beginning, and stays as it is.
            rest = self.points[1:]
            pairs = [_joined(*rest[i : i + 2]) for i in range(0, len(rest) - 1, 2)]
            self.points = [self.points[0], *pairs, *rest[len(pairs) * 2 :]]
            self._width = 2 * self.lasted / MOST_POINTS

    def _raise_to_peak(self, at: float) -> None:
        """Whoever was killed for memory had reached the peak, even where no reading came just then.

        Kernels before Linux 5.19 know no peak (cgroup v2): it was at the limit, which is why it was killed.
        """
        peak = self.now.memory_peak if self.now is not None else None
        peak = self.limits.mem if peak is None else peak
        for number, point in enumerate(self.points):
            if point.at >= at and peak is not None:
                self.points[number] = point._replace(memory=max(peak, point.memory or 0))
                return

    def cpu_shares(self) -> list[tuple[float, float]]:
        """For each point: when, and processors' worth of time over the ``CPU_WINDOW`` before it.

        Before the beginning nothing ran; to leave that out would double the share of whoever uses the first
        half of a period, which is all that a limit of one half allows.
        """
        known = [(point.at, point.cpu) for point in self.points if point.cpu is not None]
        shares: list[tuple[float, float]] = []
        start = 0
        for at, cpu in known:
            while start + 1 < len(known) and known[start + 1][0] <= at - CPU_WINDOW:
                start += 1
            since = max(at - known[start][0], CPU_WINDOW)
            shares.append((at, max(cpu - known[start][1], 0.0) / since))
        return shares

    @property
    def cpu_used(self) -> float | None:
        """Seconds of processor time since the first point; None where nobody counts."""
        known = [point.cpu for point in self.points if point.cpu is not None]
        return max(known[-1] - known[0], 0.0) if known else None


def _joined(one: Point, other: Point) -> Point:
    return Point(other.at, _most([one.memory, other.memory]), other.cpu, _most([one.pids, other.pids]))


def _most(values: list[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _risen(peak_before: int | None, peak: int | None, now: int | None) -> int | None:
    """The most since the reading before: the peak, if that is when it was reached."""
    if now is not None and peak is not None and peak_before is not None and peak > peak_before:
        return max(peak, now)
    return now


def _without_init(pids: int | None) -> int | None:
    """Our init is in the group, and is not of the user's processes; after the end nobody is there."""
    return None if pids is None else max(pids - 1, 0)
