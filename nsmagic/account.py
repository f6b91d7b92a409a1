"""What is told of a container and of a job's end: what was used, what was in force, how it ended and why.

An account is made when somebody asks and is dropped again, so that it keeps no forgotten container alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nsmagic.job import Ending
from nsmagic.outcome import judge
from nsmagic.result import Failure, Isolation, Result, Usage, size_text, written_bytes
from nsmagic.spec import JobSpec

if TYPE_CHECKING:
    from nsmagic import cgroups
    from nsmagic.handle import Handle
    from nsmagic.outcome import Verdict
    from nsmagic.report import Exit
    from nsmagic.sinks import Collector

_SMALL_PROC: Final = (
    "/proc holds a few files about the machine and no processes, since the host gives no fresh one ({})"
)


class Account:
    """What is told of one container.

    Args:
        handle: the container.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    # ---- a job's end ---------------------------------------------------------------

    def result(self, job: JobSpec, ending: Ending, collector: Collector, now: cgroups.Usage) -> Result:
        """All that is known of a job that is over, but for what was written and values taken out.

        Args:
            job: what was run.
            ending: how the owner's loop ended.
            collector: what was kept of its output.
            now: what the container's group has used.
        """
        usage = self.usage(ending, now)
        verdict = self.judge(ending, usage, job)
        return Result(
            outcome=verdict.outcome,
            exit_status=verdict.exit_status,
            signal=verdict.signal,
            usage=usage,
            isolation=self.isolation(),
            stdout_bytes=collector.streams["stdout"].getvalue(),
            stderr_bytes=collector.streams["stderr"].getvalue(),
            outputs=collector.outputs,
            failure=Failure(*ending.failure) if ending.failure else None,
            journal_lines=self.journal(),
            detail=verdict.detail,
            printed=ending.printed,
            dropped=ending.dropped,
        )

    def usage(self, ending: Ending, now: cgroups.Usage) -> Usage:
        """What a job has used: by the group's count since the last one, else by init's."""
        before, report = self._handle.seen, self._handle.report
        exited = report.exit
        user, system, peak = (
            _since(now.cpu_user, before.cpu_user),
            _since(now.cpu_system, before.cpu_system),
            now.memory_peak,
        )
        if user is None and exited is not None:
            user, system, peak = exited.cpu_user, exited.cpu_system, peak or exited.memory_peak
        return Usage(
            wall=ending.wall,
            cpu_user=user,
            cpu_system=system,
            memory_peak=peak,
            pids_peak=now.pids_peak,
            written=None if report.scratch is None else written_bytes(report.scratch),
            oom_kills=_since_count(now.oom_kills, before.oom_kills),
            pids_refused=_since_count(now.pids_refused, before.pids_refused),
        )

    def judge(self, ending: Ending, usage: Usage, job: JobSpec) -> Verdict:
        """How a job ended, and why."""
        handle = self._handle
        return judge(ending, handle.report.exit, usage, handle.spec, job, stopping=handle.stopping)

    def journal(self) -> list[str]:
        """How what the job ran in was built."""
        return self._handle.report.lines

    # ---- other ends ------------------------------------------------------------------

    def death(self, exited: Exit, now: cgroups.Usage) -> Verdict:
        """How a payload died whose snapshot goes on."""
        ending = Ending("exited", 0.0)
        usage = self.usage(ending, now)
        return judge(ending, exited, usage, self._handle.spec, JobSpec("kernel"), stopping=False)

    def own_end(self) -> str:
        """Why a container that is kept has ended, if nobody stopped it."""
        handle = self._handle
        if handle.stopping:
            return "it was stopped"
        if _since_count(handle.usage().oom_kills, handle.seen.oom_kills):
            limit = (
                f"its limit of {size_text(handle.spec.mem)} (--mem)"
                if handle.spec.mem
                else "what its owner may have"
            )
            return f"it ran out of memory: it needed more than {limit}"
        return "its first process, PID 1, was killed"

    # ---- what was in force -----------------------------------------------------------

    def isolation(self) -> Isolation:
        """What is in force, as far as it is built."""
        handle = self._handle
        plan, group, spec = handle.plan, handle.group, handle.spec
        limits = {**(group.enforced if group else {}), **plan.choice.enforced}
        if "mount" in plan.namespaces:
            limits["disk"] = f"tmpfs size = {spec.disk}"
        joined = spec.join.name if spec.join is not None else ""
        return Isolation(
            namespaces=plan.namespaces,
            added=plan.added,
            limits=limits,
            missing={**plan.missing, **{each.what: each.reason for each in plan.choice.missing}},
            network=spec.net if "net" not in spec.joined else f"that of {joined}",
            joined=spec.joined_text,
            user=plan.identity.uid,
            host_user=plan.identity.host_uid,
            workdir=plan.root.workdir,
            image=image.name if (image := handle.image) else "",
            system_calls="deny-list" if plan.view is None else "deny-list, longer for want of namespaces",
            notes=tuple(self._notes()),
        )

    def _notes(self) -> list[str]:
        """What else one should know: what was refused and done another way."""
        notes = list(self._handle.plan.root.notes)
        for step in self._handle.report.refused:
            if step.call.startswith('fsmount("proc"'):
                notes.append(_SMALL_PROC.format(step.failure))
            if step.call.startswith("sethostname("):
                notes.append(f"the host name is the surroundings' ({step.call}: {step.failure})")
            if "MOUNT_ATTR_IDMAP" in step.call:
                path = step.call.split('"')[1]
                notes.append(
                    f"{path}: files of its owner are not writable inside ({step.failure}: its file system)"
                )
        return notes + [f"the launcher {death}; it was started again" for death in self._handle.deaths]


def _since(now: float | None, before: float | None) -> float | None:
    return None if now is None else now - (before or 0.0)


def _since_count(now: int | None, before: int | None) -> int | None:
    return None if now is None else now - (before or 0)
