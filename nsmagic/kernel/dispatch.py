"""What front ends send: taken, queued, and sent on to the inner kernel in order."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from nsmagic.kernel import isolation, refusal, wire
from nsmagic.kernel.answers import KINDS
from nsmagic.kernel.requests import Request
from nsmagic.kernel.waiting import MOST

if TYPE_CHECKING:
    from nsmagic.kernel.answers import Answers
    from nsmagic.kernel.comms import Comms
    from nsmagic.kernel.frontend import Channel, FrontEnd
    from nsmagic.kernel.inner import InnerChannel, InnerKernel
    from nsmagic.kernel.relay import Relay
    from nsmagic.kernel.requests import Requests
    from nsmagic.kernel.settings import Settings
    from nsmagic.kernel.succession import Succession
    from nsmagic.kernel.waiting import Waiting

_BEHIND_SECONDS: Final = 0.5


class _Execute(msgspec.Struct):
    """What of an ``execute_request`` concerns us."""

    code: Annotated[str, msgspec.Meta(max_length=64 << 20)] = ""
    silent: bool = False
    allow_stdin: bool = True
    stop_on_error: bool = True


class Dispatch:
    """The way of all that front ends send.

    Args:
        settings: limits and policy.
        front: where it came from.
        requests: the table of all of them.
        comms: those that front ends hold open.
        relay: answers those that go no further.
        waiting: holds those whose turn has not come.
        succession: whose inner kernel is sent the others.
        answers: those that are the host's business.
    """

    def __init__(
        self,
        settings: Settings,
        front: FrontEnd,
        requests: Requests,
        comms: Comms,
        relay: Relay,
        waiting: Waiting,
        succession: Succession,
        answers: Answers,
    ) -> None:
        self._settings = settings
        self._front = front
        self._requests = requests
        self._comms = comms
        self._relay = relay
        self._waiting = waiting
        self._succession = succession
        self._answers = answers

    # ---- in ------------------------------------------------------------------------------------------

    def take(self, channel: Channel, message: wire.Message) -> None:
        """A front end has sent a message."""
        header = message.header
        if channel == "stdin":
            self._take_input(message)
            return
        request = Request(
            header.msg_id, header.msg_type, channel, message.identities, message.parts[0], header.session,
            header.subshell_id, message, room=self._settings.job.output_limit,
        )  # fmt: skip
        if not header.msg_type.endswith("_request"):
            self._take_comm(request)
            return
        self._requests.add(request)
        may_execute = not request.executes or self._may_execute(request)
        if request.kind in KINDS:
            self._answers.answer(request)
        elif self._succession.ending:
            self._relay.finish(
                request, refusal.reply(request.kind, "KernelStopped", "the kernel is shutting down")
            )
        elif self._waiting.refuses:
            self._waiting.answer_refused(request)
        elif len(self._requests.open) > MOST:
            self._relay.finish(
                request, refusal.reply(request.kind, "KernelBusy", "too many requests wait already")
            )
        elif not may_execute:
            text = "the kernel died in an earlier cell: variables are gone; run the notebook from its start"
            self._relay.fail(request, "KernelDied", text)
        else:
            self._waiting.add(request)

    def _take_input(self, message: wire.Message) -> None:
        # Whether somebody asked is for the inner kernel to know: an answer out of turn harms nobody.
        inner = self._succession.inner
        if message.header.msg_type == "input_reply" and inner is not None and inner.ready:
            self._requests.answered_by(message.identities)
            inner.send("stdin", message)

    def _take_comm(self, request: Request) -> None:
        """A comm's message has no reply; it goes on as it is, where comms are allowed."""
        if self._settings.policy == "widgets":
            room = len(self._waiting.queues["shell"]) < MOST
            if request.kind.startswith("comm_") and not self._waiting.refuses and room:
                self._waiting.queues["shell"].append(request)
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
        return self._waiting.may_go_on(request)

    # ---- on ------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send on what waits, in order; ``%isolation`` waits for the cells before it."""
        inner = self._succession.inner
        if inner is None or not inner.ready or self._succession.ending:
            return
        channels: tuple[Channel, ...] = ("control", "shell")
        for channel in channels:
            queue = self._waiting.queues[channel]
            while queue and self._succession.inner is inner:
                request = queue[0]
                commands = isolation.commands(request.code) if request.executes else None
                if commands is not None:
                    if not self._requests.shells_are_free() or self._is_early(inner, commands):
                        break
                    queue.popleft()
                    self._answers.isolate(request, commands)
                    continue
                queue.popleft()
                self._forward(inner, request)

    def _is_early(self, inner: InnerKernel, commands: list[list[str]]) -> bool:
        """Whether to wait with going back: the snapshot behind the last cell may be just being made."""
        last = self._requests.last_sent
        if commands != [["undo"]] or last is None or time.monotonic() - last.idled > _BEHIND_SECONDS:
            return False
        return inner.container.snapshots == 1

    def _forward(self, inner: InnerKernel, request: Request) -> None:
        self._relay.refill()
        channel: InnerChannel = "control" if request.channel == "control" else "shell"
        if request.kind == "debug_request" and self._settings.policy == "safe":
            text = 'the debugger is for the kernel "Isolated Python (widgets)"'
            self._relay.finish(request, refusal.reply(request.kind, "Withheld", text))
        elif inner.send(channel, request.message):
            if request.kind in {"comm_open", "comm_close"}:
                self._comms.note(request.kind, _content(request))
            request.forwarded = time.monotonic()
            inner.worked = inner.worked or request.executes
            if request.executes and not request.silent:
                self._requests.last_sent = request
            if request.kind != "kernel_info_request":  # which is asked again of the next inner kernel
                request.let_go()
        elif request.kind.endswith("_request"):
            self._relay.finish(
                request, refusal.reply(request.kind, "KernelBusy", "the kernel does not read its requests")
            )


def _content(request: Request) -> Any:
    """A message's content as plain data; None where it is none."""
    with contextlib.suppress(wire.WireError):
        return wire.loads(request.message.parts[3])
    return None
