"""What goes to front ends about their requests: our own answers, and what the inner kernel says.

The latter is hostile.  It is held against the request that it is about: an answer goes to whoever asked, on
the channel that the question came by, once; a request is busy once and idle once; a cell's code is the code
that was sent; output counts against its cell's limit.  What is left of it the firewall makes anew.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from nsmagic.firewall.messages import REMEDY, MessageFilter
from nsmagic.kernel import refusal, wire
from nsmagic.kernel.zmtp import TooLarge
from nsmagic.result import seconds_text, size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from nsmagic.firewall.messages import Outgoing
    from nsmagic.kernel.comms import Comms
    from nsmagic.kernel.frontend import FrontEnd
    from nsmagic.kernel.inner import InnerChannel, InnerKernel
    from nsmagic.kernel.requests import Request, Requests
    from nsmagic.kernel.settings import Settings

OWN_ANSWERS: Final = frozenset({"shutdown_request", "usage_request", "connect_request"})
"""Requests that the inner kernel has no say in."""

_MOST_STATUS: Final = 1 << 16
"""Bytes of a message that says no more than a word."""

_MOST_ASKED: Final = 32
"""Questions of one cell that may wait for an answer: one, and those that were interrupted."""

_ERROR_BYTES: Final = 256 << 10
"""Of an error that is shown although its cell's output limit is reached."""

_WRAPPED_REMEDY: Final = (
    "To allow it: nsmagic kernel wrap {} --widgets, and choose that kernel; only for code that you trust."
)
_ABORTED: Final = {"status": "aborted", "payload": [], "user_expressions": {}}


log = logging.getLogger("nsmagic.kernel")


def _filter(settings: Settings) -> MessageFilter:
    remedy = _WRAPPED_REMEDY.format(settings.name) if settings.argv else REMEDY
    return MessageFilter(settings.policy, language=settings.language, remedy=remedy)


