"""What the supervisor knows of an inner kernel's snapshots: why there are none, who has died, who goes on.

Inside, before each cell, the kernel makes a snapshot of itself (``launcher.snapshot``).  When it dies, init
wakes the snapshot and tells how it died; that is Linux's own word for it.  The snapshot binds new sockets and
says which cell it was made before.  That is hostile, and believed as far as it goes: it is its own state
that it speaks of, and if it does not answer at the new sockets it is ended like any that does not answer.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nsmagic import views
from nsmagic.errors import NsmagicError
from nsmagic.launcher import frames
from nsmagic.result import size_text

if TYPE_CHECKING:
    from nsmagic.container import Container
    from nsmagic.kernel.requests import Request
    from nsmagic.outcome import Verdict
    from nsmagic.report import Exit

SECONDS: Final = 10.0
"""Until a snapshot that was woken must answer."""

_MOST_FILES: Final = 8
_KEPT_SHARE: Final = 0.2
_CLOCK_SECONDS: Final = 0.02
"""The kernel stamps files with the time of its last tick."""


@dataclass
class Death:
    """How the last one died, from when it is known until its snapshot answers.

    Attributes:
        outcome: as in ``Result``.
        how: in words.
        began: when its last cell was sent to it; ``time.time()``, or None where none ran.
        request: the cell that asked for it: of ``%isolation undo``.
    """

    outcome: str
    how: str
    began: float | None
    request: Request | None = None


@dataclass
class Revival:
    """Of one inner kernel.  The container's own thread adds to ``exits`` and ``said``; one loop takes them.

    Attributes:
        exits: payloads that have died and whose snapshot has been woken.
        said: what the kernel says of its snapshots.
        prefix: what its sockets' names begin with; empty where that is not known yet.
        death: of the last one, while its snapshot is not there yet.
        revived: what the snapshot said when it took over.
        keeping: the last word on whether there are any.
        ended: when we have killed one to go back, ``time.monotonic()``, or 0.
    """

    exits: deque[Exit] = field(default_factory=deque)
    said: deque[frames.Keeping | frames.Revived] = field(default_factory=deque)
    prefix: str = "kernel"
    death: Death | None = None
    revived: frames.Revived | None = None
    keeping: frames.Keeping | None = None
    ended: float = 0.0
    _waiting: frames.Revived | None = None  # it may be heard of before the death is

    def listen(self) -> frames.Keeping | None:
        """Take what it has said; gives the word that there are none any more, where that is new."""
        news = None
        while self.said:
            message = self.said.popleft()
            if isinstance(message, frames.Revived):
                self._waiting = message
            elif message != self.keeping:
                news = message if message.against else None
                self.keeping = message
        if self.death is not None and self._waiting is not None:
            self.revived, self._waiting = self._waiting, None
            self.prefix = f"kernel.{self.revived.number}"
        return news

    def begin(self, death: Death) -> None:
        """One has died; where that was a snapshot that had not gone on yet, how the first died is told."""
        self.death = self.death or death
        self.revived, self.prefix, self.ended = None, "", 0.0


def why_not(message: frames.Keeping) -> str:
    """Why there are no snapshots, in words."""
    match message.against:
        case "off":
            return "--keep-state off"
        case "threads":
            count = "a thread runs" if message.amount == 1 else f"{message.amount} threads run"
            return f"{count} that a snapshot would not have"
        case "accelerator":
            return "a GPU's library is loaded, whose state no snapshot can hold"
        case "memory":
            size = size_text(message.amount)
            return f"its {size} are more than half of --mem, and may be needed twice"
        case "slow":
            return f"the last one took {message.amount / 1000:.0f} ms"
        case "host":
            return "this host does not let it be made"
        case "":
            return ""


def told(verdict: Verdict, exited: Exit, container: Container) -> str:
    """How a payload died, in words."""
    how = verdict.detail or "its process ended by itself (exit status 0)"
    limit = container.spec.mem
    if verdict.outcome != "out-of-memory" or limit is None:
        return how
    written = container.written()
    try:
        files = written.size() or 0
    finally:
        written.close()
    kept = limit - exited.memory_peak - files
    if kept > limit * _KEPT_SHARE:
        how += (
            f"; {size_text(kept)} of that were the snapshot's, which holds what the cell has changed as it "
            "was before (--keep-state off does without)"
        )
    return how


def variables(revived: frames.Revived, running: int | None, *, whole: bool = False) -> str:
    """What became of the variables.

    Args:
        revived: what the snapshot said.
        running: the number of the cell that ran; None where none did.
        whole: whether none ran, and the snapshot was made behind the last.
    """
    where = "before this cell" if revived.line == running else f"before cell [{revived.line}]"
    where = "after the last cell" if whole else where
    lost = [
        f"{count} {name if count == 1 else plural}"
        for count, name, plural in (
            (revived.processes, "process", "processes"),
            (revived.threads, "thread", "threads"),
            (revived.tasks, "task of its event loop", "tasks of its event loop"),
        )
        if count
    ]
    gone = f" What could not come back: {', '.join(lost)}." if lost else ""
    return f"Variables are as they were {where}.{gone}"


def files(container: Container, since: float | None) -> str:
    """The files that have changed since; they are not undone."""
    if since is None:
        return ""
    written = container.written()
    try:
        changed = [
            each.path
            for each in written.changes()
            if each.type != "directory" and each.changed >= since - _CLOCK_SECONDS
        ]
    except (NsmagicError, OSError):
        return ""
    finally:
        written.close()
    workdir = container.isolation.workdir.rstrip("/") + "/"
    own = [path.removeprefix(workdir) for path in changed if path.startswith(workdir)]
    if not own:
        return ""
    shown = ", ".join(views.path_text(path) for path in own[:_MOST_FILES])
    more = f" and {len(own) - _MOST_FILES} more" if len(own) > _MOST_FILES else ""
    return f" Files stay as the cell left them: {shown}{more}."


def overdue(revival: Revival) -> bool:
    """Whether one that we have killed should be dead by now."""
    return bool(revival.ended) and time.monotonic() - revival.ended > SECONDS
