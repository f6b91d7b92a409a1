r"""Run notebook code in containers: fresh namespaces and cgroups, copy-on-write files, no root needed.

>>> import nsmagic
>>> nsmagic.run("print('hi')", mem="128M").check().stdout
'hi\n'

Importing costs milliseconds and starts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsmagic.errors import (
    ExtractionError,
    HostError,
    LauncherError,
    NetworkError,
    NsmagicError,
    RunError,
    SpecError,
    StartError,
    StoppedError,
    ValueTransferError,
)

if TYPE_CHECKING:
    from nsmagic.api import run
    from nsmagic.container import Container
    from nsmagic.networks import Network
    from nsmagic.result import Isolation, Result, Usage

__version__ = "0.1.0"

__all__ = [
    "Container",
    "ExtractionError",
    "HostError",
    "Isolation",
    "LauncherError",
    "Network",
    "NetworkError",
    "NsmagicError",
    "Result",
    "RunError",
    "SpecError",
    "StartError",
    "StoppedError",
    "Usage",
    "ValueTransferError",
    "load_ipython_extension",
    "run",
    "unload_ipython_extension",
]

_LAZY = {
    "run": "nsmagic.api",
    "Container": "nsmagic.container",
    "Network": "nsmagic.networks",
    "Result": "nsmagic.result",
    "Isolation": "nsmagic.result",
    "Usage": "nsmagic.result",
}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for."""
    if name in _LAZY:
        from importlib import import_module  # noqa: PLC0415 - that is the point

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nsmagic' has no attribute {name!r}")


def load_ipython_extension(ipython: object) -> None:
    """``%load_ext nsmagic``: add the magics, and start the launcher in the background."""
    from nsmagic import course_magics, magics, network_magics, scratch_magics  # noqa: PLC0415 - only in IPython

    magics.load(ipython)
    scratch_magics.load(ipython)
    course_magics.load(ipython)
    network_magics.load(ipython)


def unload_ipython_extension(ipython: object) -> None:
    """``%unload_ext nsmagic``: end the launcher and all its containers."""
    from nsmagic import magics, network_magics, scratch_magics  # noqa: PLC0415 - only in IPython

    scratch_magics.unload()
    magics.unload(ipython)
    network_magics.unload()
