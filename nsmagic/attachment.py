"""One container's part in a network that somebody else builds: the socket between its init and them."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from nsmagic.launcher import wiring

if TYPE_CHECKING:
    from collections.abc import Callable


class Attachment:
    """One container's part in a network, from before its start until its end.

    Args:
        end: the socket for its init, which is given away.
        let_go: called at the container's end, for what was started for it alone.
    """

    def __init__(self, end: socket.socket, let_go: Callable[[], None] | None = None) -> None:
        self._end = end
        self._let_go = let_go

    @property
    def end(self) -> int:
        """The descriptor for its init."""
        return self._end.fileno()

    def close_end(self) -> None:
        """Init has it now."""
        self._end.close()

    def close(self) -> None:
        """The container has ended, or could not be made."""
        self._end.close()
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go()


def pair() -> tuple[socket.socket, socket.socket]:
    """A socket for init and one for whoever builds its network, who will be told who speaks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wiring.prepare(theirs)
    return ours, theirs
