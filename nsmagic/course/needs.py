"""What a lesson needs of the host, by the doctor's word; each thing is tried out once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nsmagic import host

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsmagic.host import Finding

_known: Final[dict[str, Finding]] = {}


def findings(features: Iterable[str]) -> list[Finding]:
    """The doctor's findings about some features, in its words, such as ``--mem``; takes a second or so."""
    wanted = list(dict.fromkeys(features))
    if any(feature not in _known for feature in wanted):
        found = {each.feature: each for each in host.examine(only=wanted)}
        _known.update(found)
        # Where a trial before it failed (no launcher, not Linux) its row says why for all.
        last = list(found.values())[-1]
        _known.update({feature: last for feature in wanted if feature not in _known})
    return [_known[feature] for feature in wanted]


def lacks(features: Iterable[str]) -> list[tuple[str, Finding]]:
    """Those that do not work here, each with the doctor's finding."""
    wanted = list(dict.fromkeys(features))
    pairs = zip(wanted, findings(wanted), strict=True)
    return [(feature, each) for feature, each in pairs if each.status != "works"]


def lacking(lesson: str, more: Iterable[str] = ()) -> str:
    """What a lesson (and an exercise in it) needs and this host lacks, in one line; empty for nothing."""
    from nsmagic.course import lessons  # noqa: PLC0415 - the table of lessons knows us

    found = lacks([*lessons.find(lesson).needs, *more])
    return "; ".join(f"{feature}: {each.detail}" for feature, each in found)
