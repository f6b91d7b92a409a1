"""What a container changed: the list of what its copy-on-write folders hold.

A copy-on-write folder is an overlayfs mount; what the container wrote lies in the overlay's upper
folder, on a tmpfs that the host holds by a descriptor. This module reads such upper folders and compares
them with the host folders below. Everything in them is hostile and may change while it is read: so there
is no path string that the kernel would resolve through a link, no recursion, nothing but regular files
and folders is ever opened, and entries, depth, text and compared bytes are bounded.

It must not know how containers are built or mounted; it gets descriptors. Taking files out is the room
next door, ``extraction``, which walks with the same :class:`Descent`.

See the kernel's ``Documentation/filesystems/overlayfs.rst`` for whiteouts and opaque folders, open(2) for
``O_PATH``, proc_pid_fd(5) for opening a descriptor anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

Kind = Literal["added", "modified", "deleted"]
Type = Literal["file", "directory", "symlink", "other"]

# 0 where the system has no such flag: importing works everywhere, using it does not.
_PATH_ONLY: int = getattr(os, "O_PATH", 0)
_FOLDER: int = getattr(os, "O_DIRECTORY", 0)
_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT: int = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)

_ANCHOR = 16  # levels between descriptors that stay open during a descent
_READ_AND_SEARCH = 0o500
_COMPARE_FILE = 64 << 20  # bytes; an equal-sized file above this counts as modified, unread
_COMPARE_TOTAL = 256 << 20  # bytes for one list
_COMPARE_CHUNK = 1 << 18
_MAX_TEXT = 32 << 20  # characters in all paths of one list: 512 levels of 255 bytes are 130 kB a path
_MAX_NOTES = 100
_MAX_SHOWN = 160


@dataclass(frozen=True)
class Change:
    """One path that differs from the host's folder below.

    Attributes:
        kind: what happened to it.
        path: absolute, as the container sees it; bytes that are not UTF-8 as in ``os.fsdecode``.
        size: bytes; 0 for what is deleted and for directories.
        type: what it is; for what is deleted, what it was.
        changed: when, as its file system has it (st_ctime, which no program can set).
    """

    kind: Kind
    path: str
    size: int
    type: Type
    changed: float = field(default=0.0, compare=False, repr=False)


@dataclass(frozen=True)
class Layer:
    """One writable folder of a container.

    Attributes:
        target: where it is mounted in the container, absolute.
        lower: the host folder below it, or None for a private folder where everything is added.
        upper_fd: a descriptor of the folder that holds what was written (``O_PATH`` will do).
            It stays the caller's: it is neither moved nor closed.
    """

    target: str
    lower: str | None
    upper_fd: int


class ChangeList(Sequence[Change]):
    """Changes sorted by path.

    Attributes:
        truncated: empty, or why the list is incomplete, in words.
        notes: what was done on the way, such as a folder of mode 000 opened for reading; bounded.
    """

    def __init__(
        self, changes: Sequence[Change] = (), truncated: str = "", notes: Sequence[str] = ()
    ) -> None:
        self._changes = tuple(sorted(changes, key=lambda change: change.path))
        self.truncated = truncated
        self.notes = tuple(notes)

    def __len__(self) -> int:
        """Count the changes."""
        return len(self._changes)

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...
    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        """Return one change, or a tuple of them for a slice."""
        return self._changes[index]

    def __repr__(self) -> str:
        """Say how many there are and whether some are missing."""
        rest = f", truncated={self.truncated!r}" if self.truncated else ""
        return f"<ChangeList: {len(self)} changes{rest}>"


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
        self._flags = _FOLDER | _NO_WAIT | (os.O_RDONLY if read else _PATH_ONLY)
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
        handle = os.open(name, _PATH_ONLY | _FOLDER | no_link, dir_fd=parent)
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
                deeper = os.open(below.name, _PATH_ONLY | _FOLDER | _NO_LINK, dir_fd=fd)
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


class _BoundError(Exception):
    """A bound was reached: the list ends here."""


class _Survey:
    """What one list has found so far, and how much it may still do."""

    def __init__(self, max_entries: int) -> None:
        self.changes: list[Change] = []
        self.truncated = ""
        self.notes: list[str] = []
        self._max_entries = max_entries
        self._entries = 0
        self._text = 0
        self._compared = 0

    def entries(self, fd: int) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(fd) as found:
            for entry in found:
                self._entries += 1
                if self._entries > self._max_entries:
                    raise _BoundError(f"more than {self._max_entries} entries")
                try:
                    status = os.stat(entry.name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # the container removed it just now
                yield entry.name, status

    def add(self, kind: Kind, path: str, status: os.stat_result) -> None:
        self._text += len(path)
        if self._text > _MAX_TEXT:
            raise _BoundError(f"more than {_MAX_TEXT >> 20} MiB of names")
        file = _type(status)
        size = status.st_size if kind != "deleted" and file in {"file", "symlink"} else 0
        self.changes.append(Change(kind, path, size, file, status.st_ctime))

    def miss(self, reason: str) -> None:
        self.truncated = self.truncated or reason

    def may_compare(self, size: int) -> bool:
        if size > _COMPARE_FILE or self._compared + size > _COMPARE_TOTAL:
            return False
        self._compared += size
        return True


def _type(status: os.stat_result) -> Type:
    kinds: dict[int, Type] = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    return kinds.get(stat.S_IFMT(status.st_mode), "other")


class _LayerWalk:
    """Compares one upper folder with the one below."""

    def __init__(self, layer: Layer, survey: _Survey, skip: Collection[str], mounts: Collection[str]) -> None:
        self._survey = survey
        self._layer = layer
        self._skip = skip
        self._mounts = mounts
        self._paths = [layer.target.rstrip("/")]  # of the folders entered
        self._opaque = [False]
        self._lower: Descent | None = None

    def run(self, max_depth: int) -> None:
        self._max_depth = max_depth
        os.fstat(self._layer.upper_fd)  # a descriptor that is not open is the caller's mistake: say so
        with contextlib.ExitStack() as open_folders:
            try:
                self._upper = open_folders.enter_context(Descent(self_fd(self._layer.upper_fd), widen=True))
            except PermissionError as error:
                self._miss(error, os.fstat(self._layer.upper_fd))
                return
            self._note()
            entries = self._survey.entries(self._upper.fd)
            first = next(entries, None)
            if first is None:
                return  # mostly nothing was written: that costs one listing
            if self._layer.lower is not None:
                try:
                    self._lower = open_folders.enter_context(Descent(self._layer.lower, read=False))
                except OSError as error:
                    self._survey.miss(f"{shown(self._layer.lower)} cannot be read: {error.strerror}")
            traverse(self._judge_all(chain([first], entries)), self._enter, self._leave)

    def _enter(self, name: str) -> list[str] | None:
        below = self._below
        self._paths.append(f"{self._paths[-1]}/{name}")
        status = None
        try:
            status = lstat(name, self._upper.fd)
            self._upper.enter(name)
        except OSError as error:
            if error.errno != errno.EXDEV:  # what is mounted there is not part of the layer
                self._miss(error, status)
            self._paths.pop()
            return None
        if below is not None:
            with contextlib.suppress(OSError):  # none there, or a mount point: an overlay does not cross it
                below.enter(name)
        self._opaque.append(self._opaque[-1] or (self._below is not None and is_opaque(self._upper.fd)))
        self._note()
        try:
            return self._judge_all(self._survey.entries(self._upper.fd))
        except OSError as error:
            self._miss(error, status)
            return []

    def _leave(self) -> None:
        below = self._below
        if below is not None:
            below.leave()
        self._upper.leave()
        self._paths.pop()
        self._opaque.pop()

    @property
    def _below(self) -> Descent | None:
        """The lower folder at the same path, where there is one."""
        return self._lower if self._lower is not None and self._lower.depth == len(self._paths) - 1 else None

    def _miss(self, error: OSError, status: os.stat_result | None) -> None:
        path = shown(self._paths[-1])
        if isinstance(error, PermissionError) and status is not None:
            self._survey.miss(f"a folder of mode {stat.S_IMODE(status.st_mode):03o}: {path}")
        else:
            self._survey.miss(f"{error.strerror}: {path}")

    def _note(self) -> None:
        mode = self._upper.widened
        if mode is not None and len(self._survey.notes) < _MAX_NOTES:
            path = shown(self._paths[-1])
            self._survey.notes.append(f"a folder of mode {mode:03o} was opened for reading: {path}")

    def _judge_all(self, entries: Iterable[tuple[str, os.stat_result]]) -> list[str]:
        """Add what changed in the folder it stands in; return the folders to enter."""
        seen = set()
        folders = []
        for name, status in entries:
            seen.add(name)
            path = f"{self._paths[-1]}/{name}"
            if path in self._skip or status.st_dev != self._upper.device:
                continue
            if path not in self._mounts:
                self._judge(name, path, status)
            if stat.S_ISDIR(status.st_mode):
                folders.append(name)
        if folders and len(self._paths) >= self._max_depth:
            self._survey.miss(f"more than {self._max_depth} levels of folders: {shown(self._paths[-1])}")
            folders = []
        below = self._below
        if self._opaque[-1] and below is not None:
            fd = os.open(".", os.O_RDONLY | _FOLDER, dir_fd=below.fd)
            try:
                for name, status in self._survey.entries(fd):
                    path = f"{self._paths[-1]}/{name}"
                    if name not in seen and path not in self._skip:
                        self._survey.add("deleted", path, status)
            finally:
                os.close(fd)
        return folders

    def _judge(self, name: str, path: str, status: os.stat_result) -> None:
        fd = self._upper.fd
        below = self._below
        old = None if below is None else lstat(name, below.fd)
        if self._layer.lower is not None and is_whiteout(status, name, fd):
            if old is not None:
                self._survey.add("deleted", path, old)
        elif old is None or below is None:
            self._survey.add("added", path, status)
        elif not self._same(name, status, old, below):
            self._survey.add("modified", path, status)

    def _same(self, name: str, new: os.stat_result, old: os.stat_result, below: Descent) -> bool:
        """Tell a copy-up that changed nothing (opened for writing, touched) from a change."""
        if stat.S_ISDIR(new.st_mode) and stat.S_ISDIR(old.st_mode) and old.st_dev != below.device:
            return True  # a host mount's root: the overlay shows the folder under it, which we cannot see
        if new.st_mode != old.st_mode:
            return False
        try:
            if stat.S_ISLNK(new.st_mode):
                return os.readlink(name, dir_fd=self._upper.fd) == os.readlink(name, dir_fd=below.fd)
            if stat.S_ISREG(new.st_mode):
                return (
                    new.st_size == old.st_size
                    and self._survey.may_compare(new.st_size)
                    and _same_content(name, self._upper.fd, below.fd, new.st_size)
                )
        except OSError:
            return False  # cannot tell: better one line too many
        return new.st_rdev == old.st_rdev


def _same_content(name: str, fd: int, below_fd: int, size: int) -> bool:
    with open(open_regular(name, fd), "rb", 0) as new, open(open_regular(name, below_fd), "rb", 0) as old:
        while size > 0:  # a file that grows meanwhile is read no further
            chunk = new.read(min(size, _COMPARE_CHUNK))
            if not chunk or chunk != old.read(len(chunk)):
                return False
            size -= len(chunk)
    return True


def list_changes(
    layers: Sequence[Layer], *, ignore: Collection[str] = (), max_entries: int = 100_000, max_depth: int = 512
) -> ChangeList:
    """List what a container's copy-on-write folders hold, running or dead.

    Added: nothing is at that path in the folder below. Modified: something is, and kind, mode, link target
    or content differ; a folder that only holds changes is not listed itself. Deleted: the path is hidden;
    a deleted folder is one change, without what was in it. An added folder is listed, and all in it.
    A file above 64 MiB (256 MiB in all) of unchanged size counts as modified without being compared.

    Args:
        layers: the folders; what is mounted within another one's target is left to its own layer.
        ignore: paths in the container to leave out, with everything below them.
        max_entries: how many directory entries are looked at, whether changed or not.
        max_depth: how many levels below each target are looked at.

    Returns:
        The changes, and in ``truncated`` why some may be missing.

    Raises:
        OSError: a descriptor in `layers` is not open, or ``/proc`` is not mounted.
    """
    survey = _Survey(max_entries)
    targets = {layer.target.rstrip("/") for layer in layers}
    mounts = {target[:i] for target in targets for i, letter in enumerate(target) if i and letter == "/"}
    ignored = {path.rstrip("/") for path in ignore}
    for layer in layers:
        skip = ignored | targets - {layer.target.rstrip("/")}
        try:
            _LayerWalk(layer, survey, skip, mounts).run(max_depth)
        except _BoundError as bound:
            survey.miss(str(bound))
            break
    return ChangeList(survey.changes, survey.truncated, survey.notes)
