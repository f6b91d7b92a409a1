"""Container: start, feed, stream, wait, stop.  Every run goes through here, whoever asked for it."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import pickle
import select
import shutil
import signal
import sys
import threading
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from nsmagic import (
    cgroups,
    channels,
    confinement,
    effort,
    firewall,
    intake,
    joining,
    names,
    processes,
    values,
)
from nsmagic.cgroups import rlimits
from nsmagic.errors import (
    HostError,
    LauncherError,
    NsmagicError,
    SpecError,
    StartError,
    StoppedError,
    ValueTransferError,
)
from nsmagic.host import remedy_for
from nsmagic.job import Ending, Run
from nsmagic.launcher import client, frames
from nsmagic.outcome import judge
from nsmagic.plan import make_plan, require_linux
from nsmagic.report import Report
from nsmagic.result import (
    Failure,
    Isolation,
    Result,
    Step,
    Usage,
    Written,
    read_journal,
    size_text,
    written_bytes,
)
from nsmagic.sinks import Collector, observed
from nsmagic.spec import NETWORKS, JobSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from nsmagic.attachment import Attachment
    from nsmagic.guests import Guest
    from nsmagic.intake import ContainerOptions, JobOptions
    from nsmagic.outcome import Verdict
    from nsmagic.plan import Doors, Plan, Reach
    from nsmagic.report import Exit
    from nsmagic.sinks import Observer, Sink
    from nsmagic.spec import ContainerSpec, Image

_numbers = itertools.count(1)
_END_SECONDS: Final = 1.0
_TOLD_SECONDS: Final = 5.0
"""For init to end all others and tell what they used: nothing inside can hold that up, a slow machine can."""
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_IMAGE_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BUILD_SECONDS: Final = 60.0
_REFUSALS: Final = (errno.EPERM, errno.EACCES, errno.ENOSYS)
_OF_NAMESPACES: Final = (errno.ENOSPC, errno.EINVAL)
_CONTAINERS_STEPS: Final = ("clone", "userns", "cgroup", "uts", "net", "time", "mount", "sources")
_BEST_EFFORT: Final = "Or accept what can be had without containers, by --best-effort."
_SMALL_PROC: Final = (
    "/proc holds a few files about the machine and no processes, since the host gives no fresh one ({})"
)
_KEPT_ENVIRONMENT: Final = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")

live: weakref.WeakValueDictionary[int, Container] = weakref.WeakValueDictionary()
"""The containers that have a job or are kept open, by number."""


class Container:
    """A container: it is built by ``start``, takes jobs by ``run``, and is gone after ``stop``.

    Use it in a ``with`` statement to run several jobs in one container: they share files and limits, one
    after the other; variables are not shared.  One that has a name (``name="web"``) takes any number of jobs
    at once, and others may join it by that name until it is stopped.

    Args:
        spec: what it should be, ready-made; else it is made from the options.
        keep: whether it takes more than one job; one with a name does.
        reach: how much of it can be had here; found out where ``best_effort`` asks for it.
        doors: namespaces of others to make it inside of.
        plan: how to make it, ready-made; the descriptors of its doors become the container's.
        given: options, by the names of ``nsmagic.run``: ``mem="256M"``, ``net="host"`` …

    Raises:
        SpecError: an option makes no sense.
        HostError: this host cannot enforce what is asked.
        StoppedError: the container to be joined has ended.
    """

    def __init__(
        self,
        spec: ContainerSpec | None = None,
        *,
        keep: bool = True,
        reach: Reach | None = None,
        doors: Doors | None = None,
        plan: Plan | None = None,
        **given: Unpack[ContainerOptions],
    ) -> None:
        # Before anything that can fail: __del__ looks at these.
        self._channels: channels.Channels | None = None
        self._report = Report()
        self.owner = os.getpid()
        self._opened: list[int] = []
        self.let_go: Callable[[Container], None] | None = None
        """Who stops it behind its job; without one, that is done before the result is given."""
        require_linux()
        self.number = next(_numbers)
        self.spec = self._named(spec or intake.container_from(given))
        self.keep = keep
        self.held = bool(self.spec.name)
        self._joined = joining.joined_by(self.spec) if plan is None else None
        self.started = time.time()
        self._lock = threading.Lock()
        if reach is None and self.spec.best_effort:
            reach = effort.reach(self.spec)
        if plan is not None:
            doors = plan.doors
        elif self._joined is not None:
            doors = joining.open_doors(self._joined, self.spec)
        else:
            doors = doors or self._doors()
            doors = None if doors is None else joining.again(doors)
        self._opened = [] if doors is None else doors.descriptors
        self._plan = plan or make_plan(self.spec, client.python_path(), reach, doors)
        if self.held and not (self.namespaces or doors):
            raise SpecError("--name", "is for a container with namespaces of its own, which others can join")
        self._launcher: client.Launcher | None = None
        self._group: cgroups.Group | None = None
        self._reader = frames.FrameReader()
        self._ready = False
        self._stopping = False
        self._ended = ""
        self._seen = cgroups.Usage()
        self._sampler: rlimits.Watchdog | None = None
        self._deaths: list[str] = []
        self.guests: set[Guest] = set()
        """The jobs that run in it, if it is kept."""
        self._attachment: Attachment | None = None

    def _named(self, spec: ContainerSpec) -> ContainerSpec:
        if spec.net in NETWORKS:
            return spec
        from nsmagic import networks  # noqa: PLC0415 - few containers are on a lab

        return networks.named(spec, self.number)

    def _doors(self) -> Doors | None:
        """Where its network is somebody's own: that one's user namespace, to be made in."""
        if self.spec.net in NETWORKS:
            return None
        from nsmagic import networks  # noqa: PLC0415 - likewise

        return networks.doors(self.spec)

    # ---- life ------------------------------------------------------------------

    def start(self, *, blank: bool = False) -> Self:
        """Have the launcher build it; returns before it is built.  Failures show in ``run``.

        Args:
            blank: build only what all containers of its kind have in common, until ``become`` says the rest.

        Raises:
            LauncherError: the launcher cannot be started.
            HostError: the kernel refused a limit.
            SpecError: another container has its name.
        """
        if self.held:
            names.claim(self.spec.name, self)
        try:
            self._start(blank=blank)
        except BaseException as error:
            self._forget(f"it could not be made: {error}")
            raise
        if self.held:
            live[self.number] = self
        return self

    def _start(self, *, blank: bool) -> None:
        launcher = client.start()
        _sweep_once(os.getpid())
        remove_orphaned()
        try:
            self._plan.choice.mechanism.admit(launcher.pid)
        except HostError:
            if launcher.alive():
                raise
            raise LauncherError(f"the launcher {launcher.how_it_died()}. {launcher.log()}") from None
        with contextlib.ExitStack() as undo:
            group = self._make_group()
            undo.callback(group.remove)
            try:
                ours, theirs = channels.make()
            except OSError as error:
                raise _owner_error("channels", "pipe2(), socketpair()", error) from error
            undo.callback(ours.close)
            attachment = self._attach()
            if attachment:
                undo.callback(attachment.close)
            private = self._make_private()
            undo.callback(shutil.rmtree, private, ignore_errors=True)
            with contextlib.ExitStack() as given:
                for descriptor in theirs:
                    given.callback(os.close, descriptor)
                groups: list[int] = []
                given.callback(_close_all, groups)
                try:
                    tasks = group.open_joins()
                    groups += tasks
                    directory = group.open_directory()
                except OSError as error:
                    raise _owner_error("cgroup", f'open("{error.filename}")', error) from error
                groups += [] if directory is None else [directory]
                request = self._plan.request(
                    self.number,
                    tuple(group.directories),
                    tasks=len(tasks),
                    into_cgroup=directory is not None,
                    blank=blank,
                    network=attachment is not None,
                )
                doors = self._plan.doors.descriptors if self._plan.doors else []
                network = [attachment.end] if attachment else []
                if not launcher.send(request, [*theirs, *groups, *doors, *network]):
                    raise LauncherError(f"the launcher {launcher.how_it_died()}. {launcher.log()}")
            undo.pop_all()
        if attachment:
            attachment.close_end()
        self._channels, self._launcher, self._group, self._attachment = ours, launcher, group, attachment

    def _make_group(self) -> cgroups.Group:
        """The group that it lives in."""
        group = self._plan.choice.create()
        if self.held:
            group.share()
        return group

    def _forget(self, why: str) -> None:
        """It is no more: give back its name, and let go of the namespaces that it joined and of its own."""
        self._ended = self._ended or why
        if self.held:
            names.drop(self.spec.name, self, self._ended)
        opened, self._opened = self._opened, []
        joining.close([*opened, *self._report.forget_namespaces()])

    def _attach(self) -> Attachment | None:
        """Have somebody wait for it who builds its network from outside, where it has one of those."""
        if self.spec.net in {"none", "host"}:
            return None
        from nsmagic import networks  # noqa: PLC0415 - likewise

        return networks.attach(self.spec, self.number)

    def _make_private(self) -> str:
        """The folder that confined code may write to; empty where it needs none."""
        view = self._plan.view
        if view is None:
            return ""
        try:
            confinement.make_private(view.private, self._plan.identity)
        except OSError as error:
            where = os.path.dirname(view.private)  # noqa: PTH120 - as text
            remedy = f"Set TMPDIR to a folder that you may write to; now it is {where}."
            raise _owner_error("private", f'mkdir("{view.private}")', error, remedy) from error
        return view.private

    def wait_built(self) -> None:
        """Wait until it is ready for its job.

        Raises:
            StartError: it could not be built.
            LauncherError: the launcher died.
        """
        with self._lock:
            if self._channels is None:
                raise StoppedError("this container was not started")
            waiting = select.poll()
            waiting.register(self._channels.report.fileno(), select.POLLIN)
            if not self.held:
                waiting.register(self._channels.control.fileno(), select.POLLIN)
            deadline = time.monotonic() + _BUILD_SECONDS
            while not self._take_ready():
                left = deadline - time.monotonic()
                waiting.poll(max(0, int(left * 1000)))
                self._report.take(self._channels.report)
                if self._report.failed or left <= 0:
                    raise self._start_error()
                if self._report.exit or self._report.closed:
                    raise self._lost()

    def ending(self) -> str:
        """Why a container that is kept is no longer there; empty while it is, or is being made."""
        if self._channels is not None and not self._ended:
            self._report.take(self._channels.report)
            if self._report.failed:
                self._release(f"it could not be made: {self._start_error()}")
            elif self._report.exit or self._report.closed:
                self._release(self._own_end())
        return self._ended

    def note_use(self, usage: cgroups.Usage) -> None:
        """What it had used when a job in it was over: what that job is blamed for is not its own end."""
        self._seen = usage

    def await_news(self, seconds: float) -> None:
        """Wait, so long at most, for what a container that is ending has to say."""
        if self._channels is not None:
            self._report.wait_for_end(self._channels.report, seconds)

    def stop_because(self, why: str) -> None:
        """Stop it for a reason that whoever asks later shall hear."""
        self._ended = self._ended or why
        self.stop()

    def _own_end(self) -> str:
        """Why it has ended, if nobody stopped it."""
        if self._stopping:
            return "it was stopped"
        usage = self.usage()
        if _since_count(usage.oom_kills, self._seen.oom_kills):
            limit = (
                f"its limit of {size_text(self.spec.mem)} (--mem)"
                if self.spec.mem
                else "what its owner may have"
            )
            return f"it ran out of memory: it needed more than {limit}"
        return "its first process, PID 1, was killed"

    def become(self, wanted: Container) -> bool:
        """Make this blank the container that another one, which is not started, would be.

        Its limits are written into the group that it lives in (and read back), and its files and its name are
        made now.

        Returns:
            Whether it is that container now; if not, it is good for nothing and to be stopped.
        """
        assert self._group is not None  # noqa: S101 - a blank is started
        assert self._launcher is not None  # noqa: S101 - likewise
        try:
            self._group.set_limits(wanted._plan.choice.limits)
        except HostError:
            # One made for these limits may be able to: cgroup v1 cannot add a share of CPU time later.
            return False
        self.spec, self._plan = wanted.spec, wanted._plan
        with contextlib.suppress(LauncherError):  # more binds than a packet takes; who builds anew is told
            return self._launcher.send(self._plan.finish(self.number))
        return False

    def stop(self) -> None:
        """End everything in it and let go of it.  Any thread may call this while another is in ``run``."""
        self._stopping = True
        if self.owner != os.getpid():  # a fork of the owner: it is not ours
            return
        for guest in list(self.guests):
            guest.stop()
        if self._channels is not None:
            self._channels.close_lifeline()
        if self._lock.acquire(timeout=_END_SECONDS):
            try:
                self._release("it was stopped")
            finally:
                self._lock.release()

    def _release(self, why: str) -> None:
        """End it, and let the launcher remove what is left."""
        live.pop(self.number, None)
        self._forget(why)
        if self._channels is None:
            return
        if "pid" in self.spec.joined and self._joined is not None:
            self._end_all(self._channels, self._joined)
        self._close_channels()
        if self._attachment is not None:
            self._attachment.close()
        if self._launcher is not None and self._group is not None and self._group.directories:
            _released[self.number] = (self._launcher, self._group)
        if self._launcher is None or not self._launcher.send(frames.Release(self.number)):
            # The launcher is gone; the lifeline ends init all the same, and its directories are ours.
            self._remove_group()
            if self._plan.view is not None:
                shutil.rmtree(self._plan.view.private, ignore_errors=True)

    def _end_all(self, own: channels.Channels, joined: Container) -> None:
        """See that nothing of it is left in the PID namespace of another, which lives on."""
        if joining.has_ended(own, self._report) or joined.ending():
            return
        if self._group is not None and self._group.directories:
            self._group.kill()
        else:
            joined.stop_because(joining.KILLED_FROM_INSIDE)

    def _close_channels(self) -> None:
        if self._channels is not None:
            self._channels.close()
            self._channels = None
        scratch, self._report.scratch = self._report.scratch, None
        if scratch is not None:
            os.close(scratch)

    def _remove_group(self) -> None:
        if self._group is not None:
            self._group.kill()
            deadline = time.monotonic() + _END_SECONDS
            while not self._group.remove() and time.monotonic() < deadline:
                time.sleep(0.005)

    def __enter__(self) -> Self:
        """Build it."""
        self.keep = True
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def __del__(self) -> None:
        """Nothing is left behind by a container that was forgotten."""
        if self.owner != os.getpid():
            return
        with contextlib.suppress(Exception):
            joining.close([*self._opened, *self._report.forget_namespaces()])
        if self._channels is not None:
            # The collector may run us in the middle of a request to the launcher, so we make none ourselves.
            with contextlib.suppress(Exception):
                self._close_channels()
                if self._launcher is not None:
                    self._launcher.forgotten.append(self.number)

    @property
    def init_pid(self) -> int | None:
        """The host's process id of its init, once it is known."""
        if self._channels is not None:
            self._report.take(self._channels.report)
        return self._report.pid

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

    @property
    def plan(self) -> Plan:
        """How it was made."""
        return self._plan

    @property
    def group(self) -> cgroups.Group | None:
        """The group that it lives in; None before it is started."""
        return self._group

    @property
    def stopping(self) -> bool:
        """Whether somebody has stopped it."""
        return self._stopping

    def journal_lines(self) -> list[str]:
        """How it was built, so far."""
        return self._report.lines

    @property
    def doors(self) -> Doors | None:
        """What it was made inside of, if not of the host's own namespaces."""
        return self._plan.doors

    @property
    def offered(self) -> dict[str, int]:
        """Of a kept container: descriptors of the namespaces that it has or has joined, by kind."""
        if self._channels is not None:
            self._report.take(self._channels.report)
        return self._report.namespaces

    @property
    def hostname(self) -> str:
        """The name of the host in there."""
        if "uts" in self.namespaces:
            return self.spec.hostname
        return self.doors.hostname if self.doors is not None else ""

    @property
    def kind(self) -> tuple[object, ...] | None:
        """What a blank must share with this one to become it; None if it has to be made on purpose."""
        return self._plan.kind

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The namespaces that it has of its own."""
        return self._plan.namespaces

    def pids(self) -> list[int]:
        """The host's process ids of what runs in it."""
        return self._group.pids() if self._group is not None else []

    @property
    def isolation(self) -> Isolation:
        """What is in force, as far as it is built."""
        return self._isolation()

    @property
    def host_uid(self) -> int:
        """The uid on the host that its payload runs under."""
        return self._plan.identity.host_uid

    def usage(self) -> cgroups.Usage:
        """What it has used so far, by the kernel's count; None where nobody counts."""
        return self._group.usage() if self._group is not None else cgroups.Usage()

    @property
    def uncounted(self) -> tuple[cgroups.Missing, ...]:
        """What of its memory, processor time and processes nobody counts, and why."""
        return cgroups.uncounted(self._plan.choice.mechanism)

    def sample(self) -> cgroups.Usage:
        """What it has used so far; where nobody counts, as /proc shows its processes.  Any thread may ask."""
        used, pid = self.usage(), self._report.pid
        if pid is None or not self.uncounted:
            return used
        if self._sampler is None:
            self._sampler = rlimits.Watchdog(pid)
        return cgroups.first_of(used, self._sampler.sample())

    def signal(self, number: int) -> None:
        """Send a signal to its payload's process group; init does it, so no pid can be mistaken.

        See killpg(3).
        """
        if self._channels is not None:
            self._channels.signal(number)

    def watch_deaths(self, died: Callable[[Exit], None]) -> None:
        """Be told when its payload has died and a snapshot of it goes on (``ContainerSpec.snapshots``).

        Args:
            died: called in whichever thread hears of it.
        """
        self._report.on_death = died

    def judge_death(self, exited: Exit) -> Verdict:
        """How a payload died whose snapshot goes on; usage counts anew from there."""
        now = self.usage()
        usage = self._usage(Ending("exited", 0.0), now)
        self._seen = now
        return judge(Ending("exited", 0.0), exited, usage, self.spec, JobSpec("kernel"), stopping=False)

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
                        select.select([pidfd], [], [], _END_SECONDS)  # or it may yet be chosen
                finally:
                    os.close(pidfd)
        self.signal(signal.SIGKILL)

    def set_limits(self, *, mem: int | None, swap: int, cpus: float | None, pids: int) -> None:
        """Change its limits while it runs: bytes, bytes, processors' worth of time, processes.

        Raises:
            HostError: the kernel refused one, or nothing here can change it; those before it are in force.
        """
        limits = cgroups.Limits(mem=mem, swap=swap, cpus=cpus, pids=pids, snapshots=self.spec.snapshots)
        missing = self._plan.choice.mechanism.missing(limits)
        if self._group is None or missing:
            reason, remedy = (
                (missing[0].reason, missing[0].remedy) if missing else (self._ended, "Start another.")
            )
            raise HostError("A new limit", reason, remedy)
        self._group.set_limits(limits)
        self.spec = replace(self.spec, mem=mem, swap=swap, cpus=cpus, pids=pids)

    def open_sockets(self) -> int | None:
        """Open the folder where its payload listens (``ContainerSpec.sockets``); the caller closes it.

        None until it is built.  What lies in it is hostile: open without following links.
        """
        if self._channels is not None:
            self._report.take(self._channels.report)
        if self._report.scratch is None or not self._plan.root.sockets:
            return None
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self._plan.root.sockets, flags, dir_fd=self._report.scratch)
        except OSError:  # the scratch is there before what lies in it, and the payload may close its folder
            return None

    def written(self) -> Written:
        """What it has written so far; holds its files until it is closed."""
        if self._joined is not None and "mount" in self.spec.joined:
            return self._joined.written()
        scratch = self._report.scratch
        return self._written(None if scratch is None else os.dup(scratch))

    def _written(self, scratch: int | None) -> Written:
        root = self._plan.root
        folders = [(folder.target, folder.scratch, folder.lower) for folder in root.writable]
        return Written(scratch, folders, root.places, root.made, root.workdir if self.spec.image else "")

    def usable(self) -> bool:
        """Whether an unused container is still good: built or being built, its launcher alive."""
        if self._channels is None or self._launcher is None or not self._launcher.alive():
            return False
        self._report.take(self._channels.report)
        return not (self._report.failed or self._report.closed or self._report.exit)

    # ---- jobs ---------------------------------------------------------------------

    def run(
        self,
        code_or_argv: str | Sequence[str],
        *,
        input: str | bytes | None = None,  # noqa: A002 - the name that subprocess uses
        variables: Mapping[str, object] | None = None,
        outputs: Iterable[str] = (),
        **given: Unpack[JobOptions],
    ) -> Result:
        """Run Python code, or a program, in this container, and wait for its end; see ``nsmagic.run``.

        A time limit, an output limit or a lack of memory ends the whole container.

        Raises:
            SpecError: an argument makes no sense; nothing was run.
            StoppedError: the container has ended.
        """
        job = intake.job_from(code_or_argv, outputs, given, variables=bool(variables))
        stdin = input.encode() if isinstance(input, str) else input
        return self.run_job(job, stdin=stdin, variables=variables)

    @staticmethod
    def find(name: str) -> Container:
        """The container that this process keeps under a name.

        Raises:
            SpecError: there never was one.
            StoppedError: it has ended.
        """
        return names.find("name", name)

    def guest(self, *, first: bool = False) -> Guest:
        """What one job in this container, which is kept, is run in.

        Args:
            first: whether its journal begins with the building of this container.

        Raises:
            StoppedError: it has ended.
        """
        from nsmagic.guests import Guest  # noqa: PLC0415 - it builds on this module

        if why := self.ending():
            raise StoppedError(f"{self.spec.name} is no longer there: {why}")
        self.wait_built()
        return Guest(self, joining.all_doors(self), first=first)

    def run_job(
        self,
        job: JobSpec,
        *,
        sink: Sink | None = None,
        stdin: bytes | int | None = None,
        variables: Mapping[str, object] | None = None,
        can_ask: bool = False,
        observer: Observer | None = None,
    ) -> Result:
        """Run one job and wait for its end.

        Args:
            job: what to run.
            sink: where output goes as it comes; without one it is kept in the result.
            stdin: bytes for its standard input, or a descriptor to copy from.
            variables: values to put into a cell's namespace.
            can_ask: whether the sink can ask the user (``input()``).
            observer: who looks on.

        Raises:
            StartError: the container could not be built.
            StoppedError: it has ended.
            ValueTransferError: a variable cannot be put in.
            KeyboardInterrupt: the caller was interrupted; the container is stopped.
        """
        if self.held:
            guest = self.guest().start()
            return guest.run_job(job, sink=sink, stdin=stdin, variables=variables, can_ask=can_ask)
        message = self._message(job, variables or {}, stdin, can_ask=can_ask)
        with self._lock:
            if self._channels is None or self._stopping:
                raise StoppedError(
                    f"this container takes no more jobs: {self._ended or 'it was not started'}"
                )
            collector = Collector()
            self._deaths += client.take_deaths()
            try:
                self._enlist()
                memory = self._watchdog()
                run = Run(
                    self._channels, self._report, self._reader, job, message, sink or collector, stdin, memory
                )
                with observed(observer, self):
                    ending = run.run(ready=self._take_ready())
                if ending.why == "failed":
                    raise self._start_error()
                self._ready = self._ready or run.started
                if ending.why == "exited" and not self._ready and not self._stopping:
                    raise self._lost()
                result = self._result(job, ending, collector)
                if observer is not None:
                    observer.finish(self._seen, result)
            except BaseException:
                self._release("its job was interrupted")
                raise
        if ending.done is not None and result.ok:
            result.values = _decode(job, ending.done, result)
        return result

    def _enlist(self) -> None:
        live[self.number] = self

    def _take_ready(self) -> bool:
        """Whether a standby has said that it waits, or a container that is kept is built."""
        if self.held:
            return self._report.built
        if not self._ready and self._channels is not None:
            with contextlib.suppress(BlockingIOError, OSError, frames.FrameError):
                data = self._channels.control.recv(frames.LENGTH.size + 64)
                self._ready = any(isinstance(message, frames.Ready) for message in self._reader.feed(data))
        return self._ready

    def _message(
        self, job: JobSpec, variables: Mapping[str, object], stdin: bytes | int | None, *, can_ask: bool
    ) -> frames.Job:
        if self.keep and isinstance(stdin, int):
            raise SpecError("stdin", "one of several jobs takes bytes, not a descriptor")
        data: dict[str, bytes] = {}
        pickled: dict[str, bytes] = {}
        for name, value in variables.items():
            try:
                data[name] = values.encode(value)
            except values.NotDataError as problem:
                # Inwards pickle does no harm: it is our own, and it is opened in the container.
                try:
                    pickled[name] = pickle.dumps(value)
                except Exception:  # noqa: BLE001 - a value's own methods may raise anything
                    raise ValueTransferError(name, f"cannot be copied into a container: {problem}") from None
        return frames.Job(
            kind=job.kind,
            code=job.code,
            argv=list(job.argv),
            env=self._environment(job),
            fresh=job.fresh_exec,
            outputs=list(job.outputs),
            execution_count=job.execution_count,
            variables=data,
            pickled=pickled,
            ask=can_ask,
            keep=self.keep,
            stdin=stdin if self.keep and isinstance(stdin, bytes) else b"",
        )

    def _environment(self, job: JobSpec) -> dict[str, str]:
        identity = self._plan.identity
        folder = os.path.dirname(sys.executable)  # noqa: PTH120 - as text
        image = self._image()
        environment = {
            "PATH": _IMAGE_PATH if image else f"{folder}:{_PATH}",
            "HOME": self.home(),
            "USER": identity.name,
            "LOGNAME": identity.name,
            "LANG": "C.UTF-8",
            **{name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
            "TERM": "dumb",
            "PWD": self._plan.root.workdir,
            **dict(image.env if image else ()),
        }
        if self._plan.view is not None:
            environment["TMPDIR"] = self._plan.view.private
        if job.kind in {"cell", "kernel"}:
            environment["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        return {**environment, **dict(job.env)}

    def _image(self) -> Image | None:
        """Whose root file system its payload sees."""
        if self._joined is not None and "mount" in self.spec.joined:
            return self._joined.spec.image
        return self.spec.image

    def home(self) -> str:
        """The payload's home folder."""
        if self._joined is not None and "mount" in self.spec.joined:
            return self._joined.home()
        if self._plan.view is not None:
            return self._plan.view.private
        return self._plan.identity.home if "mount" in self.namespaces else os.environ.get("HOME", "/")

    def _watchdog(self) -> Callable[[], bool] | None:
        """Where no group limits memory: look at it now and then."""
        group, limit = self._group, self.spec.mem
        if (
            limit is None
            or group is None
            or not any(each.what == "mem" for each in self._plan.choice.missing)
        ):
            return None

        def passed() -> bool:
            pid = self.init_pid
            if pid is None:
                return False
            attach = getattr(group, "attach", None)
            if attach is not None and not getattr(self, "_attached", False):
                attach(pid)
                self._attached = True
            return (group.usage().memory or 0) > limit

        return passed

    # ---- results ------------------------------------------------------------------

    def _result(self, job: JobSpec, ending: Ending, collector: Collector) -> Result:
        assert self._channels is not None  # noqa: S101 - run() has seen to it
        self._report.wait_for_builder(self._channels.report, _END_SECONDS)
        group_usage = self._group.usage() if self._group is not None else cgroups.Usage()
        if ending.why != "kept":
            self._finish(group_usage)
        usage = self._usage(ending, group_usage)
        verdict = self._judge(ending, usage, job)
        result = Result(
            outcome=verdict.outcome,
            exit_status=verdict.exit_status,
            signal=verdict.signal,
            usage=usage,
            isolation=self._isolation(),
            stdout_bytes=collector.streams["stdout"].getvalue(),
            stderr_bytes=collector.streams["stderr"].getvalue(),
            outputs=collector.outputs,
            failure=Failure(*ending.failure) if ending.failure else None,
            journal_lines=self._journal(),
            detail=verdict.detail,
            printed=ending.printed,
            dropped=ending.dropped,
            written=self.written() if ending.why == "kept" else self._take_written(),
        )
        self._seen = group_usage
        if ending.why != "kept":
            self._ended = result.describe()
            if self.let_go is None:
                self._release(self._ended)
            else:
                live.pop(self.number, None)
                self.let_go(self)
        return result

    def _judge(self, ending: Ending, usage: Usage, job: JobSpec) -> Verdict:
        return judge(ending, self._report.exit, usage, self.spec, job, stopping=self._stopping)

    def _journal(self) -> list[str]:
        return self._report.lines

    def _take_written(self) -> Written:
        """What it has written, for a result that outlives it."""
        if "mount" in self.spec.joined:
            return self.written()
        scratch, self._report.scratch = self._report.scratch, None
        return self._written(scratch)

    def _finish(self, group_usage: cgroups.Usage) -> None:
        """The job is over: where nobody else can tell what it used, end the container and let init tell."""
        assert self._channels is not None  # noqa: S101 - run() has seen to it
        if group_usage.cpu_user is not None or self._report.exit or self._report.closed:
            return
        self._channels.close_lifeline()
        self._report.wait_for_end(self._channels.report, _TOLD_SECONDS)

    def _usage(self, ending: Ending, now: cgroups.Usage) -> Usage:
        before, exited = self._seen, self._report.exit
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
            written=None if self._report.scratch is None else written_bytes(self._report.scratch),
            oom_kills=_since_count(now.oom_kills, before.oom_kills),
            pids_refused=_since_count(now.pids_refused, before.pids_refused),
        )

    def _isolation(self) -> Isolation:
        plan, group = self._plan, self._group
        limits = {**(group.enforced if group else {}), **plan.choice.enforced}
        if "mount" in plan.namespaces:
            limits["disk"] = f"tmpfs size = {self.spec.disk}"
        notes = list(plan.root.notes)
        for step in self._report.refused:
            if step.call.startswith('fsmount("proc"'):
                notes.append(_SMALL_PROC.format(step.failure))
            if step.call.startswith("sethostname("):
                notes.append(f"the host name is the surroundings' ({step.call}: {step.failure})")
            if "MOUNT_ATTR_IDMAP" in step.call:
                path = step.call.split('"')[1]
                notes.append(
                    f"{path}: files of its owner are not writable inside ({step.failure}: its file system)"
                )
        notes += [f"the launcher {death}; it was started again" for death in self._deaths]
        return Isolation(
            namespaces=plan.namespaces,
            added=plan.added,
            limits=limits,
            missing={**plan.missing, **{each.what: each.reason for each in plan.choice.missing}},
            network=self.spec.net if "net" not in self.spec.joined else f"that of {self._joined_name()}",
            joined=self.spec.joined_text,
            user=plan.identity.uid,
            host_user=plan.identity.host_uid,
            workdir=plan.root.workdir,
            image=image.name if (image := self._image()) else "",
            system_calls="deny-list" if plan.view is None else "deny-list, longer for want of namespaces",
            notes=tuple(notes),
        )

    def _joined_name(self) -> str:
        return self.spec.join.name if self.spec.join is not None else ""

    def _start_error(self) -> StartError:
        # Others may have been refused what they went on without, so it is not just the last that was refused.
        failed = [step for step in read_journal([self._report.failure]) if step.errno] or self._report.refused
        if not failed:
            return StartError("spawn", "", 0, "it was not ready in time, and nobody said why")
        step = failed[-1]
        text = f"step {step.step!r}, {step.call}: {step.failure} (errno {step.errno})"
        journal = read_journal(self._report.lines)
        remedy = remedy_for(step, journal)
        if not self.spec.best_effort and _is_the_hosts(step):
            remedy = f"{remedy.rstrip('.')}. {_BEST_EFFORT}"
        return StartError(step.step, step.call, step.errno, text, remedy, journal)

    def _lost(self) -> NsmagicError:
        """It ended before it took its job: the launcher died, or memory did not suffice to begin."""
        usage = self._group.usage() if self._group is not None else cgroups.Usage()
        if usage.oom_kills:
            return StartError(
                "payload", "", 0, "it ran out of memory before its job began", "Give it more with --mem"
            )
        if self._launcher is not None and not self._launcher.alive():
            return LauncherError(f"the launcher {self._launcher.how_it_died()}. {self._launcher.log()}")
        return StartError("payload", "", 0, "its processes ended before its job began")


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _owner_error(step: str, call: str, error: OSError, remedy: str = "") -> StartError:
    """What the owner itself could not do, before it asked the launcher for anything."""
    number = error.errno or 0
    text = f"step {step!r}, {call}: {error.strerror} (errno {number})"
    return StartError(step, call, number, text, remedy or remedy_for(Step(step, call, -1, number, 0.0, 0.0)))


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


_released: dict[int, tuple[client.Launcher, cgroups.Group]] = {}
"""Groups whose removal is the launcher's, until they are seen to be gone: a launcher may die over it."""


def remove_orphaned() -> None:
    """Remove the groups of containers whose launcher died before it could."""
    for number, (launcher, group) in list(_released.items()):
        if not launcher.alive() and os.path.exists(group.directories[0]):  # noqa: PTH110 - as text
            group.kill()
            group.remove()
        if not os.path.exists(group.directories[0]):  # noqa: PTH110 - as text
            _released.pop(number, None)


@functools.cache
def _sweep_once(pid: int) -> None:
    """Remove what owners left that were killed together with their launchers."""
    del pid
    cgroups.sweep()
    confinement.sweep()


def _since(now: float | None, before: float | None) -> float | None:
    return None if now is None else now - (before or 0.0)


def _since_count(now: int | None, before: int | None) -> int | None:
    return None if now is None else now - (before or 0)


def _decode(job: JobSpec, done: frames.Done, result: Result) -> dict[str, Any]:
    found = {}
    for name in job.outputs:
        if name in done.values:
            try:
                found[name] = values.decode(done.values[name])
            except values.NotDataError as problem:
                raise ValueTransferError(name, str(problem), result) from None
        else:
            reason = done.problems.get(name, "it did not come out")
            raise ValueTransferError(
                name, f"cannot be taken out: {firewall.clean_stream(reason[:500])}", result
            )
    return found
