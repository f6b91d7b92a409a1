"""How results and containers look: HTML with inline styles, and plain text for everything.

Whatever comes from a container is text here, and escaped.
"""

from __future__ import annotations

import html
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nsmagic import processes
from nsmagic.result import seconds_text, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsmagic.changes import Change
    from nsmagic.container import Container
    from nsmagic.result import Isolation, Result

_CELL = "padding:2px 12px 2px 0;text-align:left;vertical-align:top"
_HEAD = f"{_CELL};font-weight:bold;border-bottom:1px solid #888"
_MOST_CHANGES = 20
_BAR_CHARACTERS = 20
_BAR_IS_FULL = 0.9


def _or_unknown(value: object, text: str) -> str:
    return "unknown" if value is None else text


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def table_html(rows: Sequence[Sequence[str]], *, head: bool = False) -> str:
    """Rows as a table; everything in it is escaped."""
    lines = []
    for number, row in enumerate(rows):
        style = _HEAD if head and number == 0 else _CELL
        cells = "".join(f'<td style="{style}">{html.escape(cell)}</td>' for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return f'<table style="border-collapse:collapse;font-size:90%">{"".join(lines)}</table>'


def bundle(rows: Sequence[Sequence[str]], *, head: bool = False) -> dict[str, str]:
    """A table for ``display``: text and HTML."""
    return {"text/plain": table_text(rows), "text/html": table_html(rows, head=head)}


def stats_rows(result: Result) -> list[tuple[str, str]]:
    """What ``--stats`` says: how it ended, what it used, what isolation was in force."""
    usage = result.usage
    cpu = _or_unknown(usage.cpu_user, "")
    if usage.cpu_user is not None and usage.cpu_system is not None:
        cpu = cpu_text(usage.cpu_user, usage.cpu_system)
    rows = [
        ("ended", result.describe()),
        ("wall", seconds_text(usage.wall)),
        ("CPU", cpu),
        (
            "peak memory",
            _or_unknown(usage.memory_peak, size_text(usage.memory_peak or 0))
            + " (without pages shared with the launcher)",
        ),
        ("processes", _or_unknown(usage.pids_peak, f"{usage.pids_peak} at once, init among them")),
        ("written", _or_unknown(usage.written, size_text(usage.written or 0))),
        *isolation_rows(result.isolation),
        *change_rows(result.changes),
    ]
    if result.changes.truncated:
        rows.append(("changes", f"incomplete: {result.changes.truncated}"))
    return rows


def cpu_text(user: float, system: float) -> str:
    """Processor time in words; both in seconds."""
    return f"{seconds_text(user)} user, {seconds_text(system)} system"


def isolation_rows(isolation: Isolation) -> list[tuple[str, str]]:
    """The isolation that is in force."""
    rows = [("namespaces", ", ".join(isolation.namespaces) or "none")]
    if isolation.joined:
        rows.append(("joined", isolation.joined))
    if isolation.added:
        rows.append(("added", f"{', '.join(isolation.added)}: without it the others cannot be made"))
    rows += [("limit", f"{name}: {how}") for name, how in isolation.limits.items()]
    rows += [("NOT ENFORCED", f"{name}: {why}") for name, why in isolation.missing.items()]
    rows += [
        ("network", isolation.network),
        ("user", f"{isolation.user} inside, {isolation.host_user} on the host"),
        ("capabilities", isolation.capabilities),
        ("system calls", isolation.system_calls),
        ("directory", isolation.workdir),
    ]
    rows += [("root", isolation.image)] if isolation.image else []
    return rows + [("note", note) for note in isolation.notes]


def change_rows(changes: Sequence[Change], most: int = _MOST_CHANGES) -> list[tuple[str, str]]:
    """The first of the files that were changed, and how many more there are."""
    rows: list[tuple[str, str]] = []
    for change in list(changes)[:most]:
        size = f" ({size_text(change.size)})" if change.size else ""
        rows.append((change.kind, path_text(change.path) + size))
    if len(changes) > most:
        rows.append(("changes", f"and {len(changes) - most} more"))
    return rows


@dataclass(frozen=True)
class Bar:
    """Use against a limit.

    Attributes:
        name: of what.
        used: now; None where nobody counts.
        limit: None for none.
        unit: ``size`` (bytes) or ``count``.
        peak: the most so far; None where nobody counts.
    """

    name: str
    used: int | None
    limit: int | None
    unit: Literal["size", "count"]
    peak: int | None = None

    @property
    def share(self) -> float | None:
        """From 0 to 1; None where there is nothing to compare."""
        if self.used is None or not self.limit:
            return None
        return min(self.used / self.limit, 1.0)

    @property
    def text(self) -> str:
        """In words."""
        if self.used is None:
            return "not counted here"
        show = size_text if self.unit == "size" else str
        limit = f" of {show(self.limit)}" if self.limit else ", no limit"
        peak = f", peak {show(self.peak)}" if self.peak is not None else ""
        return f"{show(self.used)}{limit}{peak}"


def _bar_text(share: float | None) -> str:
    full = round((share or 0.0) * _BAR_CHARACTERS)
    return "[" + "#" * full + "." * (_BAR_CHARACTERS - full) + "]" if share is not None else ""


def _bar_html(share: float | None) -> str:
    if share is None:
        return ""
    colour = "#c62828" if share > _BAR_IS_FULL else "#2e7d32"
    return (
        '<div style="width:200px;height:10px;border:1px solid #888;border-radius:3px">'
        f'<div style="width:{share * 100:.1f}%;height:10px;background:{colour}"></div></div>'
    )


def isolation_bundle(bars: Sequence[Bar], rows: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What ``%isolation`` shows: use against limits as bars, then what is in force."""
    text = [(bar.name, _bar_text(bar.share), bar.text) for bar in bars]
    drawn = "".join(
        f'<tr><td style="{_CELL}">{html.escape(bar.name)}</td><td style="{_CELL}">{_bar_html(bar.share)}</td>'
        f'<td style="{_CELL}">{html.escape(bar.text)}</td></tr>'
        for bar in bars
    )
    table = f'<table style="border-collapse:collapse;font-size:90%">{drawn}</table>'
    return {
        "text/plain": table_text(text) + "\n\n" + table_text(rows),
        "text/html": table + table_html(rows),
    }


def note(text: str) -> dict[str, str]:
    """One sentence for ``display``."""
    return {"text/plain": text, "text/html": f"<p>{html.escape(text)}</p>"}


def path_text(path: str) -> str:
    """A hostile name on one printable line."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in path[:200]
    )


def container_rows(containers: Sequence[Container]) -> list[tuple[str, ...]]:
    """What ``%containers`` lists."""
    rows: list[tuple[str, ...]] = [
        ("container", "init pid", "processes", "age", "memory limit", "namespaces", "directory")
    ]
    for container in containers:
        spec = container.spec
        rows.append(
            (
                f"{container.number} {spec.name}".rstrip(),
                str(container.init_pid or "-"),
                str(len(container.pids()) or "-"),
                seconds_text(time.time() - container.started),
                size_text(spec.mem) if spec.mem else "none",
                _namespaces_text(container),
                container.plan.root.workdir,
            )
        )
    return rows


def _namespaces_text(container: Container) -> str:
    """Its own, and whose others it shares."""
    text = ", ".join(container.namespaces) or "none"
    joined = container.isolation.joined
    return f"{text}; {joined}" if joined else text


def kept_rows(containers: Sequence[Container]) -> list[tuple[str, ...]]:
    """What ``%container`` lists."""
    head = ("name", "age", "cells in it", "memory limit", "namespaces", "directory")
    return [head, *(_kept_row(container) for container in containers)]


def _kept_row(container: Container) -> tuple[str, ...]:
    spec = container.spec
    return (
        spec.name,
        seconds_text(time.time() - container.started),
        str(len(container.guests)),
        size_text(spec.mem) if spec.mem else "none",
        _namespaces_text(container),
        container.plan.root.workdir,
    )


def tree_rows(found: Sequence[processes.Process]) -> list[tuple[str, ...]]:
    """A container's processes, each below its parent."""
    rows: list[tuple[str, ...]] = [("pid on the host", "pid inside", "state", "resident", "command")]
    for each in found[: processes.MOST_SHOWN]:
        memory = "-" if each.memory is None else size_text(each.memory)
        branch = "   " * (each.depth - 1) + "└─ " if each.depth else ""
        rows.append((str(each.pid), str(each.inside), each.state, memory, branch + each.command))
    if len(found) > processes.MOST_SHOWN:
        rows.append(("…", "", "", "", "and more"))
    return rows


def containers_bundle(containers: Sequence[Container]) -> dict[str, str]:
    """What ``%containers`` shows: a line for each, and the tree of processes in each."""
    if not containers:
        return note("no containers are live")
    shown = bundle(container_rows(containers), head=True)
    for container in containers:
        title = f"container {container.number} {container.spec.name}".rstrip()
        rows = tree_rows(processes.tree(container.root_pids()))
        shown["text/plain"] += f"\n\n{title}\n{table_text(rows)}"
        shown["text/html"] += (
            f'<p style="margin:8px 0 0 0;font-weight:bold">{html.escape(title)}</p>'
            f'<div style="white-space:pre">{table_html(rows, head=True)}</div>'
        )
    return shown


def isolation_warning(result: Result) -> str:
    """Under ``--best-effort``: what was not enforced, on one line; else an empty string."""
    missing = result.isolation.missing
    return "; ".join(f"{name} is not enforced: {why}" for name, why in missing.items())
