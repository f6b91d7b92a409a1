"""The inner kernels of one supervisor, one after the other.

The next one comes from a standby, which is built while nobody waits for it.  When one dies, whoever ran is
told why, and either its snapshot goes on in the same container (``revival``), or the next one starts.
"""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from nsmagic import views
from nsmagic.errors import HostError, NsmagicError
from nsmagic.kernel import isolation, revival
from nsmagic.kernel.inner import InnerKernel, make_container

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from nsmagic.container import Container
    from nsmagic.kernel.comms import Comms
    from nsmagic.kernel.frontend import FrontEnd
    from nsmagic.kernel.relay import Relay
    from nsmagic.kernel.requests import Request, Requests
    from nsmagic.kernel.settings import Settings
    from nsmagic.kernel.waiting import Waiting
    from nsmagic.launcher import frames

_STANDBY_SECONDS: Final = 0.3
_MOST_FAILURES: Final = 3
_DRAIN_SECONDS: Final = 0.5

_ENAMES: Final = {
    "out-of-memory": "OutOfMemory",
    "signaled": "Crashed",
    "exited": "KernelExited",
    "timeout": "TimeLimit",
    "pids-limit": "PidsLimit",
    "stopped": "KernelStopped",
}
_GONE: Final = "The kernel has started afresh: all variables are gone."


