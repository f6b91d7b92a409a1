"""The lessons' pictures: one each, drawn by the lesson's module from what lives now where it can be."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from nsmagic.course import lessons
from nsmagic.course.look import Look

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsmagic.course.drawing import Picture


def draw(number: str, variables: Mapping[str, Any]) -> Picture:
    """A lesson's picture.

    Args:
        number: the lesson's.
        variables: the notebook's.

    Raises:
        SpecError: there is no such lesson.
    """
    lesson = lessons.find(number)
    module = import_module(f"nsmagic.course.lessons.{lesson.module}")
    return cast("Picture", module.picture(Look(variables)))
