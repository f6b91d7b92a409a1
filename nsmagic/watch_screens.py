"""Where ``--watch`` shows its curves: one display of a notebook, or the last lines of a terminal."""

from __future__ import annotations

import contextlib
import shutil
import threading
import uuid
from typing import TYPE_CHECKING, Any, Final

from nsmagic import curve_views

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from nsmagic.curve import Curve
    from nsmagic.firewall import Filtered
    from nsmagic.sinks import Sink

_EVERY: Final = 0.2
_SELDOM: Final = 1.0
_LONG: Final = 60.0


class NotebookScreen:
    """One display below the cell, updated in place; a saved notebook keeps the last picture.

    Args:
        publisher: the shell's, which sends to the front end.
    """

    def __init__(self, publisher: Any) -> None:
        self._publisher = publisher
        self._id = f"nsmagic-watch-{uuid.uuid4().hex}"
        self._shown = False

    def every(self, lasted: float) -> float | None:
        """Five times a second, and once where the run takes long."""
        return _EVERY if lasted < _LONG else _SELDOM

    def show(self, curve: Curve) -> None:
        """Show it in place of the one before."""
        self._publisher.publish(
            curve_views.bundle(curve), {}, transient={"display_id": self._id}, update=self._shown
        )
        self._shown = True

    def show_again(self, curve: Curve) -> None:
        """An update that belongs to whichever cell runs now."""
        self.show(curve)

    def wrap(self, sink: Sink, terminals: frozenset[str]) -> Sink:
        """The sink itself: a display is nowhere near the output."""
        del terminals
        return sink


class TerminalScreen:
    """The last lines of a terminal, redrawn in place; in a file or a pipe one picture, at the end.

    What the job prints goes above them: ``wrap`` its sink.

    Args:
        stream: where to write.
        live: redraw while it runs; not where somebody types meanwhile.
    """

    def __init__(self, stream: TextIO, *, live: bool = True) -> None:
        self._stream = stream
        self._terminal = stream.isatty() and live
        self._lock = threading.RLock()
        self._drawn = 0
        self._half_a_line = False

    def every(self, lasted: float) -> float | None:
        """As often as in a notebook; a file gets no pictures in between."""
        del lasted
        return _EVERY if self._terminal else None

    def show(self, curve: Curve) -> None:
        """Draw, unless the job stands in the middle of a line."""
        over = curve.ended is not None
        if not (self._terminal or over):
            return
        with self._lock:
            self._clear()
            if self._half_a_line and not over:
                return
            lines = curve_views.text(curve, plain=not self._has_blocks()).splitlines()
            if self._terminal:
                width = shutil.get_terminal_size().columns - 1
                lines = [line[:width] for line in lines]
            start = "\n" if self._half_a_line else ""
            self._half_a_line = False
            self._stream.write(start + "\n".join(lines) + "\n")
            self._stream.flush()
            self._drawn = 0 if over else len(lines)

    def show_again(self, curve: Curve) -> None:
        """What a terminal has shown stays there."""

    def _has_blocks(self) -> bool:
        try:
            "▁█✗".encode(self._stream.encoding or "ascii")
        except UnicodeError:
            return False
        return True

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}A\r\x1b[J")
            self._stream.flush()
            self._drawn = 0

    def wrap(self, sink: Sink, terminals: frozenset[str]) -> Sink:
        """A sink that writes above the picture.

        Args:
            sink: the one to write to.
            terminals: which of its streams are shown by a terminal.
        """
        return _Above(self, sink, terminals) if self._terminal else sink

    @contextlib.contextmanager
    def making_room(self, last: bytes) -> Iterator[None]:
        """The picture is away while something else is written, which ends so."""
        with self._lock:
            self._clear()
            yield
            self._half_a_line = not last.endswith(b"\n")


class _Above:
    """See ``TerminalScreen.wrap``."""

    def __init__(self, screen: TerminalScreen, sink: Sink, terminals: frozenset[str]) -> None:
        self._screen, self._sink, self._terminals = screen, sink, terminals

    def stream(self, name: str, data: bytes) -> None:
        """Above it, if a terminal shows this stream."""
        if name not in self._terminals:
            self._sink.stream(name, data)
            return
        with self._screen.making_room(data):
            self._sink.stream(name, data)

    def display(self, output: Filtered, kind: str, display_id: str | None, *, update: bool) -> None:
        """Above it."""
        with self._screen.making_room(b"\n"):
            self._sink.display(output, kind, display_id, update=update)

    def clear(self, *, wait: bool) -> None:
        """Without it."""
        with self._screen.making_room(b"\n"):
            self._sink.clear(wait=wait)

    def failure(self, ename: str, evalue: str, traceback: list[str]) -> None:
        """Above it."""
        with self._screen.making_room(b"\n"):
            self._sink.failure(ename, evalue, traceback)

    def ask(self, prompt: str, *, password: bool) -> str | None:
        """Without it: the user types where it would be."""
        with self._screen.making_room(b"\n"):
            return self._sink.ask(prompt, password=password)
