"""``--explain``: the journal of a real run as a table and a time line.

Every system call that built a container stands in its journal, with its arguments by name, its result, its
time and who made it.  Here like calls become one row, and each row gets a sentence that says why the call is
made, and its manual page (``reasons``); ``timeline`` draws when.  Where a container could not be built, the
call that failed is told first, with what to do about it.  The calls are the run's own: nothing is run again,
and nothing is traced.  Pure.
"""

from __future__ import annotations

import errno
import html
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nsmagic import svg, timeline
from nsmagic.reasons import why
from nsmagic.timeline import COLOURS, time_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsmagic.errors import StartError
    from nsmagic.result import Step

_CELL: Final = "padding:2px 10px 2px 0;text-align:left;vertical-align:top"
_BAD: Final = "border:2px solid #c62828;padding:4px 10px;margin:4px 0;text-align:left"
_NOTHING: Final = "there is no journal: nothing was built"


@dataclass
class Row:
    """One kind of call in one step.

    Attributes:
        who: makes it; see ``timeline.LANES``.
        step: its subject.
        call: the first such call, with its arguments.
        count: how many there are.
        took: seconds, all together.
        began: seconds since the first call of all.
        result: of the last one.
        failure: the errno of the last one, by name and in words; empty where it went well.
        fatal: whether that ended the building; else there was another way.
        why: one sentence.
        page: the manual page.
    """

    who: str
    step: str
    call: str
    count: int
    took: float
    began: float
    result: int
    failure: str
    fatal: bool
    why: str
    page: str

    @property
    def shown(self) -> str:
        """The call, and how many others like it there are."""
        return self.call if self.count == 1 else f"{self.call} and {self.count - 1} more"

    @property
    def outcome(self) -> str:
        """What came of it, in words."""
        if not self.failure:
            return str(self.result)
        return f"FAILED: {self.failure}" if self.fatal else f"refused: {self.failure}; it went on without"


def errno_text(number: int, words: str) -> str:
    """The kernel's answer by name and in words: ``EPERM, Operation not permitted``."""
    return f"{errno.errorcode.get(number, f'errno {number}')}, {words}"


def rows(journal: Sequence[Step], failed: Step | None = None) -> list[Row]:
    """The journal with like calls in one row, in the order of time: several processes make calls at once.

    Args:
        journal: the calls.
        failed: the one for which the building ended.
    """
    found: list[Row] = []
    latest: dict[tuple[str, str, str, str], Row] = {}
    start = min((step.began for step in journal), default=0.0)
    for step in sorted(journal, key=lambda step: step.began):
        text, page = why(step)
        kind = (step.who, step.step, text, step.call.partition("(")[0])
        same = latest.get(kind)
        if same is not None and text and not step.errno:
            same.count += 1
            same.took += step.took
            same.result = step.result
            continue
        failure = errno_text(step.errno, step.failure) if step.errno else ""
        row = Row(
            step.who, step.step, step.call, 1, step.took, step.began - start, step.result, failure,
            step == failed, text, page,
        )  # fmt: skip
        found.append(row)
        if not step.errno:
            latest[kind] = row
    return found


def _failed(journal: Sequence[Step], error: StartError | None) -> Step | None:
    """The call that an error speaks of."""
    if error is None:
        return None
    known = (error.step, error.call, error.errno)
    alike = [step for step in journal if (step.step, step.call, step.errno) == known]
    return alike[-1] if alike else None


def _told(error: StartError, failed: Step | None) -> list[tuple[str, str]]:
    """What went wrong, point by point."""
    told = [("step", error.step)]
    if failed is not None and failed.who:
        told.append(("made by", failed.who))
    if error.call:
        told.append(("call", error.call))
    if error.errno:
        told.append(("the kernel's answer", errno_text(error.errno, error.answer)))
    else:
        told.append(("what happened", error.problem))
    if failed is not None:
        text, page = why(failed)
        told += [("what it is for", text)] if text else []
        told += [("manual page", page)] if page else []
    return [*told, ("what to do", error.remedy)] if error.remedy else told


def text(journal: Sequence[Step], error: StartError | None = None) -> str:
    """The time line and the table for a terminal; first of all what failed, if something did."""
    failed = _failed(journal, error)
    lines: list[str] = []
    if error is not None:
        lines.append("the container could not be built")
        lines += [f"  {name + ':':<22}{words}" for name, words in _told(error, failed)]
        lines.append("")
    if not journal:
        return "\n".join([*lines, _NOTHING])
    lines += [timeline.text(journal, failed), "", f"{'at':>9}  {'who':<9} {'step':<13}"]
    for row in rows(journal, failed):
        result = f"= {row.result}" if not row.failure else row.outcome
        head = f"{time_text(row.began):>9}  {row.who:<9} {row.step:<13}"
        lines.append(f"{head}{row.shown}  {result}  [{time_text(row.took)}]")
        if row.why:
            lines.append(f"{'':<34}{row.why}  ({row.page})")
    return "\n".join(lines)


def bundle(journal: Sequence[Step], error: StartError | None = None) -> dict[str, str]:
    """For ``display``: text, and HTML with the picture and the table."""
    failed = _failed(journal, error)
    parts = []
    if error is not None:
        told = "".join(
            f'<tr><td style="{_CELL};font-weight:bold">{html.escape(name)}</td>'
            f'<td style="{_CELL};overflow-wrap:anywhere">{html.escape(words)}</td></tr>'
            for name, words in _told(error, failed)
        )
        parts.append(
            f'<div style="{_BAD}"><b>The container could not be built</b>'
            f'<table style="border-collapse:collapse">{told}</table></div>'
        )
    if not journal:
        return {"text/plain": text(journal, error), "text/html": "".join([*parts, f"<p>{_NOTHING}</p>"])}
    words = timeline.text(journal, failed)
    parts += [svg.image(timeline.drawing(journal, failed), words), _table(rows(journal, failed))]
    return {"text/plain": text(journal, error), "text/html": "".join(parts)}


def _table(all_rows: Sequence[Row]) -> str:
    """Why a call is made stands under it: beside it, it would be out of sight in a narrow window."""
    heads = ("at", "who", "step", "call, and why", "result", "took")
    lines = ["".join(f'<td style="{_CELL};font-weight:bold">{name}</td>' for name in heads)]
    for row in all_rows:
        edge = f"border-left:6px solid {COLOURS.get(row.who, svg.INK)};padding-left:6px"
        outcome = html.escape(row.outcome)
        if row.failure:
            outcome = f'<b style="color:{svg.RED if row.fatal else svg.INK}">{outcome}</b>'
        reason = f"{html.escape(row.why)} <i>{html.escape(row.page)}</i>"
        lines.append(
            f'<td style="{_CELL};{edge};white-space:nowrap">{time_text(row.began)}</td>'
            f'<td style="{_CELL}">{html.escape(row.who)}</td>'
            f'<td style="{_CELL}">{html.escape(row.step)}</td>'
            f'<td style="{_CELL}"><code>{_breakable(row.shown)}</code><br>{reason}</td>'
            f'<td style="{_CELL}">{outcome}</td>'
            f'<td style="{_CELL};white-space:nowrap">{time_text(row.took)}</td>'
        )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table style="border-collapse:collapse;font-size:90%">{body}</table>'


def _breakable(call: str) -> str:
    """A call that may break behind a flag or a folder; not all front ends keep styles for it."""
    return re.sub(r"([|,/=])", r"\1<wbr>", html.escape(call))
