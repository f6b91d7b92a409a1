"""What a kernel was started with: from its spec's argv and the environment to plain data.

The argv is ``-f FILE [--output safe|widgets] [--cell-timeout TIME] [options of a container] [-- ARGV…]``;
behind ``--`` stands another kernel's argv.  Limits can also come from the environment, as ``NSMAGIC_MEM=2G``
or, from a gateway, ``KERNEL_MEM=2G``; what the argv says goes before that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from nsmagic import intake, options
from nsmagic.errors import SpecError
from nsmagic.kernel.specs import DEFAULTS, REFUSED
from nsmagic.launcher.frames import CONNECTION_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nsmagic.spec import ContainerSpec, JobSpec

Policy = Literal["safe", "widgets"]
KeepState = Literal["auto", "on", "off"]

_PREFIXES: Final = ("KERNEL_", "NSMAGIC_")
_FROM_ENVIRONMENT: Final = (
    "mem",
    "swap",
    "cpus",
    "pids",
    "disk",
    "net",
    "output_limit",
    "cell_timeout",
    "keep_state",
)


@dataclass(frozen=True)
class Settings:
    """What a kernel was started with.

    Attributes:
        connection_file: path of the outer one.
        spec: of the container.
        job: of the kernel in it.
        policy: what of its rich output may pass.
        cell_timeout: seconds that a cell may run, or None.
        keep_state: whether a snapshot is made before each cell; another kernel's program makes none.
        name: of the kernel, as messages say it.
        language: of its code.
        argv: another kernel's program, with ``{connection_file}`` in it; empty for an ipykernel.
        interrupts: whether an interrupt is a ``signal`` or a ``message``.
    """

    connection_file: str
    spec: ContainerSpec
    job: JobSpec
    policy: Policy = "safe"
    cell_timeout: float | None = None
    keep_state: KeepState = "off"
    name: str = "isolated-python"
    language: str = "python"
    argv: tuple[str, ...] = ()
    interrupts: Literal["signal", "message"] = "signal"


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
    """Read the words behind ``python -m nsmagic.kernel``.

    Raises:
        SpecError: one of them makes no sense.
    """
    given, wrapped = options.parse(arguments, options.KERNEL_SCOPES)
    connection_file = given.get("connection_file")
    if connection_file is None:
        raise SpecError("-f", "needs a connection file: Jupyter starts this program, and gives it one")
    if wrapped and list(arguments[-len(wrapped) - 1 : -len(wrapped)]) != ["--"]:
        raise SpecError(wrapped[0], "stands where no word is expected; another kernel's argv goes behind --")
    for name in REFUSED.keys() & given.keys():
        raise SpecError(options.BY_NAME[name].flag, REFUSED[name])
    merged = {**DEFAULTS, **_from_environment(os.environ if environment is None else environment), **given}
    argv = tuple(word.replace(connection_file, CONNECTION_FILE) for word in wrapped)
    if argv and not any(CONNECTION_FILE in word for word in argv):
        raise SpecError("--", "the kernel's argv has no {connection_file} in it")
    keep: KeepState = "off" if argv else merged.get("keep_state", "auto")
    if argv and given.get("keep_state", "off") != "off":
        raise SpecError("--keep-state", "is for our own Python kernels; a wrapped kernel knows nothing of it")
    return Settings(
        connection_file=connection_file,
        spec=replace(intake.container_spec(merged), snapshots=keep != "off"),
        job=intake.job_spec(merged, kind="kernel"),
        policy=given.get("output", "safe"),
        cell_timeout=merged.get("cell_timeout"),
        keep_state=keep,
        name=given.get("wrapped_name", "python3"),
        language=given.get("language", "python"),
        argv=argv,
        interrupts=given.get("interrupt", "signal"),
    )


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Limits that the environment sets; our own names go before a gateway's.

    Raises:
        SpecError: a value makes no sense; it is the variable that is named.
    """
    found: dict[str, Any] = {}
    for prefix in _PREFIXES:
        for name in _FROM_ENVIRONMENT:
            variable = prefix + name.upper()
            if text := environment.get(variable, ""):
                found[name] = options.BY_NAME[name].parse(variable, text)
    return found
