"""Requests that wait outside of the inner kernel, and what becomes of all of them where none can answer.

Front ends wait for the reply to each request, so each gets one: when the inner kernel dies, when it is
started afresh, and when there can be none at all.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from nsmagic.kernel import refusal

if TYPE_CHECKING:
    from nsmagic.kernel.frontend import Channel, FrontEnd
    from nsmagic.kernel.relay import Relay
    from nsmagic.kernel.requests import Request, Requests

MOST: Final = 10_000
"""Requests that may wait."""


class Waiting:
    """All that wait, and all that a dead kernel had.

    Args:
        front: where front ends are told.
        requests: all of them.
        relay: answers them.
        language: of the kernel's code.
        refuses: why no container can be built here; empty where one can.
    """

    def __init__(
        self, front: FrontEnd, requests: Requests, relay: Relay, *, language: str, refuses: str
    ) -> None:
        self.queues: dict[Channel, deque[Request]] = {"control": deque(), "shell": deque()}
        self.refuses = refuses
        self._front = front
        self._requests = requests
        self._relay = relay
        self._language = language
        self._lost: set[str] = set()

    def add(self, request: Request) -> None:
        """It is sent on in its turn."""
        self.queues[request.channel].append(request)

    def may_go_on(self, request: Request) -> bool:
        """Whether a cell's client may run it, after all that it has lost."""
        return request.can_ask or request.session not in self._lost

    # ---- a cell has failed ---------------------------------------------------------------------------

    def abort_cells(self) -> None:
        """Those that wait out here are aborted, as a kernel aborts those that it has."""
        waiting = [request for request in self.queues["shell"] if request.executes]
        for request in waiting:
            self.queues["shell"].remove(request)
            self._relay.abort(request)

    # ---- the inner kernel is gone --------------------------------------------------------------------

    def mourn(self, ename: str, evalue: str, *, kept: bool = False) -> None:
        """Answer all requests that the dead kernel had, and abort the cells behind them.

        Args:
            ename: what happened, as an exception's class.
            evalue: and in words.
            kept: whether no more is lost than by any cell that fails.
        """
        running = self._requests.running()
        for request in list(self._requests.open.values()):
            if request.executes and not request.can_ask and not kept:
                # Whoever runs without a person must not go on in an empty namespace.
                self._lost.add(request.session)
            if request in running:
                self._relay.fail(request, ename, evalue)
            elif request.executes:
                self._relay.abort(request)
            elif request.forwarded is not None:
                self._finish_or_repeat(request, ename, evalue)
        for channel, queue in self.queues.items():
            self.queues[channel] = deque(request for request in queue if not request.replied)
        last = self._requests.last_cell
        if not running and last is not None:
            if not last.can_ask and not kept:
                self._lost.add(last.session)
            # It died between cells, of what the last one left running.
            text = f"nsmagic: {evalue}\n"
            self._front.publish("stream", {"name": "stderr", "text": text}, parent=last.header)

    def give_back(self, why: str) -> None:
        """Answer all requests that the kernel had, which was ended as it was asked for.

        Args:
            why: by what, in words.
        """
        for request in list(self._requests.open.values()):
            if request.forwarded is not None:
                self._finish_or_repeat(request, "KernelStopped", why)

    def _finish_or_repeat(self, request: Request, ename: str, evalue: str) -> None:
        if request.kind == "kernel_info_request":
            request.forwarded = None
            self.queues[request.channel].append(request)
        else:
            self._relay.finish(request, refusal.reply(request.kind, ename, evalue))

    # ---- there can be none ---------------------------------------------------------------------------

    def refuse(self, why: str) -> None:
        """From now on there is no kernel: say so to whoever waits, and to whoever comes."""
        self.refuses = why
        for queue in self.queues.values():
            queue.clear()
        for request in list(self._requests.open.values()):
            self.answer_refused(request)

    def answer_refused(self, request: Request) -> None:
        """Say to one why there is none."""
        if request.kind == "kernel_info_request":
            self._relay.finish(request, refusal.kernel_info(self._language, f"nsmagic: {self.refuses}"))
        elif request.executes:
            self._relay.fail(request, "CannotIsolate", f"no code runs here: {self.refuses}")
        else:
            self._relay.finish(request, refusal.reply(request.kind, "CannotIsolate", self.refuses))
