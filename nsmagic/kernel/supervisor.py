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
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from nsmagic import views
from nsmagic.errors import HostError, NsmagicError
from nsmagic.kernel import isolation, refusal, revival, usage, wire
from nsmagic.kernel.comms import Comms
from nsmagic.kernel.inner import InnerKernel, make_container
from nsmagic.kernel.relay import OWN_ANSWERS, Relay
from nsmagic.kernel.requests import Request, Requests

if TYPE_CHECKING:
    from collections.abc import Collection

    from nsmagic.container import Container
    from nsmagic.kernel.frontend import Channel, FrontEnd
    from nsmagic.kernel.inner import InnerChannel
    from nsmagic.kernel.settings import Settings
    from nsmagic.launcher import frames

_CONNECT_MS: Final = 2
_CONNECT_SECONDS: Final = 2.0
_WATCH_MS: Final = 25
_STANDBY_SECONDS: Final = 0.3
_SHUTDOWN_SECONDS: Final = 1.0
_INTERRUPT_SECONDS: Final = 2.0
_REPLY_SECONDS: Final = 2.0
_BEHIND_SECONDS: Final = 0.5
_MOST_FAILURES: Final = 3
_MOST_QUEUED: Final = 10_000
_DRAIN_SECONDS: Final = 0.5

log = logging.getLogger("nsmagic.kernel")

_ENAMES: Final = {
    "out-of-memory": "OutOfMemory",
    "signaled": "Crashed",
    "exited": "KernelExited",
    "timeout": "TimeLimit",
    "pids-limit": "PidsLimit",
    "stopped": "KernelStopped",
}
_GONE: Final = "The kernel has started afresh: all variables are gone."
_ANSWERED_HERE: Final = OWN_ANSWERS | {"interrupt_request"}


class _Execute(msgspec.Struct):
    """What of an ``execute_request`` concerns us."""

    code: Annotated[str, msgspec.Meta(max_length=64 << 20)] = ""
    silent: bool = False
    allow_stdin: bool = True
    stop_on_error: bool = True


class _Shutdown(msgspec.Struct):
    restart: bool = False


