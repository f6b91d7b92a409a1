"""``%%scratch`` and ``%scratch``; thin, as the magics of ``magics`` are."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Final

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.display import display

from nsmagic import options, scratch, views
from nsmagic.errors import ScratchError, SpecError
from nsmagic.magics import NotebookSink, document
from nsmagic.result import seconds_text, size_text

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_MOST_NAME: Final = 40


@magics_class
class ScratchMagics(Magics):  # type: ignore[misc]
    """``%%scratch`` and ``%scratch``."""

    @cell_magic("scratch")  # type: ignore[untyped-decorator]
    def scratch_cell(self, line: str, cell: str) -> None:  # noqa: D102 - made from the table, below
        words = _words(line)
        if not words or not words[0].isidentifier() or len(words[0]) > _MOST_NAME:
            raise SpecError("%%scratch", "needs a name of letters, digits and _: %%scratch NAME [options]")
        given, rest = options.parse(words[1:], options.SCRATCH_SCOPES)
        if rest:
            raise SpecError(
                "%%scratch", f"takes options only behind the name, not {rest[0]!r}; see %%scratch?"
            )
        limits = {what: given[f"scratch_{what}"] for what in ("mem", "pids") if f"scratch_{what}" in given}
        process = _process(words[0], limits, best_effort=given.get("scratch_best_effort", False))
        sink = NotebookSink(self.shell)
        try:
            process.run(cell, sink, timeout=given.get("scratch_timeout", scratch.DEFAULT_TIMEOUT))
        except ScratchError:
            if process.reason:
                scratch.forget(process.name)
            raise
        finally:
            sink.finish()

    scratch_cell.__doc__ = document(
        "Run this cell in a scratch process: a second Python of yours, to try system calls in.\n\n"
        "    %%scratch NAME [options]\n\n"
        "It is not a container: the cell has your own rights on this machine.  Variables, and what the\n"
        "kernel knows of the process (namespaces, mounts, root folder), last from cell to cell.\n"
        "nsmagic.linux has the system calls.  %scratch lists what lives, %scratch stop NAME ends one.",
        options.SCRATCH_SCOPES,
    )

    @line_magic("scratch")  # type: ignore[untyped-decorator]
    def scratch_line(self, line: str) -> None:
        """List the scratch processes, or end one: ``%scratch``, ``%scratch stop NAME``."""
        match _words(line):
            case []:
                rows = _rows(scratch.all_living())
                display(
                    views.bundle(rows, head=True)
                    if len(rows) > 1
                    else views.note("no scratch process lives"),
                    raw=True,
                )
            case ["stop", name]:
                if not scratch.stop(name):
                    names = [each.name for each in scratch.all_living()]
                    raise SpecError(
                        "%scratch", f"there is no scratch process {name!r}{options.nearest(name, names)}"
                    )
            case _:
                raise SpecError(
                    "%scratch", "lists what lives; or %scratch stop NAME; or %%scratch NAME over a cell"
                )


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise SpecError("%%scratch", f"the line cannot be read: {error}") from None


def _process(name: str, limits: dict[str, int], *, best_effort: bool) -> scratch.Scratch:
    """The one that lives, or a new one, which is introduced."""
    living = scratch.find(name)
    if living is not None:
        changed = [what for what, value in limits.items() if living.asked.get(what) != value]
        if changed:
            raise SpecError(
                f"--{changed[0]}", f"{name!r} lives already, with another limit; first: %scratch stop {name}"
            )
        return living
    process, death = scratch.start(name, limits, best_effort=best_effort)
    before = f"The scratch process {name!r} before {death}; its variables are gone. " if death else ""
    display(views.note(before + process.describe()), raw=True)
    return process


def _rows(processes: list[scratch.Scratch]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("scratch", "pid", "age", "cells", "memory", "processes", "limits")]
    for process in processes:
        usage = process.usage()
        rows.append(
            (
                process.name,
                str(process.pid),
                seconds_text(time.monotonic() - process.started),
                str(process.cells),
                "unknown" if usage.memory is None else size_text(usage.memory),
                "unknown" if usage.pids is None else str(usage.pids),
                "; ".join(process.enforced.values()) or "none",
            )
        )
    return rows


def load(shell: InteractiveShell) -> None:
    """Add the magics; nothing is started."""
    shell.register_magics(ScratchMagics(shell))


def unload() -> None:
    """End what they started."""
    scratch.stop_all()
