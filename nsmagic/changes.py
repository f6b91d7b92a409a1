"""What a container changed: the list of what its copy-on-write folders hold.

A copy-on-write folder is an overlayfs mount; what the container wrote lies in the overlay's upper
folder, on a tmpfs that the host holds by a descriptor. This module reads such upper folders and compares
them with the host folders below, be it one or the layers of an image. Everything in them is hostile and may
change while it is read: so it is walked as ``descent`` does it, and entries, depth, text and compared bytes
are bounded.

It must not know how containers are built or mounted; it gets descriptors. Taking files out is the room
next door, ``extraction``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal, overload

from nsmagic.below import Below
from nsmagic.descent import Descent, is_opaque, is_whiteout, lstat, open_regular, self_fd, shown, traverse

if TYPE_CHECKING:
    from nsmagic.below import Found

Kind = Literal["added", "modified", "deleted"]
Type = Literal["file", "directory", "symlink", "other"]

_COMPARE_FILE = 64 << 20  # bytes; an equal-sized file above this counts as modified, unread
_COMPARE_TOTAL = 256 << 20  # bytes for one list
_COMPARE_CHUNK = 1 << 18
_MAX_TEXT = 32 << 20  # characters in all paths of one list: 512 levels of 255 bytes are 130 kB a path
_MAX_NOTES = 100


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
        lower: the host folder below it, or several, the topmost first; None for a private folder where
            everything is added.
        upper_fd: a descriptor of the folder that holds what was written (``O_PATH`` will do).
            It stays the caller's: it is neither moved nor closed.
    """

    target: str
    lower: str | tuple[str, ...] | None
    upper_fd: int

    @property
    def lowers(self) -> tuple[str, ...]:
        """The host folders below it; none for a private one."""
        return (self.lower,) if isinstance(self.lower, str) else self.lower or ()


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
        self._lower: Below | None = None

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
                    self._lower = open_folders.enter_context(Below(self._layer.lowers))
                except OSError as error:
                    self._survey.miss(f"{shown(self._layer.lowers[0])} cannot be read: {error.strerror}")
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
    def _below(self) -> Below | None:
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
            for name, status in below.entries(self._survey.entries):
                path = f"{self._paths[-1]}/{name}"
                if name not in seen and path not in self._skip:
                    self._survey.add("deleted", path, status)
        return folders

    def _judge(self, name: str, path: str, status: os.stat_result) -> None:
        fd = self._upper.fd
        below = self._below
        old = None if below is None else below.look(name)
        if self._layer.lower is not None and is_whiteout(status, name, fd):
            if old is not None:
                self._survey.add("deleted", path, old.status)
        elif old is None:
            self._survey.add("added", path, status)
        elif not self._same(name, status, old):
            self._survey.add("modified", path, status)

    def _same(self, name: str, new: os.stat_result, found: Found) -> bool:
        """Tell a copy-up that changed nothing (opened for writing, touched) from a change."""
        old = found.status
        if stat.S_ISDIR(new.st_mode) and stat.S_ISDIR(old.st_mode) and old.st_dev != found.device:
            return True  # a host mount's root: the overlay shows the folder under it, which we cannot see
        if new.st_mode != old.st_mode:
            return False
        try:
            if stat.S_ISLNK(new.st_mode):
                return os.readlink(name, dir_fd=self._upper.fd) == os.readlink(name, dir_fd=found.fd)
            if stat.S_ISREG(new.st_mode):
                return (
                    new.st_size == old.st_size
                    and self._survey.may_compare(new.st_size)
                    and _same_content(name, self._upper.fd, found.fd, new.st_size)
                )
        except OSError:
            return False  # cannot tell: better one line too many
        return new.st_rdev == old.st_rdev


def _same_content(name: str, fd: int, below_fd: int, size: int) -> bool:
    with (
        os.fdopen(open_regular(name, fd), "rb", 0) as new,
        os.fdopen(open_regular(name, below_fd), "rb", 0) as old,
    ):
        while size > 0:  # a file that grows meanwhile is read no further
            chunk = new.read(min(size, _COMPARE_CHUNK))
            if not chunk or chunk != old.read(len(chunk)):
                return False
            size -= len(chunk)
    return True


def list_changes(
    layers: Sequence[Layer],
    *,
    ignore: Collection[str] = (),
    passed: Collection[str] = (),
    max_entries: int = 100_000,
    max_depth: int = 512,
) -> ChangeList:
    """List what a container's copy-on-write folders hold, running or dead.

    Added: nothing is at that path in the folder below. Modified: something is, and kind, mode, link target
    or content differ; a folder that only holds changes is not listed itself. Deleted: the path is hidden;
    a deleted folder is one change, without what was in it. An added folder is listed, and all in it.
    A file above 64 MiB (256 MiB in all) of unchanged size counts as modified without being compared.

    Args:
        layers: the folders; what is mounted within another one's target is left to its own layer.
        ignore: paths in the container to leave out, with everything below them.
        passed: folders in the container that are no change themselves; what is below them may be.
        max_entries: how many directory entries are looked at, whether changed or not.
        max_depth: how many levels below each target are looked at.

    Returns:
        The changes, and in ``truncated`` why some may be missing.

    Raises:
        OSError: a descriptor in `layers` is not open, or ``/proc`` is not mounted.
    """
    survey = _Survey(max_entries)
    targets = {layer.target.rstrip("/") for layer in layers}
    ignored = {path.rstrip("/") for path in ignore}
    # Whoever mounted there made the folders on the way, too.
    mounts = {
        path[:i] for path in targets | ignored | set(passed) for i, at in enumerate(path) if i and at == "/"
    }
    mounts |= {path.rstrip("/") for path in passed}
    for layer in layers:
        skip = ignored | targets - {layer.target.rstrip("/")}
        try:
            _LayerWalk(layer, survey, skip, mounts).run(max_depth)
        except _BoundError as bound:
            survey.miss(str(bound))
            break
    return ChangeList(survey.changes, survey.truncated, survey.notes)
