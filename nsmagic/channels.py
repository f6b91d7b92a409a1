"""The owner's ends of a container's channels: streams, control, report, lifeline.

They are made before the container, and each of the other ends is given to it.  ``job`` reads and writes
them; here they are only made, told apart and closed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import Final

from nsmagic.launcher import client

PIPE_BYTES: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031
_ORDER: Final = struct.Struct("=QQ")
_DEADLINE: Final = 1
_SIGNAL: Final = 2


@dataclass
class Channels:
    """The owner's side.

    Attributes:
        control: frames to and from the runner.
        report: packets from launcher, init and payload (``NSM_REPORT_…`` in nsmagic.h).
        lifeline: its closing ends the container.
        stdin: written to by the owner; -1 once closed.
        stdout: read by the owner.
        stderr: read by the owner.
    """

    control: socket.socket
    report: socket.socket
    lifeline: int
    stdin: int
    stdout: int
    stderr: int
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def set_deadline(self, seconds: float) -> None:
        """Have init end the container after so many seconds; 0 takes that back."""
        self._order(_DEADLINE, int(seconds * 1e9))

    def signal(self, number: int) -> None:
        """Have init send a signal to the payload's process group."""
        self._order(_SIGNAL, number)

    def _order(self, kind: int, value: int) -> None:
        # Under the lock, for another thread may close it, and its number may then be another descriptor's.
        with self._lock, contextlib.suppress(OSError):
            os.write(self.lifeline, _ORDER.pack(kind, value))

    def close_stdin(self) -> None:
        """The job's standard input ends here."""
        self._close_descriptor("stdin")

    def close_lifeline(self) -> None:
        """End the container."""
        self._close_descriptor("lifeline")

    def _close_descriptor(self, name: str) -> None:
        with self._lock:  # one thread may stop what another is reading
            descriptor = getattr(self, name)
            setattr(self, name, -1)
        if descriptor >= 0:
            client.owned.discard(descriptor)
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def close(self) -> None:
        """Close all; the container ends if it still lives."""
        for name in ("lifeline", "stdin", "stdout", "stderr"):
            self._close_descriptor(name)
        for end in (self.control, self.report):
            client.owned.discard(end.fileno())
            end.close()


def make() -> tuple[Channels, list[int]]:
    """New channels, and the container's ends in the order in which the launcher takes them.

    Raises:
        OSError: there are no more descriptors; none is left open.
    """
    import fcntl  # noqa: PLC0415 - not on every system, and this module must import everywhere

    made: list[int] = []
    try:
        control, their_control = (end.detach() for end in socket.socketpair())
        made += control, their_control
        report, their_report = (
            end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        )
        made += report, their_report
        pipes = []
        for _ in range(4):
            pipes.append(os.pipe())
            made += pipes[-1]
    except OSError:
        for descriptor in made:
            os.close(descriptor)
        raise
    (their_lifeline, lifeline), (their_stdin, stdin), (stdout, their_stdout), (stderr, their_stderr) = pipes
    for pipe in (stdin, stdout, stderr):
        # A larger pipe saves wake-ups; the kernel may refuse it to a user who has many (EPERM).
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, _F_SETPIPE_SZ, PIPE_BYTES)
    # The lifeline too: an init that reads no orders must not hold up its owner.
    for descriptor in (control, report, lifeline, stdin, stdout, stderr):
        os.set_blocking(descriptor, False)
    ours = Channels(
        socket.socket(fileno=control), socket.socket(fileno=report), lifeline, stdin, stdout, stderr
    )
    # A socket object made from a descriptor takes it for blocking, and would wait on its own account.
    ours.control.setblocking(False)  # noqa: FBT003 - the library's signature
    ours.report.setblocking(False)  # noqa: FBT003 - likewise
    client.owned.update({control, report, lifeline, stdin, stdout, stderr})
    return ours, [their_control, their_report, their_lifeline, their_stdin, their_stdout, their_stderr]
