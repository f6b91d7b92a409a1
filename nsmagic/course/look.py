"""What a check looks with: the student's processes and containers, and a note of each thing found."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from nsmagic import container, scratch
from nsmagic.course.outside import Process

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsmagic.container import Container
    from nsmagic.result import Result

_BUILT_SECONDS: Final = 20.0
_PAUSE: Final = 0.01
_MOST_TEXT: Final = 300
_T = TypeVar("_T")


class Unmet(Exception):  # noqa: N818 - it is no error, but the end of a look
    """What was found makes it pointless to look on."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        met: whether it was as expected.
        what: what was looked at, and where.
        found: what was there.
        expected: what should be there, said without the way to it.
    """

    met: bool
    what: str
    found: str
    expected: str


class Look:
    """One look at the student's work.

    Args:
        variables: the notebook's.

    Attributes:
        here: the notebook's own process.
        findings: what was noted so far.
    """

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self.here = Process.here()
        self.findings: list[Finding] = []

    def expect(self, met: bool, what: str, found: object, expected: str) -> bool:  # noqa: FBT001 - a sentence
        """Note one thing and look on, whatever it was; gives ``met`` back."""
        self.findings.append(Finding(bool(met), what, _short(found), expected))
        return bool(met)

    def require(self, met: bool, what: str, found: object, expected: str) -> None:  # noqa: FBT001 - likewise
        """Note one thing; where it is not as expected, the look ends here."""
        if not self.expect(met, what, found, expected):
            raise Unmet

    def unmet(self, what: str, found: object, expected: str) -> Unmet:
        """Note one thing that is not as expected; gives the end of the look, to be raised."""
        self.findings.append(Finding(met=False, what=what, found=_short(found), expected=expected))
        return Unmet()

    def own(self, process: Process, kind: str) -> bool:
        """Note whether a process has a namespace of its own kind, beside the notebook's."""
        theirs = process.ns(kind)
        met = theirs is not None and theirs != self.here.ns(kind)
        return self.expect(met, *self._which(process, kind), "one of its own")

    def shared(self, process: Process, kind: str) -> bool:
        """Note whether a process is in the notebook's namespace of a kind."""
        theirs = process.ns(kind)
        met = theirs is not None and theirs == self.here.ns(kind)
        return self.expect(met, *self._which(process, kind), "the notebook's")

    def _which(self, process: Process, kind: str) -> tuple[str, str]:
        """What is looked at, and what is found there."""
        theirs = process.ns(kind)
        found = "the notebook's" if theirs == self.here.ns(kind) else f"its own, {theirs}"
        what = f"{kind} namespace of {process.name}: /proc/{process.pid}/ns"
        return what, "it cannot be read" if theirs is None else found

    # ---- whom to look at ---------------------------------------------------------------------

    def scratch(self, name: str) -> Process:
        """The living scratch process of this name; without one the look ends."""
        found = scratch.find(name)
        if found is None:
            raise self.unmet(f"scratch process {name}", "there is none, or it has ended", "to live")
        return Process(found.pid, name)

    def container(self, name: str = "") -> tuple[Container, Process]:
        """A live container and what runs in it; without one the look ends.

        Args:
            name: of a container that is kept, or the variable of ``%%contain --bg --proc NAME``; without one
                the newest live container is meant.
        """
        what = f"container {name}" if name else "a live container"
        found = self._container(name)
        if found is None:
            raise self.unmet(what, "there is none, or it has ended", "to live")
        deadline = time.monotonic() + _BUILT_SECONDS
        while (pid := found.payload_pid) is None and time.monotonic() < deadline:
            time.sleep(_PAUSE)  # it is being built, in the background
        if pid is None:
            raise self.unmet(what, "nothing runs in it", "a process in it")
        return found, Process(pid, name or f"container {found.number}")

    def _container(self, name: str) -> Container | None:
        living = dict(container.live)
        if not name:
            return living[max(living)] if living else None
        named = [each for each in living.values() if getattr(each, "name", None) == name]
        if named:
            return named[0]
        found = getattr(self._variables.get(name), "container", None)
        return found if found in living.values() else None

    def last(self) -> Result:
        """The result of the last contained cell; without one the look ends."""
        found = self._variables.get("_contained")
        if found is None:
            raise self.unmet("the last contained cell", "none has run", "to have run")
        return cast("Result", found)

    def answer(self, name: str, kind: type[_T]) -> _T:
        """The value that the student put into a variable; of another type, or without one, the look ends."""
        value = self._variables.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            found = "not set" if value in (None, ...) else f"{value!r}, of type {type(value).__name__}"
            raise self.unmet(f"your variable {name}", found, f"an answer, of type {kind.__name__}")
        return value


def _short(value: object) -> str:
    """A value as one line of printable text: names of processes and contents of files may be anything."""
    text = value if isinstance(value, str) else repr(value)
    line = "".join(each if each.isprintable() else " " for each in text[: _MOST_TEXT + 1])
    return line if len(line) <= _MOST_TEXT else line[:_MOST_TEXT] + "…"
