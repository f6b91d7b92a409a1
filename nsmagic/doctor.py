"""How the doctor's findings look: text for a terminal, HTML for a notebook, data for a program.

One cause has often many rows, so what to do about it stands once, below the table, with the rows that it
mends.
This module knows nothing of how things were found out; ``probes`` does that.
"""

from __future__ import annotations

import html
import textwrap
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nsmagic.host import Finding

_WIDTH: Final = 110
_MARKS: Final = {"works": "✓", "weaker": "~", "missing": "✗"}
# Readable on white and on black alike: front ends have dark themes, and exported pages have none.
_COLOURS: Final = {"works": "#2e8b57", "weaker": "#c77700", "missing": "#d9363e"}
_USES: Final = ("--mem", "--cpus", "--pids", "--net none", "--disk")
_TABLE: Final = "border-collapse:collapse;margin:0 0 8px 0;font-size:90%"
_CELL: Final = "text-align:left;vertical-align:top;padding:3px 14px 3px 0;border-bottom:1px solid #8884"
_CODE: Final = "white-space:pre-wrap;margin:2px 0 8px 16px"


def uses(findings: Sequence[Finding]) -> dict[str, str]:
    """What the options that limit will use here, by option."""
    rows = {finding.feature: finding for finding in findings}
    found = dict.fromkeys((option.split()[0] for option in _USES), "nothing: it cannot be enforced here")
    for option in _USES:
        if option in rows and rows[option].status != "missing":
            found[option.split()[0]] = rows[option].detail.partition(":")[0]
    return found


def _remedies(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """The features by remedy: one cause has often many rows."""
    grouped: dict[str, list[str]] = {}
    for finding in findings:
        if finding.remedy:
            grouped.setdefault(finding.remedy, []).append(finding.feature)
    return grouped


def render_text(findings: Sequence[Finding]) -> str:
    """A table for a terminal, what to do below it, and what the options will use."""
    column = max((len(finding.feature) for finding in findings), default=0)
    lines = []
    for row in findings:
        head = f"{_MARKS[row.status]} {row.feature:<{column}}  {row.status:<7}  "
        text = head + " ".join(row.detail.split())
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent=" " * len(head), break_on_hyphens=False)
    for remedy, features in _remedies(findings).items():
        lines += ["", f"To mend {', '.join(features)}:", textwrap.indent(remedy, "    ")]
    return "\n".join([*lines, "", *(f"{option} uses {what}" for option, what in uses(findings).items())])


def render_html(findings: Sequence[Finding]) -> str:
    """The same as tables for a notebook: inline styles only, every text escaped."""
    head = _row("th", ("", "feature", "what was seen"))
    rows = "".join(
        _row("td", (f"{_MARKS[row.status]}\u00a0{row.status}", row.feature, row.detail), _COLOURS[row.status])
        for row in findings
    )
    remedies = "".join(
        f"<div><strong>To mend</strong> {html.escape(', '.join(features))}:</div>"
        f'<div style="{_CODE}">{html.escape(remedy)}</div>'
        for remedy, features in _remedies(findings).items()
    )
    limits = "".join(_row("td", (option, f"uses {what}")) for option, what in uses(findings).items())
    table = '<table style="{}"><tbody>{}</tbody></table>'.format
    return f"<div>{table(_TABLE, head + rows)}{remedies}{table(_TABLE, limits)}</div>"


def _row(tag: str, cells: Iterable[str], colour: str = "inherit") -> str:
    """A row whose first cell has a colour of its own."""
    styles = (f"{_CELL};white-space:nowrap;color:{colour}", f"{_CELL};white-space:nowrap", _CELL)
    found = (
        f'<{tag} style="{style}">{html.escape(text)}</{tag}>'
        for text, style in zip(cells, styles, strict=False)
    )
    return f"<tr>{''.join(found)}</tr>"


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same as data: ``{"findings": [...], "uses": {"--mem": ...}}``."""
    return {"findings": [finding._asdict() for finding in findings], "uses": uses(findings)}
