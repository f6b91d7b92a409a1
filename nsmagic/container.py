"""Container: start, run, stop.  Every run goes through here, whoever asked for it."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

from nsmagic import building, effort, intake, joining, names, orphans, payload, start_errors
from nsmagic.errors import HostError, LauncherError, NsmagicError, SpecError, StartError, StoppedError
from nsmagic.handle import Handle
from nsmagic.job import Ending, Run
from nsmagic.launcher import client, frames
from nsmagic.plan import make_plan, require_linux
from nsmagic.sinks import Collector, observed
from nsmagic.spec import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from nsmagic import cgroups
    from nsmagic.attachment import Attachment
    from nsmagic.channels import Channels
    from nsmagic.guests import Guest
    from nsmagic.intake import ContainerOptions, JobOptions
    from nsmagic.plan import Doors, Plan, Reach
    from nsmagic.result import Result
    from nsmagic.sinks import Observer, Sink
    from nsmagic.spec import ContainerSpec, JobSpec

_numbers = itertools.count(1)
_END_SECONDS: Final = 1.0
_TOLD_SECONDS: Final = 5.0
"""For init to end all others and tell what they used: nothing inside can hold that up, a slow machine can."""
_BUILD_SECONDS: Final = 60.0

live: weakref.WeakValueDictionary[int, Container] = weakref.WeakValueDictionary()
"""The containers that have a job or are kept open, by number."""


class Container(Handle):
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
        require_linux()
        number = next(_numbers)
        spec = _named(spec or intake.container_from(given), number)
        joined = None
        if plan is None:
            joined = joining.joined_by(spec)
            plan = _plan(spec, reach, doors, joined)
        super().__init__(number, spec, plan, joined, keep=keep)
        self._opened = [] if plan.doors is None else plan.doors.descriptors
        self._lock = threading.Lock()
        self._reader = frames.FrameReader()
        self._ready = False
        self._attachment: Attachment | None = None
        self.let_go: Callable[[Container], None] | None = None
        """Who stops it behind its job; without one, that is done before the result is given."""
        if self.held and not (self.namespaces or self.doors):
            raise SpecError("--name", "is for a container with namespaces of its own, which others can join")

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
        def build() -> building.Built:
            return building.build(self.plan, self.number, self._make_group, self._attach, blank=blank)

        try:
            built = build()
        except LauncherError:  # it died before it had heard of this one; the next is asked
            built = build()
        self._channels, self._launcher, self.group, self._attachment = built

    def _make_group(self) -> cgroups.Group:
        """The group that it lives in."""
        group = self.plan.choice.create()
        if self.held:
            group.share()
        return group

    def _forget(self, why: str) -> None:
        """It is no more: give back its name, and let go of the namespaces that it joined and of its own."""
        self._ended = self._ended or why
        if self.held:
            names.drop(self.spec.name, self, self._ended)
        opened, self._opened = self._opened, []
        joining.close([*opened, *self.report.forget_namespaces()])

    def _attach(self) -> Attachment | None:
        """Have somebody wait for it who builds its network from outside, where it has one of those."""
        if self.spec.net in {"none", "host"}:
            return None
        from nsmagic import networks  # noqa: PLC0415 - likewise

        return networks.attach(self.spec, self.number)

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
                self.report.take(self._channels.report)
                if self.report.failed or left <= 0:
                    raise self._start_error()
                if self.report.exit or self.report.closed:
                    raise self._lost()

    def ending(self) -> str:
        """Why a container that is kept is no longer there; empty while it is, or is being made."""
        if self._channels is not None and not self._ended:
            self._take_report()
            if self.report.failed:
                self._release(f"it could not be made: {self._start_error()}")
            elif self.report.exit or self.report.closed:
                self._release(self.account().own_end())
        return self._ended

    def stop_because(self, why: str) -> None:
        """Stop it for a reason that whoever asks later shall hear."""
        self._ended = self._ended or why
        self.stop()

    def become(self, wanted: Container) -> bool:
        """Make this blank the container that another one, which is not started, would be.

        Its limits are written into the group that it lives in (and read back), and its files and its name are
        made now.

        Returns:
            Whether it is that container now; if not, it is good for nothing and to be stopped.
        """
        assert self.group is not None  # noqa: S101 - a blank is started
        assert self._launcher is not None  # noqa: S101 - likewise
        try:
            self.group.set_limits(wanted.plan.choice.limits)
        except HostError:
            # One made for these limits may be able to: cgroup v1 cannot add a share of CPU time later.
            return False
        self.spec, self.plan = wanted.spec, wanted.plan
        with contextlib.suppress(LauncherError):  # more binds than a packet takes; who builds anew is told
            return self._launcher.send(self.plan.finish(self.number))
        return False

    def stop(self) -> None:
        """End everything in it and let go of it.  Any thread may call this while another is in ``run``."""
        self.stopping = True
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
        if self._launcher is None:
            return
        remains = self._leave(self._launcher)
        if not self._launcher.send(frames.Release(self.number)):
            remains.remove(_END_SECONDS)

    def _leave(self, launcher: client.Launcher) -> orphans.Remains:
        """Leave what there is of it to the launcher, whose it is to remove."""
        assert self.group is not None  # noqa: S101 - it has been started
        private = self.plan.view.private if self.plan.view is not None else ""
        remains = orphans.Remains(launcher, self.group, private)
        orphans.watch(self.number, remains)
        return remains

    def _end_all(self, own: Channels, joined: Container) -> None:
        """See that nothing of it is left in the PID namespace of another, which lives on."""
        if joining.has_ended(own, self.report) or joined.ending():
            return
        if self.group is not None and self.group.directories:
            self.group.kill()
        else:
            joined.stop_because(joining.KILLED_FROM_INSIDE)

    def _close_channels(self) -> None:
        if self._channels is not None:
            self._channels.close()
            self._channels = None
        scratch, self.report.scratch = self.report.scratch, None
        if scratch is not None:
            os.close(scratch)

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
            joining.close([*self._opened, *self.report.forget_namespaces()])
        if self._channels is not None:
            # The collector may run us in the middle of a request to the launcher, so we make none ourselves.
            with contextlib.suppress(Exception):
                self._close_channels()
                if self._launcher is not None:
                    self._leave(self._launcher)
                    self._launcher.forgotten.append(self.number)

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
        message = payload.message(self, job, variables or {}, stdin, can_ask=can_ask)
        with self._lock:
            if self._channels is None or self.stopping:
                raise StoppedError(
                    f"this container takes no more jobs: {self._ended or 'it was not started'}"
                )
            collector = Collector()
            self.deaths += client.take_deaths()
            try:
                self._enlist()
                memory = self.memory_watch()
                run = Run(
                    self._channels, self.report, self._reader, job, message, sink or collector, stdin, memory
                )
                with observed(observer, self):
                    ending = run.run(ready=self._take_ready())
                if ending.why == "failed":
                    raise self._start_error()
                self._ready = self._ready or run.started
                if ending.why == "exited" and not self._ready and not self.stopping:
                    raise self._lost()
                result = self._close_job(job, ending, collector)
                if observer is not None:
                    observer.finish(self.seen, result)
            except BaseException:
                self._release("its job was interrupted")
                raise
        if ending.done is not None and result.ok:
            result.values = payload.taken_out(job, ending.done, result)
        return result

    def _enlist(self) -> None:
        live[self.number] = self

    def _take_ready(self) -> bool:
        """Whether a standby has said that it waits, or a container that is kept is built."""
        if self.held:
            return self.report.built
        if not self._ready and self._channels is not None:
            with contextlib.suppress(BlockingIOError, OSError, frames.FrameError):
                data = self._channels.control.recv(frames.LENGTH.size + 64)
                self._ready = any(isinstance(message, frames.Ready) for message in self._reader.feed(data))
        return self._ready

    def _close_job(self, job: JobSpec, ending: Ending, collector: Collector) -> Result:
        """A job is over: say how, and let go of a container that was for this one."""
        assert self._channels is not None  # noqa: S101 - run_job() has seen to it
        self.report.wait_for_builder(self._channels.report, _END_SECONDS)
        now, lives_on = self.usage(), ending.why == "kept"
        if not lives_on:
            self._finish(now)
        result = self.account().result(job, ending, collector, now)
        result.written = self.written() if lives_on else self._take_written()
        self.seen = now
        if not lives_on:
            self._ended = result.describe()
            if self.let_go is None:
                self._release(self._ended)
            else:
                live.pop(self.number, None)
                self.let_go(self)
        return result

    def _finish(self, group_usage: cgroups.Usage) -> None:
        """The job is over: where nobody else can tell what it used, end the container and let init tell."""
        assert self._channels is not None  # noqa: S101 - run() has seen to it
        if group_usage.cpu_user is not None or self.report.exit or self.report.closed:
            return
        self._channels.close_lifeline()
        self.report.wait_for_end(self._channels.report, _TOLD_SECONDS)

    def _start_error(self) -> StartError:
        return start_errors.reported(self.report, best_effort=self.spec.best_effort)

    def _lost(self) -> NsmagicError:
        """Why it ended before it took its job."""
        return start_errors.lost(self.usage(), self._launcher)


def _named(spec: ContainerSpec, number: int) -> ContainerSpec:
    if spec.net in NETWORKS:
        return spec
    from nsmagic import networks  # noqa: PLC0415 - few containers are on a lab

    return networks.named(spec, number)


def _plan(spec: ContainerSpec, reach: Reach | None, doors: Doors | None, joined: Container | None) -> Plan:
    """How to make it; the descriptors of the plan's doors are its own."""
    if reach is None and spec.best_effort:
        reach = effort.reach(spec)
    doors = joining.doors_for(spec, joined, doors)
    try:
        return make_plan(spec, client.python_path(), reach, doors)
    except BaseException:
        joining.close([] if doors is None else doors.descriptors)
        raise
