"""What lies below a copy-on-write folder: one folder of the host, or the layers of an image together.

To say what a container changed, one must know what was there before.  This goes down all layers at once, by
the rules of overlayfs: the uppermost name counts, folders are merged, a whiteout hides a name in all layers
below it, an opaque folder hides what the same folder holds further down.

See the kernel's ``Documentation/filesystems/overlayfs.rst``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from nsmagic.descent import FOLDER, Descent, is_opaque, is_whiteout, lstat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self


class Found(NamedTuple):
    """One name.

    Attributes:
        status: what it is.
        fd: the folder that it lies in; valid until the next step up or down.
        device: of the layer that it lies in.
    """

    status: os.stat_result
    fd: int
    device: int


class Below:
    """A way down several layers at once.

    Args:
        folders: the layers' paths, the topmost first; trusted.

    Raises:
        OSError: one of them cannot be opened.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._walks: list[Descent] = []
        self._active: list[list[Descent]] = []
        with contextlib.ExitStack() as opened:
            self._walks = [opened.enter_context(Descent(folder, read=False)) for folder in folders]
            self._opened = opened.pop_all()
        self._active.append(self._walks)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave every folder."""
        self._opened.close()

    @property
    def depth(self) -> int:
        """How many levels below the top it stands."""
        return len(self._active) - 1

    def look(self, name: str) -> Found | None:
        """What `name` is in the folder it stands in; None if it is not there."""
        for walk in self._active[-1]:
            status = lstat(name, walk.fd)
            if status is not None:
                hidden = is_whiteout(status, name, walk.fd)
                return None if hidden else Found(status, walk.fd, walk.device)
        return None

    def enter(self, name: str) -> None:
        """Go down into the folder `name`.

        Raises:
            OSError: there is no such folder, or it cannot be entered.
        """
        entered: list[Descent] = []
        try:
            for walk in self._active[-1]:
                status = lstat(name, walk.fd)
                if status is None:
                    continue
                if not stat.S_ISDIR(status.st_mode):  # a whiteout too: it hides what is further down
                    break
                walk.enter(name)
                entered.append(walk)
                if is_opaque(walk.fd):
                    break
            if not entered:
                raise OSError(errno.ENOENT, "no such folder", name)
        except OSError:
            for walk in entered:
                walk.leave()
            raise
        self._active.append(entered)

    def leave(self) -> None:
        """Go back up."""
        for walk in self._active.pop():
            walk.leave()

    def entries(
        self, read: Callable[[int], Iterable[tuple[str, os.stat_result]]]
    ) -> Iterator[tuple[str, os.stat_result]]:
        """Everything in the folder it stands in, by a reader of one folder."""
        seen: set[str] = set()
        for walk in self._active[-1]:
            fd = os.open(".", os.O_RDONLY | FOLDER, dir_fd=walk.fd)
            try:
                for name, status in read(fd):
                    if name not in seen and not is_whiteout(status, name, fd):
                        yield name, status
                    seen.add(name)
            finally:
                os.close(fd)
