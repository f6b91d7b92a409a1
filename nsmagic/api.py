"""``nsmagic.run``: one job in one fresh container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsmagic import intake, names, standbys
from nsmagic.container import Container
from nsmagic.errors import LauncherError
from nsmagic.launcher import client
from nsmagic.plan import require_linux

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from typing_extensions import Unpack

    from nsmagic.intake import RunOptions
    from nsmagic.plan import Plan
    from nsmagic.result import Result
    from nsmagic.sinks import Observer, Sink
    from nsmagic.spec import ContainerSpec, JobSpec


def run_job(
    container: ContainerSpec,
    job: JobSpec,
    *,
    sink: Sink | None = None,
    stdin: bytes | int | None = None,
    variables: Mapping[str, object] | None = None,
    can_ask: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Run a job in a container that is used for nothing else; see ``Container.run_job``."""
    require_linux()
    try:
        taken = take(container)
        try:
            return taken.run_job(
                job, sink=sink, stdin=stdin, variables=variables, can_ask=can_ask, observer=observer
            )
        except LauncherError:
            # It died before the job began, so nothing has run; once more, with a new one.
            if isinstance(stdin, int):
                raise
        # What is kept has outlived the launcher.
        taken = names.live()[container.name].guest().start() if container.name else take(container)
        return taken.run_job(
            job, sink=sink, stdin=stdin, variables=variables, can_ask=can_ask, observer=observer
        )
    finally:
        prepare(container)


def take(container: ContainerSpec) -> Container:
    """What one job is run in: a standby or a new container, or a guest of one that is kept.

    Raises:
        HostError: this host cannot enforce the spec.
        LauncherError: the launcher cannot be started.
        SpecError: no container has the name that is to be joined, or one has that which is to be given.
        StartError: the container that is to be kept could not be built.
        StoppedError: the container that is to be joined has ended.
    """
    if container.join is not None and container.join.kinds is None:
        return names.find("--join", container.join.name).guest().start()
    if container.name:
        kept = Container(container).start()
        try:
            kept.wait_built()
            return kept.guest(first=True).start()
        except BaseException as error:
            kept.stop_because(f"it could not be made: {error}")
            raise
    if container.join is not None:
        return Container(container, keep=False).start()
    return standbys.current().take(container)


def prepare(container: ContainerSpec) -> None:
    """Have one built for the next run of this spec, if it is one that can wait."""
    if not container.name and container.join is None:
        standbys.current().prepare(container)


def run_once(
    container: ContainerSpec,
    job: JobSpec,
    *,
    sink: Sink,
    stdin: int | None,
    observer: Observer | None = None,
    plan: Plan,
) -> Result:
    """Run a script or program in a container, for a process that will run no other: no standby follows.

    Args:
        container: what it should be.
        job: what to run.
        sink: where output goes.
        stdin: a descriptor to copy from.
        observer: who looks on.
        plan: how to make it; under ``best_effort`` another is made, by what turns out to be within reach.
    """
    client.expect("programs")
    made = Container(container, keep=False, plan=None if container.best_effort else plan)
    return made.start().run_job(job, sink=sink, stdin=stdin, observer=observer)


def run(
    code_or_argv: str | Sequence[str],
    *,
    input: str | bytes | None = None,  # noqa: A002 - the name that subprocess uses
    variables: Mapping[str, object] | None = None,
    outputs: Iterable[str] = (),
    **given: Unpack[RunOptions],
) -> Result:
    """Run Python code, or a program, in a fresh container, and wait for its end.  Any thread may call it.

    Args:
        code_or_argv: Python code, run as a notebook cell is; or a program and its arguments; an empty list
            runs what an image runs by itself.
        input: its standard input; text goes in as UTF-8.
        variables: values to put into the code's namespace, by name.
        outputs: names of variables to take out, into ``Result.values``.
        given: options.  Of the container: ``mem`` (bytes, or such as ``"128M"``), ``swap``, ``cpus``,
            ``pids``, ``disk``, ``net`` (``none``, ``host``, ``outbound``, a lab's name),
            ``publish`` (``"8080:80"``, one or several), ``ns`` (``all``, ``all-net``, ``uts,pid``),
            ``bind`` (``SRC[:DST][:ro|rw|cow]``, one or several), ``workdir``, ``rootfs`` (a folder or a tar),
            ``image`` (a file of ``docker save``, an OCI layout), ``hostname``, ``user`` (``root`` or a uid),
            ``best_effort``.  Of its life: ``name`` (it is kept under that name until
            ``Container.find(name).stop()``), ``join`` (a name, to run in that container, or
            ``NAME:net,uts``, to share those namespaces of it).  Of the job: ``timeout`` (seconds, or such as
            ``"2m"``), ``output_limit`` (bytes, or such as ``"10M:drop"``), ``env``, ``fresh_exec``, ``rich``
            (``safe``, ``trusted``).

    Returns:
        How it went; a job that failed is a result too, see ``Result.check``.

    Raises:
        SpecError: an argument makes no sense; nothing was started.
        HostError: this host cannot enforce it; nothing was started.
        StartError: the container could not be built.
        StoppedError: the container to be joined has ended.
        ValueTransferError: a variable cannot go in or come out.
    """
    of_container, of_job = intake.split(given)
    if not isinstance(code_or_argv, str) and not code_or_argv:
        code_or_argv = intake.command_of(intake.container_from(of_container))
    job = intake.job_from(code_or_argv, outputs, of_job, variables=bool(variables))
    stdin = input.encode() if isinstance(input, str) else input
    container = intake.fit(intake.container_from(of_container), job)
    return run_job(container, job, stdin=stdin, variables=variables)
