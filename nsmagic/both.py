"""``%%both``: one cell, run outside and inside, side by side.

Outside is a new Python on the host, with the user's own rights.  It is not isolated in any way, and so it is
only run after a question, or where the cell is marked as harmless.
"""

from __future__ import annotations

import ast
import difflib
import html
import subprocess
import sys
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from nsmagic.firewall import clean_stream

_WIDTH: Final = 60
_MOST_LINES: Final = 2000
_PRE: Final = "margin:0;white-space:pre-wrap;overflow-wrap:anywhere;text-align:left"
_COLUMN: Final = (
    "vertical-align:top;padding:4px 12px;width:50%;text-align:left;border-left:3px solid {colour}"
)


@dataclass(frozen=True)
class Side:
    """What one side printed, and how it ended.

    Attributes:
        name: ``outside`` or ``inside``.
        output: what it printed, both streams, cleaned.
        ended: how, in words; empty for a plain end.
    """

    name: str
    output: str
    ended: str = ""


def shown_last(code: str) -> str:
    """The code, with its last expression printed, as a cell shows it.

    Raises:
        SyntaxError: it is not Python.
    """
    tree = ast.parse(code)
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = tree.body.pop().value  # type: ignore[attr-defined]  # an Expr has one
        call = ast.parse("(lambda value: value is None or print(repr(value)))(None)").body[0]
        call.value.args = [last]  # type: ignore[attr-defined]  # a Call has them
        tree.body.append(call)
    return ast.unparse(ast.fix_missing_locations(tree))


def outside(code: str, timeout: float) -> Side:
    """Run Python code on the host, in a new interpreter.

    Args:
        code: as ``shown_last`` gives it.
        timeout: seconds.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        text = (error.stdout or b"").decode(errors="replace")
        return Side("outside", clean_stream(text), f"stopped after {timeout:g} s")
    ended = f"exit status {done.returncode}" if done.returncode else ""
    return Side("outside", clean_stream(done.stdout.decode(errors="replace")), ended)


def _lines(side: Side) -> list[str]:
    lines = side.output.splitlines()[:_MOST_LINES]
    return [*lines, f"[{side.ended}]"] if side.ended else lines


def pairs(left: Side, right: Side) -> list[tuple[str, str, bool]]:
    """Lines beside each other, and whether they are the same."""
    ours, theirs = _lines(left), _lines(right)
    found: list[tuple[str, str, bool]] = []
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    for tag, first, last, begin, end in matcher.get_opcodes():
        same = tag == "equal"
        found += [(a, b, same) for a, b in zip_longest(ours[first:last], theirs[begin:end], fillvalue="")]
    return found


def text(left: Side, right: Side) -> str:
    """Two columns for a terminal; lines that differ have a ``|`` between them."""
    lines = [f"{left.name:<{_WIDTH}}   {right.name}", f"{'-' * _WIDTH}   {'-' * _WIDTH}"]
    for ours, theirs, same in pairs(left, right):
        lines.append(f"{ours[:_WIDTH]:<{_WIDTH}} {' ' if same else '|'} {theirs[:_WIDTH]}".rstrip())
    return "\n".join(lines)


def bundle(left: Side, right: Side) -> dict[str, str]:
    """For ``display``: text, and HTML with the lines that differ marked."""
    columns: tuple[list[str], list[str]] = ([], [])
    for ours, theirs, same in pairs(left, right):
        for column, line in zip(columns, (ours, theirs), strict=True):
            escaped = html.escape(line) or " "
            column.append(
                escaped if same else f'<span style="background:#fff3c4;color:#111">{escaped}</span>'
            )
    cells = "".join(
        f'<td style="{_COLUMN.format(colour=colour)}"><b>{side.name}</b>'
        f'<pre style="{_PRE}">{chr(10).join(lines)}</pre></td>'
        for side, lines, colour in zip((left, right), columns, ("#888", "#2e7d32"), strict=True)
    )
    table = f'<table style="width:100%;border-collapse:collapse"><tr>{cells}</tr></table>'
    return {"text/plain": text(left, right), "text/html": table}
