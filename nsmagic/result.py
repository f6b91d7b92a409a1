"""What is known after a run: output, how it ended, what it used, what was in force, what was written."""

from __future__ import annotations

import contextlib
import os
import signal as signals
import threading
import weakref
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from nsmagic.changes import ChangeList, Layer, list_changes
from nsmagic.errors import ExtractionError, RunError
from nsmagic.extraction import save

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nsmagic.extraction import SaveReport
    from nsmagic.firewall import Filtered

Outcome = Literal["exited", "signaled", "out-of-memory", "timeout", "pids-limit", "output-limit", "stopped"]

_KIB: Final = 1024
_SECOND: Final = 1.0
_MINUTE: Final = 60.0


def size_text(count: int) -> str:
    """Bytes as people write them: ``128 MiB``."""
    value, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= _KIB and len(units) > 1:
        value, units = value / _KIB, units[1:]
    return f"{value:.4g} {units[0]}"


def seconds_text(seconds: float) -> str:
    """Seconds as people write them: ``1.52 s``, ``31 ms``, ``2 min 5 s``."""
    if seconds < _SECOND:
        return f"{seconds * 1000:.3g} ms"
    if seconds < _MINUTE:
        return f"{seconds:.3g} s"
    return f"{int(seconds // _MINUTE)} min {int(seconds % _MINUTE)} s"


class Step(NamedTuple):
    """One line of the journal: a system call that built the container.

    Attributes:
        step: the subject: ``userns``, ``mount`` …
        call: the call with its arguments by name.
        result: what it returned.
        errno: 0, or why it failed.
        began: seconds since the epoch.
        took: seconds.
        who: made it: ``launcher``, ``joiner``, ``init`` or ``payload``.
    """

    step: str
    call: str
    result: int
    errno: int
    began: float
    took: float
    who: str = ""

    @property
    def failure(self) -> str:
        """The errno in words, or an empty string."""
        return os.strerror(self.errno) if self.errno else ""


def read_journal(lines: Iterable[str]) -> list[Step]:
    """Journal lines (see journal.c) as steps; one that cannot be read tells nothing."""
    steps = []
    for line in lines:
        with contextlib.suppress(ValueError):
            step, call, result, errno, began, took, who = line.split("\t")
            steps.append(Step(step, call, int(result), int(errno), int(began) / 1e9, int(took) / 1e9, who))
    return steps


@dataclass(frozen=True)
class Usage:
    """What a job used.  None means unknown, which is not 0.

    Attributes:
        wall: seconds from the job's start to its end.
        cpu_user: seconds of processor time in programs.
        cpu_system: seconds of processor time in the kernel.
        memory_peak: bytes; pages shared with the launcher are not in it.
        pids_peak: processes and threads at once, the container's init among them.
        written: bytes in the container's writable files at the end.
        oom_kills: processes that the kernel killed for memory.
        pids_refused: how often a new process or thread was refused.
    """

    wall: float
    cpu_user: float | None = None
    cpu_system: float | None = None
    memory_peak: int | None = None
    pids_peak: int | None = None
    written: int | None = None
    oom_kills: int | None = None
    pids_refused: int | None = None


@dataclass(frozen=True)
class Isolation:
    """The isolation that was in force.

    Attributes:
        namespaces: those that the container had of its own.
        added: those of them that were not asked for, but needed to make the others.
        limits: what is enforced, by what: ``{"mem": "cgroup v2 memory.max = 134217728"}``.
        missing: what was asked for and was not enforced, and why; only under ``--best-effort``.
        network: ``none`` or ``host``, or whose it is that is shared.
        user: the payload's uid inside.
        host_user: the same uid on the host.
        workdir: the working directory inside.
        image: whose root file system it has; empty for the host's programs.
        notes: what else one should know.
        joined: what it shared with a container that is kept; empty for nothing.
    """

    namespaces: tuple[str, ...]
    added: tuple[str, ...]
    limits: Mapping[str, str]
    missing: Mapping[str, str]
    network: str
    user: int
    host_user: int
    workdir: str
    capabilities: str = "none"
    system_calls: str = "deny-list"
    image: str = ""
    notes: tuple[str, ...] = ()
    joined: str = ""


@dataclass(frozen=True)
class Failure:
    """The exception that a cell ended with, as text from the container, cleaned.

    Attributes:
        ename: the exception's class.
        evalue: its text.
        traceback: lines, with colours.
    """

    ename: str
    evalue: str
    traceback: Sequence[str]


class Written:
    """What a container wrote, for as long as somebody may ask.

    It keeps the descriptor of the container's scratch file system, and so the files, until it is closed or
    forgotten.
    """

    def __init__(
        self,
        scratch: int | None,
        folders: Sequence[tuple[str, str, str | tuple[str, ...] | None]],
        mounts: Sequence[str] = (),
        made: Sequence[str] = (),
        workdir: str = "",
    ) -> None:
        self._lock = threading.Lock()
        self._mounts = list(mounts)
        self._made = list(made)
        self._workdir = workdir
        self._scratch = scratch
        self._folders = list(folders)
        self._close = weakref.finalize(self, os.close, scratch) if scratch is not None else None

    def layers(self) -> list[Layer]:
        """The writable folders, each with a descriptor that the caller closes."""
        layers: list[Layer] = []
        if self._scratch is None:
            return layers
        for target, place, lower in self._folders:
            try:
                upper = os.open(
                    place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._scratch
                )
            except OSError:
                continue
            layers.append(Layer(target, lower, upper))
        return layers

    def changes(self) -> ChangeList:
        """The list of what differs from the host's folders."""
        with self._lock:
            layers = self.layers()
            try:
                return list_changes(layers, ignore=self._mounts, passed=self._made)
            finally:
                _close_all(layers)

    def save(self, path: str, to: str | os.PathLike[str], *, overwrite: bool) -> SaveReport:
        """Copy one file or folder out."""
        with self._lock:
            layers = self.layers()
            if not layers:
                raise ExtractionError(f"{path}: this container had no files of its own, or they are closed")
            try:
                whole = path if path.startswith("/") or not self._workdir else f"{self._workdir}/{path}"
                return save(layers, whole, to, overwrite=overwrite)
            finally:
                _close_all(layers)

    def size(self) -> int | None:
        """Bytes in all of them together; None where the container had no file system of its own."""
        with self._lock:
            return None if self._scratch is None else written_bytes(self._scratch)

    def close(self) -> None:
        """Let the files go."""
        with self._lock:
            self._scratch = None
            if self._close is not None:
                self._close()


