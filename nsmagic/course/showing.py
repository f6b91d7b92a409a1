"""How verdicts, hints and what a host lacks look: HTML with inline styles, and text for a terminal."""

from __future__ import annotations

import html
import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsmagic.course.exercise import Exercise, Verdict
    from nsmagic.course.lessons import Lesson
    from nsmagic.host import Finding

_GOOD: Final = "#2e8b57"
_BAD: Final = "#d9363e"
_CELL: Final = "text-align:left;vertical-align:top;padding:3px 14px 3px 0;border-bottom:1px solid #8884"
_WIDTH: Final = 100


def verdict(found: Verdict) -> dict[str, str]:
    """What a check looked at, what it found, what it expected, and a hint where that was something else."""
    title = f"{found.exercise.label} {'solved' if found.passed else 'not solved yet'}: {found.exercise.goal}."
    rows = [(("✓" if each.met else "✗"), each.what, each.found, each.expected) for each in found.findings]
    lines = [title]
    for mark, what, seen, expected in rows:
        lines += [f"  {mark} {what}", f"      found:    {seen}", f"      expected: {expected}"]
    more = _more(found)
    lines += textwrap.wrap(more, _WIDTH) if more else []
    cells = "".join(
        f'<tr><td style="{_CELL};color:{_GOOD if mark == "✓" else _BAD}"><b>{mark}</b></td>'
        + "".join(f'<td style="{_CELL}">{html.escape(text)}</td>' for text in texts)
        + "</tr>"
        for mark, *texts in rows
    )
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in ("", "looked at", "found", "expected"))
    table = f'<table style="border-collapse:collapse;font-size:90%"><tr>{head}</tr>{cells}</table>'
    below = f"<div>{html.escape(more)}</div>" if more else ""
    return {
        "text/plain": "\n".join(lines),
        "text/html": _framed(html.escape(title), table + below, _GOOD if found.passed else _BAD),
    }


def _more(found: Verdict) -> str:
    if found.passed:
        return ""
    if found.lacks:
        return f"This host lacks what it needs: {found.lacks}. %contain_doctor says what can be done."
    count, given = len(found.exercise.hints), found.exercise.given
    rest = f" For more: %hint {found.exercise.label}" if given < count else ""
    return f"Hint {given} of {count}: {found.hint}{rest}"


def _framed(title: str, body: str, colour: str) -> str:
    """A block with a coloured edge; both texts are HTML."""
    return f'<div style="border-left:4px solid {colour};padding:2px 0 2px 12px"><b>{title}</b>{body}</div>'


def hint(wanted: Exercise, number: int, text: str) -> dict[str, str]:
    """A hint, and how many there are."""
    count = len(wanted.hints)
    title = f"{wanted.label}, hint {number} of {count}"
    last = " This is the last one." if number == count and count > 1 else ""
    body = f'<div style="white-space:pre-wrap">{html.escape(text)}{last}</div>'
    return {"text/plain": f"{title}: {text}{last}", "text/html": _framed(title, body, "#c77700")}


def lesson(wanted: Lesson, findings: Sequence[Finding]) -> dict[str, str]:
    """Whether the host has what a lesson needs."""
    title = f"{wanted.number} {wanted.title}"
    lacking = [each for each in findings if each.status != "works"]
    if not lacking:
        text = "This host has all that the lesson needs."
        framed = _framed(html.escape(title), f"<div>{text}</div>", _GOOD)
        return {"text/plain": f"{title}: {text}", "text/html": framed}
    needed = [each for each in lacking if each.feature not in wanted.partly]
    text = (
        "This host lacks what most cells here need. Read on all the same: what they would show is said "
        "around them."
        if needed
        else "This host lacks what some cells here need; they are left out, and what they would show is said "
        "around them."
    )
    lines = [f"{title}: {text}", *(f"  ✗ {each.feature}: {each.detail}" for each in lacking)]
    remedies = list(dict.fromkeys(each.remedy for each in lacking if each.remedy))
    lines += [f"  To mend it: {each}" for each in remedies]
    body = f"<div>{text}</div>" + "".join(
        f'<div style="color:{_BAD}">✗ {html.escape(f"{each.feature}: {each.detail}")}</div>'
        for each in lacking
    )
    body += "".join(
        f'<div style="white-space:pre-wrap">To mend it: {html.escape(each)}</div>' for each in remedies
    )
    return {"text/plain": "\n".join(lines), "text/html": _framed(html.escape(title), body, _BAD)}


def left_out(missing: Sequence[tuple[str, Finding]]) -> dict[str, str]:
    """That a cell was not run, and why."""
    why = "; ".join(f"{feature}: {each.detail}" for feature, each in missing)
    text = f"Left out: this host lacks what the cell needs. {why}"
    return {"text/plain": text, "text/html": _framed("Left out", f"<div>{html.escape(text)}</div>", "#888")}
