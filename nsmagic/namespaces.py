"""The matrix of namespaces: which process is in which, inode by inode; for ``%namespaces``.

Each process has a link for each kind of namespace in /proc/PID/ns, and two processes are in the same one just
when their links name the same inode.  Of a container that is kept, our descriptors are looked at, since its
init lets nobody look into it.  Changes nothing.  See namespaces(7), proc_pid_ns(5).
"""

from __future__ import annotations

import html
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nsmagic.spec import NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nsmagic.container import Container

FILES: Final = {name: {"mount": "mnt"}.get(name, name) for name in NAMESPACES}
"""How /proc/PID/ns names each kind."""
WHAT: Final = {
    "user": "user and group ids, and what they may do",
    "pid": "process ids",
    "mount": "the tree of mounts, and so the files that are seen",
    "net": "network devices, addresses, ports, routes",
    "uts": "host name and domain name",
    "ipc": "System V IPC and POSIX message queues",
    "cgroup": "what is the root of the control groups",
    "time": "the monotonic clock and the uptime",
}
_LINK: Final = re.compile(r"[a-z]+:\[(\d+)\]")
_CELL: Final = "padding:2px 12px 2px 0;text-align:left"
_SHADES: Final = ("#e3f2e1", "#fde9c9", "#d9e8fb", "#f6dbe6", "#e7defa", "#d7f0ef")
"""Backgrounds of the namespaces in a row that are not the first column's: equal ones have the same."""


@dataclass(frozen=True)
class Column:
    """One process in the matrix.

    Attributes:
        name: what it is called there.
        pid: the host's process id.
        inodes: by kind; None where it could not be read.
    """

    name: str
    pid: int
    inodes: dict[str, int | None]


def inode(pid: int | str, kind: str) -> int | None:
    """The inode of a process's namespace; None where this kernel has no such kind or we may not look."""
    try:
        link = os.readlink(f"/proc/{pid}/ns/{FILES[kind]}")  # noqa: PTH115 - no path, but a link of /proc
    except OSError:
        return None
    match = _LINK.fullmatch(link)
    return int(match[1]) if match else None


def column(name: str, pid: int | None = None) -> Column:
    """A process as a column; without a process id, our own."""
    return Column(name, pid or os.getpid(), {kind: inode(pid or "self", kind) for kind in NAMESPACES})


def of(containers: Iterable[Container]) -> list[Column]:
    """The columns of these containers; without those whose first process is not there yet."""
    found = []
    for each in containers:
        name = each.spec.name or f"container {each.number}"
        if each.held and each.init_pid is not None:
            inodes = column("").inodes | {kind: os.fstat(fd).st_ino for kind, fd in each.offered.items()}
            found.append(Column(name, each.init_pid, inodes))
        elif not each.held and (pid := each.payload_pid) is not None:
            found.append(column(name, pid))
    return found


def rows(columns: Sequence[Column]) -> list[tuple[str, ...]]:
    """The matrix as text; the first column is what the others are compared with.

    A namespace that is the first column's is marked with ``=``, one of its own with ``*``, and one that it
    shares with another of the columns with ``&``.
    """
    table = [("namespace", *(f"{each.name} (pid {each.pid})" for each in columns), "what it has of its own")]
    for kind in NAMESPACES:
        first = columns[0].inodes[kind]
        all_of_them = [each.inodes[kind] for each in columns]
        cells = [_text(first)]
        cells += [f"{_mark(number, all_of_them)} {_text(number)}" for number in all_of_them[1:]]
        table.append((kind, *cells, WHAT[kind]))
    return table


def _text(number: int | None) -> str:
    return "cannot be read" if number is None else str(number)


def _mark(number: int | None, all_of_them: Sequence[int | None]) -> str:
    if number is None or all_of_them[0] is None:
        return "?"
    if number == all_of_them[0]:
        return "="
    return "&" if all_of_them.count(number) > 1 else "*"


def table_html(columns: Sequence[Column]) -> str:
    """The matrix as an HTML table; namespaces other than the first column's are coloured, equals alike."""
    text = rows(columns)
    lines = ["".join(f'<td style="{_CELL};font-weight:bold">{html.escape(cell)}</td>' for cell in text[0])]
    for row in text[1:]:
        cells = [f'<td style="{_CELL};font-weight:bold">{html.escape(row[0])}</td>']
        others = list(dict.fromkeys(cell[2:] for cell in row[1:-1] if cell[0] in "*&"))
        for cell in row[1:-1]:
            style = _CELL
            if cell[0] in "*&":
                style += f";background:{_SHADES[others.index(cell[2:]) % len(_SHADES)]};color:#111"
            cells.append(f'<td style="{style};font-family:monospace">{html.escape(cell)}</td>')
        cells.append(f'<td style="{_CELL}">{html.escape(row[-1])}</td>')
        lines.append("".join(cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    legend = (
        f"= the same namespace as {html.escape(columns[0].name)} &nbsp; * another one &nbsp; "
        "&amp; another one, shared by columns of the same colour"
    )
    table = f'<table style="border-collapse:collapse;font-size:90%">{body}</table>'
    return f'{table}<p style="font-size:85%">{legend}</p>'
