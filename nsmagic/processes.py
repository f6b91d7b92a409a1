"""Live containers of this user, found in /proc: for ``nsmagic ps``, which knows no owner's memory.

An init names itself ``nsmagic-init``; whose it is and how old it is stands in its /proc files, see proc(5).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from nsmagic.result import seconds_text


class Found(NamedTuple):
    """A live container.

    Attributes:
        init: host pid of its init.
        owner: host pid of the process that asked for it; 0 where unknown.
        command: what runs in it.
        payload: host pid of that; 0 where unknown.
        age: seconds.
    """

    init: int
    owner: int
    command: str
    payload: int
    age: float


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state, parent and so on."""
    text = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        text = Path("/proc", str(pid), "task", str(pid), "children").read_text(encoding="ascii")
        return [int(child) for child in text.split()]
    return []


def first_child(pid: int) -> int:
    """The first child of a process; 0 where there is none."""
    return next(iter(_children(pid)), 0)


def _uptime() -> float:
    return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])


def _look(pid: int) -> Found | None:
    folder = Path("/proc", str(pid))
    if (folder / "comm").read_text(encoding="utf-8", errors="replace").strip() != "nsmagic-init":
        return None
    launcher = int(_stat(pid)[1])
    # The launcher is its parent and runs as the user; init itself runs as nobody special when that is root.
    if Path("/proc", str(launcher)).stat().st_uid != os.geteuid():
        return None
    payload = first_child(pid)
    command = ""
    with contextlib.suppress(OSError):
        words = Path("/proc", str(payload), "cmdline").read_bytes().split(b"\0")
        command = " ".join(word.decode(errors="replace") for word in words if word)[:60]
    age = _uptime() - int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")
    if "nsmagic.launcher.zygote" in command:
        command = "(python)"
    return Found(pid, int(_stat(launcher)[1]), command, payload, age)


def containers() -> list[Found]:
    """The live containers whose owner is this user, standbys among them."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - names only
        if name.isdecimal():
            # Any process may end while we look at it.
            with contextlib.suppress(OSError, ValueError, IndexError):
                look = _look(int(name))
                if look is not None:
                    found.append(look)
    return found


def rows(found: list[Found]) -> list[tuple[str, ...]]:
    """Containers as rows of a table, with a head."""
    table: list[tuple[str, ...]] = [("init pid", "owner pid", "payload pid", "age", "runs")]
    for each in found:
        command = "".join(c if c.isprintable() else "?" for c in each.command)
        table.append(
            (str(each.init), str(each.owner), str(each.payload or "-"), seconds_text(each.age), command)
        )
    return table
