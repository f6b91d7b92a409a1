"""The supervisor: the kernel that Jupyter starts.  It runs on the host and no code of the user's.

Theory of operation.  Jupyter starts this process with a connection file, whose five ports we bind
(``frontend``).  The user's code runs in an **inner kernel**, a real ipykernel in a container (``inner``), and
we carry messages between the two:

    front ends ══ five sockets, the outer key ══ supervisor ══ four Unix sockets, an inner key ══ inner kernel

What comes from a front end is the user's own word, and is signed anew and sent on.  What comes from inside
is hostile: it is parsed with bounds (``zmtp``, ``wire``), held against the request that it is about
(``relay``), rebuilt by the firewall (``firewall.messages``), and only then sent on.  The container is owned
through ``Container`` like any other: its lifeline is ours, so it dies with us, however we die; and its
limits, usage and files are looked at from out here, which is how ``%isolation`` (``isolation``) knows.

When the inner kernel dies, whoever ran is told why, under the cell; queued cells are aborted; and another
inner kernel takes over, from a standby that the launcher has cloned beforehand.  Where no container can be
built no code is run: each cell is answered with the reason and the remedy.

One thread, one loop around poll(2); beside it the heartbeat's, and one that waits for the container's end.
Here is the loop, and what it drives:

    loop        what is waited for             waiting     requests that wait; answers for a dead kernel
    dispatch    what front ends send           succession  inner kernels, one after the other
    answers     what is the host's to answer   clocks      time limits, the next standby
    relay       what goes to front ends        shutdown    the end
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

from nsmagic.kernel.answers import Answers
from nsmagic.kernel.clocks import Clocks
from nsmagic.kernel.comms import Comms
from nsmagic.kernel.dispatch import Dispatch
from nsmagic.kernel.loop import Poll
from nsmagic.kernel.relay import Relay
from nsmagic.kernel.requests import Requests
from nsmagic.kernel.shutdown import Shutdown
from nsmagic.kernel.succession import Succession
from nsmagic.kernel.waiting import Waiting

if TYPE_CHECKING:
    from nsmagic.kernel.frontend import FrontEnd
    from nsmagic.kernel.settings import Settings

_CONNECT_MS: Final = 2
_CONNECT_SECONDS: Final = 2.0
_WATCH_MS: Final = 25


class Supervisor:
    """One kernel.

    Args:
        settings: what it was started with.
        front: its sockets towards Jupyter.
        refuses: why no container can be built here; empty where one can.
    """

    def __init__(self, settings: Settings, front: FrontEnd, *, refuses: str = "") -> None:
        self._front = front
        self._done = False
        self._poll = Poll(front)
        requests, comms = Requests(), Comms(front)
        relay = Relay(
            front, requests, comms, settings,
            interrupt=self._interrupt_cell, failed=self._abort_cells,
        )  # fmt: skip
        self._waiting = Waiting(front, requests, relay, language=settings.language, refuses=refuses)
        self._succession = Succession(
            settings, front, requests, comms, relay, self._waiting, wake=self._poll.wake
        )
        self._shutdown = Shutdown(front, relay, self._succession)
        self._clocks = Clocks(settings.cell_timeout, requests, relay, self._succession)
        answers = Answers(front, relay, self._succession, self._shutdown)
        self._dispatch = Dispatch(
            settings, front, requests, comms, relay, self._waiting, self._succession, answers
        )

    def serve(self) -> None:
        """Be a kernel until told to end; whatever ends this leaves nothing behind."""
        self._poll.begin()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._end_at_once)
        # Ctrl-C in a terminal goes to everybody in it; a front end interrupts by message.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._front.publish("status", {"execution_state": "starting"})
        try:
            if not self._waiting.refuses:
                self._succession.start()
            while not (self._done or self._shutdown.done):
                inner = self._succession.inner
                events = self._poll.wait(inner.peers.values() if inner is not None else (), self._timeout_ms)
                if self._poll.server_ended:
                    self._done = True  # nobody is left who could end us
                for channel, message in self._front.receive():
                    self._dispatch.take(channel, message)
                self._front.welcome()
                self._succession.listen(events)
                self._dispatch.pump()
                self._shutdown.finish()
                self._clocks.check()
        finally:
            self._close()

    def _end_at_once(self, number: int, frame: object) -> None:
        """A signal's handler; the loop wakes by the wake-up descriptor."""
        del number, frame
        self._done = True

    # The relay is made before those that it calls.

    def _interrupt_cell(self) -> None:
        self._succession.interrupt()

    def _abort_cells(self) -> None:
        self._waiting.abort_cells()

    def _timeout_ms(self) -> int | None:
        """Milliseconds until somebody has to look, although nothing has come; None where nobody has."""
        inner = self._succession.inner
        if inner is not None and inner.behind:
            return 0
        if inner is not None and not inner.ready:
            soon = not inner.peers and time.monotonic() - inner.started < _CONNECT_SECONDS
            return _CONNECT_MS if soon else _WATCH_MS
        if self._succession.ending or (inner is not None and inner.broken):
            return _WATCH_MS
        if self._clocks.run or self._waiting.queues["shell"] or self._succession.lacks_standby:
            return _WATCH_MS
        return None

    def _close(self) -> None:
        self._succession.close()
        self._front.close()
        self._poll.close()
