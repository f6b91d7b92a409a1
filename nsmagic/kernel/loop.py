"""What the supervisor's one thread waits for: one poll(2) over all that can wake it.

Beside the sockets, of front ends and of the inner kernel, these are a pipe that signals and other threads
write to, and the process that started us.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from nsmagic.kernel.frontend import FrontEnd
    from nsmagic.kernel.zmtp import Peer


class Poll:
    """All of it.

    Args:
        front: the sockets towards Jupyter.
    """

    def __init__(self, front: FrontEnd) -> None:
        self.server_ended = False
        self._front = front
        self._poll = select.poll()
        self._polled: dict[int, int] = {}
        self._wake_read, self._wake_write = os.pipe()
        self._server = _watch_server()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def begin(self) -> None:
        """From now on signals wake us, too; in the main thread."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for descriptor in (*self._front.descriptors, self._wake_read, self._server):
            if descriptor is not None:
                self._poll.register(descriptor, select.POLLIN)

    def wake(self) -> None:
        """Have the next wait end, or this one; from any thread."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def wait(self, peers: Collection[Peer], timeout_ms: Callable[[], int | None]) -> dict[int, int]:
        """Wait for something to do, and write what waits to be written.

        Args:
            peers: connections to the inner kernel.
            timeout_ms: milliseconds to wait at most, or None for no end; asked where nothing has come yet.

        Returns:
            The descriptors that have events, and which.
        """
        wanted = {
            peer.fileno(): select.POLLIN | (select.POLLOUT if peer.wants_write else 0) for peer in peers
        }
        if wanted != self._polled:
            for descriptor in self._polled.keys() - wanted.keys():
                self._poll.unregister(descriptor)
            for descriptor, flags in wanted.items():
                self._poll.register(descriptor, flags)
            self._polled = wanted
        events = dict(self._poll.poll(0 if self._front.look() else timeout_ms()))
        self._front.look(events)
        if self._server is not None and self._server in events:
            self.server_ended = True
        if self._wake_read in events:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        for peer in peers:
            if events.get(peer.fileno(), 0) & select.POLLOUT:
                peer.write()
        return events

    def close(self) -> None:
        """Let go of all descriptors that are ours."""
        signal.set_wakeup_fd(-1)
        for descriptor in (self._wake_read, self._server):
            if descriptor is not None:
                os.close(descriptor)
        os.close(self._wake_write)


def _watch_server() -> int | None:
    """A descriptor that polls as readable when the process that started us has ended, see pidfd_open(2).

    Jupyter names that process in JPY_PARENT_PID, unless the kernel is meant to outlive it.  None where there
    is none to watch.
    """
    try:
        return os.pidfd_open(int(os.environ.get("JPY_PARENT_PID", "")))
    except (ValueError, OSError):
        return None