class Succession:
    """All of them; at most one at a time.

    Args:
        settings: what each should be.
        front: where front ends are told of what belongs to no request.
        requests: those that the inner kernel has.
        comms: those that front ends hold open.
        relay: takes what the inner kernel sends.
        waiting: answers for one that is dead.
        wake: called, from a thread, when there is news of one.
    """

    def __init__(
        self,
        settings: Settings,
        front: FrontEnd,
        requests: Requests,
        comms: Comms,
        relay: Relay,
        waiting: Waiting,
        *,
        wake: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.inner: InnerKernel | None = None
        self.ending = False
        self.left = isolation.LeftFiles()
        self._front = front
        self._requests = requests
        self._comms = comms
        self._relay = relay
        self._waiting = waiting
        self._wake = wake
        self._standby: Container | None = None
        self._failures = 0
        self._verdict = ""
        self._undo: Request | None = None

    @property
    def container(self) -> Container | None:
        """The inner kernel's container; None where there is none."""
        return self.inner.container if self.inner is not None else None

    # ---- beginning and end ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start an inner kernel, from the standby if there is a good one."""
        standby, self._standby = self._standby, None
        if standby is not None and not standby.usable():
            standby.stop()
            standby = None
        self._relay.begin()
        self._verdict = ""
        try:
            self.inner = InnerKernel(self.settings, self._wake, standby)
        except (NsmagicError, OSError) as error:
            self.inner = None
            self._waiting.refuse(str(error))

    def restart(self) -> None:
        """Start afresh: a new container, with nothing of the old one's."""
        self.left.close()
        self.stop()
        self._comms.close_all()
        self._waiting.give_back("the kernel was restarted by %isolation")
        self.start()

    def stop(self) -> None:
        """End the inner kernel, if there is one."""
        inner, self.inner = self.inner, None
        if inner is not None:
            inner.stop()

    def close(self) -> None:
        """End all that is ours."""
        if self.inner is not None:
            self.inner.stop()
        if self._standby is not None:
            self._standby.stop()
        self.left.close()

    # ---- the standby ---------------------------------------------------------------------------------

    @property
    def lacks_standby(self) -> bool:
        """Whether one is to be built."""
        return self.inner is not None and self._standby is None and not self._failures

    def prepare(self, now: float) -> None:
        """Have a container cloned for the next inner kernel, while nobody waits for it.

        Args:
            now: ``time.monotonic()``.
        """
        inner = self.inner
        if inner is None or not self.lacks_standby or now - inner.started <= _STANDBY_SECONDS:
            return
        try:
            self._standby = make_container(self.settings)
        except (NsmagicError, OSError):  # whoever needs it is told
            self._failures = 1

    def keep_limits(self, limits: dict[str, Any]) -> None:
        """Limits that were changed hold for the inner kernels that follow, too."""
        self.settings = replace(self.settings, spec=replace(self.settings.spec, **limits))
        if self._standby is not None:
            self._standby.stop()
            self._standby = None

    # ---- its life ------------------------------------------------------------------------------------

    def listen(self, events: Collection[int]) -> None:
        """Take what the inner kernel has sent, and see whether it lives.

        Args:
            events: descriptors on which something has come.
        """
        inner = self.inner
        if inner is None:
            return
        if inner.revival.exits:
            self._follow(inner)
        note = inner.revival.listen()
        if note is not None:
            self._tell_why_not(note)
        if not inner.ready and not inner.over:
            inner.connect()
        self._relay.relay_all(inner, events)
        if inner.revival.death is not None and inner.ready and inner.revival.revived is not None:
            self._go_on(inner, inner.revival.death, inner.revival.revived)
        if inner.over:
            self._bury(inner)
        else:
            inner.end_if_broken()

    def interrupt(self) -> None:
        """Interrupt what runs, by a signal."""
        if self.inner is not None:
            self.inner.container.signal(signal.SIGINT)

    def end_cell(self, verdict: str) -> None:
        """Kill what runs; where a snapshot waits it goes on, else the container is at its end.

        Args:
            verdict: why, in words.
        """
        inner = self.inner
        if inner is None:
            return
        self._verdict = verdict
        if not inner.revival.ended and inner.container.snapshots:
            inner.revival.ended = time.monotonic()
            inner.container.end_payload()
        elif not inner.revival.ended or revival.overdue(inner.revival):
            inner.container.stop()

    def _bury(self, inner: InnerKernel) -> None:
        """The inner kernel is dead: tell whoever ran, abort whoever waits, start another."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while inner.peers and time.monotonic() < deadline:  # what it sent before its end is still there
            self._relay.relay_all(inner, [peer.fileno() for peer in inner.peers.values()])
        self.stop()
        if self.ending:
            return
        how = self._verdict or inner.how_it_ended()
        outcome: str = "timeout" if self._verdict else (inner.result.outcome if inner.result else "stopped")
        death = inner.revival.death
        if death is not None:  # its snapshot could not take over
            how, outcome = f"{death.how}; its snapshot could not go on: {inner.how_it_ended()}", death.outcome
        undo, self._undo = death.request if death is not None else self._undo, None
        if undo is not None:
            self._relay.fail(undo, "HostError", f"%isolation undo: the snapshot was lost: {how}. {_GONE}")
        if inner.result is not None:
            self.left.keep(inner.result)
        # One that dies again and again before it has run a cell is not worth another start.
        self._failures = 0 if inner.worked else self._failures + 1
        if inner.ready or death is not None:
            self._waiting.mourn(_ENAMES.get(outcome, "KernelDied"), f"{how}. {_GONE}")
        self._comms.close_all()
        if self._failures >= _MOST_FAILURES:
            said = f". It said: {inner.log.last.strip()[-500:]}" if inner.log.last.strip() else ""
            what = f"died {_MOST_FAILURES} times without a cell" if inner.ready else "could not start"
            self._waiting.refuse(f"the inner kernel {what}: {how}{said}")
        else:
            self.start()

    # ---- snapshots: see revival ----------------------------------------------------------------------

    def _tell_why_not(self, message: frames.Keeping) -> None:
        """Say once, under the cell that runs, that there is no snapshot before it."""
        last = self._requests.last_sent
        if last is not None and message.against != "off":
            text = (
                f"nsmagic: no snapshot before this cell: {revival.why_not(message)}. "
                "If it dies, all variables are gone (--keep-state).\n"
            )
            self._front.publish("stream", {"name": "stderr", "text": text}, parent=last.header)

    def _follow(self, inner: InnerKernel) -> None:
        """The inner kernel has died and its snapshot wakes: take the last words, look for the new sockets."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        everything = [peer.fileno() for peer in inner.peers.values()]
        self._relay.relay_all(inner, everything)
        while not inner.empty() and time.monotonic() < deadline:
            self._relay.relay_all(inner, everything)
        exited = inner.revival.exits.popleft()
        verdict = inner.container.judge_death(exited)
        running = self._requests.running()
        last = self._requests.last_sent
        sent = self._requests.began(running[0]) if running else last.forwarded if last is not None else None
        began = time.time() - (time.monotonic() - sent) if sent is not None else None
        how = self._verdict or revival.told(verdict, exited, inner.container)
        outcome = "timeout" if self._verdict else verdict.outcome
        undo, self._undo, self._verdict = self._undo, None, ""
        inner.follow(revival.Death(outcome, how, began, undo))

    def _go_on(self, inner: InnerKernel, death: revival.Death, revived: frames.Revived) -> None:
        """The snapshot has taken over: tell whoever ran."""
        inner.revival.death = None
        self._relay.begin()
        self._comms.ask(inner)
        running = self._requests.running()
        running_number = self._number_of(running[0]) if running else None
        whole = not running and death.request is None and revived.line > self._relay.execution_count
        kept = revival.variables(revived, running_number, whole=whole)
        kept += revival.files(inner.container, death.began)
        if death.request is not None:
            self._waiting.give_back("the kernel went back by %isolation undo")
            self._relay.execution_count = max(revived.line - 1, 0)
            self._relay.show(death.request, [views.note(kept)])
        else:
            ename = _ENAMES.get(death.outcome, "KernelDied")
            self._waiting.mourn(ename, f"{death.how}. {kept}", kept=bool(running) or whole)

    def _number_of(self, request: Request) -> int | None:
        """The number of a cell that runs; None for one that has none."""
        if request.silent:
            return None
        return self._relay.execution_count + (0 if request.echoed else 1)

    def state_text(self) -> str:
        """Whether variables survive a cell that dies, and why not."""
        mode = f"--keep-state {self.settings.keep_state}"
        if self.settings.keep_state == "off":
            return "not kept: " + ("it is another program" if self.settings.argv else mode)
        keeping = self.inner.revival.keeping if self.inner is not None else None
        if keeping is not None and keeping.against:
            return f"not kept: {revival.why_not(keeping)} ({mode})"
        return f"kept: a snapshot before each cell ({mode}); %isolation undo goes back to the last"

    def undo(self, request: Request) -> None:
        """End the inner kernel, so that its snapshot goes on as it was before the last cell.

        Args:
            request: the cell that asked for it, which is answered then.

        Raises:
            HostError: there is none.
        """
        inner = self.inner
        if inner is None or not inner.ready or not inner.container.snapshots:
            keeping = inner.revival.keeping if inner is not None else None
            if self.settings.keep_state == "off":
                why = "another program runs" if self.settings.argv else "--keep-state off"
            else:
                why = revival.why_not(keeping) if keeping is not None else ""
            why = why or "no cell has run since the last start, death or undo"
            raise HostError("%isolation undo", f"there is no snapshot: {why}", "Nothing was changed.")
        self._undo = request
        inner.revival.ended = time.monotonic()
        inner.container.end_payload(to_oldest=True)
