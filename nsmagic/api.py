"""``nsmagic.run``: one job in one fresh container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsmagic import intake, standbys
from nsmagic.container import Container
from nsmagic.errors import LauncherError
from nsmagic.launcher import client
from nsmagic.plan import require_linux

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from typing_extensions import Unpack

    from nsmagic.intake import RunOptions
    from nsmagic.job import Sink
    from nsmagic.result import Result
    from nsmagic.spec import ContainerSpec, JobSpec


def run_job(
    container: ContainerSpec,
    job: JobSpec,
    *,
    sink: Sink | None = None,
    stdin: bytes | int | None = None,
    variables: Mapping[str, object] | None = None,
    can_ask: bool = False,
) -> Result:
    """Run a job in a container that is used for nothing else; see ``Container.run_job``."""
    require_linux()
    waiting = standbys.current()
    try:
        taken = waiting.take(container)
        try:
            return taken.run_job(job, sink=sink, stdin=stdin, variables=variables, can_ask=can_ask)
        except LauncherError:
            # It died before the job began, so nothing has run; once more, with a new one.
            if isinstance(stdin, int):
                raise
        taken = waiting.take(container)
        return taken.run_job(job, sink=sink, stdin=stdin, variables=variables, can_ask=can_ask)
    finally:
        waiting.prepare(container)


def run_once(container: ContainerSpec, job: JobSpec, *, sink: Sink, stdin: int | None) -> Result:
    """Run a script or program in a container, for a process that will run no other: no standby follows."""
    require_linux()
    client.expect("programs")
    return Container(container, keep=False).start().run_job(job, sink=sink, stdin=stdin)


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
        code_or_argv: Python code, run as a notebook cell is; or a program and its arguments.
        input: its standard input; text goes in as UTF-8.
        variables: values to put into the code's namespace, by name.
        outputs: names of variables to take out, into ``Result.values``.
        given: options.  Of the container: ``mem`` (bytes, or such as ``"128M"``), ``swap``, ``cpus``,
            ``pids``, ``disk``, ``net`` (``none``, ``host``, ``outbound``, a lab's name), ``publish``
            (``"8080:80"``, one or several), ``ns`` (``all``, ``all-net``, ``uts,pid``),
            ``bind`` (``SRC[:DST][:ro|rw|cow]``, one or several), ``workdir``, ``hostname``, ``user``
            (``root`` or a uid), ``best_effort``.  Of the job: ``timeout`` (seconds, or such as ``"2m"``),
            ``output_limit`` (bytes, or such as ``"10M:drop"``), ``env``, ``fresh_exec``, ``rich``
            (``safe``, ``trusted``).

    Returns:
        How it went; a job that failed is a result too, see ``Result.check``.

    Raises:
        SpecError: an argument makes no sense; nothing was started.
        HostError: this host cannot enforce it; nothing was started.
        StartError: the container could not be built.
        ValueTransferError: a variable cannot go in or come out.
    """
    of_container, of_job = intake.split(given)
    job = intake.job_from(code_or_argv, outputs, of_job, variables=bool(variables))
    stdin = input.encode() if isinstance(input, str) else input
    return run_job(intake.container_from(of_container), job, stdin=stdin, variables=variables)
