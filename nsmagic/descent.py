"""Going down into folders that hostile hands have filled, and may be filling still.

There is no path string that the kernel would resolve through a link, no recursion, nothing but regular files
and folders is ever opened.  What overlayfs marks in its folders is read here too.

See the kernel's ``Documentation/filesystems/overlayfs.rst`` for whiteouts and opaque folders, open(2) for
``O_PATH``, proc_pid_fd(5) for opening a descriptor anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

# 0 where the system has no such flag: importing works everywhere, using it does not.
_PATH_ONLY: int = getattr(os, "O_PATH", 0)
FOLDER: int = getattr(os, "O_DIRECTORY", 0)
_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT: int = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)

_ANCHOR = 16  # levels between descriptors that stay open during a descent
_READ_AND_SEARCH = 0o500
_MAX_SHOWN = 160


def shown(path: str) -> str:
    """Return a hostile name as one short printable line, for messages."""
    if len(path) > _MAX_SHOWN:
        path = path[: _MAX_SHOWN // 2] + "…" + path[-_MAX_SHOWN // 2 :]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


def self_fd(fd: int) -> str:
    """Return the path that opens anew what `fd` refers to, whatever its name is by now."""
    return f"/proc/self/fd/{fd}"


@dataclass
class _Level:
    name: str
    fd: int  # -1: closed to save descriptors, can be opened again
    device: int
    inode: int
    mode: int | None  # the mode to put back, where it was widened


class Descent:
    """A way down a hostile folder tree, one descriptor after the other.

    Goes down by single names without following links and up by its own memory, never by ``..``: a folder
    that the container moves meanwhile cannot lead the walk elsewhere. Stays on one mount. Holds one
    descriptor for every 16 levels and the last 16, so that depth does not exhaust them.

    Args:
        root: where it starts; a trusted path (a final link is followed), often ``/proc/self/fd/N``.
        widen: give a folder that its owner may not read or search ``u+rx`` until it is left. Only what
            an ordinary user owns is ever affected: root needs no permission.
        read: open folders for listing; False where looking up names is enough.

    Raises:
        OSError: from every method, as the kernel answers; ``EXDEV`` for a mount point, ``ESTALE`` where the
            container moved a folder away.
    """

    def __init__(self, root: str, *, widen: bool = False, read: bool = True) -> None:
        self._widen = widen
        self._flags = FOLDER | _NO_WAIT | (os.O_RDONLY if read else _PATH_ONLY)
        fd, mode = self._open(root, None, 0)
        status = os.fstat(fd)
        self.device = status.st_dev
        self._levels = [_Level("", fd, status.st_dev, status.st_ino, mode)]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave every folder, putting modes back."""
        while self._levels:
            self.leave()

    @property
    def depth(self) -> int:
        """How many levels below the root it stands."""
        return len(self._levels) - 1

    @property
    def widened(self) -> int | None:
        """The mode that the folder it stands in had before it was widened, or None."""
        return self._levels[-1].mode

    @property
    def fd(self) -> int:
        """A descriptor of the folder it stands in; listable until a folder below has been entered."""
        return self._reach(len(self._levels) - 1)

    def enter(self, name: str) -> None:
        """Go down into the folder `name`."""
        if name in {"", ".", ".."} or "/" in name:
            raise OSError(errno.EINVAL, "not a plain name", name)
        fd, mode = self._open(name, self.fd, _NO_LINK)
        status = os.fstat(fd)
        self._levels.append(_Level(name, fd, status.st_dev, status.st_ino, mode))
        # A differing device alone may be a btrfs subvolume, which an overlay does show.
        if status.st_dev != self.device and _mount_id(fd) != _mount_id(self._levels[0].fd):
            self.leave()
            raise OSError(errno.EXDEV, "another file system is mounted there", name)
        old = len(self._levels) - 1 - _ANCHOR
        if old % _ANCHOR and old > 0:
            self._shut(self._levels[old])

    def leave(self) -> None:
        """Go back up."""
        level = self._levels[-1]
        if level.mode is not None:
            with contextlib.suppress(OSError):
                fd = self.fd
                # Not if the container set another mode meanwhile.
                if stat.S_IMODE(os.fstat(fd).st_mode) == level.mode | _READ_AND_SEARCH:
                    Path(self_fd(fd)).chmod(level.mode)
        self._levels.pop()
        self._shut(level)

    def _open(self, name: str, parent: int | None, no_link: int) -> tuple[int, int | None]:
        try:
            fd = os.open(name, self._flags | no_link, dir_fd=parent)
            try:
                os.stat(".", dir_fd=fd)  # asks for the right to search
            except OSError:
                os.close(fd)
                raise
        except PermissionError:
            if not self._widen:
                raise
        else:
            return fd, None
        # O_PATH needs no permission on the folder itself, and O_DIRECTORY proves what it is.
        handle = os.open(name, _PATH_ONLY | FOLDER | no_link, dir_fd=parent)
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            Path(self_fd(handle)).chmod(mode | _READ_AND_SEARCH)
            return os.open(self_fd(handle), self._flags), mode
        finally:
            os.close(handle)

    def _reach(self, index: int) -> int:
        level = self._levels[index]
        if level.fd >= 0:
            return level.fd
        start = max(i for i in range(index) if self._levels[i].fd >= 0)
        fd = os.dup(self._levels[start].fd)
        for below in self._levels[start + 1 : index + 1]:
            try:
                deeper = os.open(below.name, _PATH_ONLY | FOLDER | _NO_LINK, dir_fd=fd)
            finally:
                os.close(fd)
            fd = deeper
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (level.device, level.inode):
            os.close(fd)
            raise OSError(errno.ESTALE, "the folder was moved while it was read", level.name)
        level.fd = fd
        return fd

    @staticmethod
    def _shut(level: _Level) -> None:
        if level.fd >= 0:
            os.close(level.fd)
            level.fd = -1


