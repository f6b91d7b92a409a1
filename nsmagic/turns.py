"""One cell's way through a scratch process: its output, its time, its end, and what is said of a death.

For ``nsmagic.scratch``; knows the wire format, and nothing of how the process was made.
"""

from __future__ import annotations

import os
import select
import signal
import socket  # noqa: TC003 - a dataclass reads its annotations
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from nsmagic.errors import ScratchError
from nsmagic.launcher import scratch as side
from nsmagic.result import seconds_text, size_text
from nsmagic.spec import DEFAULT_OUTPUT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsmagic.cgroups import Limits, Usage

_GRACE_SECONDS: Final = 2.0
_CHUNK: Final = 1 << 16
"""Bytes of one read: all that a pipe holds."""


class Sink(Protocol):
    """Who gets the output."""

    def stream(self, name: str, data: bytes) -> None:
        """Take some bytes of ``stdout`` or ``stderr``."""


@dataclass(frozen=True)
class Ends:
    """The owner's ends of what connects it with a scratch process and its guard.

    Attributes:
        control: the socket that cells go through.
        report: the pipe that its guard tells of its end by.
        lifeline: the pipe that tells the guard of ours.
        streams: pipes, by name ``stdout`` and ``stderr``.
    """

    control: socket.socket
    report: int
    lifeline: int
    streams: dict[int, str]

    def close(self) -> None:
        """Let go of all of them."""
        self.control.close()
        for descriptor in (self.report, self.lifeline, *self.streams):
            os.close(descriptor)


class Process(Protocol):
    """What a turn knows of a scratch process."""

    name: str
    ends: Ends
    reason: str

    def interrupt(self) -> None:
        """Send SIGINT."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def take_end(self) -> None:
        """Its guard has something to say: set ``reason``."""


def read(descriptor: int) -> bytes | None:
    """What is in a pipe: nothing at its end, None where there is nothing yet."""
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return None


class Turn:
    """The wait for one cell's end: bytes to the sink, time and Ctrl-C to the process.

    Attributes:
        timed_out: whether its time was up.
    """

    def __init__(self, process: Process, sink: Sink, timeout: float | None) -> None:
        self._process = process
        self._ends = process.ends
        self._sink = sink
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._room = DEFAULT_OUTPUT_LIMIT
        self._interrupted = False
        self._killed = False
        self._watched = {*self._ends.streams, self._ends.report, self._ends.control.fileno()}
        self.timed_out = False

    def wait(self) -> side.Done:
        """Wait until the cell is over.

        Raises:
            ScratchError: the process died.
        """
        while True:
            try:
                done = self._step()
            except KeyboardInterrupt:
                self._escalate()
                continue
            if done is not None:
                return done

    def _step(self) -> side.Done | None:
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        ready = poll(self._watched, left)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.timed_out = self.timed_out or not self._interrupted
            self._escalate()
        for descriptor in ready & self._ends.streams.keys():
            self._pass_on(descriptor)
        if self._ends.control.fileno() in ready:
            done = self._take_answer()
            if done is not None:
                self._drain()
                return done
        if self._ends.report in ready:
            self._drain()
            self._process.take_end()
            raise ScratchError(self._death())
        return None

    def _take_answer(self) -> side.Done | None:
        try:
            answer = side.decode_answer(self._ends.control.recv(side.MAX_PACKET))
        except (OSError, msgspec.MsgspecError):
            answer = None
        if isinstance(answer, side.Done):
            return answer
        # The process has ended, or became another program (execve), or a cell has closed the channel.  There
        # will be no answer, but what it does until its end belongs to this cell.
        self._watched.discard(self._ends.control.fileno())
        return None

    def _escalate(self) -> None:
        """First interrupt, then kill."""
        if self._interrupted:
            self._killed = True
            self._process.kill()
            self._deadline = None
        else:
            self._interrupted = True
            self._process.interrupt()
            self._deadline = time.monotonic() + _GRACE_SECONDS

    def _pass_on(self, descriptor: int) -> None:
        data = read(descriptor)
        if data == b"":  # nobody can write to it any more
            self._watched.discard(descriptor)
        if not data or not self._room:
            return
        self._sink.stream(self._ends.streams[descriptor], data[: self._room])
        self._room -= min(len(data), self._room)
        if not self._room:
            said = f"\nnsmagic: {size_text(DEFAULT_OUTPUT_LIMIT)} of output are enough; the rest is dropped\n"
            self._sink.stream("stderr", said.encode())

    def _drain(self) -> None:
        """Pass on what is in the pipes now, and not what others go on to write."""
        for descriptor in self._ends.streams:
            self._pass_on(descriptor)

    def _death(self) -> str:
        name, how = self._process.name, self._process.reason
        if self._killed and self.timed_out:
            limit = seconds_text(self._timeout or 0)
            how = f"did not end within {limit} (--timeout), nor when it was interrupted, and was killed"
        elif self._killed:
            how = "did not end when it was interrupted, and was killed"
        return (
            f"scratch process {name!r} {how}. Its variables are gone; the next %%scratch {name} starts a "
            "new one"
        )


def poll(descriptors: Iterable[int], seconds: float | None) -> set[int]:
    """Which of these have something to read, or an end."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in waiting.poll(None if seconds is None else seconds * 1000 + 1)}


def why(ended: side.Ended, usage: Usage, limits: Limits) -> str:
    """How it ended, in words."""
    how = _how(ended.status, usage, limits)
    # Its name is the program's own choice.
    name = "".join(c if c.isprintable() else "?" for c in ended.became)
    return f"became another program, {name!r} (execve), which {how}" if name else how


def _how(status: int, usage: Usage, limits: Limits) -> str:
    """The same; ``status`` as of waitpid(2)."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL and usage.oom_kills:
            return f"ran out of memory: it needed more than its limit of {size_text(limits.mem or 0)} (--mem)"
        name = signal.Signals(number).name if number in signal.valid_signals() else "real-time"
        filtered = ": a seccomp filter forbids what it did" if number == signal.SIGSYS else ""
        return f"was killed by signal {number} ({name}){filtered}"
    if os.WEXITSTATUS(status) == side.EXIT_CHANNEL:
        return "cannot answer any more: a cell closed its channel, or a filter forbids it to write"
    return f"ended with status {os.WEXITSTATUS(status)}"
