"""On every host: out of memory takes the cell and not its snapshot, by whatever group limits the memory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.container,
    pytest.mark.limits,
    pytest.mark.works("fresh /proc"),  # without it no snapshot can be told from other processes
]

HOG = "hog = []\nwhile True: hog.append(bytearray(8 << 20))"


def groups_of(pid: int) -> list[Path]:
    """The groups of cgroup v2 that a process is in."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [
        Path(target + path)
        for target in [target for _, target, kind, *_ in mounts if kind == "cgroup2"]
        for path in [line[3:] for line in lines if line.startswith("0::")]
    ]


def snapshots_of(pid: int, children_of: Callable[[int], set[int]]) -> list[int]:
    """The snapshots below a kernel."""
    todo, found = [pid], []
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if Path(f"/proc/{pid}/comm").read_text().strip() == "nsmagic-kept":
                found.append(pid)
            todo += children_of(pid)
    return found


def test_out_of_memory_takes_the_cell_and_not_the_snapshot(
    start: Callable[..., Any], children_of: Callable[[int], set[int]]
) -> None:
    kernel = start("isolated-python", "--mem", "384M", "--keep-state", "on", limits=True)
    for heap in (10, 100):
        cell = kernel.run(f"import os\nkept = os.urandom({heap} << 20); sample = kept[::4096]; count = 0")
        assert cell.reply["status"] == "ok", cell
        for number in range(2):
            error = kernel.run(HOG).error
            assert error.startswith("OutOfMemory: out of memory: it needed more than its limit of 384 MiB"), (
                error
            )
            assert "Variables are as they were before this cell." in error
            cell = kernel.run("count += 1; print(count, kept[::4096] == sample, 'hog' in globals())")
            assert cell.text == f"{number + 1} True False\n", cell
    files = [
        group / "memory.oom.group"
        for pid in snapshots_of(kernel.pid, children_of)
        for group in groups_of(pid)
    ]
    assert {file.read_text().strip() for file in files if file.exists()} <= {"0"}
