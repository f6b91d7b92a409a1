"""The containers that are kept under a name, in this process: who is there, and what became of the others.

A name is taken from the moment on that its container begins to be built until it is stopped or has ended by
itself.  Names are this process's own: another notebook's ``web`` is another container.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from nsmagic import options
from nsmagic.errors import SpecError, StoppedError

if TYPE_CHECKING:
    from nsmagic.container import Container

_MOST_ENDED: Final = 100
_lock: Final = threading.Lock()
_there: Final[dict[str, Container]] = {}
_ended: Final[dict[str, str]] = {}


def live() -> dict[str, Container]:
    """Those that are there, by name, the oldest first; those of the process that we are a fork of are not."""
    with _lock:
        found = {name: each for name, each in _there.items() if each.owner == os.getpid()}
    return {name: each for name, each in found.items() if not each.ending()}


def claim(name: str, container: Container) -> None:
    """Take a name for a container.

    Raises:
        SpecError: another one has it.
    """
    live()  # one that has ended by itself has left its name
    with _lock:
        other = _there.get(name, container)
        if other is not container and other.owner == os.getpid():
            raise SpecError(
                "--name",
                f"{name} is the name of a container that is there; run in it with --join {name}, "
                f"or end it with %container stop {name}",
            )
        _there[name] = container
        _ended.pop(name, None)


def drop(name: str, container: Container, why: str) -> None:
    """Give a name back; ``why`` is told to whoever asks for it later."""
    with _lock:
        if _there.get(name) is container:
            del _there[name]
            _ended[name] = why
            while len(_ended) > _MOST_ENDED:
                _ended.pop(next(iter(_ended)))


def find(option: str, name: str) -> Container:
    """The container of this name.

    Args:
        option: what the user wrote the name behind.
        name: it.

    Raises:
        SpecError: there never was one.
        StoppedError: it has ended; the text says why.
    """
    there = live()
    if name in there:
        return there[name]
    with _lock:
        why = _ended.get(name)
    if why is not None:
        raise StoppedError(f"{name} is no longer there: {why}. Make a new one with --name {name}")
    known = f"there are {', '.join(there)}" if there else "none is kept; make one with --name"
    raise SpecError(option, f"no container has the name {name}; {known}{options.nearest(name, there)}")
