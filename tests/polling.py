"""Waiting for what the kernel gives no event of."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def poll_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether the condition comes true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        select.poll().poll(5)
    return True
