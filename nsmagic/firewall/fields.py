"""Fields of a message: each read as one type within one bound, whatever was sent in its place.

A kernel in a container may send any JSON for any field. Each function here takes any value and returns one of
the type that it is named for, so that the message made of them has the shape that front ends rely on. Types
are compared exactly: a bool is no number. Nothing here raises.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nsmagic.firewall.text import clean_markup, clean_stream

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_NUMBER = 2**31 - 1
"""Largest number of a cell, a line or a place in text that is passed on."""

MAX_CODE = 1 << 20
"""Longest code of one cell, in characters."""

_LINE_ENDS = re.compile(r"[\t\n\r\u2028\u2029]+")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?", re.ASCII)


def mapping(value: object) -> dict[str, object]:
    """Return a JSON object; an empty one for anything else."""
    return value if type(value) is dict else {}


def items(value: object) -> list[object]:
    """Return a JSON array; an empty one for anything else."""
    return value if type(value) is list else []


def text(value: object, limit: int) -> str:
    """Return text with no more than colours in it, of at most ``limit`` characters; "" for anything else."""
    return clean_stream(value[:limit], cursor_up=False) if isinstance(value, str) else ""


def code(value: object) -> str:
    """Return source code, of at most ``MAX_CODE`` characters, without any control; "" for anything else."""
    if not isinstance(value, str):
        return ""
    return clean_markup(value[:MAX_CODE]).replace("\r\n", "\n").replace("\r", "\n")


def line(value: object, limit: int) -> str:
    """Return one line of plain text without any control or colour; "" for anything that is no text."""
    return _LINE_ENDS.sub(" ", clean_markup(value[:limit])) if isinstance(value, str) else ""


def whole(value: object, otherwise: int = 0) -> int:
    """Return a whole number from 0 to ``MAX_NUMBER``, or ``otherwise``."""
    return value if type(value) is int and 0 <= value <= MAX_NUMBER else otherwise


def count(value: object) -> int | None:
    """Return an execution count; None, which notebooks allow, for what is none."""
    return value if type(value) is int and 0 <= value <= MAX_NUMBER else None


def chosen(value: object, choices: Iterable[str], otherwise: str = "") -> str:
    """Return the one of the choices that the value is, or ``otherwise``."""
    return next((choice for choice in choices if value == choice), otherwise)


def shaped(value: object, pattern: re.Pattern[str], otherwise: str = "") -> str:
    """Return text that the pattern matches as a whole, or ``otherwise``."""
    return value if isinstance(value, str) and pattern.fullmatch(value) else otherwise


def identifier(value: object) -> str:
    """Return an id made of letters, digits and ``_.:-``, safe in any attribute; "" for anything else."""
    return shaped(value, _IDENTIFIER)


def time(value: object) -> str:
    """Return a date and time by ISO 8601; "" for anything else."""
    return shaped(value, _TIME)
