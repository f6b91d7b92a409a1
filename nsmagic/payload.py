"""What a payload is told, and what it gives back: its job, its environment, values in and out."""

from __future__ import annotations

import os
import pickle
import sys
from typing import TYPE_CHECKING, Any, Final

from nsmagic import firewall, values
from nsmagic.errors import SpecError, ValueTransferError
from nsmagic.launcher import frames

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsmagic.handle import Handle
    from nsmagic.result import Result
    from nsmagic.spec import JobSpec

_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_IMAGE_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT_ENVIRONMENT: Final = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")


def message(
    handle: Handle,
    job: JobSpec,
    variables: Mapping[str, object],
    stdin: bytes | int | None,
    *,
    can_ask: bool,
) -> frames.Job:
    """The frame that tells the runner its job.

    Args:
        handle: of the container that it runs in.
        job: what to run.
        variables: values for a cell's namespace.
        stdin: as ``Container.run_job`` takes it.
        can_ask: whether somebody answers ``input()``.

    Raises:
        SpecError: a descriptor for one of several jobs.
        ValueTransferError: a variable cannot be put in.
    """
    if handle.keep and isinstance(stdin, int):
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
        env=environment(handle, job),
        fresh=job.fresh_exec,
        outputs=list(job.outputs),
        execution_count=job.execution_count,
        variables=data,
        pickled=pickled,
        ask=can_ask,
        keep=handle.keep,
        stdin=stdin if handle.keep and isinstance(stdin, bytes) else b"",
    )


def environment(handle: Handle, job: JobSpec) -> dict[str, str]:
    """The environment of a job: little of the owner's, since there may be secrets in it."""
    plan, image = handle.plan, handle.image
    folder = os.path.dirname(sys.executable)  # noqa: PTH120 - as text
    found = {
        "PATH": _IMAGE_PATH if image else f"{folder}:{_PATH}",
        "HOME": handle.home(),
        "USER": plan.identity.name,
        "LOGNAME": plan.identity.name,
        "LANG": "C.UTF-8",
        **{name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
        "TERM": "dumb",
        "PWD": plan.root.workdir,
        **dict(image.env if image else ()),
    }
    if plan.view is not None:
        found["TMPDIR"] = plan.view.private
    if job.kind in {"cell", "kernel"}:
        found["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    return {**found, **dict(job.env)}


def taken_out(job: JobSpec, done: frames.Done, result: Result) -> dict[str, Any]:
    """The values that a cell gave back.

    Raises:
        ValueTransferError: one did not come out, or is not what its bytes claim to be.
    """
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
