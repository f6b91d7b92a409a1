"""``%isolation``: what is in force, and how to change it, answered by the supervisor from outside.

    %isolation                      what is in force, use against the limits, files changed
    %isolation --mem 2G --pids 500  change limits of the running kernel
    %isolation save PATH…           copy changed files to the host, to where they would lie there
    %isolation discard              forget all changed files: the kernel starts afresh
    %isolation undo                 back to before the last cell; stands alone in its cell
    %isolation restart              start afresh

A cell that holds such lines and nothing else never reaches the container.  Nothing that the container prints
or sends comes here: only code that a client signed.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from nsmagic import options, views
from nsmagic.errors import ExtractionError, HostError, NsmagicError, SpecError

if TYPE_CHECKING:
    from nsmagic.changes import Change
    from nsmagic.container import Container
    from nsmagic.kernel.settings import Settings
    from nsmagic.result import Result, Written

_LINE: Final = re.compile(r"%isolation(?:[ \t]+(.*))?")
_MOST_LINES: Final = 20
_LIMITS: Final = ("mem", "swap", "cpus", "pids")
_WORDS: Final = ("save", "discard", "restart", "undo")

Bundle = dict[str, str]


class Owner(Protocol):
    """What of the succession of inner kernels is needed here."""

    settings: Settings
    left: LeftFiles

    @property
    def container(self) -> Container | None:
        """The inner kernel's container."""

    def restart(self) -> None:
        """Start afresh."""

    def state_text(self) -> str:
        """Whether variables survive a cell that dies, and why not."""

    def keep_limits(self, limits: dict[str, Any]) -> None:
        """Give them to the containers that follow, too."""


class LeftFiles:
    """The files of the last inner kernel that died: they may still be saved."""

    def __init__(self) -> None:
        self.written: Written | None = None

    def keep(self, result: Result) -> None:
        """Hold them, in place of those of the one before."""
        self.close()
        self.written = result.written

    def close(self) -> None:
        """Let them go."""
        if self.written is not None:
            self.written.close()
            self.written = None


