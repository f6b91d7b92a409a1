"""The course's magics: ``%lesson``, ``%check``, ``%hint``, ``%picture``, ``%%needs``.

Thin, and nothing of the course is imported before one of them is used.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.display import display

from nsmagic.errors import ExerciseError, SpecError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


@magics_class
class CourseMagics(Magics):  # type: ignore[misc]
    """The magics that the course's notebooks use."""

    @line_magic  # type: ignore[untyped-decorator]
    def lesson(self, line: str) -> None:
        """Say whether this host has what a lesson needs, found by trying it: ``%lesson 02``."""
        from nsmagic.course import lessons, needs, showing  # noqa: PLC0415 - see the module's first lines

        wanted = lessons.find(_word("%lesson", line, "a lesson: %lesson 02"))
        found = needs.findings([*wanted.needs, *wanted.partly])
        display(showing.lesson(wanted, found), raw=True)

    @line_magic  # type: ignore[untyped-decorator]
    def check(self, line: str) -> None:
        """Look whether an exercise is solved, at the kernel's state from outside: ``%check 02a``.

        It shows what was looked at, found and expected, and raises where the exercise is not solved.
        ``%check 02a --hint`` is ``%hint 02a``.
        """
        from nsmagic.course import exercise, showing  # noqa: PLC0415 - likewise

        words = line.split()
        if "--hint" in words:
            self.hint(" ".join(word for word in words if word != "--hint"))
            return
        wanted = exercise.find(_word("%check", line, "an exercise: %check 02a"))
        verdict = exercise.check(wanted, self.shell.user_ns)
        display(showing.verdict(verdict), raw=True)
        if not verdict.passed:
            lacks = f": this host lacks {verdict.lacks}" if verdict.lacks else " yet; see above"
            raise ExerciseError(wanted.label, f"{wanted.label} is not solved{lacks}")

    @line_magic  # type: ignore[untyped-decorator]
    def hint(self, line: str) -> None:
        """Give the next hint for an exercise, each time one that says more: ``%hint 02a``."""
        from nsmagic.course import exercise, showing  # noqa: PLC0415 - likewise

        wanted = exercise.find(_word("%hint", line, "an exercise: %hint 02a"))
        number, text = exercise.next_hint(wanted)
        display(showing.hint(wanted, number, text), raw=True)

    @line_magic  # type: ignore[untyped-decorator]
    def picture(self, line: str) -> None:
        """Draw a lesson's picture, from what lives now where it can be: ``%picture 02``."""
        from nsmagic.course import pictures  # noqa: PLC0415 - likewise

        drawn = pictures.draw(_word("%picture", line, "a lesson: %picture 02"), self.shell.user_ns)
        display(drawn.bundle(), raw=True)

    @cell_magic  # type: ignore[untyped-decorator]
    def needs(self, line: str, cell: str) -> None:
        """Run the cell magic below only where this host has what it needs, and say so where it has not.

            %%needs --mem
            %%contain --mem 64M
            …

        The words are the doctor's: ``--mem``, ``"time namespace"``; see %contain_doctor.
        """
        from nsmagic.course import needs, showing  # noqa: PLC0415 - likewise

        head, _, body = cell.lstrip("\n").partition("\n")
        name, _, rest = head.removeprefix("%%").partition(" ")
        if not head.startswith("%%") or not name.isidentifier():
            raise SpecError("%%needs", "stands over another cell magic, such as %%contain, and here is none")
        missing = needs.lacks(shlex.split(line))
        if missing:
            display(showing.left_out(missing), raw=True)
        else:
            self.shell.run_cell_magic(name, rest, body)


def _word(magic: str, line: str, wanted: str) -> str:
    words = line.split()
    if len(words) != 1:
        raise SpecError(magic, f"needs {wanted}")
    return words[0]


def load(shell: InteractiveShell) -> None:
    """Add the magics."""
    shell.register_magics(CourseMagics(shell))