def written_bytes(scratch: int) -> int:
    """Bytes that a container wrote, from a descriptor of its scratch file system; see statvfs(3)."""
    status = os.fstatvfs(scratch)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _close_all(layers: Sequence[Layer]) -> None:
    for layer in layers:
        os.close(layer.upper_fd)


@dataclass
class Result:
    """How a job went.

    Attributes:
        outcome: ``exited``, ``signaled``, ``out-of-memory``, ``timeout``, ``pids-limit``, ``output-limit`` or
            ``stopped``.
        exit_status: 0 to 255, or None where it was killed.
        signal: the signal that killed it, or None.
        stdout_bytes: its standard output.
        stderr_bytes: its standard error.
        usage: what it used.
        isolation: what was in force.
        outputs: rich output, filtered, in order.
        values: what was taken out, by name.
        failure: the exception that a cell ended with.
        journal_lines: the system calls that built the container, as they were written down.
        detail: why it ended so, in words; empty after a plain exit 0.
        printed: how many bytes each stream had, kept here or passed on as they came.
        dropped: bytes of output that the output limit let fall.
    """

    outcome: Outcome
    exit_status: int | None
    signal: int | None
    usage: Usage
    isolation: Isolation
    stdout_bytes: bytes = field(default=b"", repr=False)
    stderr_bytes: bytes = field(default=b"", repr=False)
    outputs: list[Filtered] = field(default_factory=list, repr=False)
    values: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = field(default=None, repr=False)
    journal_lines: list[str] = field(default_factory=list, repr=False)
    detail: str = ""
    printed: dict[str, int] = field(default_factory=dict, repr=False)
    dropped: int = 0
    written: Written = field(default_factory=lambda: Written(None, ()), repr=False, compare=False)
    _changes: ChangeList | None = field(default=None, repr=False, compare=False)

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 are replaced."""
        return self.stderr_bytes.decode(errors="replace")

    @cached_property
    def journal(self) -> list[Step]:
        """The system calls that built the container."""
        return read_journal(self.journal_lines)

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.outcome == "exited" and self.exit_status == 0

    @property
    def changes(self) -> ChangeList:
        """What the job wrote: files added, modified, deleted.  Of a container that runs on: so far."""
        if self._changes is None:
            self._changes = self.written.changes()
        return self._changes

    def save(self, path: str, to: str | os.PathLike[str], *, overwrite: bool = False) -> SaveReport:
        """Take a file or folder that the job wrote out of the container.

        Args:
            path: as in the container, absolute or relative to its working directory.
            to: the new file or folder on the host; its parent must be there.
            overwrite: replace an existing file.

        Raises:
            ExtractionError: it is not there, was not written by the job, is a link, or is too large.
        """
        return self.written.save(path, to, overwrite=overwrite)

    def check(self) -> Result:
        """The result itself if the job ended well.

        Raises:
            RunError: it did not; the text says how it ended.
        """
        if not self.ok:
            raise RunError(self.describe(), self)
        return self

    def describe(self) -> str:
        """How it ended, on one line."""
        if self.detail:
            return self.detail
        return ending_text(self.outcome, self.exit_status, self.signal)

    def close(self) -> None:
        """Let the container's files go; ``changes`` and ``save`` work no more."""
        self.written.close()

    def report(self) -> dict[str, Any]:
        """Everything but the output itself as data for JSON."""
        usage, isolation = vars(self.usage), vars(self.isolation)
        return {
            "outcome": self.outcome,
            "exit_status": self.exit_status,
            "signal": self.signal,
            "detail": self.describe(),
            "usage": dict(usage),
            "isolation": {
                **isolation,
                "limits": dict(self.isolation.limits),
                "missing": dict(self.isolation.missing),
            },
            "changes": [vars(change) for change in self.changes],
            "changes_truncated": self.changes.truncated,
            "stdout_bytes": self.printed.get("stdout", 0),
            "stderr_bytes": self.printed.get("stderr", 0),
            "dropped_bytes": self.dropped,
            "journal": [step._asdict() for step in self.journal],
        }


def ending_text(outcome: Outcome, exit_status: int | None, signal: int | None) -> str:
    """An ending in words, as far as the outcome alone tells it."""
    if outcome == "signaled" and signal is not None:
        try:
            name = signals.Signals(signal).name
        except ValueError:
            name = "unknown"
        return f"killed by signal {signal} ({name})"
    if outcome == "exited":
        return f"exit status {exit_status}"
    return outcome.replace("-", " ")
