"""How results and containers look: HTML with inline styles, and plain text for everything.

Whatever comes from a container is text here, and escaped.
"""

from __future__ import annotations

import html
import time
from typing import TYPE_CHECKING

from nsmagic.result import seconds_text, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsmagic.container import Container
    from nsmagic.result import Result

_CELL = "padding:2px 12px 2px 0;text-align:left;vertical-align:top"
_HEAD = f"{_CELL};font-weight:bold;border-bottom:1px solid #888"
_MOST_CHANGES = 20


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
    usage, isolation = result.usage, result.isolation
    cpu = _or_unknown(usage.cpu_user, "")
    if usage.cpu_user is not None and usage.cpu_system is not None:
        cpu = f"{seconds_text(usage.cpu_user)} user, {seconds_text(usage.cpu_system)} system"
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
        ("namespaces", ", ".join(isolation.namespaces) or "none"),
    ]
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
    rows += [("note", note) for note in isolation.notes]
    changes = result.changes
    for change in list(changes)[:_MOST_CHANGES]:
        rows.append(
            (change.kind, _path_text(change.path) + (f" ({size_text(change.size)})" if change.size else ""))
        )
    if len(changes) > _MOST_CHANGES:
        rows.append(("changes", f"and {len(changes) - _MOST_CHANGES} more"))
    if changes.truncated:
        rows.append(("changes", f"incomplete: {changes.truncated}"))
    return rows


def _path_text(path: str) -> str:
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
                str(container.number),
                str(container.init_pid or "-"),
                str(len(container.pids()) or "-"),
                seconds_text(time.time() - container.started),
                size_text(spec.mem) if spec.mem else "none",
                ", ".join(container.namespaces) or "none",
                spec.workdir,
            )
        )
    return rows


def isolation_warning(result: Result) -> str:
    """Under ``--best-effort``: what was not enforced, on one line; else an empty string."""
    missing = result.isolation.missing
    return "; ".join(f"{name} is not enforced: {why}" for name, why in missing.items())
