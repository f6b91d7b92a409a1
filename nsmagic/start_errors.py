"""Why a container could not be built: from what was reported to an error that says how to mend it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from nsmagic.errors import LauncherError, StartError
from nsmagic.host import remedy_for
from nsmagic.result import Step, read_journal

if TYPE_CHECKING:
    from nsmagic.cgroups import Usage
    from nsmagic.launcher.client import Launcher
    from nsmagic.report import Report

_REFUSALS: Final = (errno.EPERM, errno.EACCES, errno.ENOSYS)
_OF_NAMESPACES: Final = (errno.ENOSPC, errno.EINVAL)
_CONTAINERS_STEPS: Final = ("clone", "userns", "cgroup", "uts", "net", "time", "mount", "sources")
_BEST_EFFORT: Final = "Or accept what can be had without containers, by --best-effort."


def reported(report: Report, *, best_effort: bool) -> StartError:
    """What launcher, init or payload could not do, by their own report.

    Args:
        report: theirs.
        best_effort: whether less was accepted already, and so is no remedy.
    """
    # Others may have been refused what they went on without, so it is not just the last that was refused.
    failed = [step for step in read_journal([report.failure]) if step.errno] or report.refused
    if not failed:
        return StartError("spawn", "", 0, "it was not ready in time, and nobody said why")
    step = failed[-1]
    text = f"step {step.step!r}, {step.call}: {step.failure} (errno {step.errno})"
    journal = read_journal(report.lines)
    remedy = remedy_for(step, journal)
    if not best_effort and _is_the_hosts(step):
        remedy = f"{remedy.rstrip('.')}. {_BEST_EFFORT}"
    return StartError(step.step, step.call, step.errno, text, remedy, journal)


def owners(step: str, call: str, error: OSError, remedy: str = "") -> StartError:
    """What the owner itself could not do, before it asked the launcher for anything."""
    number = error.errno or 0
    text = f"step {step!r}, {call}: {error.strerror} (errno {number})"
    return StartError(step, call, number, text, remedy or remedy_for(Step(step, call, -1, number, 0.0, 0.0)))


def lost(usage: Usage, launcher: Launcher | None) -> StartError | LauncherError:
    """It ended before it took its job: the launcher died, or memory did not suffice to begin."""
    if usage.oom_kills:
        return StartError(
            "payload", "", 0, "it ran out of memory before its job began", "Give it more with --mem"
        )
    if launcher is not None and not launcher.alive():
        return launchers(launcher)
    return StartError("payload", "", 0, "its processes ended before its job began")


def launchers(launcher: Launcher) -> LauncherError:
    """The launcher's own death, and its last words."""
    return LauncherError(f"the launcher {launcher.how_it_died()}. {launcher.log()}")


def _is_the_hosts(step: Step) -> bool:
    """Whether the host refused to make a container; else what was asked for is no good."""
    if step.step not in _CONTAINERS_STEPS:
        return False
    if step.step == "sources" and step.errno == errno.EACCES:
        return False  # a folder that the user may not reach
    name = step.call.partition("(")[0]
    return step.errno in _REFUSALS or (
        step.errno in _OF_NAMESPACES
        and name in {"clone", "clone3", "unshare", "open_tree"}
        and (step.step, step.errno) != ("sources", errno.EINVAL)  # a folder with mounts below
    )
