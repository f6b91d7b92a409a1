"""Guests: the jobs of a kept container, each a process of its own that joins it as it is.

A guest has the container's namespaces, files, identity and limits, and streams, a report and an end of its
own.  Its init is not PID 1 in there, which changes two things.  Its end does not end what the job has left
behind, so it looks for that, ends it, and says when it has; and others in there, of the same uid, can kill
it.  A guest whose init is gone without a last word may have left anything, beyond the reach of its time
limit: then the whole container is stopped.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nsmagic import joining
from nsmagic.account import Account
from nsmagic.container import Container
from nsmagic.errors import HostError, StoppedError
from nsmagic.filesystem import Root
from nsmagic.outcome import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from nsmagic.cgroups import Group, Limits
    from nsmagic.cgroups import Usage as GroupUsage
    from nsmagic.errors import NsmagicError
    from nsmagic.job import Ending
    from nsmagic.plan import Doors
    from nsmagic.result import Isolation, Usage, Written
    from nsmagic.spec import JobSpec

_NEWS_SECONDS: Final = 0.3


class SharedGroup:
    """A container's group as a guest has it: it is joined and measured, but not ended and not removed."""

    directories: tuple[str, ...] = ()

    def __init__(self, group: Group) -> None:
        self._group = group
        self.name = group.name

    @property
    def enforced(self) -> Mapping[str, str]:
        """The container's."""
        return self._group.enforced

    def open_joins(self) -> list[int]:
        """The container's."""
        return self._group.open_joins()

    def open_directory(self) -> int | None:
        """The container's."""
        return self._group.open_directory()

    def usage(self) -> GroupUsage:
        """The container's, with all that run in it."""
        return self._group.usage()

    def pids(self) -> list[int]:
        """The container's."""
        return self._group.pids()

    def set_limits(self, limits: Limits) -> None:
        """Refuse: they are not the guest's."""
        del limits
        raise HostError("A new limit", "it would be the whole container's", "Set it there.")

    def share(self) -> None:
        """Do nothing: it is shared."""

    def kill(self) -> None:
        """Kill nobody: others live in it."""

    def exists(self) -> bool:
        """Return False: nothing of it is the guest's."""
        return False

    def remove(self) -> bool:
        """Leave that to the container."""
        return True


class Guest(Container):
    """One job in a kept container; see ``Container.guest``.

    Args:
        inside: the container.
        doors: the way into it; its descriptors become the guest's.
        first: whether the journal begins with the container's own.

    Attributes:
        inside: the container.
        first: as given.
        alone: whether no other job was in there at any time while this one was.
    """

    def __init__(self, inside: Container, doors: Doors, *, first: bool = False) -> None:
        spec = replace(inside.spec, name="")
        root = Root([], workdir=inside.plan.root.workdir)
        plan = replace(inside.plan, spec=spec, namespaces=(), root=root, doors=doors)
        super().__init__(spec, keep=False, plan=plan)
        self.inside = inside
        self.alone = True
        self.first = first

    # ---- life -----------------------------------------------------------------

    def start(self, *, blank: bool = False) -> Self:
        """Have the launcher make it; see ``Container.start``."""
        for other in list(self.inside.guests):
            other.alone = self.alone = False
        self.inside.guests.add(self)
        try:
            return super().start(blank=blank)
        except BaseException:
            self.inside.guests.discard(self)
            raise

    def _make_group(self) -> Group:
        group = self.inside.group
        if group is None:
            raise StoppedError(f"{self.inside.spec.name} is no longer there: {self.inside.ending()}")
        shared = SharedGroup(group) if group.directories else self.plan.choice.create()
        self.seen = shared.usage()
        return shared

    def _attach(self) -> None:
        """The container's network is there already: a second member of its name would be refused."""

    def _enlist(self) -> None:
        """It is no container of its own."""

    def _release(self, why: str) -> None:
        """End it, and see that nothing of it is left."""
        self.inside.guests.discard(self)
        self._end_leftovers()
        super()._release(why)

    def _end_leftovers(self) -> None:
        """Have its init end what it has left; without its word on that the container cannot go on."""
        if self._channels is None or joining.has_ended(self._channels, self.report):
            return
        self.inside.await_news(_NEWS_SECONDS)
        if not self.inside.ending() and not self.inside.stopping:
            self.inside.guests.discard(self)
            self.inside.stop_because(joining.KILLED_FROM_INSIDE)

    def _finish(self, group_usage: GroupUsage) -> None:
        """The job is over: end what it has left before anybody is told, so that its ports are free."""
        del group_usage
        self._end_leftovers()

    def _lost(self) -> NsmagicError:
        why = self.inside.ending()
        if why:
            return StoppedError(f"{self.inside.spec.name} is no longer there: {why}")
        return super()._lost()

    # ---- what it shares with the container ---------------------------------------

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The container's."""
        return self.inside.namespaces

    def home(self) -> str:
        """The container's."""
        return self.inside.home()

    def written(self) -> Written:
        """What has been written in the container so far, by whichever job."""
        return self.inside.written()

    def _take_written(self) -> Written:
        return self.inside.written()

    def account(self) -> GuestAccount:
        """Who tells of it."""
        return GuestAccount(self)


class GuestAccount(Account):
    """What is told of a guest, and what only of the container that it is in."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest)
        self._guest, self._inside = guest, guest.inside

    def isolation(self) -> Isolation:
        """The container's, with what was refused to the guest."""
        theirs = self._inside.isolation
        notes = dict.fromkeys((*theirs.notes, *super().isolation().notes))
        joined = f"{self._inside.spec.name}, as it is; the limits are those of all that runs in it"
        return replace(theirs, notes=tuple(notes), joined=joined)

    def journal(self) -> list[str]:
        """Its own; that of the first begins with the container's."""
        own = super().journal()
        return [*self._inside.journal_lines(), *own] if self._guest.first else own

    def usage(self, ending: Ending, now: GroupUsage) -> Usage:
        """Processor time is its own, as its init has counted it; the rest is the container's."""
        written = self._inside.written()
        usage = replace(super().usage(ending, now), written=written.size())
        written.close()
        if not self._inside.ending():
            self._inside.seen = now  # what this job is blamed for is not the container's own end
        told = self._guest.report.exit
        return usage if told is None else replace(usage, cpu_user=told.cpu_user, cpu_system=told.cpu_system)

    def judge(self, ending: Ending, usage: Usage, job: JobSpec) -> Verdict:
        """How it ended; with the container, where that has ended."""
        if not self._guest.alone and not self._was_killed():
            # What was refused or killed meanwhile may have been another's.
            usage = replace(usage, oom_kills=0, pids_refused=0)
        self._guest.stopping = self._guest.stopping or self._inside.stopping
        verdict = super().judge(ending, usage, job)
        why = self._inside.ending()
        if self._guest.report.exit is None and why and verdict.outcome == "signaled":
            text = f"{self._inside.spec.name} ended, and all in it: {why}"
            return Verdict("stopped", signal=verdict.signal, detail=text)
        return verdict

    def _was_killed(self) -> bool:
        told = self._guest.report.exit
        return told is None or (told.cause == "payload" and os.WIFSIGNALED(told.status))