def commands(code: str) -> list[list[str]] | None:
    """The words of each ``%isolation`` line; None where the cell holds anything else."""
    lines = [line.strip() for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    if not lines or len(lines) > _MOST_LINES:
        return None
    found = []
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        try:
            found.append(shlex.split(match[1] or "", comments=True))
        except ValueError:  # a quote without its end: the words as they are will be refused by name
            found.append((match[1] or "").split())
    return found


def run(owner: Owner, words: list[str]) -> Bundle:
    """Do what one line says; gives what to show.

    Raises:
        NsmagicError: it makes no sense, or cannot be done.
    """
    container = owner.container
    if container is None:
        raise HostError(
            "%isolation", "there is no container", "Run %isolation restart, or restart the kernel."
        )
    if not words:
        return _show(owner, container)
    if words[0] == "save":
        return _save(owner, container, words[1:])
    if words[0] in {"discard", "restart"}:
        if len(words) > 1:
            raise SpecError(f"%isolation {words[0]}", f"takes nothing behind it, not {words[1][:40]!r}")
        mine, _ = _own_and_other(container.isolation.workdir, _changes(container))
        count = len(mine)
        owner.restart()
        files = (
            f"{count} changed {'file was' if count == 1 else 'files were'} discarded"
            if count
            else "no file had changed"
        )
        return views.note(f"The kernel has started afresh: all variables are gone, and {files}.")
    if words[0] == "undo":
        raise SpecError("%isolation undo", "stands alone in its cell, and takes nothing behind it")
    if words[0].startswith("-"):
        return _limit(owner, container, words)
    near = options.nearest(words[0], _WORDS)
    raise SpecError(f"%isolation {words[0][:40]}", f"there is no such command{near}")


def _show(owner: Owner, container: Container) -> Bundle:
    used = container.usage()
    spec = container.spec
    written = container.written()
    try:
        changes = list(written.changes())
        size = written.size()
    finally:
        written.close()
    bars = [
        views.Bar("memory", used.memory, spec.mem, "size", used.memory_peak),
        views.Bar("processes", used.pids, spec.pids, "count", used.pids_peak),
        views.Bar("files written", size, spec.disk, "size"),
    ]
    rows = views.isolation_rows(container.isolation)
    if used.cpu_user is not None and used.cpu_system is not None:
        rows.insert(0, ("CPU so far", views.cpu_text(used.cpu_user, used.cpu_system)))
    if owner.settings.cell_timeout is not None:
        rows.append(("cell limit", f"{owner.settings.cell_timeout:g} s for each cell (--cell-timeout)"))
    rows.append(("state", owner.state_text()))
    mine, others = _own_and_other(container.isolation.workdir, changes)
    rows += views.change_rows(mine)
    if others:
        rows.append(("elsewhere", f"{len(others)} files in /tmp and the container's own home folder"))
    if owner.left.written is not None:
        rows.append(
            ("left", "files of the kernel that died are kept aside; %isolation save PATH finds them too")
        )
    return views.isolation_bundle(bars, rows)


def _limit(owner: Owner, container: Container, words: list[str]) -> Bundle:
    given, rest = options.parse(words, ("container",))
    if rest:
        raise SpecError(rest[0][:40], "stands where an option is expected")
    for name in given:
        if name not in _LIMITS:
            flag = options.BY_NAME[name].flag
            raise SpecError(
                flag,
                "cannot be changed while the kernel runs; make a kernel spec with it: nsmagic kernel install",
            )
    spec = container.spec
    limits: dict[str, Any] = {name: given.get(name, getattr(spec, name)) for name in _LIMITS}
    container.set_limits(**limits)
    owner.keep_limits(limits)
    enforced = container.isolation.limits
    return views.bundle([(name, enforced.get(name, "not limited")) for name in given])


def _changes(container: Container) -> list[Change]:
    written = container.written()
    try:
        return list(written.changes())
    finally:
        written.close()


def _own_and_other(workdir: str, changes: list[Change]) -> tuple[list[Change], list[Change]]:
    """Changes in the notebook's folder, and elsewhere: the kernel itself keeps files in its home folder."""
    here = workdir.rstrip("/") + "/"
    return (
        [change for change in changes if change.path.startswith(here)],
        [change for change in changes if not change.path.startswith(here)],
    )


def _save(owner: Owner, container: Container, words: list[str]) -> Bundle:
    """Copy files out to where they would lie on the host; what was there is replaced, as was asked for."""
    if not words:
        raise SpecError(
            "%isolation save", "needs the files or folders to save; %isolation lists what has changed"
        )
    workdir = container.isolation.workdir
    written = container.written()
    rows: list[tuple[str, ...]] = []
    try:
        places = [written] if owner.left.written is None else [written, owner.left.written]
        for word in words:
            path = os.path.normpath(Path(workdir, word))
            rows += _save_one(places, path, workdir)
    finally:
        written.close()
    return views.bundle(rows)


def _save_one(places: list[Written], path: str, workdir: str) -> list[tuple[str, ...]]:
    for files in places:
        changed = [
            change
            for change in files.changes()
            if change.kind != "deleted"
            and change.type == "file"
            and (change.path == path or change.path.startswith(path.rstrip("/") + "/"))
        ]
        if changed:
            break
    else:
        raise ExtractionError(
            f"{views.path_text(path)}: the notebook did not write it; %isolation lists what has changed"
        )
    rows: list[tuple[str, ...]] = []
    for change in changed:
        if not change.path.startswith(workdir.rstrip("/") + "/"):
            raise ExtractionError(
                f"{views.path_text(change.path)}: lies outside of {workdir}, where no folder of the host is; "
                "copy it into the notebook's folder first"
            )
        rows.append(_copy_out(files, change))
    return rows


def _copy_out(files: Written, change: Change) -> tuple[str, ...]:
    target = Path(change.path)
    try:
        if os.path.realpath(target.parent) != str(target.parent):
            raise ExtractionError("its folder is a link on the host")
        target.parent.mkdir(parents=True, exist_ok=True)
        report = files.save(change.path, target, overwrite=True)
    except (NsmagicError, OSError) as error:
        return "NOT saved", views.path_text(change.path), str(error)
    return "saved", views.path_text(change.path), "; ".join(str(note) for note in report.skipped)