class Supervisor:
    """One kernel.

    Args:
        settings: what it was started with.
        front: its sockets towards Jupyter.
        refuses: why no container can be built here; empty where one can.
    """

    def __init__(self, settings: Settings, front: FrontEnd, *, refuses: str = "") -> None:
        self.settings = settings
        self.refuses = refuses
        self._front = front
        self._requests = Requests()
        self._queues: dict[Channel, deque[Request]] = {"control": deque(), "shell": deque(), "stdin": deque()}
        self._inner: InnerKernel | None = None
        self._standby: Container | None = None
        self._failures = 0
        self._comms = Comms(front)
        self._relay = Relay(
            front, self._requests, self._comms, settings,
            interrupt=self._interrupt_cell, failed=self._abort_waiting,
        )  # fmt: skip
        self._verdict = ""
        self._lost: set[str] = set()
        self._meter = usage.Meter()
        self._undo: Request | None = None
        self._last_sent: Request | None = None
        self.left = isolation.LeftFiles()
        self._ending: tuple[Request | None, bool, float] | None = None
        self._done = False
        self._poll = select.poll()
        self._polled: dict[int, int] = {}
        self._wake_read, self._wake_write = os.pipe()
        self._server = _watch_server()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    @property
    def container(self) -> Container | None:
        """The inner kernel's container; None where there is none."""
        return self._inner.container if self._inner is not None else None

    # ---- the loop ------------------------------------------------------------------------

    def serve(self) -> None:
        """Be a kernel until told to end; whatever ends this leaves nothing behind."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._end_at_once)
        # Ctrl-C in a terminal goes to everybody in it; a front end interrupts by message.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for descriptor in (*self._front.descriptors, self._wake_read, self._server):
            if descriptor is not None:
                self._poll.register(descriptor, select.POLLIN)
        self._front.publish("status", {"execution_state": "starting"})
        try:
            if not self.refuses:
                self._start()
            while not self._done:
                events = self._wait()
                for channel, message in self._front.receive():
                    self._take(channel, message)
                self._front.welcome()
                self._listen(events)
                self._pump()
                self._check_clocks()
        finally:
            self._close()

    def _end_at_once(self, number: int, frame: object) -> None:
        """A signal's handler; the loop wakes by the wake-up descriptor."""
        del number, frame
        self._done = True

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def _wait(self) -> dict[int, int]:
        """Wait for something to do; the descriptors that have events, and which."""
        wanted = {}
        for peer in self._inner.peers.values() if self._inner is not None else ():
            wanted[peer.fileno()] = select.POLLIN | (select.POLLOUT if peer.wants_write else 0)
        if wanted != self._polled:
            for descriptor in self._polled.keys() - wanted.keys():
                self._poll.unregister(descriptor)
            for descriptor, flags in wanted.items():
                self._poll.register(descriptor, flags)
            self._polled = wanted
        events = dict(self._poll.poll(0 if self._front.look() else self._timeout_ms()))
        self._front.look(events)
        if self._server is not None and self._server in events:
            self._done = True  # nobody is left who could end us
        if self._wake_read in events:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        for peer in self._inner.peers.values() if self._inner is not None else ():
            if events.get(peer.fileno(), 0) & select.POLLOUT:
                peer.write()
        return events

    def _timeout_ms(self) -> int | None:
        inner = self._inner
        if inner is not None and inner.behind:
            return 0
        if inner is not None and not inner.ready:
            soon = not inner.peers and time.monotonic() - inner.started < _CONNECT_SECONDS
            return _CONNECT_MS if soon else _WATCH_MS
        if self._ending is not None or (inner is not None and inner.broken):
            return _WATCH_MS
        watched = self.settings.cell_timeout is not None and bool(self._requests.running())
        watched = watched or bool(self._queues["shell"] or self._requests.without_reply())
        if watched or (inner is not None and self._standby is None and not self._failures):
            return _WATCH_MS
        return None

    def _close(self) -> None:
        if self._inner is not None:
            self._inner.stop()
        if self._standby is not None:
            self._standby.stop()
        self.left.close()
        self._front.close()
        signal.set_wakeup_fd(-1)
        for descriptor in (self._wake_read, self._server):
            if descriptor is not None:
                os.close(descriptor)
        os.close(self._wake_write)

    # ---- inner kernels -----------------------------------------------------------------------

    def _start(self) -> None:
        """Start an inner kernel, from the standby if there is a good one."""
        standby, self._standby = self._standby, None
        if standby is not None and not standby.usable():
            standby.stop()
            standby = None
        self._relay.begin()
        self._verdict = ""
        try:
            self._inner = InnerKernel(self.settings, self._wake, standby)
        except (NsmagicError, OSError) as error:
            self._inner = None
            self._refuse(str(error))

    def _refuse(self, why: str) -> None:
        """From now on there is no kernel: say so to whoever waits, and to whoever comes."""
        self.refuses = why
        for queue in self._queues.values():
            queue.clear()
        for request in list(self._requests.open.values()):
            self._answer_refused(request)

    def _listen(self, events: Collection[int]) -> None:
        """Take what the inner kernel has sent, and see whether it lives."""
        inner = self._inner
        if inner is None:
            return
        if inner.revival.exits:
            self._follow(inner)
        note = inner.revival.listen()
        if note is not None:
            self._tell_why_not(note)
        if not inner.ready and not inner.over:
            inner.connect()
        self._relay_all(inner, events)
        if inner.revival.death is not None and inner.ready and inner.revival.revived is not None:
            self._go_on(inner, inner.revival.death, inner.revival.revived)
        if inner.over:
            self._bury(inner)
        else:
            inner.end_if_broken()

    def _relay_all(self, inner: InnerKernel, events: Collection[int]) -> None:
        for channel, message in inner.read(events):
            try:
                self._relay.relay(channel, message)
            except Exception as error:  # noqa: BLE001 - the inner kernel chose the data: what it breaks is its own end
                log.error("a message of the inner kernel could not be handled: %s", type(error).__name__)  # noqa: TRY400 - the text may be hostile
                inner.refuse("it sent what could not be handled")

    def _bury(self, inner: InnerKernel) -> None:
        """The inner kernel is dead: tell whoever ran, abort whoever waits, start another."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while inner.peers and time.monotonic() < deadline:  # what it sent before its end is still there
            self._relay_all(inner, [peer.fileno() for peer in inner.peers.values()])
        self._inner = None
        inner.stop()
        if self._ending is not None:
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
            self._mourn(_ENAMES.get(outcome, "KernelDied"), f"{how}. {_GONE}")
        self._comms.close_all()
        if self._failures >= _MOST_FAILURES:
            said = f". It said: {inner.log.last.strip()[-500:]}" if inner.log.last.strip() else ""
            what = f"died {_MOST_FAILURES} times without a cell" if inner.ready else "could not start"
            self._refuse(f"the inner kernel {what}: {how}{said}")
        else:
            self._start()

    # ---- snapshots: see revival -----------------------------------------------------------------

    def _tell_why_not(self, message: frames.Keeping) -> None:
        """Say once, under the cell that runs, that there is no snapshot before it."""
        last = self._last_sent
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
        self._relay_all(inner, everything)
        while not inner.empty() and time.monotonic() < deadline:
            self._relay_all(inner, everything)
        exited = inner.revival.exits.popleft()
        verdict = inner.container.judge_death(exited)
        running = self._requests.running()
        last = self._last_sent
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
            for request in list(self._requests.open.values()):
                if request.forwarded is not None:
                    self._finish_or_repeat(
                        request, "KernelStopped", "the kernel went back by %isolation undo"
                    )
            self._relay.execution_count = max(revived.line - 1, 0)
            self._isolated(death.request, [views.note(kept)])
        else:
            self._mourn(
                _ENAMES.get(death.outcome, "KernelDied"), f"{death.how}. {kept}", kept=bool(running) or whole
            )

    def _is_early(self, inner: InnerKernel, commands: list[list[str]]) -> bool:
        """Whether to wait with going back: the snapshot behind the last cell may be just being made."""
        last = self._last_sent
        if commands != [["undo"]] or last is None or time.monotonic() - last.idled > _BEHIND_SECONDS:
            return False
        return inner.container.snapshots == 1

    def state_text(self) -> str:
        """Whether variables survive a cell that dies, and why not."""
        mode = f"--keep-state {self.settings.keep_state}"
        if self.settings.keep_state == "off":
            return "not kept: " + ("it is another program" if self.settings.argv else mode)
        keeping = self._inner.revival.keeping if self._inner is not None else None
        if keeping is not None and keeping.against:
            return f"not kept: {revival.why_not(keeping)} ({mode})"
        return f"kept: a snapshot before each cell ({mode}); %isolation undo goes back to the last"

    def _number_of(self, request: Request) -> int | None:
        """The number of a cell that runs; None for one that has none."""
        if request.silent:
            return None
        return self._relay.execution_count + (0 if request.echoed else 1)

    def undo(self, request: Request) -> None:
        """End the inner kernel, so that its snapshot goes on as it was before the last cell.

        Raises:
            HostError: there is none.
        """
        inner = self._inner
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

    def _mourn(self, ename: str, evalue: str, *, kept: bool = False) -> None:
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
        for channel, queue in self._queues.items():
            self._queues[channel] = deque(request for request in queue if not request.replied)
        last = self._requests.last_cell
        if not running and last is not None:
            if not last.can_ask and not kept:
                self._lost.add(last.session)
            # It died between cells, of what the last one left running.
            text = f"nsmagic: {evalue}\n"
            self._front.publish("stream", {"name": "stderr", "text": text}, parent=last.header)

    def _finish_or_repeat(self, request: Request, ename: str, evalue: str) -> None:
        if request.kind == "kernel_info_request":
            request.forwarded = None
            self._queues[request.channel].append(request)
        else:
            self._relay.finish(request, refusal.reply(request.kind, ename, evalue))

    def restart(self) -> None:
        """Start afresh: a new container, with nothing of the old one's."""
        self.left.close()
        if self._inner is not None:
            inner, self._inner = self._inner, None
            inner.stop()
        self._comms.close_all()
        for request in list(self._requests.open.values()):
            if request.forwarded is not None:
                self._finish_or_repeat(request, "KernelStopped", "the kernel was restarted by %isolation")
        self._start()

    def keep_limits(self, limits: dict[str, Any]) -> None:
        """Limits that were changed hold for the inner kernels that follow, too."""
        self.settings = replace(self.settings, spec=replace(self.settings.spec, **limits))
        if self._standby is not None:
            self._standby.stop()
            self._standby = None

    # ---- from the front end -----------------------------------------------------------------------

    def _take(self, channel: Channel, message: wire.Message) -> None:
        header = message.header
        if channel == "stdin":
            # Whether somebody asked is for the inner kernel to know: an answer out of turn harms nobody.
            if header.msg_type == "input_reply" and self._inner is not None and self._inner.ready:
                self._requests.answered_by(message.identities)
                self._inner.send("stdin", message)
            return
        request = Request(
            header.msg_id, header.msg_type, channel, message.identities, message.parts[0], header.session,
            header.subshell_id, message, room=self.settings.job.output_limit,
        )  # fmt: skip
        if not header.msg_type.endswith("_request"):
            self._take_comm(request)
            return
        self._requests.add(request)
        may_execute = not request.executes or self._may_execute(request)
        if request.kind in _ANSWERED_HERE:
            self._answer(request)
        elif self._ending is not None:
            self._relay.finish(
                request, refusal.reply(request.kind, "KernelStopped", "the kernel is shutting down")
            )
        elif self.refuses:
            self._answer_refused(request)
        elif len(self._requests.open) > _MOST_QUEUED:
            self._relay.finish(
                request, refusal.reply(request.kind, "KernelBusy", "too many requests wait already")
            )
        elif not may_execute:
            text = "the kernel died in an earlier cell: variables are gone; run the notebook from its start"
            self._relay.fail(request, "KernelDied", text)
        else:
            self._queues[channel].append(request)

    def _take_comm(self, request: Request) -> None:
        """A comm's message has no reply; it goes on as it is, where comms are allowed."""
        if self.settings.policy == "widgets":
            room = len(self._queues["shell"]) < _MOST_QUEUED
            if request.kind.startswith("comm_") and not self.refuses and room:
                self._queues["shell"].append(request)
                self._requests.note(request)
        elif request.kind == "comm_open":
            # As a kernel says it that does not know the target.
            content = _content(request)
            name = content.get("comm_id") if isinstance(content, dict) else None
            if isinstance(name, str):
                self._front.publish("comm_close", {"comm_id": name, "data": {}}, parent=request.header)

    def _may_execute(self, request: Request) -> bool:
        """Read what concerns us of a cell; whether it may run."""
        try:
            content = msgspec.json.decode(request.message.parts[3], type=_Execute)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            content = _Execute(code="", allow_stdin=False)
        request.can_ask, request.silent = content.allow_stdin, content.silent
        request.stops = content.stop_on_error
        request.code = content.code
        return request.can_ask or request.session not in self._lost

    def _pump(self) -> None:
        """Send on what waits, in order; ``%isolation`` waits for the cells before it."""
        inner = self._inner
        if inner is None or not inner.ready or self._ending is not None:
            return
        for channel in ("control", "shell"):
            queue = self._queues[channel]
            while queue and self._inner is inner:
                request = queue[0]
                commands = isolation.commands(request.code) if request.executes else None
                if commands is not None:
                    if not self._requests.shells_are_free() or self._is_early(inner, commands):
                        break
                    queue.popleft()
                    self._isolate(request, commands)
                    continue
                queue.popleft()
                self._forward(inner, request)

    def _forward(self, inner: InnerKernel, request: Request) -> None:
        self._relay.refill()
        channel: InnerChannel = "control" if request.channel == "control" else "shell"
        if request.kind == "debug_request" and self.settings.policy == "safe":
            text = 'the debugger is for the kernel "Isolated Python (widgets)"'
            self._relay.finish(request, refusal.reply(request.kind, "Withheld", text))
        elif inner.send(channel, request.message):
            if request.kind in {"comm_open", "comm_close"}:
                self._comms.note(request.kind, _content(request))
            request.forwarded = time.monotonic()
            inner.worked = inner.worked or request.executes
            if request.executes and not request.silent:
                self._last_sent = request
            if request.kind != "kernel_info_request":  # which is asked again of the next inner kernel
                request.let_go()
        elif request.kind.endswith("_request"):
            self._relay.finish(
                request, refusal.reply(request.kind, "KernelBusy", "the kernel does not read its requests")
            )

    # ---- answers of our own ------------------------------------------------------------------------

    def _answer_refused(self, request: Request) -> None:
        if request.kind == "kernel_info_request":
            self._relay.finish(
                request, refusal.kernel_info(self.settings.language, f"nsmagic: {self.refuses}")
            )
        elif request.executes:
            self._relay.fail(request, "CannotIsolate", f"no code runs here: {self.refuses}")
        else:
            self._relay.finish(request, refusal.reply(request.kind, "CannotIsolate", self.refuses))

    def _answer(self, request: Request) -> None:
        """Requests that are about the kernel as a whole: the host's business."""
        match request.kind:
            case "interrupt_request":
                self._interrupt(request)
            case "usage_request":
                self._relay.finish(request, {"status": "ok", **self._meter.read(self.container)})
            case "connect_request":
                self._relay.finish(request, {"status": "ok", **self._front.connection.ports})
            case "shutdown_request":
                self._shut_down(request)

    def _interrupt_cell(self) -> None:
        if self._inner is not None:
            self._inner.container.signal(signal.SIGINT)

    def _abort_waiting(self) -> None:
        """A cell failed: those that wait out here are aborted, as a kernel aborts those that it has."""
        waiting = [request for request in self._queues["shell"] if request.executes]
        for request in waiting:
            self._queues["shell"].remove(request)
            self._relay.abort(request)

    def _interrupt(self, request: Request) -> None:
        inner = self._inner
        if inner is not None and inner.ready:
            if self.settings.interrupts == "message":
                request.forwarded = time.monotonic()
                if inner.send("control", request.message):
                    return
            inner.container.signal(signal.SIGINT)
        self._relay.finish(request, {"status": "ok"})

    def _shut_down(self, request: Request) -> None:
        try:
            restart = msgspec.json.decode(request.message.parts[3], type=_Shutdown).restart
        except (msgspec.MsgspecError, ValueError):
            restart = False
        self._ending = (request, restart, time.monotonic() + _SHUTDOWN_SECONDS)
        if self._inner is not None and self._inner.ready:
            self._inner.send("control", request.message)
        self._finish_ending()

    def _finish_ending(self) -> None:
        """Answer the request to shut down once the inner kernel has ended, or has had its time."""
        if self._ending is None:
            return
        request, restart, deadline = self._ending
        if self._inner is None or not self._inner.ready or self._inner.over or time.monotonic() > deadline:
            if self._inner is not None:
                self._inner.stop()
                self._inner = None
            content = {"status": "ok", "restart": restart}
            if request is not None:
                self._front.publish("shutdown_reply", content, parent=request.header)
                self._relay.finish(request, content)
            self._done = True

    def _isolate(self, request: Request, commands: list[list[str]]) -> None:
        """Answer a cell of ``%isolation`` lines."""
        self._relay.status(request, "busy")
        self._relay.echo(request)
        try:
            if commands == [["undo"]]:
                self.undo(request)
                return
            shown = [isolation.run(self, words) for words in commands]
        except (NsmagicError, OSError, ValueError) as error:
            self._relay.fail(request, type(error).__name__, str(error))
        else:
            self._isolated(request, shown)

    def _isolated(self, request: Request, shown: list[isolation.Bundle]) -> None:
        """Show what such a cell led to."""
        content = {
            "status": "ok",
            "execution_count": self._relay.execution_count,
            "payload": [],
            "user_expressions": {},
        }
        for data in shown:
            self._front.publish(
                "display_data", {"data": data, "metadata": {}, "transient": {}}, parent=request.header
            )
        self._relay.finish(request, content)

    # ---- clocks ----------------------------------------------------------------------------------------

    def _check_clocks(self) -> None:
        self._finish_ending()
        inner = self._inner
        if inner is None or not inner.ready or self._ending is not None:
            return
        now = time.monotonic()
        if self._standby is None and now - inner.started > _STANDBY_SECONDS and not self._failures:
            self._build_standby()
        for request in self._requests.without_reply():
            if now - request.idled > _REPLY_SECONDS:
                # An interrupt that hits ipykernel between a request's arrival and its code leaves it so.
                text = "the kernel ended this request without an answer: it was interrupted before it began"
                self._relay.finish(request, refusal.reply(request.kind, "KeyboardInterrupt", text))
        limit = self.settings.cell_timeout
        if limit is None:
            return
        for request in self._requests.running():
            ran = now - self._requests.began(request)
            if request.interrupted is None and ran > limit:
                request.interrupted = now
                inner.container.signal(signal.SIGINT)
            elif request.interrupted is not None and now - request.interrupted > _INTERRUPT_SECONDS:
                self._verdict = f"{self._relay.time_limit_text()}, and did not end when it was interrupted"
                self._end_cell(inner)

    def _end_cell(self, inner: InnerKernel) -> None:
        """Kill what runs; where a snapshot waits it goes on, else the container is at its end."""
        if not inner.revival.ended and inner.container.snapshots:
            inner.revival.ended = time.monotonic()
            inner.container.end_payload()
        elif not inner.revival.ended or revival.overdue(inner.revival):
            inner.container.stop()

    def _build_standby(self) -> None:
        """Have a container cloned for the next inner kernel, while nobody waits for it."""
        try:
            self._standby = make_container(self.settings)
        except (NsmagicError, OSError):  # whoever needs it is told
            self._failures = 1


def _content(request: Request) -> Any:
    """A client's message's content as plain data; None where it is none."""
    with contextlib.suppress(wire.WireError):
        return wire.loads(request.message.parts[3])
    return None


def _watch_server() -> int | None:
    """A descriptor that polls as readable when the process that started us has ended, see pidfd_open(2).

    Jupyter names that process in JPY_PARENT_PID, unless the kernel is meant to outlive it.  None where there
    is none to watch.
    """
    try:
        return os.pidfd_open(int(os.environ.get("JPY_PARENT_PID", "")))
    except (ValueError, OSError):
        return None
