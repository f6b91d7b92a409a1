"""The end that a front end asks for: the inner kernel is told, has a second, and then it is answered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from nsmagic.kernel.frontend import FrontEnd
    from nsmagic.kernel.relay import Relay
    from nsmagic.kernel.requests import Request
    from nsmagic.kernel.succession import Succession

_SECONDS: Final = 1.0


class _Content(msgspec.Struct):
    restart: bool = False


class Shutdown:
    """The one end of one supervisor.

    Args:
        front: all clients are told.
        relay: answers the request.
        succession: whose last inner kernel is ended.
    """

    def __init__(self, front: FrontEnd, relay: Relay, succession: Succession) -> None:
        self.done = False
        self._front = front
        self._relay = relay
        self._succession = succession
        self._asked: tuple[Request, bool, float] | None = None

    def begin(self, request: Request) -> None:
        """Tell the inner kernel to end; from now on nothing else is sent to it."""
        try:
            restart = msgspec.json.decode(request.message.parts[3], type=_Content).restart
        except (msgspec.MsgspecError, ValueError):
            restart = False
        self._asked = (request, restart, time.monotonic() + _SECONDS)
        self._succession.ending = True
        inner = self._succession.inner
        if inner is not None and inner.ready:
            inner.send("control", request.message)
        self.finish()

    def finish(self) -> None:
        """Answer the request once the inner kernel has ended, or has had its time."""
        if self._asked is None:
            return
        request, restart, deadline = self._asked
        inner = self._succession.inner
        if inner is None or not inner.ready or inner.over or time.monotonic() > deadline:
            self._succession.stop()
            content = {"status": "ok", "restart": restart}
            self._front.publish("shutdown_reply", content, parent=request.header)
            self._relay.finish(request, content)
            self.done = True
