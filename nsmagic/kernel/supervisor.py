"""The supervisor: the kernel that Jupyter starts.  It runs on the host and no code of the user's.

Theory of operation.  Jupyter starts this process with a connection file, whose five ports we bind
(``frontend``).  The user's code runs in an **inner kernel**, a real ipykernel in a container (``inner``), and
we carry messages between the two:

    front ends ══ five sockets, the outer key ══ supervisor ══ four Unix sockets, an inner key ══ inner kernel

What comes from a front end is the user's own word, and is signed anew and sent on.  What comes from inside is
hostile: it is parsed with bounds (``zmtp``, ``wire``), held against the request that it is about
(``requests``), rebuilt by the firewall (``firewall.messages``), and only then sent on.  The container is owned
through ``Container`` like any other: its lifeline is ours, so it dies with us, however we die; and its limits,
usage and files are looked at from out here, which is how ``%isolation`` (``isolation``) knows.

When the inner kernel dies, whoever ran is told why, under the cell; queued cells are aborted; and another
inner kernel takes over, from a standby that the launcher has cloned beforehand.  Where no container can be
built no code is run: each cell is answered with the reason and the remedy.

One thread, one loop around poll(2); beside it the heartbeat's, and one that waits for the container's end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import zmq

from nsmagic.errors import NsmagicError
from nsmagic.firewall.messages import MessageFilter
from nsmagic.kernel import isolation, refusal, usage, wire
from nsmagic.kernel.inner import InnerKernel, make_container
from nsmagic.kernel.requests import Request, Requests
from nsmagic.result import seconds_text, size_text

if TYPE_CHECKING:
    from nsmagic.container import Container
    from nsmagic.firewall.messages import Outgoing
    from nsmagic.kernel.frontend import Channel, FrontEnd
    from nsmagic.kernel.inner import InnerChannel
    from nsmagic.kernel.settings import Settings

_CONNECT_MS: Final = 2
_WATCH_MS: Final = 25
_STANDBY_SECONDS: Final = 0.3
_SHUTDOWN_SECONDS: Final = 1.0
_INTERRUPT_SECONDS: Final = 2.0
_MOST_FAILURES: Final = 3
_MOST_QUEUED: Final = 10_000
_DRAIN_ROUNDS: Final = 1000

_ENAMES: Final = {
    "out-of-memory": "OutOfMemory",
    "signaled": "Crashed",
    "exited": "KernelExited",
    "timeout": "TimeLimit",
    "pids-limit": "PidsLimit",
    "stopped": "KernelStopped",
}
_GONE: Final = "The kernel has started afresh: all variables are gone."
_ABORTED: Final = {"status": "aborted", "execution_count": 0, "payload": [], "user_expressions": {}}

_NOT_SENT_ON: Final = frozenset({"shutdown_request", "interrupt_request", "usage_request", "connect_request"})


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
        self.execution_count = 0
        self._front = front
        self._requests = Requests()
        self._queues: dict[Channel, deque[Request]] = {"control": deque(), "shell": deque(), "stdin": deque()}
        self._inner: InnerKernel | None = None
        self._standby: Container | None = None
        self._failures = 0
        self._filter = MessageFilter(settings.policy, language=settings.language)
        self._verdict = ""
        self._stray_room = settings.job.output_limit
        self._lost: set[str] = set()
        self._meter = usage.Meter()
        self.left = isolation.LeftFiles()
        self._ending: tuple[Request | None, bool, float] | None = None
        self._done = False
        self._poller = zmq.Poller()
        self._polled: set[int] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)  # noqa: FBT003 - the library's signature
        os.set_blocking(self._wake_write, False)  # noqa: FBT003 - likewise

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
        self._front.register(self._poller)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._front.publish("status", {"execution_state": "starting"})
        try:
            if not self.refuses:
                self._start()
            while not self._done:
                self._wait()
                for channel, message in self._front.receive():
                    self._take(channel, message)
                self._front.welcome()
                self._listen()
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

    def _wait(self) -> None:
        wanted = {}
        for peer in self._inner.peers.values() if self._inner is not None else ():
            wanted[peer.fileno()] = zmq.POLLIN | (zmq.POLLOUT if peer.wants_write else 0)
        for descriptor in self._polled - wanted.keys():
            self._poller.unregister(descriptor)
        for descriptor, flags in wanted.items():
            self._poller.register(descriptor, flags)
        self._polled = set(wanted)
        events = dict(self._poller.poll(self._timeout_ms()))
        if self._wake_read in events:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        for peer in self._inner.peers.values() if self._inner is not None else ():
            if events.get(peer.fileno(), 0) & zmq.POLLOUT:
                peer.write()

    def _timeout_ms(self) -> int | None:
        inner = self._inner
        if inner is not None and not inner.ready:
            return _CONNECT_MS if not inner.peers else _WATCH_MS
        if self._ending is not None or (inner is not None and inner.broken):
            return _WATCH_MS
        watched = self.settings.cell_timeout is not None and self._requests.running()
        if watched or (inner is not None and self._standby is None):
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
        os.close(self._wake_read)
        os.close(self._wake_write)

    # ---- inner kernels -----------------------------------------------------------------------

    def _start(self) -> None:
        """Start an inner kernel, from the standby if there is a good one."""
        standby, self._standby = self._standby, None
        if standby is not None and not standby.usable():
            standby.stop()
            standby = None
        self._filter = MessageFilter(self.settings.policy, language=self.settings.language)
        self._verdict = ""
        try:
            self._inner = InnerKernel(self.settings, self._wake, standby)
        except NsmagicError as error:
            self._inner = None
            self._refuse(str(error))

    def _refuse(self, why: str) -> None:
        """From now on there is no kernel: say so to whoever waits, and to whoever comes."""
        self.refuses = why
        for queue in self._queues.values():
            queue.clear()
        for request in list(self._requests.open.values()):
            self._answer_refused(request)

    def _listen(self) -> None:
        """Take what the inner kernel has sent, and see whether it lives."""
        inner = self._inner
        if inner is None:
            return
        if not inner.ready and not inner.over:
            inner.connect()
        for channel, message in inner.read():
            self._relay(channel, message)
        if inner.over:
            self._bury(inner)
        else:
            inner.end_if_broken()

    def _bury(self, inner: InnerKernel) -> None:
        """The inner kernel is dead: tell whoever ran, abort whoever waits, start another."""
        for _ in range(_DRAIN_ROUNDS):  # what it sent before its end is still there
            if not inner.peers:
                break
            for channel, message in inner.read():
                self._relay(channel, message)
        self._inner = None
        inner.stop()
        if self._ending is not None:
            return
        how = self._verdict or inner.how_it_ended()
        outcome = "timeout" if self._verdict else (inner.result.outcome if inner.result else "stopped")
        if inner.result is not None:
            self.left.keep(inner.result)
        if inner.ready:
            self._failures = 0
            self._mourn(_ENAMES.get(outcome, "KernelDied"), f"{how}. {_GONE}")
        else:
            self._failures += 1
        if self._failures >= _MOST_FAILURES:
            said = f". It said: {inner.log.last.strip()[-500:]}" if inner.log.last.strip() else ""
            self._refuse(f"the inner kernel could not start: {how}{said}")
        else:
            self._start()

    def _mourn(self, ename: str, evalue: str) -> None:
        """Answer all requests that the dead kernel had, and abort the cells behind them."""
        running = self._requests.running()
        for request in list(self._requests.open.values()):
            if request.executes and not request.can_ask:
                # Whoever runs without a person must not go on in an empty namespace.
                self._lost.add(request.session)
            if request in running:
                self._fail(request, ename, evalue)
            elif request.executes:
                self._finish(request, {**_ABORTED, "execution_count": self.execution_count})
            elif request.forwarded is not None:
                self._finish_or_repeat(request, ename, evalue)
        self._queues["shell"] = deque(request for request in self._queues["shell"] if not request.replied)
        last = self._requests.last_cell
        if not running and last is not None:
            if not last.can_ask:
                self._lost.add(last.session)
            # It died between cells, of what the last one left running.
            text = f"nsmagic: {evalue}\n"
            self._front.publish("stream", {"name": "stderr", "text": text}, parent=last.header)

    def _finish_or_repeat(self, request: Request, ename: str, evalue: str) -> None:
        if request.kind == "kernel_info_request":
            request.forwarded = None
            self._queues[request.channel].append(request)
        else:
            self._finish(request, refusal.reply(request.kind, ename, evalue))

    def restart(self) -> None:
        """Start afresh: a new container, with nothing of the old one's."""
        self.left.close()
        if self._inner is not None:
            inner, self._inner = self._inner, None
            inner.stop()
        for request in list(self._requests.open.values()):
            if request.forwarded is not None:
                self._finish_or_repeat(request, "KernelStopped", "the kernel was restarted by %isolation")
        self._start()

    # ---- from the front end -----------------------------------------------------------------------

    def _take(self, channel: Channel, message: wire.Message) -> None:
        header = message.header
        if channel == "stdin":
            asked = self._requests.find(message.parent_id) or (self._requests.running() or [None])[0]
            if header.msg_type == "input_reply" and asked is not None and self._inner is not None and self._inner.ready:
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
        if request.kind in _NOT_SENT_ON:
            self._answer(request)
        elif self._ending is not None:
            self._finish(request, refusal.reply(request.kind, "KernelStopped", "the kernel is shutting down"))
        elif self.refuses:
            self._answer_refused(request)
        elif len(self._queues[channel]) >= _MOST_QUEUED:
            self._finish(request, refusal.reply(request.kind, "KernelBusy", "too many requests wait already"))
        elif request.executes and not self._may_execute(request):
            text = "the kernel died in an earlier cell, and all variables are gone; run the notebook from its start"
            self._fail(request, "KernelDied", text)
        else:
            self._queues[channel].append(request)

    def _take_comm(self, request: Request) -> None:
        """A comm's message has no reply; it goes on as it is, where comms are allowed."""
        if self.settings.policy == "widgets":
            if request.kind.startswith("comm_") and not self.refuses:
                self._queues["shell"].append(request)
                self._requests.note(request)
        elif request.kind == "comm_open":
            # As a kernel says it that does not know the target.
            with contextlib.suppress(wire.WireError):
                content = wire.loads(request.message.parts[3])
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
                    if not self._requests.shells_are_free():
                        break
                    queue.popleft()
                    self._isolate(request, commands)
                    continue
                queue.popleft()
                self._forward(inner, request)

    def _forward(self, inner: InnerKernel, request: Request) -> None:
        request.forwarded = time.monotonic()
        self._stray_room = self.settings.job.output_limit
        channel: InnerChannel = "control" if request.channel == "control" else "shell"
        if request.kind == "debug_request" and self.settings.policy == "safe":
            text = 'the debugger is for the kernel "Isolated Python (widgets)"'
            self._finish(request, refusal.reply(request.kind, "Withheld", text))
        elif not inner.send(channel, request.message):
            self._finish(request, refusal.reply(request.kind, "KernelBusy", "the kernel does not read its requests"))

    # ---- answers of our own ------------------------------------------------------------------------

    def _status(self, request: Request, state: str) -> None:
        """Publish a state once."""
        if not getattr(request, state):
            setattr(request, state, True)
            self._front.publish("status", {"execution_state": state}, parent=request.header)

    def _finish(self, request: Request, content: dict[str, Any]) -> None:
        """Answer a request."""
        self._status(request, "busy")
        if not request.replied:
            self._front.reply(request, request.reply_kind, content)
            self._requests.finish(request)
        self._status(request, "idle")

    def _fail(self, request: Request, ename: str, evalue: str) -> None:
        """Show an error under a cell, and answer it."""
        self._status(request, "busy")
        self._echo(request)
        self._front.publish("error", refusal.failure(ename, evalue), parent=request.header)
        self._finish(request, refusal.reply(request.kind, ename, evalue, execution_count=self.execution_count))

    def _echo(self, request: Request) -> None:
        """Publish a cell's code, which tells other clients what runs."""
        if not request.echoed and not request.silent:
            request.echoed = True
            content = {"code": request.code, "execution_count": self.execution_count}
            self._front.publish("execute_input", content, parent=request.header)

    def _answer_refused(self, request: Request) -> None:
        if request.kind == "kernel_info_request":
            self._finish(request, refusal.kernel_info(self.settings.language, f"nsmagic: {self.refuses}"))
        elif request.executes:
            self._fail(request, "CannotIsolate", f"no code runs here: {self.refuses}")
        else:
            self._finish(request, refusal.reply(request.kind, "CannotIsolate", self.refuses))

    def _answer(self, request: Request) -> None:
        """Requests that are about the kernel as a whole: the host's business."""
        match request.kind:
            case "interrupt_request":
                self._interrupt(request)
            case "usage_request":
                self._finish(request, {"status": "ok", **self._meter.read(self.container)})
            case "connect_request":
                self._finish(request, {"status": "ok", **self._front.connection.ports})
            case "shutdown_request":
                self._shut_down(request)

    def _interrupt(self, request: Request) -> None:
        inner = self._inner
        if inner is not None and inner.ready:
            if self.settings.interrupts == "message":
                request.forwarded = time.monotonic()
                if inner.send("control", request.message):
                    return
            inner.container.signal(signal.SIGINT)
        self._finish(request, {"status": "ok"})

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
                self._finish(request, content)
            self._done = True

    def _isolate(self, request: Request, commands: list[list[str]]) -> None:
        """Answer a cell of ``%isolation`` lines."""
        self._status(request, "busy")
        self._echo(request)
        content = {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}
        try:
            for words in commands:
                shown = isolation.run(self, words)
                self._front.publish(
                    "display_data", {"data": shown, "metadata": {}, "transient": {}}, parent=request.header
                )
        except NsmagicError as error:
            self._fail(request, type(error).__name__, str(error))
        else:
            self._finish(request, content)

    # ---- from the inner kernel: hostile -----------------------------------------------------------------

    def _relay(self, channel: InnerChannel, message: wire.Message) -> None:
        try:
            content, metadata = wire.loads(message.parts[3]), wire.loads(message.parts[2])
        except wire.WireError:
            return
        asked_by: Channel | None = "control" if channel == "control" else "shell" if channel == "shell" else None
        request = self._requests.find(message.parent_id, asked_by)
        out = self._filter.outgoing(channel, message.header.msg_type, message.parent_id, content, metadata)
        if out is None:
            return
        if channel == "iopub":
            self._publish(request, out, message)
        elif request is None or request.replied:
            return
        elif channel == "stdin":
            if request.can_ask and out.msg_type == "input_request":
                self._front.ask(request, out.content)
        elif out.msg_type == request.reply_kind and request.kind not in _NOT_SENT_ON - {"interrupt_request"}:
            self._reply(request, out, message)

    def _reply(self, request: Request, out: Outgoing, message: wire.Message) -> None:
        content = out.content
        failed = content.get("status") == "error"
        if request.executes:
            count = content.get("execution_count")
            self.execution_count = count if isinstance(count, int) else self.execution_count
            if failed and request.interrupted is not None:
                content = {**content, **self._time_limit(content)}
        buffers = message.buffers if out.buffers else None
        self._front.reply(request, out.msg_type, content, out.metadata, buffers)
        self._requests.finish(request)
        if failed and request.executes and request.stops:
            self._abort_waiting()

    def _abort_waiting(self) -> None:
        """A cell failed: those that wait out here are aborted, as a kernel aborts those that it has."""
        waiting = [request for request in self._queues["shell"] if request.executes]
        for request in waiting:
            self._queues["shell"].remove(request)
            self._finish(request, {**_ABORTED, "execution_count": self.execution_count})

    def _publish(self, request: Request | None, out: Outgoing, message: wire.Message) -> None:
        content = out.content
        if out.msg_type == "status":
            state = content.get("execution_state")
            if request is not None and state in {"busy", "idle"}:
                self._status(request, state)
            return
        if out.msg_type == "execute_input":
            if request is not None and not request.echoed:
                request.echoed = True
                self.execution_count = content.get("execution_count", self.execution_count)
                content = {**content, "code": request.code}
                self._front.publish("execute_input", content, parent=request.header)
            return
        if not self._has_room(request, message.size):
            return
        if out.msg_type == "error" and request is not None and request.interrupted is not None:
            content = {**content, **self._time_limit(content)}
        parent = request.header if request is not None else b"{}"
        buffers = message.buffers if out.buffers else None
        self._front.publish(out.msg_type, content, parent=parent, metadata=out.metadata, buffers=buffers)
        if out.note:
            text = f"nsmagic: {out.note}\n"
            self._front.publish("stream", {"name": "stderr", "text": text}, parent=parent)

    def _has_room(self, request: Request | None, size: int) -> bool:
        """Count output against its cell's limit; at the limit it is said, once."""
        if request is None:
            self._stray_room -= size
            return self._stray_room >= 0
        request.room -= size
        if request.room >= 0:
            return True
        if not request.over:
            request.over = True
            job = self.settings.job
            limit = size_text(job.output_limit)
            stops = job.at_output_limit == "stop" and not request.replied
            what = "the cell was interrupted" if stops else "the rest is dropped"
            text = f"nsmagic: output limit: more than {limit} (--output-limit); {what}\n"
            self._front.publish("stream", {"name": "stderr", "text": text}, parent=request.header)
            if stops and self._inner is not None:
                self._inner.container.signal(signal.SIGINT)
        return False

    def _time_limit(self, content: dict[str, Any]) -> dict[str, Any]:
        """The error of a cell that its time limit interrupted."""
        text = self._time_limit_text() + ", and was interrupted"
        made = refusal.failure("TimeLimit", text)
        return {**made, "traceback": [*content.get("traceback", []), *made["traceback"]]}

    def _time_limit_text(self) -> str:
        return f"time limit: the cell ran longer than {seconds_text(self.settings.cell_timeout or 0)} (--cell-timeout)"

    # ---- clocks ----------------------------------------------------------------------------------------

    def _check_clocks(self) -> None:
        self._finish_ending()
        inner = self._inner
        if inner is None or not inner.ready or self._ending is not None:
            return
        now = time.monotonic()
        if self._standby is None and now - inner.started > _STANDBY_SECONDS and not self._failures:
            self._build_standby()
        limit = self.settings.cell_timeout
        for request in self._requests.running() if limit is not None else ():
            ran = now - self._requests.began(request)
            if request.interrupted is None and ran > limit:
                request.interrupted = now
                inner.container.signal(signal.SIGINT)
            elif request.interrupted is not None and now - request.interrupted > _INTERRUPT_SECONDS:
                self._verdict = f"{self._time_limit_text()}, and did not end when it was interrupted"
                inner.container.stop()

    def _build_standby(self) -> None:
        """Have a container cloned for the next inner kernel, while nobody waits for it."""
        try:
            self._standby = make_container(self.settings)
        except NsmagicError:  # whoever needs it is told
            self._failures = 1
