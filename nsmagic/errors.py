"""The errors that nsmagic raises.

Every text says what was asked, what the kernel answered and what to do now.
This module knows no other.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsmagic.result import Step


class NsmagicError(Exception):
    """Base of every error that nsmagic raises itself."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback: one line, since our own frames say nothing to a user."""
        return [f"{type(self).__name__}: {self}"]


class SpecError(NsmagicError, ValueError):
    """What was asked for makes no sense: a size of "12Q", an unknown namespace.

    Raised before anything is started.

    Attributes:
        option: the option's name as the user wrote it, such as ``--mem``.
    """

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option}: {problem}")
        self.option = option
        self.problem = problem


class HostError(NsmagicError):
    """This host cannot enforce what was asked for; nothing was started.

    Attributes:
        feature: what was asked for, such as ``--mem``.
        reason: what the kernel or the system answered.
        remedy: what to do about it.
    """

    def __init__(self, feature: str, reason: str, remedy: str) -> None:
        super().__init__(f"{feature} cannot be enforced here: {reason}. {remedy}")
        self.feature = feature
        self.reason = reason
        self.remedy = remedy


class StartError(NsmagicError):
    """A container could not be built: one step failed.

    Attributes:
        step: the step's name, such as ``mount``.
        call: the system call with its arguments by name.
        errno: the kernel's answer, from ``errno``; 0 where no call was made.
        problem: what happened, in words.
        remedy: what to do about it, or an empty string.
        journal: the system calls up to there, the failed one among them; see ``Result.journal``.
    """

    def __init__(
        self, step: str, call: str, errno: int, text: str, remedy: str = "", journal: Sequence[Step] = ()
    ) -> None:
        super().__init__(f"the container could not be built: {text}" + (f". {remedy}" if remedy else ""))
        self.step = step
        self.call = call
        self.errno = errno
        self.problem = text
        self.remedy = remedy
        self.journal = list(journal)

    @property
    def answer(self) -> str:
        """The kernel's answer in words; see strerror(3)."""
        return os.strerror(self.errno) if self.errno else ""


class NetworkError(NsmagicError):
    """A lab network could not be made or removed, or a container could not become its member.

    The text says which network, what is in the way, and what to do.
    """

    def __init__(self, network: str, problem: str) -> None:
        super().__init__(f"network {network}: {problem}")
        self.network = network


class LauncherError(NsmagicError):
    """The launcher could not be started, or died."""


class StoppedError(NsmagicError):
    """The container has ended; it takes no more jobs."""


class ValueTransferError(NsmagicError):
    """A value could not go into or come out of a container.

    Attributes:
        name: the variable's name.
        result: how the run went, where it was run.
    """

    def __init__(self, name: str, problem: str, result: object = None) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.result = result


class ExtractionError(NsmagicError):
    """A file that a container wrote could not be taken out safely."""


class RunError(NsmagicError):
    """A job did not end well; raised by ``Result.check()`` and by the magics.

    Attributes:
        result: the whole ``Result``.
    """

    def __init__(self, message: str, result: object) -> None:
        super().__init__(message)
        self.result = result

    def _render_traceback_(self) -> list[str]:
        """The cell's own traceback, as it came from the container, or else the reason on one line."""
        failure = getattr(self.result, "failure", None)
        if failure is None:
            return [f"nsmagic: {self}"]
        lines = list(failure.traceback)
        return lines if failure.ename in str(self) else [*lines, f"nsmagic: {self}"]


class ScratchError(NsmagicError):
    """A scratch process could not be started, or died, or its cell raised something.

    Attributes:
        traceback: the cell's own, line by line; empty where the process is what failed.
    """

    def __init__(self, message: str, traceback: list[str] | None = None) -> None:
        super().__init__(message)
        self.traceback = traceback or []

    def _render_traceback_(self) -> list[str]:
        """The cell's own traceback, or else the reason on one line."""
        return [*self.traceback, *([] if str(self) in "\n".join(self.traceback) else [f"nsmagic: {self}"])]


class ExerciseError(NsmagicError):
    """An exercise of the course is not solved, or not yet; what was found stands above it.

    Attributes:
        label: the exercise's, such as ``02a``.
    """

    def __init__(self, label: str, message: str) -> None:
        super().__init__(message)
        self.label = label

    def _render_traceback_(self) -> list[str]:
        """One line: the table above it says the rest."""
        return [str(self)]
