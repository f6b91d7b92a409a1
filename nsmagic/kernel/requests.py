"""What is known of the requests that clients have made; bounded, and pure.

An inner kernel's messages are about requests.  What it says of them is checked against this table: a reply
goes to whoever asked, once; a request is busy once and idle once; and what is shown under it counts against
its output limit.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nsmagic.kernel.frontend import Channel
    from nsmagic.kernel.wire import Message

Place = tuple[str, str]

_KEPT: Final = 1000
"""Answered requests whose late output still finds its cell."""
_KEPT_BYTES: Final = 16 << 20
"""Bytes of their code and headers."""

_IDLE_SECONDS: Final = 1.0
"""After its reply, until a cell that nobody heard the end of counts as one that has ended."""


@dataclass(eq=False)
class Request:
    """One request of a client.

    Attributes:
        name: its ``msg_id``.
        kind: its ``msg_type``.
        channel: that it came by, and its reply goes by.
        identities: where its reply goes.
        header: as it came; what is sent about it carries this as its parent.
        session: the client's.
        subshell: the subshell that it is for, or None for the main shell.
        message: itself; of what was sent on or answered, only its header is kept.
        can_ask: whether its client answers ``input_request``.
        silent: whether its client wants to see nothing.
        code: of a cell.
        stops: whether its failure aborts those behind it.
        room: bytes of output that may still be shown under it.
        forwarded: whether the inner kernel has it; ``time.monotonic()``, or None.
        replied: whether it was answered.
        busy: whether that was published.
        idle: likewise.
        idled: when; ``time.monotonic()``.
        echoed: whether its code was published.
        over: whether it was said that its output limit is reached.
        failed: whether an error was shown beyond that limit.
        interrupted: when its time limit interrupted it, or None.
        asked: questions to the user that were sent since the last answer.
    """

    name: str
    kind: str
    channel: Channel
    identities: list[bytes]
    header: bytes
    session: str
    subshell: str | None
    message: Message
    can_ask: bool = False
    silent: bool = False
    code: str = ""
    stops: bool = True
    room: int = 0
    forwarded: float | None = None
    replied: bool = False
    busy: bool = False
    idle: bool = False
    idled: float = 0.0
    echoed: bool = False
    over: bool = False
    failed: bool = False
    interrupted: float | None = None
    asked: int = 0

    @property
    def place(self) -> Place:
        """Its key in the table: a manager and a client of one session may count to the same ``msg_id``."""
        return self.channel, self.name

    @property
    def reply_kind(self) -> str:
        """The type of its reply."""
        return self.kind.removesuffix("_request") + "_reply"

    def let_go(self) -> None:
        """Forget what it carries, which may be large."""
        if len(self.message.parts) > 1:
            self.message = replace(self.message, parts=self.message.parts[:1], buffers=[])

    @property
    def weight(self) -> int:
        """Bytes that it takes up once it is answered."""
        return len(self.code) + len(self.header)

    @property
    def executes(self) -> bool:
        """Whether it runs code."""
        return self.kind == "execute_request"


@dataclass
class Requests:
    """All of them: those that wait for an answer, and the last of those that have one.

    Attributes:
        open: those that wait.
        answered: those that have one.
        last_cell: the last that came.
        last_sent: the last that the inner kernel was sent, but for silent ones.
    """

    open: OrderedDict[Place, Request] = field(default_factory=OrderedDict)
    answered: OrderedDict[Place, Request] = field(default_factory=OrderedDict)
    last_cell: Request | None = None
    last_sent: Request | None = None
    _weight: int = 0
    _free: dict[str | None, float] = field(default_factory=dict)
    _ended: dict[str | None, Request] = field(default_factory=dict)

    def add(self, request: Request) -> None:
        """A new one."""
        self.open[request.place] = request
        if request.executes:
            self.last_cell = request

    def note(self, request: Request) -> None:
        """A message that has no answer, but of which others may be about."""
        known = self.answered.pop(request.place, None)
        self._weight += request.weight - (known.weight if known is not None else 0)
        self.answered[request.place] = request
        while len(self.answered) > _KEPT or self._weight > _KEPT_BYTES:
            self._weight -= self.answered.popitem(last=False)[1].weight

    def answered_by(self, identities: list[bytes]) -> None:
        """A client has answered a question."""
        for request in self.open.values():
            if request.identities == identities:
                request.asked = 0

    def find(self, name: str, channel: str | None = None) -> Request | None:
        """The request of this name, answered or not.

        Args:
            name: its ``msg_id``.
            channel: that it came by; where that is not known the shell's goes first, as cells come by it.
        """
        for place in [(channel, name)] if channel else [("shell", name), ("control", name)]:
            if found := self.open.get(place) or self.answered.get(place):
                return found
        return None

    def finish(self, request: Request) -> None:
        """It is answered."""
        request.replied = True
        request.let_go()
        self.open.pop(request.place, None)
        self.note(request)
        if request.executes:
            self._free[request.subshell] = time.monotonic()
            if request.forwarded is not None:
                self._ended[request.subshell] = request

    def running(self) -> list[Request]:
        """The cells that run: in each shell the first that was sent on and has no answer."""
        first: dict[str | None, Request] = {}
        for request in self.open.values():
            if request.executes and request.forwarded is not None:
                first.setdefault(request.subshell, request)
        return list(first.values())

    def began(self, request: Request) -> float:
        """When a running cell began, by what we know: it was sent on, and the one before it had ended."""
        return max(request.forwarded or 0.0, self._free.get(request.subshell, 0.0))

    def shells_are_free(self) -> bool:
        """Whether no cell is on its way through the inner kernel, and nothing of the last ones is either.

        A cell's reply and what it published come by different sockets, and so in any order.
        """
        if any(request.executes and request.forwarded is not None for request in self.open.values()):
            return False
        late = time.monotonic() - _IDLE_SECONDS
        return all(last.idle or self._free[shell] < late for shell, last in self._ended.items())

    def without_reply(self) -> list[Request]:
        """Those that the inner kernel has done with, by what it published, and has not answered."""
        return [request for request in self.open.values() if request.forwarded is not None and request.idle]
