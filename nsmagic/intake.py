"""Options in, specs out: what a user gave becomes what a container and a job should be.

Here relative paths become absolute and what they name must be there; a wish that makes no sense ends here,
before anything is started.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from nsmagic import filesystem, options
from nsmagic.errors import SpecError
from nsmagic.spec import NETWORKS, Bind, ContainerSpec, JobSpec, Join, hostname_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from typing_extensions import TypedDict

    from nsmagic.images import Progress
    from nsmagic.ports import Publish
    from nsmagic.spec import Image

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
        rootfs: str | os.PathLike[str] | None
        image: str | os.PathLike[str] | None
        hostname: str | None
        user: int | str | None
        best_effort: bool
        name: str | None
        join: str | Join | None

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


def container_spec(given: Mapping[str, Any], progress: Progress | None = None) -> ContainerSpec:
    """A spec from checked options: paths become absolute, and what they name must be there.

    An image is unpacked here, if that was not done before.

    Args:
        given: the options.
        progress: told what takes long; see ``images.prepare``.

    Raises:
        SpecError: a path or a network that is not there, or options at odds with each other.
        HostError: an image cannot be kept here.
    """
    join: Join | None = given.get("join")
    if join is not None and join.kinds is None:
        return _whole(join, given)
    joined = join.kinds if join is not None and join.kinds else frozenset()
    if "mount" in joined and "workdir" in given:
        raise SpecError(
            "--workdir", "is that of the container whose mount namespace --join shares; leave it out"
        )
    try:
        base = os.getcwd()  # noqa: PTH109 - as text
    except OSError as error:
        raise SpecError(
            "--workdir", f"the current folder is gone: {error.strerror}; change to one that is"
        ) from None
    workdir = "" if "mount" in joined else filesystem.resolve_workdir("--workdir", given.get("workdir", base))
    image, user = None, given.get("user")
    if "image" in given or "rootfs" in given:
        from nsmagic.plan import require_linux  # noqa: PLC0415 - most runs need none of it

        require_linux()
        from nsmagic import images  # noqa: PLC0415 - likewise, and it is for Linux only

        image, image_user = images.prepare(given, base, progress)
        user = image_user if user is None else user
        image, workdir = _start_of(image, workdir, chosen="workdir" in given)
    binds = tuple(filesystem.resolve_bind("--bind", bind, base) for bind in given.get("bind", ()))
    namespaces = given.get("ns")
    net: str | None = given.get("net")
    if namespaces is None:
        # A host's network means no network namespace; whoever names namespaces says both himself.
        namespaces = ContainerSpec().namespaces - ({"net"} if net == "host" else set()) - joined
    if net is None:
        net = "none" if "net" in namespaces | joined else "host"
    if net not in NETWORKS:
        from nsmagic import labs  # noqa: PLC0415 - few containers are on a lab

        labs.find("--net", net)
    plain = {
        name: given[name]
        for name in (
            "mem",
            "swap",
            "cpus",
            "pids",
            "disk",
            "publish",
            "hostname",
            "best_effort",
            "name",
            "join",
        )
        if name in given
    }
    if "uts" in namespaces:
        plain.setdefault("hostname", hostname_of(given.get("name", "")))
    return ContainerSpec(
        namespaces=namespaces, net=net, binds=binds, workdir=workdir, user=user, image=image, **plain
    )


def _start_of(image: Image, workdir: str, *, chosen: bool) -> tuple[Image, str]:
    """Where a job in an image starts, and which folder of the host is shown there.

    A working directory that was chosen goes before the image's own; the current folder is shown, but a job
    starts where the image wants to.
    """
    if chosen:
        return replace(image, workdir=""), workdir
    if filesystem.is_programs(workdir):
        note = f"the current folder {workdir} would hide the image's own, so it is not shown; -w shows it"
        return replace(image, notes=(*image.notes, note)), ""
    return image, workdir


def _whole(join: Join, given: Mapping[str, Any]) -> ContainerSpec:
    """A container that is joined as it is: all that concerns it was said when it was made."""
    for option in options.of(("container", "life")):
        if option.name in given and option.name not in {"join", "name"}:
            raise SpecError(
                option.flag,
                f"was settled when {join.name} was made; leave it out, or make a new container that shares "
                f"only some of its namespaces, as in --join {join.name}:net",
            )
    return ContainerSpec(join=join, name=given.get("name", ""))


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


def fit(container: ContainerSpec, job: JobSpec) -> ContainerSpec:
    """A spec made for a job: an image is shown as it is, unless it may be the owner's Python that runs in it.

    Raises:
        SpecError: the job cannot run in it.
    """
    if container.image is None:
        return container
    if job.fresh_exec and job.kind != "program":
        raise SpecError("--fresh-exec", "starts this Python anew, and an image has programs of its own")
    return replace(container, python=job.kind != "program" or bool(container.name))


def command_of(container: ContainerSpec) -> tuple[str, ...]:
    """What an image runs where nobody names a program.

    Raises:
        SpecError: there is no image, or it says nothing.
    """
    if container.image is None:
        raise SpecError("argv", "needs a program; only an image may name its own")
    if not container.image.command:
        raise SpecError("argv", f"needs a program: {container.image.name} names none of its own")
    return container.image.command


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
    return container_spec(options.convert(_paths(given), ("container", "life")))


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
