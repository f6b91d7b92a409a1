"""A container as its owner holds it: what is known of it, seen of it and told to it from outside.

How one comes to be, takes jobs and ends is ``container``'s subject.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nsmagic import cgroups, processes
from nsmagic.account import Account
from nsmagic.cgroups import rlimits
from nsmagic.errors import HostError
from nsmagic.report import Report
from nsmagic.result import Written

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsmagic.channels import Channels
    from nsmagic.container import Container
    from nsmagic.guests import Guest
    from nsmagic.launcher.client import Launcher
    from nsmagic.outcome import Verdict
    from nsmagic.plan import Doors, Plan
    from nsmagic.report import Exit
    from nsmagic.result import Isolation
    from nsmagic.spec import ContainerSpec, Image

_DEATH_SECONDS: Final = 1.0


class Handle:
    """The owner's hold on one container.

    Args:
        number: unique in this process.
        spec: what it should be.
        plan: how it is made.
        joined: the container that it shares namespaces with.
        keep: whether it takes more than one job.

    Attributes:
        owner: the process id of the owner: a fork of it has no hold on its containers.
        held: whether it is kept under a name, with its jobs as guests in it.
        started: seconds since the epoch.
        report: what launcher, init and payload have said of it.
        group: the group that it lives in; None before it is started.
        stopping: whether somebody has stopped it.
        guests: the jobs that run in it, if it is kept under a name.
        seen: what its group had used when the last job was over, for which the next one is not blamed.
        deaths: how launchers died, of which it has to tell.
    """

    owner = 0  # nobody's until it is there: __del__ looks at this, also where something failed before

    def __init__(
        self, number: int, spec: ContainerSpec, plan: Plan, joined: Container | None, *, keep: bool
    ) -> None:
        self.number, self.spec, self.plan, self.keep = number, spec, plan, keep
        self.owner = os.getpid()
        self.held = bool(spec.name)
        self.started = time.time()
        self.report = Report()
        self.group: cgroups.Group | None = None
        self.stopping = False
        self.guests: set[Guest] = set()
        self.seen = cgroups.Usage()
        self.deaths: list[str] = []
        self._joined = joined
        self._channels: Channels | None = None
        self._launcher: Launcher | None = None
        self._ended = ""
        self._sampler: rlimits.Watchdog | None = None
        self._attached = False

    # ---- how it was made --------------------------------------------------------

    @property
    def doors(self) -> Doors | None:
        """What it was made inside of, if not of the host's own namespaces."""
        return self.plan.doors

    @property
    def kind(self) -> tuple[object, ...] | None:
        """What a blank must share with this one to become it; None if it has to be made on purpose."""
        return self.plan.kind

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The namespaces that it has of its own."""
        return self.plan.namespaces

    @property
    def offered(self) -> dict[str, int]:
        """Of a kept container: descriptors of the namespaces that it has or has joined, by kind."""
        self._take_report()
        return self.report.namespaces

    @property
    def hostname(self) -> str:
        """The name of the host in there."""
        if "uts" in self.namespaces:
            return self.spec.hostname
        return self.doors.hostname if self.doors is not None else ""

    @property
    def host_uid(self) -> int:
        """The uid on the host that its payload runs under."""
        return self.plan.identity.host_uid

    @property
    def image(self) -> Image | None:
        """Whose root file system its payload sees."""
        if self._joined is not None and "mount" in self.spec.joined:
            return self._joined.spec.image
        return self.spec.image

    def home(self) -> str:
        """The payload's home folder."""
        if self._joined is not None and "mount" in self.spec.joined:
            return self._joined.home()
        if self.plan.view is not None:
            return self.plan.view.private
        return self.plan.identity.home if "mount" in self.namespaces else os.environ.get("HOME", "/")

    def journal_lines(self) -> list[str]:
        """How it was built, so far."""
        return self.report.lines

    def account(self) -> Account:
        """Who tells of it; for the moment, see ``Account``."""
        return Account(self)

    @property
    def isolation(self) -> Isolation:
        """What is in force, as far as it is built."""
        return self.account().isolation()

    def usable(self) -> bool:
        """Whether an unused container is still good: built or being built, its launcher alive."""
        if self._channels is None or self._launcher is None or not self._launcher.alive():
            return False
        self._take_report()
        return not (self.report.failed or self.report.closed or self.report.exit)

    def await_news(self, seconds: float) -> None:
        """Wait, so long at most, for what a container that is ending has to say."""
        if self._channels is not None:
            self.report.wait_for_end(self._channels.report, seconds)

    def _take_report(self) -> None:
        if self._channels is not None:
            self.report.take(self._channels.report)

    # ---- its processes ----------------------------------------------------------

    @property
    def init_pid(self) -> int | None:
        """The host's process id of its init, once it is known."""
        self._take_report()
        return self.report.pid

    def root_pids(self) -> list[int]:
        """The host's process ids of those that all others in it descend from: the inits, its own first."""
        inits = [self.init_pid, *(guest.init_pid for guest in list(self.guests))]
        return [pid for pid in inits if pid is not None]

    @property
    def payload_pid(self) -> int | None:
        """The host's process id of what runs in it: init's only child of its own; None while there is none.

        Init itself is not in all of the namespaces: a time namespace is for its maker's children.
        """
        return processes.first_child(self.init_pid or 0) or None

    def pids(self) -> list[int]:
        """The host's process ids of what runs in it."""
        return self.group.pids() if self.group is not None else []

    def signal(self, number: int) -> None:
        """Send a signal to its payload's process group; init does it, so no pid can be mistaken.

        See killpg(3).
        """
        if self._channels is not None:
            self._channels.signal(number)

    # ---- snapshots of its payload -------------------------------------------------

    def watch_deaths(self, died: Callable[[Exit], None]) -> None:
        """Be told when its payload has died and a snapshot of it goes on (``ContainerSpec.snapshots``).

        Args:
            died: called in whichever thread hears of it.
        """
        self.report.on_death = died

    def judge_death(self, exited: Exit) -> Verdict:
        """How a payload died whose snapshot goes on; usage counts anew from there."""
        now = self.usage()
        verdict = self.account().death(exited, now)
        self.seen = now
        return verdict

    @property
    def snapshots(self) -> int:
        """How many snapshots of its payload sleep there."""
        return len(processes.snapshots_of(self.init_pid or 0))

    def end_payload(self, *, to_oldest: bool = False) -> None:
        """Kill its payload; where there is a snapshot, that goes on, the youngest of them.

        Args:
            to_oldest: end the others first, so that it is the oldest.
        """
        init = self.init_pid or 0
        for pid in processes.snapshots_of(init)[1:] if to_oldest else []:
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
                try:
                    if pid in processes.snapshots_of(init):  # it is still the one that we have a hold of
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        select.select([pidfd], [], [], _DEATH_SECONDS)  # or it may yet be chosen
                finally:
                    os.close(pidfd)
        self.signal(signal.SIGKILL)

    # ---- what it uses, and its limits ----------------------------------------------

    def usage(self) -> cgroups.Usage:
        """What it has used so far, by the kernel's count; None where nobody counts."""
        return self.group.usage() if self.group is not None else cgroups.Usage()

    @property
    def uncounted(self) -> tuple[cgroups.Missing, ...]:
        """What of its memory, processor time and processes nobody counts, and why."""
        return cgroups.uncounted(self.plan.choice.mechanism)

    def sample(self) -> cgroups.Usage:
        """What it has used so far; where nobody counts, as /proc shows its processes.  Any thread may ask."""
        used, pid = self.usage(), self.report.pid
        if pid is None or not self.uncounted:
            return used
        if self._sampler is None:
            self._sampler = rlimits.Watchdog(pid)
        return cgroups.first_of(used, self._sampler.sample())

    def set_limits(self, *, mem: int | None, swap: int, cpus: float | None, pids: int) -> None:
        """Change its limits while it runs: bytes, bytes, processors' worth of time, processes.

        Raises:
            HostError: the kernel refused one, or nothing here can change it; those before it are in force.
        """
        limits = cgroups.Limits(mem=mem, swap=swap, cpus=cpus, pids=pids, snapshots=self.spec.snapshots)
        missing = self.plan.choice.mechanism.missing(limits)
        if self.group is None or missing:
            reason, remedy = (
                (missing[0].reason, missing[0].remedy) if missing else (self._ended, "Start another.")
            )
            raise HostError("A new limit", reason, remedy)
        self.group.set_limits(limits)
        self.spec = replace(self.spec, mem=mem, swap=swap, cpus=cpus, pids=pids)

    def memory_watch(self) -> Callable[[], bool] | None:
        """Where no group limits memory: a look at it, whether it is over the limit; to be taken often."""
        group, limit = self.group, self.spec.mem
        if limit is None or group is None or not any(each.what == "mem" for each in self.plan.choice.missing):
            return None

        def passed() -> bool:
            pid = self.init_pid
            if pid is None:
                return False
            attach = getattr(group, "attach", None)
            if attach is not None and not self._attached:
                attach(pid)
                self._attached = True
            return (group.usage().memory or 0) > limit

        return passed

    # ---- its files ------------------------------------------------------------------

    def open_sockets(self) -> int | None:
        """Open the folder where its payload listens (``ContainerSpec.sockets``); the caller closes it.

        None until it is built.  What lies in it is hostile: open without following links.
        """
        self._take_report()
        if self.report.scratch is None or not self.plan.root.sockets:
            return None
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self.plan.root.sockets, flags, dir_fd=self.report.scratch)
        except OSError:  # the scratch is there before what lies in it, and the payload may close its folder
            return None

    def written(self) -> Written:
        """What it has written so far; holds its files until it is closed."""
        if self._joined is not None and "mount" in self.spec.joined:
            return self._joined.written()
        scratch = self.report.scratch
        return self._written(None if scratch is None else os.dup(scratch))

    def _take_written(self) -> Written:
        """What it has written, for a result that outlives it."""
        if "mount" in self.spec.joined:
            return self.written()
        scratch, self.report.scratch = self.report.scratch, None
        return self._written(scratch)

    def _written(self, scratch: int | None) -> Written:
        root = self.plan.root
        folders = [(folder.target, folder.scratch, folder.lower) for folder in root.writable]
        return Written(scratch, folders, root.places, root.made, root.workdir if self.spec.image else "")
