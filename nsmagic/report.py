"""The report: what launcher, init and payload say of a container, over a channel that goes one way.

Packets of one letter and text (``NSM_REPORT_…`` in nsmagic.h).  They come from our own code, but from behind
the boundary; so they are read as what may be hostile.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nsmagic.launcher import client
from nsmagic.native.kinds import CLONE_NEW
from nsmagic.result import Step, read_journal

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_DESCRIPTORS: Final = 16
_KINDS: Final = {flag: kind for kind, flag in CLONE_NEW.items()}
_MAX_STEPS: Final = 2000
_FAILED: Final = "\t-1\t"


@dataclass(frozen=True)
class Exit:
    """Init's last word.

    Attributes:
        cause: ``payload``, ``deadline`` or ``lifeline``.
        status: the payload's, as waitpid(2) gives it.
        cpu_user: seconds.
        cpu_system: seconds.
        memory_peak: bytes of the largest process.
        full: whether RLIMIT_NPROC would have refused one more process.
    """

    cause: str
    status: int
    cpu_user: float
    cpu_system: float
    memory_peak: int
    full: bool = False


class Report:
    """What launcher, init and payload say while a container is built, and init at its end.

    Attributes:
        failed: whether one of them could not go on.
        failure: the journal's line of the call for which the first of them could not.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self.scratch: int | None = None
        self.namespaces: dict[str, int] = {}
        self._lines: list[str] = []
        self.built = False
        self.failed = False
        self.failure = ""
        self.closed = False
        self.exit: Exit | None = None
        self.on_death: Callable[[Exit], None] | None = None
        """Called when a payload has died whose snapshot takes over; in the thread that takes the report."""

    def take(self, channel: socket.socket) -> None:
        """Take all packets that have come."""
        while not self.closed:
            try:
                packet, descriptors, _, _ = socket.recv_fds(
                    channel, 1 << 17, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                packet, descriptors = b"", []
            if packet[:1] == b"L" and descriptors and self.scratch is None:
                self.scratch = descriptors.pop()
            if packet[:1] == b"N" and not self.namespaces:
                self._take_namespaces(packet[1:], descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            if not packet:
                self.closed = True
            else:
                self._read(packet[:1], packet[1:].decode(errors="replace"))

    def _take_namespaces(self, text: bytes, descriptors: list[int]) -> None:
        """Its namespaces, told by init: the clone flag of each, and its descriptor; those are then ours."""
        kinds = [_KINDS.get(int(word)) for word in text.split() if word.isdigit()]
        if len(kinds) == len(descriptors) and None not in kinds:
            self.namespaces = {kind: each for kind, each in zip(kinds, descriptors, strict=True) if kind}
            client.owned.update(descriptors)
            descriptors.clear()

    def forget_namespaces(self) -> list[int]:
        """Have them no more; the caller closes these descriptors."""
        namespaces, self.namespaces = self.namespaces, {}
        return list(namespaces.values())

    def wait_for_builder(self, channel: socket.socket, seconds: float) -> None:
        """Hear init out, whose last words about the build may come after those of a quick payload."""
        self.take(channel)
        deadline = time.monotonic() + seconds
        waiting = select.poll()
        waiting.register(channel.fileno(), select.POLLIN)
        while not (self.built or self.exit or self.closed) and time.monotonic() < deadline:
            if waiting.poll(max(0, int((deadline - time.monotonic()) * 1000))):
                self.take(channel)

    def wait_for_end(self, channel: socket.socket, seconds: float) -> None:
        """Wait for init's last word, so long at most."""
        deadline = time.monotonic() + seconds
        waiting = select.poll()
        waiting.register(channel.fileno(), select.POLLIN)
        while self.exit is None and not self.closed and time.monotonic() < deadline:
            if waiting.poll(max(0, int((deadline - time.monotonic()) * 1000))):
                self.take(channel)

    def _read(self, kind: bytes, text: str) -> None:
        with contextlib.suppress(ValueError):  # a line that we cannot read tells nothing
            if kind in b"JFRI":
                self.built = self.built or kind == b"I"
                self._lines += text.splitlines()
                if kind == b"F" and not self.failed:
                    self.failed, self.failure = True, (text.splitlines() or [""])[-1]
            elif kind == b"P":
                self.pid = int(text)
            elif kind in b"XD":
                cause, status, user, system, memory, full = text.split()
                exited = Exit(
                    cause, int(status), int(user) / 1e6, int(system) / 1e6, int(memory) * 1024, full == "1"
                )
                if kind == b"X":
                    self.exit = exited
                elif self.on_death is not None:
                    self.on_death(exited)

    @property
    def lines(self) -> list[str]:
        """The journal's lines so far, unread: most runs never look at them."""
        return self._lines[:_MAX_STEPS]

    @property
    def refused(self) -> list[Step]:
        """Those steps that failed."""
        return [step for step in read_journal(line for line in self.lines if _FAILED in line) if step.errno]
