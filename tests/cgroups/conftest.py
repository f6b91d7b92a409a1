"""For tests of groups: a base in which there are no others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def nobody_else(until: Callable[..., bool]) -> None:
    """End the containers that wait for the next run: tests before have left them, and their groups are no leak."""
    from nsmagic import cgroups, standbys
    from nsmagic.cgroups import directories

    best = cgroups.mechanisms()[0]
    if not isinstance(best, directories.DirectoryMechanism):
        return
    standbys.current().drop()
    bases = [Path(tree.base) for tree in best.trees.values()]
    assert until(lambda: not any(group for base in bases for group in base.glob("c[0-9]*")), seconds=30)