def _mount_id(fd: int) -> str:
    with Path(f"/proc/self/fdinfo/{fd}").open(encoding="ascii") as info:
        return next((line for line in info if line.startswith("mnt_id:")), "")


def traverse(first: list[str], enter: Callable[[str], list[str] | None], leave: Callable[[], None]) -> None:
    """Visit a tree without recursion.

    Args:
        first: the folders in the root.
        enter: goes into a folder and returns the folders in it, or None if it stayed outside.
        leave: goes back up; called once for every folder entered.
    """
    stack = [first]
    while stack:
        if stack[-1]:
            names = enter(stack[-1].pop())
            if names is not None:
                stack.append(names)
        else:
            stack.pop()
            if stack:
                leave()


def lstat(name: str, dir_fd: int) -> os.stat_result | None:
    """Return what `name` is, without following a link; None if it is not there or not to be seen."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return None


def open_regular(name: str, dir_fd: int) -> int:
    """Open a regular file for reading; never a link, never waiting.

    It is looked at before it is opened: opening a FIFO wakes its writer, opening a device may do anything.

    Raises:
        OSError: ``EINVAL`` if it is not a regular file, ``EAGAIN`` while the container holds a lease on it
            (fcntl(2), F_SETLEASE: a plain open would wait for 45 seconds), or as open(2) says.
    """
    handle = os.open(name, _PATH_ONLY | _NO_LINK, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        return os.open(self_fd(handle), os.O_RDONLY | _NO_WAIT)
    finally:
        os.close(handle)


def is_whiteout(status: os.stat_result, name: str, dir_fd: int) -> bool:
    """Tell whether an entry of an overlay's upper folder stands for a deletion."""
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:  # the other form, Linux 6.7
        return _overlay_mark(f"{self_fd(dir_fd)}/{name}", "whiteout") is not None
    return False


def is_opaque(fd: int) -> bool:
    """Tell whether a folder of an overlay's upper folder hides the one below it."""
    return _overlay_mark(self_fd(fd) + "/.", "opaque") == b"y"


def _overlay_mark(path: str, mark: str) -> bytes | None:
    # The container cannot forge it: the overlay hides its own names or escapes them (Linux 6.7).
    try:
        return os.getxattr(path, f"user.overlay.{mark}", follow_symlinks=False)
    except OSError:
        return None


def remove_tree(shelf: int, stage: str) -> None:
    """Remove the folder `stage` of the folder `shelf`, however deep; what cannot be removed stays."""
    with contextlib.suppress(OSError), Descent(self_fd(shelf)) as descent:
        names: list[str] = []

        def enter(name: str) -> list[str]:
            descent.enter(name)
            names.append(name)
            with os.scandir(descent.fd) as entries:
                found = list(entries)
            for entry in found:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=descent.fd)
            return [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]

        def leave() -> None:
            descent.leave()
            os.rmdir(names.pop(), dir_fd=descent.fd)

        traverse([stage], enter, leave)
