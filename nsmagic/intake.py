"""Options in, specs out: what a user gave becomes what a container and a job should be.

Here relative paths become absolute and what they name must be there; a wish that makes no sense ends here,
before anything is started.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from nsmagic import filesystem, options
from nsmagic.errors import SpecError
from nsmagic.spec import NETWORKS, Bind, ContainerSpec, JobSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from typing_extensions import TypedDict

    from nsmagic.ports import Publish

    class ContainerOptions(TypedDict, total=False):
        """The options of a container, as keyword arguments; see ``options.py`` for what they mean."""

        mem: int | str | None
        swap: int | str | None
        cpus: float | str | None
        pids: int | str | None
        disk: int | str | None
        net: str | None
        ns: str | Iterable[str] | None
        publish: str | Publish | Iterable[str | Publish] | None
        bind: str | Bind | Iterable[str | Bind] | None
        workdir: str | os.PathLike[str] | None
        hostname: str | None
        user: int | str | None
        best_effort: bool

    class JobOptions(TypedDict, total=False):
        """The options of a job, as keyword arguments; see ``options.py`` for what they mean."""

        timeout: float | str | None
        output_limit: int | str | None
        env: Mapping[str, str] | None
        fresh_exec: bool
        rich: str | None

    class RunOptions(ContainerOptions, JobOptions, total=False):
        """Both."""


MAX_CODE: Final = 32 << 20
"""Bytes of a job's code or standard input text that may go in at once."""


def container_spec(given: Mapping[str, Any]) -> ContainerSpec:
    """A spec from checked options: paths become absolute, and what they name must be there.

    Raises:
        SpecError: a path or a network that is not there, or options at odds with each other.
    """
    try:
        base = os.getcwd()  # noqa: PTH109 - as text
    except OSError as error:
        raise SpecError(
            "--workdir", f"the current folder is gone: {error.strerror}; change to one that is"
        ) from None
    workdir = filesystem.resolve_workdir("--workdir", given.get("workdir", base))
    binds = tuple(filesystem.resolve_bind("--bind", bind, base) for bind in given.get("bind", ()))
    namespaces = given.get("ns")
    net: str | None = given.get("net")
    if namespaces is None:
        # A host's network means no network namespace; whoever names namespaces says both himself.
        namespaces = ContainerSpec().namespaces - ({"net"} if net == "host" else set())
    if net is None:
        net = "none" if "net" in namespaces else "host"
    if net not in NETWORKS:
        from nsmagic import labs  # noqa: PLC0415 - few containers are on a lab

        labs.find("--net", net)
    plain = {
        name: given[name]
        for name in ("mem", "swap", "cpus", "pids", "disk", "publish", "hostname", "user", "best_effort")
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
    _check_text("code", job.code)
    for words in (job.argv, *job.env):
        _check_text("argv" if words is job.argv else "env", "".join(words))
    if job.kind == "program" and (not job.argv or not job.argv[0] or any("\0" in word for word in job.argv)):
        raise SpecError("argv", "needs a program, and no word may hold a zero byte")
    return job


def _check_text(option: str, text: str) -> None:
    """What goes in is UTF-8; half a surrogate pair has no such form."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SpecError(option, f"is not text: it holds half a surrogate pair at {error.start}") from None


def container_from(given: ContainerOptions) -> ContainerSpec:
    """A spec from keyword arguments.

    Raises:
        SpecError: one of them makes no sense.
    """
    return container_spec(options.convert(_paths(given), ("container",)))


def job_from(
    code_or_argv: str | Sequence[str], outputs: Iterable[str], given: JobOptions, *, variables: bool
) -> JobSpec:
    """A job from keyword arguments: Python code, or a program and its arguments.

    Raises:
        SpecError: one of them makes no sense.
    """
    checked = options.convert(dict(given), ("job",))
    if isinstance(code_or_argv, str):
        names = options.BY_NAME["outputs"].parse("outputs", outputs)
        return job_spec(checked, kind="cell", code=code_or_argv, outputs=names)
    if variables or tuple(outputs):
        raise SpecError("variables", "a program has none; give it text with input=")
    return job_spec(checked, kind="program", argv=tuple(os.fspath(word) for word in code_or_argv))


def split(given: RunOptions) -> tuple[ContainerOptions, JobOptions]:
    """Options of both kinds as those of the container and those of the job.

    Raises:
        SpecError: an option that neither has.
    """
    jobs = {option.name for option in options.of(("job",))}
    of_job = {name: value for name, value in given.items() if name in jobs}
    of_container = {name: value for name, value in given.items() if name not in jobs}
    options.convert(
        dict.fromkeys(of_container), options.API_SCOPES
    )  # an unknown name is told with the nearest of all
    return of_container, of_job  # type: ignore[return-value]


def _paths(given: ContainerOptions) -> dict[str, Any]:
    plain: dict[str, Any] = dict(given)
    if plain.get("workdir") is not None:
        plain["workdir"] = os.fspath(plain["workdir"])
    return plain