class Relay:
    """Sends what front ends may see.

    Args:
        front: where it goes.
        requests: what it is about.
        comms: those that front ends hold open.
        settings: limits and policy.
        interrupt: stops the running cell, at its output limit.
        failed: called when a cell's failure aborts those behind it.
    """

    def __init__(
        self,
        front: FrontEnd,
        requests: Requests,
        comms: Comms,
        settings: Settings,
        *,
        interrupt: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        self.execution_count = 0
        self._front = front
        self._requests = requests
        self._comms = comms
        self._settings = settings
        self._interrupt = interrupt
        self._failed = failed
        self._filter = _filter(settings)
        self._stray_room = settings.job.output_limit

    def begin(self) -> None:
        """Forget what an earlier inner kernel was in the middle of saying."""
        self._filter = _filter(self._settings)

    def refill(self) -> None:
        """Give output that belongs to no request new room: once for each request that is sent on."""
        self._stray_room = self._settings.job.output_limit

    # ---- answers of our own ------------------------------------------------------------------------

    def status(self, request: Request, state: str) -> None:
        """Publish a state once; whoever was said to be idle is not busy again."""
        if not getattr(request, state) and not request.idle:
            setattr(request, state, True)
            request.idled = time.monotonic()
            self._front.publish("status", {"execution_state": state}, parent=request.header)

    def finish(self, request: Request, content: dict[str, Any]) -> None:
        """Answer a request."""
        self.status(request, "busy")
        if not request.replied:
            self._front.reply(request, request.reply_kind, content)
            self._requests.finish(request)
        self.status(request, "idle")

    def fail(self, request: Request, ename: str, evalue: str) -> None:
        """Show an error under a cell, and answer it."""
        self.status(request, "busy")
        if request.forwarded is not None and not request.echoed:
            # It ran, and its kernel died before it could say under which number.
            self.execution_count += 1
        self.echo(request)
        self._front.publish("error", refusal.failure(ename, evalue), parent=request.header)
        self.finish(request, refusal.reply(request.kind, ename, evalue, execution_count=self.execution_count))

    def abort(self, request: Request) -> None:
        """Answer a cell that is not going to run, because one before it failed."""
        self.finish(request, {**_ABORTED, "execution_count": self.execution_count})

    def echo(self, request: Request) -> None:
        """Publish a cell's code, which tells other clients what runs."""
        if not request.echoed and not request.silent:
            request.echoed = True
            content = {"code": request.code, "execution_count": self.execution_count}
            self._front.publish("execute_input", content, parent=request.header)

    def show(self, request: Request, shown: list[dict[str, str]]) -> None:
        """Show what a cell of ``%isolation`` led to, and answer it.

        Args:
            request: the cell.
            shown: MIME bundles.
        """
        content = {
            "status": "ok",
            "execution_count": self.execution_count,
            "payload": [],
            "user_expressions": {},
        }
        for data in shown:
            self._front.publish(
                "display_data", {"data": data, "metadata": {}, "transient": {}}, parent=request.header
            )
        self.finish(request, content)

    # ---- from the inner kernel: hostile -----------------------------------------------------------------

    def relay_all(self, inner: InnerKernel, events: Collection[int]) -> None:
        """Send on what has come from the inner kernel.

        Args:
            inner: the one that lives.
            events: descriptors of channels on which something has come.
        """
        for channel, message in inner.read(events):
            try:
                self.relay(channel, message)
            except Exception as error:  # noqa: BLE001 - the inner kernel chose the data: what it breaks is its own end
                log.error("a message of the inner kernel could not be handled: %s", type(error).__name__)  # noqa: TRY400 - the text may be hostile
                inner.refuse("it sent what could not be handled")

    def relay(self, channel: InnerChannel, message: wire.Message | TooLarge) -> None:
        """Send on what may be sent on of what the inner kernel sent."""
        if channel == "shell" and self._comms.is_answer(message):
            return
        parent = wire.parent_of(message.parts) if isinstance(message, TooLarge) else message.parent_id
        request = self._requests.find(parent, channel if channel in {"shell", "control"} else None)
        if request is not None and request.forwarded is None:
            return  # it has guessed the name of one that it was not told of: that is not for it to answer
        if channel == "iopub":
            self._take_published(request, message)
        elif request is None or request.replied:
            return
        elif isinstance(message, TooLarge):
            self._unreadable(request, f"a message of {size_text(message.size)}")
        else:
            self._take_answer(request, channel, message)

    # Dropping costs less than sending: what is not going to be sent is not read either.

    def _take_published(self, request: Request | None, message: wire.Message | TooLarge) -> None:
        if isinstance(message, TooLarge):
            if self._has_room(request, message.size) and request is not None:
                self._note(request.header, "Withheld: a message of too many frames")
            return
        kind = message.header.msg_type
        if kind == "status":
            if request is None or request.idle or message.size > _MOST_STATUS:
                return
        elif kind == "execute_input":
            if request is None or request.echoed or not request.executes:
                return
        elif not self._has_room(request, message.size) and not self._is_how_it_ended(request, message):
            return
        try:
            content, metadata = wire.loads(message.parts[3]), wire.loads(message.parts[2])
        except wire.WireError as error:
            if request is not None:
                self._note(request.header, f"Withheld: {error}")
            return
        out = self._filter.outgoing("iopub", kind, message.parent_id, content, metadata)
        if out is not None:
            self._publish(request, out, message)

    def _take_answer(self, request: Request, channel: InnerChannel, message: wire.Message) -> None:
        kind = message.header.msg_type
        if channel == "stdin":
            if kind != "input_request" or not request.can_ask or request.asked >= _MOST_ASKED:
                return
            request.asked += 1
        elif kind != request.reply_kind or request.kind in OWN_ANSWERS:
            return
        try:
            content, metadata = wire.loads(message.parts[3]), wire.loads(message.parts[2])
        except wire.WireError as error:
            self._unreadable(request, str(error))
            return
        out = self._filter.outgoing(channel, kind, message.parent_id, content, metadata)
        if out is None:
            return
        if channel == "stdin":
            self._front.ask(request, out.content)
        else:
            self._reply(request, out, message)

    def _unreadable(self, request: Request, why: str) -> None:
        """A client waits for its reply: it gets one."""
        text = f"the kernel's reply could not be read: {why}"
        content = refusal.reply(request.kind, "UnreadableReply", text, execution_count=self.execution_count)
        self._front.reply(request, request.reply_kind, content)
        self._requests.finish(request)
        if request.executes and request.stops:
            self._failed()

    def _note(self, parent: bytes, text: str) -> None:
        """Say something of our own under a cell."""
        self._front.publish("stream", {"name": "stderr", "text": f"nsmagic: {text}\n"}, parent=parent)

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
            self._failed()

    def _publish(self, request: Request | None, out: Outgoing, message: wire.Message) -> None:
        content = out.content
        if out.msg_type == "status":
            state = content.get("execution_state")
            if request is not None and state in {"busy", "idle"}:
                self.status(request, state)
            return
        if out.msg_type == "execute_input":
            if request is not None:
                request.echoed = True
                self.execution_count = content.get("execution_count", self.execution_count)
                content = {**content, "code": request.code}
                self._front.publish("execute_input", content, parent=request.header)
            return
        if out.msg_type == "error" and request is not None and request.interrupted is not None:
            content = {**content, **self._time_limit(content)}
        parent = request.header if request is not None else b"{}"
        buffers = message.buffers if out.buffers else None
        self._front.publish(out.msg_type, content, parent=parent, metadata=out.metadata, buffers=buffers)
        self._comms.note(out.msg_type, content)
        if out.note:
            self._note(parent, out.note)

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
            job = self._settings.job
            limit = size_text(job.output_limit)
            stops = job.at_output_limit == "stop" and not request.replied
            what = "the cell was interrupted" if stops else "the rest is dropped"
            self._note(request.header, f"output limit: more than {limit} (--output-limit); {what}")
            if stops:
                self._interrupt()
        return False

    def _is_how_it_ended(self, request: Request | None, message: wire.Message) -> bool:
        """Whether it is the error that a cell at its output limit ends with: one, of a modest size."""
        is_error = message.header.msg_type == "error" and message.size <= _ERROR_BYTES
        if request is None or not is_error or request.failed:
            return False
        request.failed = True
        return True

    def _time_limit(self, content: dict[str, Any]) -> dict[str, Any]:
        """The error of a cell that its time limit interrupted."""
        text = self.time_limit_text() + ", and was interrupted"
        made = refusal.failure("TimeLimit", text)
        return {**made, "traceback": [*content.get("traceback", []), *made["traceback"]]}

    def time_limit_text(self) -> str:
        """Why a cell's time was up."""
        limit = seconds_text(self._settings.cell_timeout or 0)
        return f"time limit: the cell ran longer than {limit} (--cell-timeout)"
