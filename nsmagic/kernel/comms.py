"""The comms that front ends hold open: which of them the inner kernel has no longer.

A comm has two halves, one in the front end, such as a slider that is shown, and one in the kernel.  Where a
cell dies, the kernel goes on without the halves that this cell had made, or without any, and no front end
hears of it: the slider would be moved in vain.  So we note each comm that is opened and closed, by either
side; the kernel that goes on is asked which ones it has, and front ends are told that the others are closed.

The kernel's answer is hostile, and about its own comms: all that it can do by it is to close them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nsmagic.kernel import wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsmagic.kernel.frontend import FrontEnd
    from nsmagic.kernel.inner import InnerKernel
    from nsmagic.kernel.zmtp import TooLarge

_MOST: Final = 10_000
"""As many as the firewall lets a kernel list."""


class Comms:
    """All of one kernel's.

    Args:
        front: is told of those that are closed.
    """

    def __init__(self, front: FrontEnd) -> None:
        self._front = front
        self._open: dict[str, None] = {}
        self._before: list[str] = []
        self._asked = ""

    def note(self, kind: str, content: Any) -> None:
        """A message has passed, from either side.

        Args:
            kind: its ``msg_type``.
            content: its content; what is not well-formed names no comm.
        """
        name = content.get("comm_id") if isinstance(content, dict) else None
        if not isinstance(name, str):
            return
        if kind == "comm_open" and len(self._open) < _MOST:
            self._open[name] = None
        elif kind == "comm_close":
            self._open.pop(name, None)

    def ask(self, inner: InnerKernel) -> None:
        """An inner kernel goes on from a snapshot: ask which comms it has."""
        self._before = list(self._open)
        self._asked = inner.ask("comm_info_request") if self._before else ""

    def is_answer(self, message: wire.Message | TooLarge) -> bool:
        """Whether a message on the shell's channel answers that; then those that it has not are closed."""
        if not self._asked or not isinstance(message, wire.Message) or message.parent_id != self._asked:
            return False
        self._asked = ""
        try:
            content = wire.loads(message.parts[3])
        except wire.WireError:
            return True
        has = content.get("comms") if isinstance(content, dict) else None
        if isinstance(has, dict):
            self._close(name for name in self._before if name not in has)
        return True

    def close_all(self) -> None:
        """The inner kernel is gone, and none goes on from it."""
        self._asked = ""
        self._close(self._open)

    def _close(self, names: Iterable[str]) -> None:
        for name in [name for name in names if name in self._open]:
            del self._open[name]
            self._front.publish("comm_close", {"comm_id": name, "data": {}})
