"""``nsmagic.run``: one job in one fresh container; and how options become specs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from nsmagic import filesystem, options, standbys
from nsmagic.container import Container
from nsmagic.errors import SpecError
from nsmagic.launcher import client
from nsmagic.plan import require_linux
from nsmagic.spec import Bind, ContainerSpec, JobSpec, Network

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nsmagic.job import Sink
    from nsmagic.result import Result

MAX_CODE = 32 << 20
"""Bytes of a job's code or standard input text that may go in at once."""


def container_spec(given: Mapping[str, Any]) -> ContainerSpec:
    """A spec from checked options: paths become absolute, and what they name must be there.

    Raises:
        SpecError: a path that is not there, or options at odds with each other.
    """
    base = os.getcwd()  # noqa: PTH109 - as text
    workdir = filesystem.resolve_workdir("--workdir", given.get("workdir", base))
    binds = tuple(filesystem.resolve_bind("--bind", bind, base) for bind in given.get("bind", ()))
    namespaces = given.get("ns")
    net: Network | None = given.get("net")
    if namespaces is None:
        # A host's network means no network namespace; whoever names namespaces says both himself.
        namespaces = ContainerSpec().namespaces - ({"net"} if net == "host" else set())
    if net is None:
        net = "none" if "net" in namespaces else "host"
    plain = {
        name: given[name]
        for name in ("mem", "swap", "cpus", "pids", "disk", "hostname", "user", "best_effort")
        if name in given
    }
    return ContainerSpec(namespaces=namespaces, net=net, binds=binds, workdir=workdir, **plain)


def job_spec(given: Mapping[str, Any], **rest: Any) -> JobSpec:
    """A job from checked options.

    Args:
        given: options.
        rest: fields of the job itself: ``kind``, ``code``, ``argv`` …
    """
    plain = {name: given[name] for name in ("env", "timeout", "fresh_exec", "rich") if name in given}
    if "output_limit" in given:
        plain["output_limit"], plain["at_output_limit"] = given["output_limit"]
    job = JobSpec(**{**plain, **rest})
    if len(job.code) > MAX_CODE:
        raise SpecError("code", f"its {len(job.code)} characters are more than {MAX_CODE}")
    if job.kind == "program" and (not job.argv or not job.argv[0] or any("\0" in word for word in job.argv)):
        raise SpecError("argv", "needs a program, and no word may hold a zero byte")
    return job


def run_job(
    container: ContainerSpec,
    job: JobSpec,
    *,
    sink: Sink | None = None,
    stdin: bytes | int | None = None,
    variables: Mapping[str, object] | None = None,
    can_ask: bool = False,
) -> Result:
    """Run a job in a container that is used for nothing else; see ``Container.run``."""
    require_linux()
    waiting = standbys.current()
    try:
        return waiting.take(container).run(job, sink=sink, stdin=stdin, variables=variables, can_ask=can_ask)
    finally:
        waiting.prepare(container)


def run_once(container: ContainerSpec, job: JobSpec, *, sink: Sink, stdin: int | None) -> Result:
    """Run a script or program in a container, for a process that will run no other: no standby follows."""
    require_linux()
    client.expect_no_cells()
    return Container(container, keep=False).start().run(job, sink=sink, stdin=stdin)


def run(
    code_or_argv: str | Sequence[str],
    *,
    input: str | bytes | None = None,  # noqa: A002 - the name that subprocess uses
    variables: Mapping[str, object] | None = None,
    outputs: Iterable[str] = (),
    mem: int | str | None = None,
    swap: int | str | None = None,
    cpus: float | str | None = None,
    pids: int | str | None = None,
    disk: int | str | None = None,
    timeout: float | str | None = None,
    output_limit: int | str | None = None,
    net: str | None = None,
    ns: str | Iterable[str] | None = None,
    bind: str | Bind | Iterable[str | Bind] | None = None,
    workdir: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    hostname: str | None = None,
    user: int | str | None = None,
    fresh_exec: bool = False,
    best_effort: bool = False,
    rich: str | None = None,
) -> Result:
    """Run Python code, or a program, in a fresh container, and wait for its end.  Any thread may call it.

    Args:
        code_or_argv: Python code, run as a notebook cell is; or a program and its arguments.
        input: its standard input; text goes in as UTF-8.
        variables: values to put into the code's namespace, by name.
        outputs: names of variables to take out, into ``Result.values``.
        mem: memory limit, bytes or such as ``"128M"``.
        swap: swap on top of it, 0 unless given.
        cpus: processors' worth of time, such as 0.5.
        pids: processes and threads at once.
        disk: bytes that may be written to files.
        timeout: seconds of wall clock, or such as ``"2m"``.
        output_limit: bytes of output, or such as ``"10M:drop"``.
        net: ``none`` (the default) or ``host``.
        ns: namespaces to make: ``all``, ``all-net``, ``uts,pid`` …
        bind: ``SRC[:DST][:ro|rw|cow]``, one or several.
        workdir: the working directory, the current one unless given; shown copy-on-write.
        env: environment variables to set.
        hostname: the host name inside.
        user: the uid that the code sees itself as, or ``root``.
        fresh_exec: start a new interpreter.
        best_effort: run with less isolation where the host cannot do all that is asked.
        rich: ``safe`` or ``trusted``; see ``Result.outputs``.

    Returns:
        How it went; a job that failed is a result too, see ``Result.check``.

    Raises:
        SpecError: an argument makes no sense; nothing was started.
        HostError: this host cannot enforce it; nothing was started.
        StartError: the container could not be built.
        ValueTransferError: a variable cannot go in or come out.
    """
    given = options.convert(
        {
            "mem": mem, "swap": swap, "cpus": cpus, "pids": pids, "disk": disk, "timeout": timeout,
            "output_limit": output_limit, "net": net, "ns": ns, "bind": bind,
            "workdir": None if workdir is None else os.fspath(workdir), "env": env, "hostname": hostname,
            "user": user, "fresh_exec": fresh_exec, "best_effort": best_effort, "rich": rich,
        }
    )  # fmt: skip
    if isinstance(code_or_argv, str):
        job = job_spec(given, kind="cell", code=code_or_argv, outputs=tuple(outputs))
    else:
        job = job_spec(given, kind="program", argv=tuple(os.fspath(word) for word in code_or_argv))
        if variables or tuple(outputs):
            raise SpecError("variables", "a program has none; give it text with input=")
    stdin = input.encode() if isinstance(input, str) else input
    return run_job(container_spec(given), job, stdin=stdin, variables=variables)
