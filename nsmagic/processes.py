"""Processes as /proc shows them: the live containers of this user, and the tree of what runs in one.

An init names itself ``nsmagic-init``; whose it is and how old it is stands in its /proc files, see proc(5).
That is how ``nsmagic ps`` finds containers, for it knows no owner's memory.  What a process says of itself,
its name and its words, is hostile: it is shown as printable text, and nothing is decided by it but which of
a kernel's own snapshots it goes back to.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from nsmagic.result import seconds_text

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_SHOWN: Final = 400
"""Processes of one tree."""
_DEEPEST: Final = 40
_PF_EXITING: Final = 4
_MOST_BYTES: Final = 4096
_MOST_CHARACTERS: Final = 90
_STATES: Final = {
    "R": "running", "S": "sleeping", "D": "waiting for a disk", "T": "stopped", "t": "traced", "Z": "zombie",
    "X": "dead", "I": "idle",
}  # fmt: skip
_LAUNCHER: Final = "nsmagic.launcher.zygote"


class Process(NamedTuple):
    """One process in a container's tree.

    Attributes:
        pid: on the host.
        inside: in its own PID namespace.
        depth: how many of its ancestors are in the tree.
        state: in words.
        memory: resident bytes, shared pages among them; None where it has none.
        command: printable.
    """

    pid: int
    inside: int
    depth: int
    state: str
    memory: int | None
    command: str


def tree(roots: Iterable[int]) -> list[Process]:
    """These processes and all their descendants, each behind its parent; ``MOST_SHOWN`` + 1 at most."""
    found: list[Process] = []
    waiting = [(pid, 0, 0) for pid in roots][::-1]
    while waiting and len(found) <= MOST_SHOWN:
        pid, parent, depth = waiting.pop()
        # Any process may end while we look at it, and its number may be another's by then.
        with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
            found.append(_process(pid, parent, depth))
            if depth < _DEEPEST:
                waiting += [(child, pid, depth + 1) for child in reversed(_children(pid))]
    return found


def _process(pid: int, parent: int, depth: int) -> Process:
    folder = Path("/proc", str(pid))
    with (folder / "status").open("rb") as file:
        text = file.read(_MOST_BYTES).decode(errors="replace")
    # The kernel escapes what stands in the name, so no line of it is another's.
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if parent and int(fields["PPid"]) != parent:
        raise ValueError("it is no longer that process's child")
    memory = fields.get("VmRSS", "").split()
    return Process(
        pid,
        int(fields.get("NSpid", str(pid)).split()[-1]),
        depth,
        _STATES.get(fields["State"].split()[0], "unknown"),
        int(memory[0]) * 1024 if memory else None,
        _command(folder, fields["Name"].strip()),
    )


def _command(folder: Path, name: str) -> str:
    with (folder / "cmdline").open("rb") as file:
        words = file.read(_MOST_BYTES).decode(errors="replace").split("\0")
    command = " ".join(word for word in words if word)
    if _LAUNCHER in command:  # a clone of the launcher has its words
        return printable(name if name.startswith("nsmagic-") else "(python)")
    return printable(command or f"[{name}]")


def printable(text: str) -> str:
    """Hostile text on one line."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:_MOST_CHARACTERS])
    return shown + ("…" if len(text) > _MOST_CHARACTERS else "")


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


def snapshots_of(init: int) -> list[int]:
    """The processes beside a container's payload that call themselves its snapshots, the oldest first.

    See ``native/snapshot.c``.  The name is their own word, and whoever lies about it gains nothing.
    """
    found = []
    for pid in _children(init):
        with contextlib.suppress(OSError):
            if Path("/proc", str(pid), "comm").read_bytes() == b"nsmagic-kept\n" and not _ends(pid):
                found.append(pid)
    return found


def _ends(pid: int) -> bool:
    """Whether a process has been killed: it may take a while to let go of its memory."""
    fields = _stat(pid)
    if fields[0] in "ZX" or int(fields[6]) & _PF_EXITING:
        return True
    status = Path("/proc", str(pid), "status").read_text(encoding="utf-8", errors="replace")
    lines = (line.split() for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:")))
    return any(int(signals, 16) >> (signal.SIGKILL - 1) & 1 for _, signals in lines)


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
    if _LAUNCHER in command:
        command = "(python)"
    if not payload:
        command = "(kept for others to join, or ending)"
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
