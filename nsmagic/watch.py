"""``--watch``: a container's memory, processor time and processes against their limits, while it runs.

A thread of the owner reads the container's control group, whatever its version, and shows the curves on a
*screen*: one display of a notebook that is updated in place, or a terminal's last lines.  The job's own
output goes its own way.  Readings begin two milliseconds apart, so that a job which lives for a tenth of a
second has a curve too, and become rarer as the run becomes longer.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from nsmagic.curve import Curve, Limits
from nsmagic.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from nsmagic.cgroups import Missing, Usage
    from nsmagic.container import Container
    from nsmagic.plan import Plan
    from nsmagic.result import Result
    from nsmagic.sinks import Sink
    from nsmagic.spec import ContainerSpec

_SOONEST: Final = 0.002
_LATEST: Final = 0.1
_SHARE: Final = 200
"""A reading comes after this part of the time so far: the first of them close together."""
_COSTLY: Final = 25
"""And no sooner than so many times what it takes itself."""
_JOIN_SECONDS: Final = 5.0
_WHAT: Final = {"mem": "memory", "cpus": "processor time", "pids": "processes"}


class Screen(Protocol):
    """Where the curves are shown."""

    def every(self, lasted: float) -> float | None:
        """Seconds between one picture and the next at least; None for the last one only."""

    def show(self, curve: Curve) -> None:
        """Show them in place of those that were shown before."""

    def show_again(self, curve: Curve) -> None:
        """Show the last ones once more, on behalf of another cell."""

    def wrap(self, sink: Sink, terminals: frozenset[str]) -> Sink:
        """A sink for the job whose output does not disturb the picture."""


def require(spec: ContainerSpec, plan: Plan | None = None) -> None:
    """Look whether there is something to see, before anything is started.

    Args:
        spec: of the container.
        plan: how it is going to be made, if that is known.

    Raises:
        HostError: nobody counts here what a container uses, and no best effort was asked for.
    """
    from nsmagic import cgroups  # noqa: PLC0415 - what watches in a terminal has started the launcher first
    from nsmagic.launcher import client  # noqa: PLC0415 - likewise
    from nsmagic.plan import make_plan  # noqa: PLC0415 - likewise

    if spec.best_effort:
        return
    plan = plan or make_plan(spec, client.python_path())
    for lost in cgroups.uncounted(plan.choice.mechanism):
        text = f"{lost.remedy}; or accept what /proc shows of it, by --best-effort."
        raise HostError("--watch", lost.reason, text)


class Watch:
    """The readings of one run, and their thread; see ``sinks.Observer``."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._container: Container | None = None
        self._began = 0.0
        self._lock = threading.Lock()
        self.curve = Curve(Limits(None, None, None, _processors()))

    def announce(self) -> None:
        """Take a place on the screen for what begins later."""
        self._screen.show(self.curve)

    def begin(self, container: Container) -> None:
        """The run begins: take the first reading, then go on in a thread."""
        spec = container.spec
        self._container, self._began = container, time.monotonic()
        self.curve = Curve(Limits(spec.mem, spec.cpus, spec.pids, _processors()))
        self.curve.notes = _notes(container.uncounted)
        self._read()
        self._screen.show(self.curve)
        self._over.clear()
        # The context carries which cell a display belongs to.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._watch,), name="nsmagic-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """The run is over, and what is read from here on would be of no run."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)
            self._thread = None

    def finish(self, usage: Usage, result: Result) -> None:
        """Show the last picture.

        Args:
            usage: what the kernel counted in the end.
            result: how it ended.
        """
        with self._lock:
            self.curve.end(self._now(), usage, result.describe())
            self._screen.show(self.curve)

    def show_again(self) -> None:
        """Show the last picture once more: updates from a cell that is over do not reach every front end."""
        self._screen.show_again(self.curve)

    def wrap(self, sink: Sink, terminals: Collection[str] = ()) -> Sink:
        """A sink for the job whose output does not disturb the picture.

        Args:
            sink: the one to write to.
            terminals: which of its streams go to a terminal.
        """
        return self._screen.wrap(sink, frozenset(terminals))

    def __enter__(self) -> Self:
        """Look on at what runs in the ``with`` statement."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Where it raised, what is shown already must not look as if it went on."""
        if error is not None:
            self._fail("interrupted" if isinstance(error, KeyboardInterrupt) else str(error))

    def _fail(self, words: str) -> None:
        self.stop()
        with self._lock:
            if self._container is not None and self.curve.ended is None:
                self.curve.end(self._now(), self._container.usage(), words)
                self._screen.show(self.curve)

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _read(self) -> float:
        """Take a reading; how long it took."""
        assert self._container is not None  # noqa: S101 - begin() has seen to it
        at = self._now()
        self.curve.add(at, self._container.sample())
        return self._now() - at

    def _watch(self) -> None:
        shown, took = time.monotonic(), 0.0
        while not self._over.wait(max(_SOONEST, min(self._now() / _SHARE, _LATEST), took * _COSTLY)):
            with self._lock, contextlib.suppress(OSError):
                took = self._read()
            every = self._screen.every(self._now())
            if every is not None and time.monotonic() - shown >= every:
                with self._lock:
                    self._screen.show(self.curve)
                shown = time.monotonic()


def terminals() -> list[str]:
    """Which of our own two streams a terminal shows."""
    return [name for name in ("stdout", "stderr") if getattr(sys, name).isatty()]


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _notes(uncounted: Sequence[Missing]) -> tuple[str, ...]:
    """One line for each reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for lost in uncounted:
        reasons.setdefault((lost.reason, lost.remedy), []).append(_WHAT.get(lost.what, lost.what))
    return tuple(
        f"{', '.join(names)}: not counted, but as /proc shows it now and then ({reason}). {remedy}."
        for (reason, remedy), names in reasons.items()
    )
