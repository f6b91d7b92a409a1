"""What is said while something takes long: one line on standard error, and none where it is quick."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

_AFTER: Final = 0.4
_STEP: Final = 10


class Progress:
    """Says what is being done, and how far it is in steps of ten per cent; use it in a ``with`` statement."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._what = ""
        self._said = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """So much is done of so much; 0 in all where nobody knows."""
        if not self._what and time.monotonic() - self._began < _AFTER and total:
            return
        if what != self._what:
            self._end("")
            sys.stderr.write(f"nsmagic: {what} …")
            self._what, self._said = what, 0
        percent = min(100 * done // total, 100) if total else 0
        if percent >= self._said + _STEP:
            self._said = percent - percent % _STEP
            sys.stderr.write(f" {self._said} %")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the line, if there is one."""
        self._end(" done" if error is None else " stopped")

    def _end(self, text: str) -> None:
        if self._what:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
            self._what = ""
