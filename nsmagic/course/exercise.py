"""Exercises: what is to be reached, how that is looked at, and hints on the way.

>>> @exercise("02a", "The scratch process lab has a UTS namespace of its own", hints=("See unshare(2).",))
... def own_name(look):
...     lab = look.scratch("lab")
...     look.own(lab, "uts")

A check may fail by what it finds, by a process that is not there, or by a defect of its own.  All three are a
verdict with a sentence, and never a traceback.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nsmagic.course.look import Look, Unmet
from nsmagic.course.needs import lacking
from nsmagic.errors import SpecError
from nsmagic.options import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nsmagic.course.look import Finding

_LABEL: Final = re.compile(r"(\d\d)[a-z]")
_PAUSE: Final = 0.05
_T = TypeVar("_T", bound="Callable[[Look], None]")


@dataclass
class Exercise:
    """One exercise.

    Attributes:
        label: lesson and letter, ``02a``.
        goal: what is to be reached, in one sentence.
        hints: in tiers, from a nudge to nearly all of it.
        needs: what the host must have, in the doctor's words, beyond what the lesson needs.
        check: looks, and notes what it finds.
        settles: seconds within which what the student started comes to rest.
        given: how many hints the student has had.
    """

    label: str
    goal: str
    hints: tuple[str, ...]
    needs: tuple[str, ...]
    check: Callable[[Look], None]
    settles: float = 0.0
    given: int = 0


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        exercise: which one.
        findings: in the order in which they were looked at.
        lacks: why this host cannot do the exercise; empty where it can, or where it was done all the same.
        hint: the hint to show; empty where it passed.
    """

    exercise: Exercise
    findings: tuple[Finding, ...]
    lacks: str = ""
    hint: str = ""

    @property
    def passed(self) -> bool:
        """Whether something was looked at, and all of it was as expected."""
        return bool(self.findings) and all(each.met for each in self.findings)


@dataclass
class _Registry:
    exercises: dict[str, Exercise] = field(default_factory=dict)


_registry: Final = _Registry()


def exercise(
    label: str, goal: str, *, hints: tuple[str, ...], needs: tuple[str, ...] = (), settles: float = 0.0
) -> Callable[[_T], _T]:
    """Make a function that looks into an exercise's check.

    Args:
        label: lesson and letter, ``02a``.
        goal: what is to be reached, one sentence without a full stop.
        hints: from a nudge to nearly all of it; the last one may name every call, never the whole cell.
        needs: features in the doctor's words, such as ``--mem``.
        settles: seconds to look again and again for, where a student's processes get there by themselves.
    """
    if _LABEL.fullmatch(label) is None or not hints:
        raise ValueError(f"{label!r} is not a label such as 02a, or it has no hints")

    def register(check: _T) -> _T:
        _registry.exercises[label] = Exercise(label, goal, hints, needs, check, settles)
        return check

    return register


def of_lesson(number: str) -> list[Exercise]:
    """A lesson's exercises, in order.

    Raises:
        SpecError: there is no such lesson.
    """
    from nsmagic.course.lessons import find  # noqa: PLC0415 - it imports nothing of the lessons, but later may

    lesson = find(number)
    import_module(f"nsmagic.course.lessons.{lesson.module}")
    found = [each for label, each in _registry.exercises.items() if label[:2] == lesson.number]
    return sorted(found, key=lambda each: each.label)


def find(label: str) -> Exercise:
    """The exercise of this label.

    Raises:
        SpecError: there is none.
    """
    if _LABEL.fullmatch(label) is None:
        raise SpecError("%check", f"needs an exercise, such as 02a, and not {label[:20]!r}")
    known = {each.label: each for each in of_lesson(label[:2])}
    if label not in known:
        raise SpecError(
            "%check", f"there is no exercise {label!r}{nearest(label, known)}; there are: {', '.join(known)}"
        )
    return known[label]


def next_hint(wanted: Exercise) -> tuple[int, str]:
    """One more hint, the last one again where there is no other: its number from 1, and its text."""
    wanted.given = min(wanted.given + 1, len(wanted.hints))
    return wanted.given, wanted.hints[wanted.given - 1]


def check(wanted: Exercise, variables: Mapping[str, Any]) -> Verdict:
    """Look whether an exercise is solved.

    Args:
        wanted: which one.
        variables: the notebook's, for exercises whose answer is put into one.
    """
    deadline = time.monotonic() + wanted.settles
    verdict = _look(wanted, variables)
    while not verdict.passed and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        verdict = _look(wanted, variables)
    if verdict.passed:
        return verdict
    wanted.given = max(wanted.given, 1)
    lacks = lacking(wanted.label[:2], wanted.needs)
    return Verdict(wanted, verdict.findings, lacks, wanted.hints[wanted.given - 1])


def _look(wanted: Exercise, variables: Mapping[str, Any]) -> Verdict:
    """Look once."""
    look = Look(variables)
    try:
        wanted.check(look)
    except Unmet:
        pass  # it has noted why
    except (ProcessLookupError, FileNotFoundError) as error:
        where = f" ({error.filename})" if error.filename else ""
        look.unmet("the process or file that this is about", f"gone{where}", "there, while the check looks")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        look.unmet("what the kernel shows of it", f"{where}{error.strerror}", "to be readable")
    except Exception as error:  # noqa: BLE001 - whatever a check trips over, the student gets a sentence
        text = f"{type(error).__name__}: {error}"
        look.unmet("the check itself", f"it failed ({text}); that is its fault, not yours", "to run")
    return Verdict(wanted, tuple(look.findings))
