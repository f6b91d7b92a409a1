"""Inside a container: what becomes of an ipykernel's forks, which the user's code makes.

A child that ``os.fork`` gave to a cell has the whole kernel in it.  At the end of the cell it would go on as
a second one, on the same sockets, and take away half of what comes in: in a course on processes that is the
first thing to happen.  It ends there instead, as the child of a program does that has come to its end.
And what its parent had printed, but not sent yet, is for the parent to send.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from typing import Any

from nsmagic.native._runtime import lib


def watch() -> None:
    """Have forks be what their maker expects; hooks of what has been imported by now run inside of ours."""
    os.register_at_fork(after_in_child=_forget_output)
    hold_interrupts()


def hold_interrupts() -> None:
    """Have an interrupt wait while a process forks; see ``native/interrupts.c``."""
    os.register_at_fork(
        before=lib.nsm_hold_interrupts,
        after_in_parent=lib.nsm_give_interrupts,
        after_in_child=lib.nsm_forget_interrupts,
    )


def end_with_their_cell(kernel: Any) -> None:
    """See that no fork of an ipykernel outlives the cell that made it.

    Args:
        kernel: it, before a snapshot of it can be made: that is no fork of the cell's.
    """
    run = kernel.do_execute

    @functools.wraps(run)
    async def do_execute(*arguments: Any, **more: Any) -> Any:
        number = os.getpid()
        reply: dict[str, Any] = {"status": "error"}
        try:
            reply = await run(*arguments, **more)
        finally:
            if os.getpid() != number:
                _end(reply)
        return reply

    kernel.do_execute = do_execute


def _forget_output() -> None:
    """In a child: ipykernel's streams are copies, in whatever state the parent's other threads had them."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "_buffers") and hasattr(stream, "_buffer_lock"):
            stream._buffer_lock = threading.RLock()  # noqa: SLF001 - no public way
            stream._buffers.clear()  # noqa: SLF001 - likewise


def _end(reply: dict[str, Any]) -> None:
    """End this process as a program ends: write out what it printed; its last exception is its status."""
    status = 0
    with contextlib.suppress(BaseException):
        if reply.get("status") == "error":
            status = 1
            if reply.get("ename") == "SystemExit":
                status = _status(str(reply.get("evalue", "")))
            else:
                sys.stderr.write("\n".join([*reply.get("traceback", ()), ""]))
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    os._exit(status & 0xFF)


def _status(value: str) -> int:
    """What ``SystemExit`` with this argument is for a shell; see sys.exit."""
    if value in {"", "None"}:
        return 0
    with contextlib.suppress(ValueError):
        return int(value)
    return 1
