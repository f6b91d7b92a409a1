"""Where a job's output goes as it comes, and who looks on meanwhile."""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsmagic.cgroups import Usage
    from nsmagic.container import Container
    from nsmagic.firewall import Filtered
    from nsmagic.launcher import frames
    from nsmagic.result import Result

_COLOURS: Final = re.compile(r"\x1b\[[0-9;:]*m")


class Sink(Protocol):
    """Where a job's output goes, as it comes."""

    def stream(self, name: str, data: bytes) -> None:
        """Bytes of ``stdout`` or ``stderr``: hostile."""

    def display(self, output: Filtered, kind: str, display_id: str | None, *, update: bool) -> None:
        """Rich output that has passed the firewall."""

    def clear(self, *, wait: bool) -> None:
        """Clear what was shown."""

    def failure(self, ename: str, evalue: str, traceback: list[str]) -> None:
        """The cell raised; texts have passed the firewall."""

    def ask(self, prompt: str, *, password: bool) -> str | None:
        """Ask the user; None where nobody can answer."""


@runtime_checkable
class KeepingSink(Protocol):
    """A sink that wants to hear of a kernel's snapshots."""

    def keeping(self, message: frames.Keeping | frames.Revived) -> None:
        """What it says of them: hostile, but of a known form."""


class Collector:
    """The sink that keeps everything, for the API."""

    def __init__(self) -> None:
        # Not lists of pieces: joining them would touch every byte, and fault in every page, once more.
        self.streams = {"stdout": io.BytesIO(), "stderr": io.BytesIO()}
        self.outputs: list[Filtered] = []

    def stream(self, name: str, data: bytes) -> None:
        """Keep it."""
        self.streams[name].write(data)

    def display(self, output: Filtered, kind: str, display_id: str | None, *, update: bool) -> None:
        """Keep it."""
        del kind, display_id, update
        self.outputs.append(output)

    def clear(self, *, wait: bool) -> None:
        """Nothing was shown."""

    def failure(self, ename: str, evalue: str, traceback: list[str]) -> None:
        """What Python itself would print: the traceback, without colours."""
        del ename, evalue
        self.streams["stderr"].write(_COLOURS.sub("", "\n".join(traceback) + "\n").encode())

    def ask(self, prompt: str, *, password: bool) -> str | None:
        """Nobody is there."""
        del prompt, password
        return None


class Observer(Protocol):
    """Who looks on while a job runs; see ``watch.Watch``."""

    def begin(self, container: Container) -> None:
        """A job is about to begin in this container."""

    def stop(self) -> None:
        """It is over, or was interrupted."""

    def finish(self, usage: Usage, result: Result) -> None:
        """What the kernel counted in the end, and how it ended."""


@contextlib.contextmanager
def observed(observer: Observer | None, container: Container) -> Iterator[None]:
    """While a job runs: have it looked at, if anybody wants to look."""
    if observer is None:
        yield
        return
    observer.begin(container)
    try:
        yield
    finally:
        observer.stop()
