"""Requests that are the host's business: to interrupt and to end, use and ports, cells of ``%isolation``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from nsmagic.errors import NsmagicError
from nsmagic.kernel import isolation, usage
from nsmagic.kernel.relay import OWN_ANSWERS

if TYPE_CHECKING:
    from nsmagic.kernel.frontend import FrontEnd
    from nsmagic.kernel.relay import Relay
    from nsmagic.kernel.requests import Request
    from nsmagic.kernel.shutdown import Shutdown
    from nsmagic.kernel.succession import Succession

KINDS: Final = OWN_ANSWERS | {"interrupt_request"}
"""Types of the requests that are never sent on as they are."""


class Answers:
    """Those of one supervisor.

    Args:
        front: whose ports clients ask for.
        relay: sends the answers.
        succession: whose inner kernel they are about.
        shutdown: ends it all.
    """

    def __init__(self, front: FrontEnd, relay: Relay, succession: Succession, shutdown: Shutdown) -> None:
        self._ports = front.connection.ports
        self._relay = relay
        self._succession = succession
        self._shutdown = shutdown
        self._meter = usage.Meter()

    def answer(self, request: Request) -> None:
        """Answer one of ``KINDS``, or do what it asks for."""
        match request.kind:
            case "interrupt_request":
                self._interrupt(request)
            case "usage_request":
                used = self._meter.read(self._succession.container)
                self._relay.finish(request, {"status": "ok", **used})
            case "connect_request":
                self._relay.finish(request, {"status": "ok", **self._ports})
            case "shutdown_request":
                self._shutdown.begin(request)

    def _interrupt(self, request: Request) -> None:
        inner = self._succession.inner
        if inner is not None and inner.ready:
            if self._succession.settings.interrupts == "message":
                request.forwarded = time.monotonic()
                if inner.send("control", request.message):
                    return
            self._succession.interrupt()
        self._relay.finish(request, {"status": "ok"})

    def isolate(self, request: Request, commands: list[list[str]]) -> None:
        """Answer a cell of ``%isolation`` lines.

        Args:
            request: the cell.
            commands: the words of each line.
        """
        self._relay.status(request, "busy")
        self._relay.echo(request)
        try:
            if commands == [["undo"]]:
                self._succession.undo(request)
                return
            shown = [isolation.run(self._succession, words) for words in commands]
        except (NsmagicError, OSError, ValueError) as error:
            self._relay.fail(request, type(error).__name__, str(error))
        else:
            self._relay.show(request, shown)
