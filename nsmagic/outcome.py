"""From what was seen to what is said: how a job ended, and why, in words.

Out of memory is read from the kernel's own count of kills, never guessed from signal 9.  Pure: no I/O.
"""

from __future__ import annotations

import errno
import os
import signal as signals
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nsmagic.result import ending_text, seconds_text, size_text

if TYPE_CHECKING:
    from nsmagic.job import Ending
    from nsmagic.report import Exit
    from nsmagic.result import Outcome, Usage
    from nsmagic.spec import ContainerSpec, JobSpec

_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126


@dataclass(frozen=True)
class Verdict:
    """How a job ended; see ``Result``."""

    outcome: Outcome
    exit_status: int | None = None
    signal: int | None = None
    detail: str = ""


def judge(
    ending: Ending, exited: Exit | None, usage: Usage, spec: ContainerSpec, job: JobSpec, *, stopping: bool
) -> Verdict:
    """Say how a job ended.

    Args:
        ending: how the owner's loop ended.
        exited: init's last word, if it came.
        usage: what the kernel counted.
        spec: the container's limits, for the words.
        job: the job's limits, for the words.
        stopping: whether somebody stopped the container meanwhile.
    """
    if ending.why == "output-limit":
        return Verdict(
            "output-limit",
            detail=f"stopped at the output limit: it printed more than {size_text(job.output_limit)} "
            "(give more with --output-limit SIZE, or go on without the rest with --output-limit SIZE:drop)",
        )
    if ending.why == "deadline" or (exited is not None and exited.cause == "deadline"):
        limit = seconds_text(job.timeout or 0.0)
        refused = f"; {_refused(usage, spec)}" if usage.pids_refused else ""
        return Verdict("timeout", detail=f"time limit: it ran longer than {limit} (--timeout){refused}")
    own = _own_end(ending, exited)
    if own.outcome == "exited" and own.exit_status == 0:
        return own
    verdict = _blame(ending, own, usage, spec, stopping=stopping)
    if verdict is own and exited is not None and exited.full:
        # Nobody counts what RLIMIT_NPROC refuses; that there was no room left is all that can be known.
        detail = f"pids limit: when it ended it had all of its {spec.pids} processes and threads (--pids)"
        return Verdict("pids-limit", own.exit_status, own.signal, detail)
    return verdict


def _blame(ending: Ending, own: Verdict, usage: Usage, spec: ContainerSpec, *, stopping: bool) -> Verdict:
    """What made it fail, if it was not the job itself."""
    if usage.oom_kills or ending.why == "memory":
        return Verdict("out-of-memory", signal=own.signal, detail=_memory(usage, spec))
    if ending.why == "bad-frame":
        return Verdict("stopped", detail=f"stopped, because it sent {ending.bad_frame}")
    if stopping and ending.why == "exited":
        return Verdict("stopped", detail="stopped by its owner")
    if usage.pids_refused:
        return Verdict("pids-limit", own.exit_status, own.signal, f"pids limit: {_refused(usage, spec)}")
    if ending.bad_frame:
        return Verdict(own.outcome, own.exit_status, own.signal, f"{_words(own)}; it sent {ending.bad_frame}")
    return own


def _own_end(ending: Ending, exited: Exit | None) -> Verdict:
    """As the job's own process ended."""
    if ending.no_program is not None:
        status = _NOT_FOUND if ending.no_program in {errno.ENOENT, errno.ENOTDIR} else _NOT_EXECUTABLE
        return Verdict(
            "exited", status, detail=f"the program could not be run: {os.strerror(ending.no_program)}"
        )
    if ending.why == "kept" and ending.status is not None:
        verdict = _from_status(ending.status)
        failed = verdict.exit_status == 1 and ending.failure is not None
        return Verdict("exited", 1, detail=_failure(ending)) if failed else verdict
    if ending.why == "done" and ending.done is not None:
        status = ending.done.exit_status & 0xFF
        return Verdict("exited", status, detail=_failure(ending))
    if exited is not None and exited.cause == "payload":
        verdict = _from_status(exited.status)
        if verdict.exit_status == 1 and ending.failure is not None:
            return Verdict("exited", 1, detail=_failure(ending))
        return verdict
    # Init itself is gone, and nothing inside can end it but the kernel.
    return Verdict("signaled", signal=int(signals.SIGKILL))


def _from_status(status: int) -> Verdict:
    code = os.waitstatus_to_exitcode(status)
    verdict = Verdict("exited", code) if code >= 0 else Verdict("signaled", signal=-code)
    return Verdict(verdict.outcome, verdict.exit_status, verdict.signal, _words(verdict) if code else "")


def _words(verdict: Verdict) -> str:
    return verdict.detail or ending_text(verdict.outcome, verdict.exit_status, verdict.signal)


def _failure(ending: Ending) -> str:
    if ending.failure is None:
        status = ending.done.exit_status if ending.done is not None else 1
        return f"exit status {status}" if status else ""
    ename, evalue, _ = ending.failure
    lines = evalue.splitlines()
    return f"{ename}: {lines[0]}" if lines else ename


def _memory(usage: Usage, spec: ContainerSpec) -> str:
    limit = (
        f"its limit of {size_text(spec.mem)} (--mem)" if spec.mem else "the memory of its owner's own group"
    )
    peak = f"; its peak was {size_text(usage.memory_peak)}" if usage.memory_peak is not None else ""
    return f"out of memory: it needed more than {limit}{peak}"


def _refused(usage: Usage, spec: ContainerSpec) -> str:
    times = "once" if usage.pids_refused == 1 else f"{usage.pids_refused} times"
    return f"a new process or thread was refused {times} at {spec.pids} (--pids)"
