"""What is left of containers whose launcher was killed before it could remove it: found, and removed here.

That is a container's group, and where it has no root of its own the folder that its payload could write to.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from typing import TYPE_CHECKING, NamedTuple

from nsmagic import cgroups, confinement

if TYPE_CHECKING:
    from nsmagic.launcher.client import Launcher


class Remains(NamedTuple):
    """What there is to remove of a container that has ended.

    Attributes:
        launcher: who removes it, while it lives.
        group: the container's.
        private: its folder on the host; or empty.
    """

    launcher: Launcher
    group: cgroups.Group
    private: str

    def gone(self) -> bool:
        """Whether all of it is; whoever removes it may die half-way."""
        return not (self.group.exists() or (self.private and os.path.exists(self.private)))  # noqa: PTH110 - hot

    def remove(self, seconds: float = 0.0) -> None:
        """Remove it, and wait so long at most for its processes, which end when the lifeline is closed."""
        self.group.kill()
        deadline = time.monotonic() + seconds
        while not self.group.remove() and time.monotonic() < deadline:
            time.sleep(0.005)
        if self.private:
            shutil.rmtree(self.private, ignore_errors=True)


_released: dict[int, Remains] = {}
"""What the launcher is to remove, until it is seen to be gone."""


def watch(number: int, remains: Remains) -> None:
    """Keep an eye on what the launcher is to remove of the container with this number, which has ended."""
    _released[number] = remains


def remove() -> None:
    """Remove what is left of containers whose launcher died before it could, or half-way."""
    # Not items(): the collector may run as they are made, and end a forgotten container, which adds itself.
    for number in list(_released):
        remains = _released.get(number)
        if remains is None:
            continue  # another thread has seen to it
        if not remains.launcher.alive() and not remains.gone():
            remains.remove()
        if remains.gone():
            _released.pop(number, None)


@functools.cache
def sweep_once(pid: int) -> None:
    """Remove what owners left that were killed together with their launchers.

    Args:
        pid: our own; a fork of ours sweeps again.
    """
    del pid
    cgroups.sweep()
    confinement.sweep()
