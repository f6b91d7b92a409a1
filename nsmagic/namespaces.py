"""The matrix of namespaces: which process is in which, inode by inode; for ``%namespaces``.

Each process has a link for each kind of namespace in /proc/PID/ns, and two processes are in the same one just
when their links name the same inode.  Reads /proc, changes nothing.  See namespaces(7), proc_pid_ns(5).
"""

from __future__ import annotations

import html
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nsmagic.spec import NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Sequence

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
_OWN: Final = f"{_CELL};background:#e3f2e1;color:#111"


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


def rows(columns: Sequence[Column]) -> list[tuple[str, ...]]:
    """The matrix as text; the first column is what the others are compared with.

    A namespace that is the first column's own is marked with ``=``, another one with ``*``.
    """
    table = [("namespace", *(f"{each.name} (pid {each.pid})" for each in columns), "what it has of its own")]
    for kind in NAMESPACES:
        first = columns[0].inodes[kind]
        cells = [_text(first)]
        cells += [f"{_mark(each.inodes[kind], first)} {_text(each.inodes[kind])}" for each in columns[1:]]
        table.append((kind, *cells, WHAT[kind]))
    return table


def _text(number: int | None) -> str:
    return "cannot be read" if number is None else str(number)


def _mark(number: int | None, first: int | None) -> str:
    if number is None or first is None:
        return "?"
    return "=" if number == first else "*"


def table_html(columns: Sequence[Column]) -> str:
    """The matrix as an HTML table; namespaces other than the first column's are coloured."""
    text = rows(columns)
    lines = ["".join(f'<td style="{_CELL};font-weight:bold">{html.escape(cell)}</td>' for cell in text[0])]
    for row in text[1:]:
        cells = [f'<td style="{_CELL};font-weight:bold">{html.escape(row[0])}</td>']
        for cell in row[1:-1]:
            style = _OWN if cell.startswith("*") else _CELL
            cells.append(f'<td style="{style};font-family:monospace">{html.escape(cell)}</td>')
        cells.append(f'<td style="{_CELL}">{html.escape(row[-1])}</td>')
        lines.append("".join(cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    legend = f"= the same namespace as {html.escape(columns[0].name)} &nbsp; * another one"
    table = f'<table style="border-collapse:collapse;font-size:90%">{body}</table>'
    return f'{table}<p style="font-size:85%">{legend}</p>'
