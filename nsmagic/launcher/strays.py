"""Ending what is left of processes that made children of their own, by whoever reaps them.

For a subreaper: a process whose descendants' orphans become its own children, see PR_SET_CHILD_SUBREAPER in
prctl(2).
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


def children() -> list[int]:
    """The child processes of this process, which has one thread: proc(5)."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:  # noqa: PTH123 - hot
        return [int(pid) for pid in file.read().split()]


def end_all(known: Collection[int]) -> None:
    """SIGKILL and reap every child but the ``known`` ones, and what they leave, until nobody is left.

    Each that ends sends us its own children, and does so before it can be reaped; so whenever one was reaped
    we look again.  Waits as long as the last one takes.
    """
    while strays := [pid for pid in children() if pid not in known]:
        for stray in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stray, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(strays[0], 0)
