"""What is due by the clock: a cell's time limit, an answer that does not come, the next standby."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from nsmagic.kernel import refusal

if TYPE_CHECKING:
    from nsmagic.kernel.relay import Relay
    from nsmagic.kernel.requests import Requests
    from nsmagic.kernel.succession import Succession

_INTERRUPT_SECONDS: Final = 2.0
_REPLY_SECONDS: Final = 2.0


class Clocks:
    """Those of one supervisor.

    Args:
        cell_timeout: seconds that a cell may run, or None.
        requests: those that run, and those that wait for an answer.
        relay: answers them.
        succession: whose inner kernel runs them.
    """

    def __init__(
        self, cell_timeout: float | None, requests: Requests, relay: Relay, succession: Succession
    ) -> None:
        self._limit = cell_timeout
        self._requests = requests
        self._relay = relay
        self._succession = succession

    @property
    def run(self) -> bool:
        """Whether a request is measured, so that they have to be looked at again soon."""
        measured = self._limit is not None and bool(self._requests.running())
        return measured or bool(self._requests.without_reply())

    def check(self) -> None:
        """Do what is due."""
        inner = self._succession.inner
        if inner is None or not inner.ready or self._succession.ending:
            return
        now = time.monotonic()
        self._succession.prepare(now)
        for request in self._requests.without_reply():
            if now - request.idled > _REPLY_SECONDS:
                # An interrupt that hits ipykernel between a request's arrival and its code leaves it so.
                text = "the kernel ended this request without an answer: it was interrupted before it began"
                self._relay.finish(request, refusal.reply(request.kind, "KeyboardInterrupt", text))
        if self._limit is not None:
            self._limit_cells(now, self._limit)

    def _limit_cells(self, now: float, limit: float) -> None:
        for request in self._requests.running():
            ran = now - self._requests.began(request)
            if request.interrupted is None and ran > limit:
                request.interrupted = now
                self._succession.interrupt()
            elif request.interrupted is not None and now - request.interrupted > _INTERRUPT_SECONDS:
                self._succession.end_cell(
                    f"{self._relay.time_limit_text()}, and did not end when it was interrupted"
                )
