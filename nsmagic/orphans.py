"""What is left of containers whose launcher was killed before it could remove it: found, and removed here."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from nsmagic import cgroups, confinement

if TYPE_CHECKING:
    from nsmagic.launcher.client import Launcher

_released: dict[int, tuple[Launcher, cgroups.Group]] = {}
"""Groups whose removal is the launcher's, until they are seen to be gone: a launcher may die over it."""


def watch(number: int, launcher: Launcher, group: cgroups.Group) -> None:
    """Keep an eye on the group of a container that has ended, and that the launcher is to remove."""
    _released[number] = (launcher, group)


def remove() -> None:
    """Remove the groups of containers whose launcher died before it could."""
    for number, (launcher, group) in list(_released.items()):
        if not launcher.alive() and os.path.exists(group.directories[0]):  # noqa: PTH110 - as text
            group.kill()
            group.remove()
        if not os.path.exists(group.directories[0]):  # noqa: PTH110 - as text
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
